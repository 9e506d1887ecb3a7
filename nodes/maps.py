from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..baret_ops.attention import Site
from ..baret_ops.edits.bam import Edits, advance, transition_is_reconstruction
from ..baret_ops.maps import MapSums, watch_words
from ..drawing.pictures import grid, to_pil, to_tensor, with_heat
from ..host import models, run, wires
from ..host.text import find_word, read_tokens
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, errors_of, run_edit
from .texts import target_tokens
from .written import read_resolutions, read_words

_PROCESSES = ("reconstruction", "transition", "edit")


class BaretAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretAttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY,
            description="Shows where the model looks for each word, as heat over the picture: "
            "in the reconstruction, the transition and the edit, side by side.",
            search_aliases=[*SEARCH_ALIASES, "heat map", "cross-attention", "DAAM", "visualize"],
            is_output_node=True,
            inputs=[
                *inputs.edit_sockets(),
                inputs.clip(),
                inputs.vae("show the pictures under the maps"),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The target text, word for word as it was encoded, weights and embeddings included.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases of the text to look at, with commas between them, "
                    'such as "dog, lying". Empty: all words.',
                ),
                inputs.tau_sa(
                    "As in BAM Edit: share of the steps that take self-attention from the reconstruction. "
                    "Higher keeps more of the picture."
                ),
                inputs.tau_ca(
                    "As in BAM Edit: share of the steps that take cross-attention from the transition; "
                    "there the edit's maps are the transition's."
                ),
                inputs.cfg("Guidance of the edit, as in BAM Edit. Higher obeys the text more and keeps less."),
                inputs.share(
                    "start_percent",
                    0.0,
                    "Where in the steps to begin to look: 0 is the noisiest, where places are decided.",
                ),
                inputs.share(
                    "end_percent",
                    1.0,
                    "Where to stop: 1 is the last step, where details are. "
                    "The maps are the mean over the steps between.",
                ),
                io.String.Input(
                    "resolutions",
                    default="coarse",
                    advanced=True,
                    tooltip="Which of the model's grids to look at: "
                    '"coarse" (16 wide at 512x512, the clearest), "all", or widths with commas between them, '
                    'such as "16, 32".',
                ),
            ],
            outputs=[
                io.Image.Output(
                    "maps",
                    tooltip="A row of heat maps for each word under the three pictures; "
                    "one sheet per image of a batch.",
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="The reconstruction's heat of each word, 0 to 1, image by image; "
                    "one word's through a threshold can be the mask of an edit.",
                ),
                io.String.Output(
                    "report",
                    tooltip="For each word its tokens and how strongly it is looked at, on average and at most.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, trajectory, embeddings, clip, vae, text, words, tau_sa, tau_ca, cfg, start_percent, end_percent, resolutions="coarse"
    ) -> io.NodeOutput:  # fmt: skip
        with errors_of(cls):
            models.require_fit(model, trajectory)
            steps, images, grid_size = trajectory.schedule.steps, trajectory.images, tuple(trajectory.pivots.shape[-2:])
            span = range(int(start_percent * steps + 0.5), int(end_percent * steps + 0.5))
            if not span:
                raise ValueError(
                    f"start_percent {start_percent:g} to end_percent {end_percent:g} of {steps} steps leaves none; widen it."
                )
            tokens = target_tokens(clip, embeddings, text)
            asked = read_words(words) or list(
                dict.fromkeys(word for word, _ in tokens.words if any(map(str.isalnum, word)))
            )
            if not asked:
                raise ValueError("text has no words to look at; write the target text.")
            places = {_plain(clip, word): find_word(clip, tokens, word, "text") for word in asked}
            shares = torch.zeros(len(tokens.ids), len(places))
            for column, positions in enumerate(places.values()):
                shares[list(positions), column] = 1.0
            wanted, grids = read_resolutions(resolutions, "resolutions"), {}
            sums, show = MapSums(grid_size), run.picture_progress(steps)

            def wants(site: Site) -> bool:
                grids[site.grid] = None
                return wanted(site)

            def report(step, *_):
                if step == span[0] and not sums.count:
                    raise ValueError(
                        f"resolutions has {resolutions!r} and the grids of this picture are {', '.join(f'{w}x{h}' for h, w in grids)}; name widths of these."
                    )
                show()

            def look(predict, trajectory, mask, on_step):
                edits = Edits.begin(trajectory, embeddings, [(tau_sa, tau_ca)])
                (edits,) = advance(
                    predict,
                    trajectory,
                    [edits],
                    range(steps),
                    guidance_scale=cfg,
                    on_step=on_step,
                    watch=watch_words(sums, shares, span, wants),
                )
                redrawn = trajectory.latents[-1]
                return (
                    redrawn,
                    redrawn if transition_is_reconstruction(trajectory, embeddings, cfg) else edits.transition,
                    edits.results()[0],
                )

            latents = run_edit(model, trajectory, embeddings, None, len(_PROCESSES), look, on_step=report)
            pictures = wires.decode(vae, wires.latent_out(trajectory.family, torch.cat(latents))).unflatten(
                0, (3, images)
            )
            source = wires.decode(vae, wires.latent_out(trajectory.family, trajectory.pivots[-1]))
            heat = wires.to_wire(sums.mean()).unflatten(0, (3, images)).movedim(0, 2)  # [B,W,3,h,w]
            shown = heat / heat.amax((2, 3, 4), keepdim=True).clamp_min(1e-12)

            sheets = []
            for image in range(images):
                plain = [to_pil(process[image]) for process in pictures]
                rows = [[with_heat(picture, each) for picture, each in zip(plain, word)] for word in shown[image]]
                sheets.append(
                    to_tensor(grid(to_pil(source[image]), list(_PROCESSES), ["picture", *places], [plain, *rows]))
                )
            masks = torch.nn.functional.interpolate(
                shown[:, :, 0].flatten(0, 1)[:, None], pictures.shape[2:4], mode="bilinear"
            )[:, 0]
            return io.NodeOutput(
                torch.cat(sheets), masks, _report(places, heat), ui=ui.PreviewImage(torch.cat(sheets), cls=cls)
            )


def _plain(clip, phrase: str) -> str:
    """A phrase without the weights written into it."""
    return " ".join(word for word, _ in read_tokens(clip, phrase).words)


def _report(places: dict[str, tuple[int, ...]], heat: torch.Tensor) -> str:
    lines = []
    for image, words in enumerate(heat, 1):
        for (word, positions), maps in zip(places.items(), words):
            numbers = ", ".join(
                f"{name} {float(each.mean()):.4f} (most {float(each.max()):.4f})"
                for name, each in zip(_PROCESSES, maps)
            )
            lines.append(f"picture {image}, {word} (token {', '.join(map(str, positions))}): {numbers}")
    return "\n".join(lines)
