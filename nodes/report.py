from __future__ import annotations

from comfy_api.latest import io, ui

from ..baret_ops.report import inversion_text, reconstruction_error
from ..drawing.pictures import to_tensor
from ..drawing.report import inversion_picture
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked


class BaretInversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretInversionReport",
            display_name="Inversion Report",
            category=CATEGORY,
            description="Shows how an inversion went: loss and threshold over the steps, updates spent, "
            "and where the reconstruction is off.",
            search_aliases=[*SEARCH_ALIASES, "loss curve", "plot", "diagnose"],
            is_output_node=True,
            inputs=[inputs.trajectory(), inputs.embeddings()],
            outputs=[
                io.Image.Output("report", tooltip="The plots, one line per image of the batch."),
                io.String.Output(
                    "text", tooltip="The same numbers: a line per image, then a table with a line per step."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, trajectory, embeddings) -> io.NodeOutput:
        text = inversion_text(trajectory, embeddings)
        found = reconstruction_error(trajectory)
        thresholds = None if embeddings.thresholds is None else embeddings.thresholds.cpu()
        losses, updates = embeddings.losses.cpu(), embeddings.updates.cpu()
        drawn = inversion_picture(losses, updates, thresholds, found.decibels, found.errors)
        picture = to_tensor(drawn)
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls))
