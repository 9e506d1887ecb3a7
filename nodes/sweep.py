from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..baret_ops.edits.bam import Edits, advance, edit_mask
from ..baret_ops.edits.region import Region
from ..baret_ops.edits.sweep import Sweep
from ..baret_ops.values import Trajectory
from ..drawing.pictures import grid, require_drawable, to_pil, to_tensor
from ..host import models, run, wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, most_tokens, run_edit
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
                    tooltip="All edits with their numbers, etas and taus, the picture in the corner; "
                    "one grid per image of a batch. Cells are at most 512 pixels wide.",
                ),
                io.Image.Output(
                    "edits",
                    tooltip="The edits alone at full size, in the order of their numbers, for Pick Edit.",
                ),
            ],
        )

    @classmethod
    @checked
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
        models.require_fit(model, trajectory)
        ranges = read_ranges(eta_ranges, "eta_ranges")
        selfs, crosses = read_numbers(tau_sa, "tau_sa"), read_numbers(tau_ca, "tau_ca")
        taus = [(sa, ca) for ca in crosses for sa in selfs]
        size = wires.picture_size(trajectory)
        require_drawable(size, len(taus), trajectory.images * len(ranges), side=max(size))
        cells = trajectory.pivots[0, :, 0].numel()
        sweep = Sweep(trajectory, embeddings, ranges, taus, _MOST_CELLS // cells)
        sheet = _Sheet(vae, trajectory, ranges, selfs, crosses)
        progress = run.bare_progress(sweep.forwards)
        found: list[Tensor | None] = []  # the mask at the latents' size, with what auto_mask finds

        def forward(edits: list[Edits], span: range) -> list[Edits]:
            def loop(predict, trajectory, *, mask, on_step):
                if not found:
                    found.append(edit_mask(predict, trajectory, embeddings, mask, auto_mask))
                return advance(
                    predict,
                    trajectory,
                    edits,
                    span,
                    guidance_scale=cfg,
                    region=Region(found[0]),
                    uncond_too=passes == "both",
                    max_tokens=most_tokens(max_resolution),
                    on_step=on_step,
                )

            return run_edit(model, trajectory, embeddings, mask, sweep.processes, loop, on_step=progress)

        for row in sweep.rows(forward):
            sheet.add(row)
        sheets = torch.cat([to_tensor(sheet.drawn(image)) for image in range(trajectory.images)])
        return io.NodeOutput(sheets, sheet.edits(), ui=ui.PreviewImage(sheets, cls=cls))


class _Sheet:
    """The labelled grid of a sweep, filled row by row."""

    def __init__(self, vae, trajectory: Trajectory, ranges: list, selfs: list[float], crosses: list[float]):
        self._vae, self._family = vae, trajectory.family
        self._source = self._pictures(trajectory.pivots[-1])
        self._rows: list[Tensor] = []  # of each eta done, [taus,B,H,W,3]
        self._etas = [f"eta\n{start:g}" + ("" if start == end else f"\nto {end:g}") for start, end in ranges]
        several = len(crosses) > 1
        self._columns = [f"tau_sa\n{sa:g}" + (f"\ntau_ca\n{ca:g}" if several else "") for ca in crosses for sa in selfs]
        self._corner = "source" if several else f"source, tau_ca {crosses[0]:g}"

    def _pictures(self, z: Tensor) -> Tensor:
        return wires.decode(self._vae, wires.latent_out(self._family, z))

    def add(self, row: list[Tensor]) -> None:
        """The edited latents of the next row, ``[B,C,h,w]`` for each column."""
        images = len(row[0])
        self._rows.append(self._pictures(torch.cat(row)).unflatten(0, (len(row), images)))

    def drawn(self, image: int) -> Image.Image:
        """The grid of one image of the batch."""
        cells = [[to_pil(cell[image]) for cell in row] for row in self._rows]
        first = 1 + image * len(self._etas) * len(self._columns)
        return grid(to_pil(self._source[image]), self._columns, self._etas, cells, self._corner, first=first)

    def edits(self) -> Tensor:
        """All edits ``[B*rows*columns,H,W,3]``, one image's after another's, row by row."""
        return torch.stack(self._rows).movedim(2, 0).flatten(0, 2)
