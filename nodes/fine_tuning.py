"""What fine-tunes on one picture: Imagic, and the LoRA of SINE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.fine_tuning import FineTuning
from ..baret_ops.predict import OnStep, later
from ..baret_ops.schedule import Schedule
from ..host import conditioning, models, run, wires
from ..host.lora import Lora, with_lora
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked

LoraWire = io.Custom("LORA_MODEL")
_ALIASES = [*SEARCH_ALIASES, "fine-tune", "train", "LoRA", "one image", "DreamBooth"]


@dataclass(frozen=True, eq=False)
class _Task:
    """A model, one picture ``[1,C,h,w]`` in its scale, and the text ``[1,T,D]`` that it is to draw it from."""

    model: Any
    picture: Tensor
    text: Tensor
    options: conditioning.Options
    schedule: Schedule
    generator: torch.Generator

    @classmethod
    def read(cls, model, text: list, role: str, latent: dict, seed: int) -> _Task:
        """Raises ValueError for what does not fit. role: the text's input, for messages."""
        family, picture = models.family_of(model), wires.latent_in(model, latent)
        if len(picture) != 1:
            raise ValueError(
                f"the latent holds {len(picture)} pictures, and a model is fine-tuned on one; take one with "
                "Latent From Batch, or run them one after another."
            )
        embedding, options = conditioning.read_text(text, role, 1, family.context_dim)
        generator = torch.Generator().manual_seed(seed)
        return cls(model, picture, embedding, options, models.all_times(model), generator)

    def tune_text(self, how: FineTuning, on_step: OnStep | None) -> Tensor:
        """The text tuned, ``[1,T,D]``."""

        def loop(predict, device):
            text = self.text.to(device).clone().requires_grad_()
            how(predict, self.picture.to(device), text, self.schedule, [text], self.generator, on_step)
            return text.detach()

        return self._run(loop, how)

    def tune_lora(self, lora: Lora, how: FineTuning, on_step: OnStep | None) -> dict[str, Tensor]:
        """Tune a LoRA; return it as the host's LORA_MODEL."""

        def loop(predict, device):
            picture, text = self.picture.to(device), self.text.to(device).clone()
            how(predict, picture, text, self.schedule, lora.parameters, self.generator, on_step)

        self._run(loop, how, lora)
        return lora.weights(wires.device())

    def _run(self, loop, how: FineTuning, lora: Lora | None = None):
        return run.sample(
            self.model,
            loop,
            positive=(self.text, self.options),
            negative=(self.text, {}),
            rows=1,
            shape=how.seen(self.picture.shape[1:]),
            schedule=self.schedule,
            gradients=True,
            lora=lora,
        )


def _model_outputs() -> list[io.Output]:
    return [
        io.Model.Output("model", tooltip="The model with the LoRA, for stock samplers and for the pack's nodes."),
        LoraWire.Output("lora", tooltip="The LoRA alone: save it with Save LoRA Weights, load it with Load LoRA."),
    ]


class BaretImagic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretImagic",
            display_name="Imagic",
            category=CATEGORY,
            description="Tunes the target text and then a LoRA until the model draws your picture from that text. "
            "What lies between this text and yours, sampled with the LoRA, is the edit.",
            search_aliases=_ALIASES,
            inputs=[
                inputs.model(),
                io.Conditioning.Input("target", tooltip="The target text: what the picture should become."),
                inputs.one_latent(),
                inputs.updates(
                    "text_updates",
                    500,
                    "Updates of the text, first. More bring it closer to the picture and further from your words. "
                    "Useful: 100 to 1000.",
                ),
                inputs.rate(
                    "text_rate",
                    1e-3,
                    "Size of an update of the text. It depends on the scale of the text embedding. "
                    "Useful: 0.001 on SD1.5, 0.03 on small models.",
                ),
                inputs.updates(
                    "updates",
                    1000,
                    "Updates of the LoRA, after the text's. More keep more of the picture and take longer. "
                    "Useful: 200 to 1000.",
                ),
                *inputs.lora_settings(),
            ],
            outputs=[
                *_model_outputs(),
                io.Conditioning.Output(
                    "tuned", tooltip="The tuned text: sampled with the model, it gives your picture again."
                ),
                io.Conditioning.Output(
                    "target",
                    tooltip="Your text. Blend it with the tuned one in ConditioningAverage: "
                    "a strength of 0.7 to 1 is most often the edit.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model, target, latent, text_updates, text_rate, updates, learning_rate, rank, seed
    ) -> io.NodeOutput:
        task = _Task.read(model, target, "target", latent, seed)
        report = run.progress(model, text_updates + updates)
        tuned = task.tune_text(FineTuning(text_updates, text_rate), report)
        how = FineTuning(updates, learning_rate)
        lora = replace(task, text=tuned).tune_lora(Lora(model, rank, seed), how, later(report, text_updates))
        texts = [[[wires.to_wire(text), dict(task.options)]] for text in (tuned, task.text)]
        return io.NodeOutput(with_lora(model, lora), lora, *texts)


class BaretOneImageLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretOneImageLoRA",
            display_name="One-Image LoRA",
            category=CATEGORY,
            description="Tunes a LoRA until the model draws your picture from the text that describes it. "
            "For Model Guidance, which edits with both models (SINE).",
            search_aliases=[*_ALIASES, "SINE"],
            inputs=[
                inputs.model(),
                io.Conditioning.Input("caption", tooltip="A text that says what is in the picture as it is."),
                inputs.one_latent(),
                inputs.updates(
                    "updates",
                    800,
                    "Updates of the LoRA. More keep more of the picture and take longer. Useful: 150 to 1000.",
                ),
                *inputs.lora_settings(),
                io.Int.Input(
                    "patch",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="For a picture larger than the model knows: the side, in pixels, of the part that an "
                    "update sees, at a random place. 0 sees the whole picture. Useful: 512 on SD1.x, 768 on SD2.x.",
                ),
            ],
            outputs=_model_outputs(),
        )

    @classmethod
    @checked
    def execute(cls, model, caption, latent, updates, learning_rate, rank, seed, patch=0) -> io.NodeOutput:
        task = _Task.read(model, caption, "caption", latent, seed)
        side = patch // 8
        how = FineTuning(updates, learning_rate, patch=(side, side) if side else None)
        lora = task.tune_lora(Lora(model, rank, seed), how, run.progress(model, updates))
        return io.NodeOutput(with_lora(model, lora), lora)
