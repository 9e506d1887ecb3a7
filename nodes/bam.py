from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.bam import bam
from ..host import models
from .common import CATEGORY, EDIT_MODEL_TOOLTIP, EMBEDDINGS_TOOLTIP, MASK_TOOLTIP, SEARCH_ALIASES, TRAJECTORY_TOOLTIP, EmbeddingsWire, TrajectoryWire, errors_of, sample_edit

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
                io.Float.Input("tau_sa", default=0.3, min=0.0, max=1.0, step=0.05, round=0.001, tooltip="Share of the steps that take self-attention from the reconstruction. Higher keeps more of the picture, lower changes it more. Useful: 0.2 to 0.4."),
                io.Float.Input("tau_ca", default=0.6, min=0.0, max=1.0, step=0.05, round=0.001, tooltip="Share of the steps that take cross-attention from the transition. Useful: 0.4 to 0.8, where it changes little; below, the new shape is lost."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.5, round=0.01, tooltip="Guidance of the edit. Higher obeys the text more and keeps less. Use the value of TTIS Inversion. Useful: 3 to 8."),
                io.Combo.Input("passes", options=["conditional", "both"], default="conditional", advanced=True, tooltip="Share attention in the pass with the text alone, or in the negative pass as well: both keeps more of the picture and costs a little more."),
                io.Int.Input("max_resolution", default=0, min=0, max=1024, step=8, advanced=True, tooltip="Share attention only where its grid has at most this many tokens squared; 0 is no limit. At 512x512 the grids are 64, 32, 16 and 8. Lower keeps fewer fine details. Useful: 0, 32 or 16."),
                io.Mask.Input("mask", optional=True, tooltip=MASK_TOOLTIP),
                io.Float.Input("auto_mask", default=0.0, min=0.0, max=1.0, step=0.005, round=0.0001, advanced=True, tooltip="Above 0, keeps the picture wherever the text asks for nothing else than is there: how much the two predictions must differ. Higher keeps more of it. Useful: 0.01 to 0.02; 0 for a new background."),
            ],
            outputs=[io.Latent.Output("edit", tooltip="The edited picture; decode it with the VAE.")],
        )

    @classmethod
    def execute(cls, model, trajectory, embeddings, tau_sa, tau_ca, cfg, passes="conditional", max_resolution=0, mask=None, auto_mask=0.0) -> io.NodeOutput:
        def edit(predict, trajectory, mask, on_step):
            return bam(
                predict, trajectory, embeddings,
                guidance_scale=cfg, tau_sa=tau_sa, tau_ca=tau_ca,
                uncond_too=passes == "both",
                max_tokens=max_resolution**2 or None,
                mask=mask,
                auto_mask=auto_mask,
                on_step=on_step,
            )

        with errors_of(cls):
            edited = sample_edit(model, trajectory, embeddings, mask, _PROCESSES, edit)
            return io.NodeOutput(models.latent_out(trajectory.family, edited))
