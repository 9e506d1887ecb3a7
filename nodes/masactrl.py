from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.edits.masactrl import Foreground, masactrl
from ..host import models, wires
from .common import CATEGORY, MASK_TOOLTIP, SEARCH_ALIASES, errors_of, sample_edit
from .texts import SOURCE_TEXT_TOOLTIP, TARGET_TEXT_TOOLTIP, edit_inputs, mark_words, source_tokens, with_target

_ROWS = 4  # two processes, each in both passes; the host reckons with both passes itself


class BaretMasaCtrlEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretMasaCtrlEdit",
            display_name="MasaCtrl Edit",
            category=CATEGORY,
            description="Samples the target text in a layout of its own and fills it with the picture's content, by keys and values of the picture's self-attention.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *edit_inputs(),
                io.String.Input("target_text", multiline=True, tooltip=TARGET_TEXT_TOOLTIP),
                io.Int.Input(
                    "start_step",
                    default=4,
                    min=0,
                    max=999,
                    tooltip="From which step on content is taken from the picture. Higher gives the new layout more freedom, lower keeps more of the picture. Useful: 2 to 10 of 50.",
                ),
                io.Int.Input(
                    "first_block",
                    default=10,
                    min=0,
                    max=99,
                    tooltip="From which transformer block on, counted from 0 in the order they run: SD1.5 has 16, and its decoder begins at 7. Higher keeps less of the picture. Useful: 7 to 12; on the drawn world 3 to 5.",
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
                    "foreground_words",
                    default="",
                    tooltip='Words of either text, such as "dog": what looks at them takes its content from the picture\'s places that do, and the background from the rest. Empty: content may come from anywhere.',
                ),
                io.String.Input(
                    "source_text",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip=SOURCE_TEXT_TOOLTIP + " Needed for foreground_words alone.",
                ),
                io.Float.Input(
                    "foreground_threshold",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="How much attention to the words makes a place of the picture foreground. Higher makes it smaller. Useful: 0.1 to 0.5.",
                ),
                io.Mask.Input("mask", optional=True, tooltip=MASK_TOOLTIP),
            ],
            outputs=[io.Latent.Output("edit", tooltip="The edited picture; decode it with the VAE.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        trajectory,
        embeddings,
        target_text,
        start_step,
        first_block,
        cfg,
        foreground_words,
        source_text="",
        foreground_threshold=0.1,
        mask=None,
    ) -> io.NodeOutput:
        with errors_of(cls):
            models.require_block(model, first_block)
            source = source_tokens(clip, embeddings, source_text) if foreground_words.strip(" ,") else None
            embeddings, target = with_target(clip, embeddings, target_text)
            foreground = (
                None
                if source is None
                else Foreground(
                    *mark_words(clip, source, target, foreground_words, "foreground_words"), foreground_threshold
                )
            )

            def edit(predict, trajectory, mask, on_step):
                return masactrl(
                    predict,
                    trajectory,
                    embeddings,
                    guidance_scale=cfg,
                    start_step=start_step,
                    first_block=first_block,
                    foreground=foreground,
                    mask=mask,
                    on_step=on_step,
                )

            edited = sample_edit(model, trajectory, embeddings, mask, _ROWS // 2, edit)
            return io.NodeOutput(wires.latent_out(trajectory.family, edited))
