from __future__ import annotations

from comfy_api.latest import io, ui

from ..baret_ops.report import inversion_text, reconstruction_error
from ..drawing.pictures import to_tensor
from ..drawing.report import inversion_picture
from .common import (
    CATEGORY,
    EMBEDDINGS_TOOLTIP,
    SEARCH_ALIASES,
    TRAJECTORY_TOOLTIP,
    EmbeddingsWire,
    TrajectoryWire,
    errors_of,
)


class BaretInversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretInversionReport",
            display_name="Inversion Report",
            category=CATEGORY,
            description="Shows how an inversion went: loss and threshold over the steps, updates spent, and where the reconstruction is off.",
            search_aliases=[*SEARCH_ALIASES, "loss curve", "plot", "diagnose"],
            is_output_node=True,
            inputs=[
                TrajectoryWire.Input("trajectory", tooltip=TRAJECTORY_TOOLTIP),
                EmbeddingsWire.Input("embeddings", tooltip=EMBEDDINGS_TOOLTIP),
            ],
            outputs=[
                io.Image.Output("report", tooltip="The plots, one line per image of the batch."),
                io.String.Output(
                    "text", tooltip="The same numbers: a line per image, then a table with a line per step."
                ),
            ],
        )

    @classmethod
    def execute(cls, trajectory, embeddings) -> io.NodeOutput:
        with errors_of(cls):
            text = inversion_text(trajectory, embeddings)
            found = reconstruction_error(trajectory)
            thresholds = None if embeddings.thresholds is None else embeddings.thresholds.cpu()
            picture = to_tensor(
                inversion_picture(
                    embeddings.losses.cpu(), embeddings.updates.cpu(), thresholds, found.decibels, found.errors
                )
            )
            return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls))
