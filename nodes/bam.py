from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..baret_ops.edits.bam import bam
from ..baret_ops.report import edit_in_short
from ..host import wires
from ..host.remarks import remark
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, most_tokens, run_edit

_PROCESSES = 3


class BaretBAMEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretBAMEdit",
            display_name="BAM Edit",
            category=CATEGORY,
            description="Samples the edit with self-attention from the reconstruction "
            "and cross-attention from the transition. Last stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.edit_sockets(),
                inputs.tau_sa(
                    "Share of the steps that take self-attention from the reconstruction. "
                    "Higher keeps more of the picture, lower changes it more. Useful: 0.2 to 0.4."
                ),
                inputs.tau_ca(
                    "Share of the steps that take cross-attention from the transition. "
                    "Higher keeps more of the layout, lower changes it more; above 0.4 the difference is small. "
                    "Useful: 0.2 to 0.8."
                ),
                *inputs.bam_settings(),
                inputs.appearance(),
                inputs.change_mask(),
                *inputs.renoise(),
            ],
            outputs=inputs.edit_outputs(),
        )

    @classmethod
    @checked
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
        appearance=0.0,
        change_mask=0.0,
        renoise=0.0,
        seed=0,
    ) -> io.NodeOutput:
        edit = partial(
            bam,
            embeddings=embeddings,
            guidance_scale=cfg,
            tau_sa=tau_sa,
            tau_ca=tau_ca,
            uncond_too=passes == "both",
            max_tokens=most_tokens(max_resolution),
            auto_mask=auto_mask,
            appearance=appearance,
            change_mask=change_mask,
            renoise=renoise,
            seed=seed,
        )
        edited, changed = run_edit(model, trajectory, embeddings, mask, _PROCESSES, edit)
        remark(edit_in_short(edited, trajectory))
        return io.NodeOutput(wires.latent_out(trajectory.family, edited), wires.mask_out(changed))
