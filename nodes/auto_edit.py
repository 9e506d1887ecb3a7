from __future__ import annotations

from functools import partial

from comfy_api.latest import io, ui

from ..baret_ops.edits.auto_edit import CANDIDATES, AutoEdit, auto_edit, reports
from ..host import conditioning, run, wires
from ..host.remarks import remark
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, run_edit

_DEFAULT_EFFORT = 4
_PROCESSES = 3  # the edit with either text, and the reconstruction


class BaretAutoEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretAutoEdit",
            display_name="Auto Edit",
            category=CATEGORY,
            description="Edits by a text that says only what is in the picture and what is new, with no dial to set: "
            "tries a few edits, those that change least first, and takes the first that the model judges to obey.",
            search_aliases=[*SEARCH_ALIASES, "automatic"],
            inputs=[
                *inputs.edit_sockets(),
                inputs.seed("Which fresh noise the candidates try. Another seed is another try."),
                io.Int.Input(
                    "effort",
                    default=_DEFAULT_EFFORT,
                    min=1,
                    max=len(CANDIDATES),
                    tooltip="How many candidates are tried at most, those that change least first; the first that "
                    "obeys is taken. Higher finds an edit that obeys more often, and may take longer. Useful: 2 to 4.",
                ),
                inputs.share(
                    "keep",
                    0.5,
                    "How soon a candidate counts as obeying: higher keeps more of the picture, lower follows the text "
                    "more. Useful: 0.3 to 0.7.",
                    advanced=True,
                ),
                inputs.edit_cfg("Use the value of TTIS Inversion."),
                inputs.mask(),
            ],
            outputs=[
                inputs.edit_output(),
                inputs.mask_output("Where the picture was let change (white)."),
                io.Latent.Output(
                    "candidates",
                    tooltip="All candidates as they were judged, one image's after another's; "
                    "decode them with the VAE.",
                ),
                io.String.Output(
                    "report", tooltip="What was chosen and why, a line for each picture; and whether none obeyed."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model, trajectory, embeddings, seed, effort=_DEFAULT_EFFORT, keep=0.5, cfg=7.5, mask=None
    ) -> io.NodeOutput:
        edit = partial(
            auto_edit,
            embeddings=embeddings,
            guidance_scale=cfg,
            effort=effort,
            keep=keep,
            seed=seed,
            regroup=not conditioning.carries_rows(embeddings.positive_options),
        )
        if mask is not None and not mask.any():
            mask = None  # Load Image gives a black one where nothing is painted
        progress = run.progress(model, reports(effort, trajectory.schedule.steps))
        found = run_edit(model, trajectory, embeddings, mask, _PROCESSES, edit, on_step=progress)
        tried = found.candidates.transpose(0, 1).flatten(0, 1)
        report = found.report()
        remark(_in_short(found))
        return io.NodeOutput(
            wires.latent_out(trajectory.family, found.edit),
            wires.mask_out(found.mask),
            wires.latent_out(trajectory.family, tried),
            report,
            ui=ui.PreviewText(report),
        )


def _in_short(found: AutoEdit) -> str:
    """What came of the candidates, for under the node: a line for each picture."""
    tried, obeyed = (~found.scores.isnan()).sum(0), found.obeys.sum(0)
    lines = []
    for b, number in enumerate(found.chosen):
        taken = f"taken: {found.names[int(number)]}"
        if found.good[b]:
            lines.append(f"{int(obeyed[b])} of {int(tried[b])} candidates obey; {taken}.")
        elif obeyed[b]:
            lines.append(f"{taken}; it keeps more than what obeys fully: lower keep to follow the text more.")
        else:
            lines.append(
                f"None of {int(tried[b])} candidates obeys: try another seed, more effort, other words. {taken}"
            )
    return "\n".join(lines)
