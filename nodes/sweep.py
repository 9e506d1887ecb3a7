from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..baret_ops.edits.bam import Edits, advance, edit_mask
from ..drawing.pictures import grid, to_pil, to_tensor
from ..host import models, run, wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, errors_of, run_edit
from .written import read_numbers, read_ranges

_MOST_CELLS = 32 * 64 * 64
"""Most latent cells in one forward of several etas: 32 latents of 512x512 pictures, about 3 GB in 16 bit."""


class BaretEditSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretEditSweep",
            display_name="Edit Sweep",
            category=CATEGORY,
            description="Edits one picture with several etas and taus and shows all results in a labelled grid, "
            "at about half the cost of running BAM Edit for each.",
            search_aliases=[*SEARCH_ALIASES, "XY plot", "grid", "ablation", "compare"],
            is_output_node=True,
            inputs=[
                *inputs.edit_sockets(),
                inputs.vae("show the cells as pictures"),
                io.String.Input(
                    "eta_ranges",
                    default="1, 0.8-0.1, 0.6-0.1",
                    tooltip="Rows: eta from the first to the last step, with commas between them. "
                    "Higher keeps more of the picture; 1 is a rigid edit. Useful: 1, 0.9-0.1, 0.8-0.1, 0.6-0.1.",
                ),
                io.String.Input(
                    "tau_sa",
                    default="0.2, 0.3, 0.4",
                    tooltip="Columns: shares of the steps that take self-attention from the reconstruction. "
                    "Higher keeps more of the picture. Useful: 0.1 to 0.5.",
                ),
                io.String.Input(
                    "tau_ca",
                    default="0.6",
                    tooltip="Shares of the steps that take cross-attention from the transition. "
                    "More than one multiplies the columns. Useful: 0.6, or 0.4 to 0.8.",
                ),
                *inputs.bam_settings(),
            ],
            outputs=[
                io.Image.Output(
                    "grid",
                    tooltip="All edits with their etas and taus, the picture in the corner; "
                    "one grid per image of a batch. Cells are at most 512 pixels wide.",
                ),
                io.Image.Output(
                    "edits",
                    tooltip="The edits alone at full size, row by row; of a batch, one image's after another's.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        embeddings,
        vae,
        eta_ranges,
        tau_sa,
        tau_ca,
        cfg,
        passes="conditional",
        max_resolution=0,
        mask=None,
        auto_mask=0.0,
    ) -> io.NodeOutput:
        with errors_of(cls):
            models.require_fit(model, trajectory)
            ranges = read_ranges(eta_ranges, "eta_ranges")
            selfs, crosses = read_numbers(tau_sa, "tau_sa"), read_numbers(tau_ca, "tau_ca")
            taus = [(sa, ca) for ca in crosses for sa in selfs]
            chosen = {"guidance_scale": cfg, "uncond_too": passes == "both", "max_tokens": max_resolution**2 or None}
            steps, images, cells = trajectory.schedule.steps, trajectory.images, trajectory.pivots[0, 0, 0].numel()
            many = [Edits.begin(trajectory, embeddings.with_transition(*each), taus) for each in ranges]
            together = max(1, (_MOST_CELLS // (cells * images) - 1) // (len(taus) + 1))
            # While the reconstruction lends, etas go side by side, so that it runs once for all; then each goes to its end alone.
            lending = max(sa for sa, _ in many[0].taus)

            decode = lambda z: wires.decode(vae, wires.latent_out(trajectory.family, z))  # noqa: E731
            source = decode(trajectory.pivots[-1])
            etas = [f"eta\n{a:g}" + ("" if a == b else f"\nto {b:g}") for a, b in ranges]
            columns = [f"tau_sa\n{sa:g}" + (f"\ntau_ca\n{ca:g}" if len(crosses) > 1 else "") for sa, ca in taus]
            corner = "source" if len(crosses) > 1 else f"source, tau_ca {crosses[0]:g}"
            rows: list[torch.Tensor] = []  # of each eta done, [taus,B,H,W,3]

            def sheet(image):
                done = [[to_pil(cell[image]) for cell in row] for row in rows]
                return grid(
                    to_pil(source[image]),
                    columns,
                    etas,
                    done + [[None] * len(taus)] * (len(ranges) - len(rows)),
                    corner,
                )

            total = -(-len(many) // together) * lending + len(many) * (steps - lending)
            show = run.picture_progress(total)
            show(sheet(0), 0)

            found = None  # the mask at the latents' size, with what auto_mask finds

            def forward(edits, span):
                def loop(predict, trajectory, mask, on_step):
                    nonlocal found
                    found = edit_mask(predict, trajectory, embeddings, mask, auto_mask) if found is None else found
                    return advance(predict, trajectory, edits, span, mask=found, on_step=on_step, **chosen)

                return run_edit(
                    model,
                    trajectory,
                    embeddings,
                    mask,
                    len(edits) * (len(taus) + 1) + 1,
                    loop,
                    on_step=lambda *_: show(),
                )

            for first in range(0, len(many), together):
                for edits in forward(many[first : first + together], range(lending)):
                    (done,) = forward([edits], range(lending, steps))
                    rows.append(decode(torch.cat(done.results())).unflatten(0, (len(taus), images)))
                    show(sheet(0), 0)

            sheets = torch.cat([to_tensor(sheet(image)) for image in range(images)])
            return io.NodeOutput(
                sheets, torch.stack(rows).movedim(2, 0).flatten(0, 2), ui=ui.PreviewImage(sheets, cls=cls)
            )
