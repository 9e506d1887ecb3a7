from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.edits.bam import bam
from ..host import wires
from .common import (
    CATEGORY,
    EDIT_MODEL_TOOLTIP,
    EMBEDDINGS_TOOLTIP,
    SEARCH_ALIASES,
    TRAJECTORY_TOOLTIP,
    EmbeddingsWire,
    TrajectoryWire,
    bam_dials,
    errors_of,
    sample_edit,
)

_PROCESSES = 3


class BaretBAMEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretBAMEdit",
            display_name="BAM Edit",
            category=CATEGORY,
            description="Samples the edit with self-attention from the reconstruction and cross-attention from the transition. Last stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip=EDIT_MODEL_TOOLTIP),
                TrajectoryWire.Input("trajectory", tooltip=TRAJECTORY_TOOLTIP),
                EmbeddingsWire.Input("embeddings", tooltip=EMBEDDINGS_TOOLTIP),
                io.Float.Input(
                    "tau_sa",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of the steps that take self-attention from the reconstruction. Higher keeps more of the picture, lower changes it more. Useful: 0.2 to 0.4.",
                ),
                io.Float.Input(
                    "tau_ca",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of the steps that take cross-attention from the transition. Higher keeps more of the layout, lower changes it more; above 0.4 the difference is small. Useful: 0.2 to 0.8.",
                ),
                *bam_dials(),
            ],
            outputs=[io.Latent.Output("edit", tooltip="The edited picture; decode it with the VAE.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        embeddings,
        tau_sa,
        tau_ca,
        cfg,
        passes="conditional",
        max_resolution=0,
        mask=None,
        auto_mask=0.0,
    ) -> io.NodeOutput:
        def edit(predict, trajectory, mask, on_step):
            return bam(
                predict,
                trajectory,
                embeddings,
                guidance_scale=cfg,
                tau_sa=tau_sa,
                tau_ca=tau_ca,
                uncond_too=passes == "both",
                max_tokens=max_resolution**2 or None,
                mask=mask,
                auto_mask=auto_mask,
                on_step=on_step,
            )

        with errors_of(cls):
            edited = sample_edit(model, trajectory, embeddings, mask, _PROCESSES, edit)
            return io.NodeOutput(wires.latent_out(trajectory.family, edited))
