from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..baret_ops.edits.prompt_to_prompt import CrossEdit, LocalBlend, prompt_to_prompt, refinement, replacement
from ..host import wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, most_tokens, run_edit
from .texts import mark_words, source_tokens, token_values, with_target
from .written import read_words

_ALIGNMENTS = {"refine": refinement, "replace": replacement}
_PROCESSES = 2


class BaretPromptToPromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretPromptToPromptEdit",
            display_name="Prompt-to-Prompt Edit",
            category=CATEGORY,
            description="Samples the edit with attention maps taken from the picture, token by token: "
            "words may be exchanged, added, left out, strengthened or weakened.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.text_edit_sockets(),
                inputs.source_text(),
                inputs.target_text(),
                io.Combo.Input(
                    "alignment",
                    options=list(_ALIGNMENTS),
                    default="refine",
                    tooltip="refine: words that both texts have take the picture's attention, others their own. "
                    "replace: word for word, each takes that of the word at its place; "
                    "both texts need as many words.",
                ),
                inputs.share(
                    "cross_share",
                    0.4,
                    "Share of the steps in which words take their attention from the picture. "
                    "Higher keeps more of the layout, lower changes more. Useful: 0.2 to 0.8.",
                ),
                inputs.share(
                    "self_share",
                    0.6,
                    "Share of the steps that take self-attention from the picture. "
                    "Higher keeps more of its shapes. Useful: 0.3 to 0.8; low for a change of pose.",
                ),
                inputs.edit_cfg("Use the inversion's value."),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip='Words of the target text made stronger or weaker, such as "snowy:2, red:0.5"; '
                    "0 takes a word's influence away. It works in the steps of cross_share. Useful: 0 to 4.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip='Local blend: words of either text, such as "dog, cat". '
                    "Only where attention looks at them may the picture change. Empty: everywhere.",
                ),
                inputs.share(
                    "blend_threshold",
                    0.3,
                    "What share of the greatest attention counts as looking at the words. "
                    "Higher makes the changed place smaller. Useful: 0.2 to 0.6.",
                ),
                inputs.share(
                    "blend_start",
                    0.2,
                    "Share of the steps before local blend begins. Lower holds to the picture sooner. "
                    "Useful: 0 to 0.4.",
                    advanced=True,
                ),
                io.String.Input(
                    "word_shares",
                    default="",
                    advanced=True,
                    tooltip='A cross_share of its own for some words of the target text, such as "cat:0.2". '
                    "Lower gives a word more freedom.",
                ),
                inputs.max_resolution(32, "Self-attention is taken", "Higher keeps finer details."),
                inputs.mask(),
                inputs.auto_mask(),
                inputs.change_mask(),
            ],
            outputs=[
                inputs.edit_output(),
                inputs.mask_output("Where local blend and the mask let the picture change (white), at the last step."),
            ],
        )

    @classmethod
    @checked
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
        auto_mask=0.0,
        change_mask=0.0,
    ) -> io.NodeOutput:
        source = source_tokens(clip, embeddings, source_text)
        to_target, target = with_target(clip, embeddings, target_text)
        shares = token_values(clip, target, word_shares, "word_shares", default=cross_share)
        weights = token_values(clip, target, reweight, "reweight", default=1.0)
        local = None
        if read_words(blend_words, "blend_words"):
            marks = mark_words(clip, source, target, blend_words, "blend_words")
            local = LocalBlend(*marks, blend_threshold, blend_start)
        edit = partial(
            prompt_to_prompt,
            embeddings=to_target,
            cross=CrossEdit(_ALIGNMENTS[alignment](source, target), shares, weights),
            guidance_scale=cfg,
            self_share=self_share,
            max_tokens=most_tokens(max_resolution),
            local=local,
            auto_mask=auto_mask,
            change_mask=change_mask,
        )
        edited, changed = run_edit(model, trajectory, to_target, mask, _PROCESSES, edit)
        return io.NodeOutput(wires.latent_out(trajectory.family, edited), wires.mask_out(changed))
