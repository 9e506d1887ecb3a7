from __future__ import annotations

from comfy_api.latest import io

from ..host import conditioning, models
from ..host.guidance import ModelGuidance
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked


class BaretModelGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretModelGuidance",
            display_name="Model Guidance",
            category=CATEGORY,
            description="Guides sampling by two models at once (SINE): the plain one says what the text asks for, "
            "the one that was fine-tuned on your picture what the picture looks like. For SamplerCustomAdvanced.",
            search_aliases=[*SEARCH_ALIASES, "SINE", "guider", "two models"],
            inputs=[
                inputs.model(),
                io.Model.Input("tuned", tooltip="The same model fine-tuned on your picture, from One-Image LoRA."),
                io.Conditioning.Input("positive", tooltip="The target text: what the picture should become."),
                io.Conditioning.Input("caption", tooltip="The text that the tuned model was fine-tuned with."),
                io.Conditioning.Input("negative", tooltip="The negative text, mostly empty."),
                inputs.cfg("Guidance of the edit. Higher obeys both models more."),
                inputs.share(
                    "beta",
                    0.4,
                    "Share of the plain model, and so of the text. Lower keeps more of the picture; "
                    "1 is plain guidance. Useful: 0.3 to 0.7.",
                ),
                inputs.share(
                    "start_percent",
                    0.0,
                    "Where in the run both models begin to guide; before it the plain one guides alone.",
                    advanced=True,
                ),
                inputs.share(
                    "end_percent",
                    0.5,
                    "Where in the run the tuned model ceases to guide. Higher keeps more of the picture. "
                    "Useful: 0.4 to 0.8.",
                ),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(cls, model, tuned, positive, caption, negative, cfg, beta, start_percent, end_percent) -> io.NodeOutput:
        family = models.family_of(model)
        if models.family_of(tuned) != family:
            raise ValueError(
                f"model is an {family} and tuned an {models.family_of(tuned)}; use two models of one family."
            )
        for text, role in ((positive, "positive"), (caption, "caption"), (negative, "negative")):
            conditioning.require_width(text, role, family.context_dim)
        guider = ModelGuidance(model, tuned, positive=positive, caption=caption, negative=negative, cfg=cfg, beta=beta)
        guider.set_range(start_percent, end_percent)
        return io.NodeOutput(guider)
