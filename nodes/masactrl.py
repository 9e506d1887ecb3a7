from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..baret_ops.edits.masactrl import Foreground, masactrl
from ..host import models, wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, run_edit
from .texts import mark_words, source_tokens, with_target
from .written import read_words

_PROCESSES = 2


class BaretMasaCtrlEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretMasaCtrlEdit",
            display_name="MasaCtrl Edit",
            category=CATEGORY,
            description="Samples the target text in a layout of its own and fills it with the picture's content, "
            "by keys and values of the picture's self-attention.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.text_edit_sockets(),
                inputs.target_text(),
                io.Int.Input(
                    "start_step",
                    default=4,
                    min=0,
                    max=999,
                    tooltip="From which step on content is taken from the picture. "
                    "Higher gives the new layout more freedom, lower keeps more of the picture. "
                    "Useful: 2 to 10 of 50.",
                ),
                io.Int.Input(
                    "first_block",
                    default=10,
                    min=0,
                    max=99,
                    tooltip="From which transformer block on, counted from 0 in the order they run: "
                    "SD1.5 has 16, and its decoder begins at 7. Higher keeps less of the picture. "
                    "Useful: 7 to 12; on the drawn world 3 to 5.",
                ),
                inputs.edit_cfg("Use the inversion's value."),
                io.String.Input(
                    "foreground_words",
                    default="",
                    tooltip='Words of either text, such as "dog": what looks at them takes its content from the '
                    "picture's places that do, and the background from the rest. "
                    "Empty: content may come from anywhere.",
                ),
                inputs.optional_source_text("foreground_words"),
                inputs.share(
                    "foreground_threshold",
                    0.1,
                    "How much attention to the words makes a place of the picture foreground. "
                    "Higher makes it smaller. Useful: 0.1 to 0.5.",
                    advanced=True,
                ),
                inputs.mask(),
                inputs.auto_mask(),
                inputs.change_mask(),
            ],
            outputs=inputs.edit_outputs(),
        )

    @classmethod
    @checked
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
        auto_mask=0.0,
        change_mask=0.0,
    ) -> io.NodeOutput:
        models.require_block(model, first_block)
        to_target, target = with_target(clip, embeddings, target_text)
        foreground = None
        if read_words(foreground_words, "foreground_words"):
            source = source_tokens(clip, embeddings, source_text)
            marks = mark_words(clip, source, target, foreground_words, "foreground_words")
            foreground = Foreground(*marks, foreground_threshold)
        edit = partial(
            masactrl,
            embeddings=to_target,
            guidance_scale=cfg,
            start_step=start_step,
            first_block=first_block,
            foreground=foreground,
            auto_mask=auto_mask,
            change_mask=change_mask,
        )
        edited, changed = run_edit(model, trajectory, to_target, mask, _PROCESSES, edit)
        return io.NodeOutput(wires.latent_out(trajectory.family, edited), wires.mask_out(changed))
