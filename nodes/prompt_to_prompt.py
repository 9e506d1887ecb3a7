from __future__ import annotations

import torch
from comfy_api.latest import io

from ..baret_ops.edits.prompt_to_prompt import CrossEdit, LocalBlend, prompt_to_prompt, refinement, replacement
from ..host import wires
from .common import CATEGORY, MASK_TOOLTIP, SEARCH_ALIASES, errors_of, sample_edit
from .texts import (
    SOURCE_TEXT_TOOLTIP,
    TARGET_TEXT_TOOLTIP,
    edit_inputs,
    mark_words,
    read_values,
    source_tokens,
    with_target,
)

_ALIGNMENTS = {"refine": refinement, "replace": replacement}
_PROCESSES = 2


class BaretPromptToPromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretPromptToPromptEdit",
            display_name="Prompt-to-Prompt Edit",
            category=CATEGORY,
            description="Samples the edit with attention maps taken from the picture, token by token: words may be exchanged, added, left out, strengthened or weakened.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *edit_inputs(),
                io.String.Input("source_text", multiline=True, tooltip=SOURCE_TEXT_TOOLTIP),
                io.String.Input("target_text", multiline=True, tooltip=TARGET_TEXT_TOOLTIP),
                io.Combo.Input(
                    "alignment",
                    options=list(_ALIGNMENTS),
                    default="refine",
                    tooltip="refine: words that both texts have take the picture's attention, others their own. replace: word for word, each takes that of the word at its place; both texts need as many words.",
                ),
                io.Float.Input(
                    "cross_share",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of the steps in which words take their attention from the picture. Higher keeps more of the layout, lower changes more. Useful: 0.2 to 0.8.",
                ),
                io.Float.Input(
                    "self_share",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of the steps that take self-attention from the picture. Higher keeps more of its shapes. Useful: 0.3 to 0.8; low for a change of pose.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=1.0,
                    max=30.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Guidance of the edit. Higher obeys the text more and keeps less. Use the inversion's value. Useful: 3 to 8.",
                ),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip='Words of the target text made stronger or weaker, such as "snowy:2, red:0.5"; 0 takes a word\'s influence away. It works in the steps of cross_share. Useful: 0 to 4.',
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip='Local blend: words of either text, such as "dog, cat". Only where attention looks at them may the picture change. Empty: everywhere.',
                ),
                io.Float.Input(
                    "blend_threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="What share of the greatest attention counts as looking at the words. Higher makes the changed place smaller. Useful: 0.2 to 0.6.",
                ),
                io.Float.Input(
                    "blend_start",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="Share of the steps before local blend begins. Lower holds to the picture sooner. Useful: 0 to 0.4.",
                ),
                io.String.Input(
                    "word_shares",
                    default="",
                    advanced=True,
                    tooltip='A cross_share of its own for some words of the target text, such as "cat:0.2". Lower gives a word more freedom.',
                ),
                io.Int.Input(
                    "max_resolution",
                    default=32,
                    min=0,
                    max=1024,
                    step=8,
                    advanced=True,
                    tooltip="Self-attention is taken only where its grid has at most this many tokens squared; 0 is no limit. At 512x512 the grids are 64, 32, 16 and 8. Higher keeps finer details.",
                ),
                io.Mask.Input("mask", optional=True, tooltip=MASK_TOOLTIP),
            ],
            outputs=[
                io.Latent.Output("edit", tooltip="The edited picture; decode it with the VAE."),
                io.Mask.Output(
                    "mask", tooltip="Where local blend and the mask let the picture change (white), at the last step."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        trajectory,
        embeddings,
        source_text,
        target_text,
        alignment,
        cross_share,
        self_share,
        cfg,
        reweight,
        blend_words,
        blend_threshold,
        blend_start=0.2,
        word_shares="",
        max_resolution=32,
        mask=None,
    ) -> io.NodeOutput:
        with errors_of(cls):
            source = source_tokens(clip, embeddings, source_text)
            embeddings, target = with_target(clip, embeddings, target_text)
            shares, weights = (torch.full([len(target.ids)], value) for value in (cross_share, 1.0))
            for values, written, role in ((shares, word_shares, "word_shares"), (weights, reweight, "reweight")):
                for places, value in read_values(clip, target, written, role):
                    values[list(places)] = value
            cross = CrossEdit(_ALIGNMENTS[alignment](source, target), shares, weights)
            local = (
                LocalBlend(*mark_words(clip, source, target, blend_words, "blend_words"), blend_threshold, blend_start)
                if blend_words.strip(" ,")
                else None
            )

            def edit(predict, trajectory, mask, on_step):
                return prompt_to_prompt(
                    predict,
                    trajectory,
                    embeddings,
                    cross,
                    guidance_scale=cfg,
                    self_share=self_share,
                    max_tokens=max_resolution**2 or None,
                    local=local,
                    mask=mask,
                    on_step=on_step,
                )

            edited, changed = sample_edit(model, trajectory, embeddings, mask, _PROCESSES, edit)
            return io.NodeOutput(wires.latent_out(trajectory.family, edited), wires.mask_out(changed))
