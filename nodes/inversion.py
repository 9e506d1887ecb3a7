from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.inversions.step_rules import STEP_RULES, Adam
from ..baret_ops.inversions.tuning import StopRule, ddim_inversion, null_text, ttis
from ..baret_ops.inversions.untuned import sample_source
from ..baret_ops.schedule import Schedule
from ..baret_ops.transition import eta_schedule
from ..baret_ops.values import Embeddings, ModelFamily, Trajectory
from ..host import conditioning, models, run, wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, errors_of

_DIRECT, _NEGATIVE_PROMPT, _DDIM = "direct", "negative-prompt", "DDIM"


@dataclass(frozen=True, eq=False)
class _Problem:
    """What every inversion starts from: the pictures ``[B,C,h,w]``, the texts ``[B,T,D]``, and what fits the model."""

    model: Any
    family: ModelFamily
    schedule: Schedule
    images: Tensor
    text: Tensor
    text_options: conditioning.Options
    negative: Tensor
    negative_options: conditioning.Options

    @classmethod
    def read(cls, model, positive, negative, latent, steps: int) -> _Problem:
        family, schedule, images = (
            models.family_of(model),
            models.schedule_of(model, steps),
            wires.latent_in(model, latent),
        )
        texts = (
            conditioning.read_text(each, role, len(images), family.context_dim)
            for each, role in ((positive, "positive"), (negative, "negative"))
        )
        return cls(model, family, schedule, images, *next(texts), *next(texts))

    def solve(self, loop: Callable, cfg: float, gradients: bool = False, **embeddings) -> io.NodeOutput:
        """Run ``loop(predict, images)`` on the model for ``pivots, latents`` and more values for Embeddings by name; make the node's outputs of all.

        embeddings: further values for Embeddings; without any the text is that of every step, and nothing was updated.
        """
        pivots, latents, found = run.sample(
            self.model,
            lambda predict, device: loop(predict, self.images.to(device)),
            positive=(self.text, self.text_options),
            negative=(self.negative, self.negative_options),
            rows=len(self.images),
            shape=self.images.shape[1:],
            schedule=self.schedule,
            gradients=gradients,
        )
        keep, steps = wires.to_wire, self.schedule.steps
        trajectory = Trajectory(keep(pivots), keep(latents), self.schedule, cfg, self.family)
        text = keep(self.text)
        plain = {
            "tuned": text.expand(steps, -1, -1, -1),
            "target": text,
            "negative": keep(self.negative),
            "eta": eta_schedule(1.0, 1.0, steps),
            "losses": (trajectory.latents[1:] - trajectory.pivots[1:]).square().flatten(2).mean(2),
            "updates": torch.zeros(steps, len(self.images), dtype=torch.int64),
            "positive_options": self.text_options,
            "negative_options": self.negative_options,
        }
        found = {name: keep(value) for name, value in found.items()}
        return io.NodeOutput(
            trajectory,
            Embeddings(**{**plain, **found, **embeddings}),
            wires.latent_out(self.family, trajectory.latents[-1]),
        )

    def tune(self, search: Callable, name: str, cfg: float, uncond: bool = False, **how) -> io.NodeOutput:
        """Walk the pictures up to noise with the text (``uncond``: the negative) and search for what redraws them: ``ttis`` for "tuned",
        ``null_text`` for "negative". how: for the search. Make the node's outputs."""
        steps = self.schedule.steps
        report = run.progress(self.model, 2 * steps)
        rows = conditioning.carries_rows(self.negative_options if name == "negative" else self.text_options)

        def loop(predict, images):
            pivots = ddim_inversion(
                predict, images, self.negative if uncond else self.text, self.schedule, uncond=uncond, on_step=report(0)
            )
            tuning = search(
                predict,
                pivots,
                self.text,
                self.negative,
                self.schedule,
                guidance_scale=cfg,
                skip_finished=not rows,
                on_step=report(steps),
                **how,
            )
            return pivots, tuning.latents, {name: tuning.embeddings, "losses": tuning.losses, "updates": tuning.updates}

        return self.solve(loop, cfg, gradients=True, thresholds=how["stop"].levels(steps))


class BaretTTISInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTTISInversion",
            display_name="TTIS Inversion",
            category=CATEGORY,
            description="Finds, step by step, the text embedding with which the model redraws your picture. "
            "First stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.inversion_sockets(
                    positive="The target text: what the picture should become. "
                    "One prompt, or one per image of the batch.",
                    negative="The negative text; an empty one is the paper's. It must also go into the edit unchanged.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance while tuning. Higher obeys the text more and is harder to reconstruct from. "
                    "Use the same in BAM Edit."
                ),
                inputs.iterations(
                    1,
                    "Most updates of the text per step. More reconstruct better and take longer; "
                    "0 does not tune at all. Useful: 1 to 3 with the secant rules, 5 to 10 with adam.",
                ),
                inputs.learning_rate(
                    1e-3,
                    step=1e-4,
                    tooltip="Size of an update, for the step rule adam alone. "
                    "Higher converges faster until it overshoots; it depends on the scale of the text embedding. "
                    "Useful: 0.001 to 0.01 on SD1.5, 0.01 on small models.",
                ),
                *inputs.stop_rule(),
                io.Combo.Input(
                    "inversion_text",
                    options=["target", "negative"],
                    default="target",
                    advanced=True,
                    tooltip="The text with which the picture is walked up to noise: "
                    "the target (as in the paper) or the negative.",
                ),
                inputs.step_rule(
                    "secant",
                    "How an update is found. secant measures the length of its steps. "
                    "secant_memory also remembers what earlier steps showed: closer, a third slower. "
                    "adam is the paper's, with 5 iterations.",
                ),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The tuned text of every step. As it is (eta 1) it makes a rigid edit; "
                "through Transition Embedding a non-rigid one.",
                reconstruction="What the tuned text redraws. "
                "If it does not look like your picture, the edit will not either.",
            ),
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        steps,
        cfg,
        iterations=1,
        learning_rate=1e-3,
        stop_threshold=1e-5,
        stop_growth=2e-5,
        inversion_text="target",
        step_rule="secant",
    ) -> io.NodeOutput:
        with errors_of(cls):
            problem = _Problem.read(model, positive, negative, latent, steps)
            rule, stop = STEP_RULES[step_rule](learning_rate), StopRule(stop_threshold, stop_growth)
            return problem.tune(
                ttis, "tuned", cfg, uncond=inversion_text == "negative", rule=rule, iterations=iterations, stop=stop
            )


class BaretNullTextInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretNullTextInversion",
            display_name="Null-Text Inversion",
            category=CATEGORY,
            description="Finds, step by step, the negative embedding with which the model redraws your picture "
            "from a text that describes it. For Prompt-to-Prompt Edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.inversion_sockets(
                    positive=inputs.SOURCE_PROMPT,
                    negative="The negative text that tuning starts from; an empty one is the paper's.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance while tuning. Higher lets edits obey the text more and is harder to reconstruct from. "
                    "Use the same in the edit."
                ),
                inputs.iterations(
                    10,
                    "Most updates of the negative per step. More reconstruct better and take longer. "
                    "Useful: 10 with adam, 1 to 3 with the secant rules.",
                ),
                inputs.step_rule(
                    "adam",
                    "How an update is found. adam is the paper's. "
                    "secant and secant_memory measure the length of their steps: "
                    "with 1 iteration nearly as close in a sixth of the time.",
                ),
                inputs.learning_rate(
                    1e-2,
                    step=1e-3,
                    tooltip="Size of an update at the first step, for adam alone; it falls to half at the last. "
                    "Higher converges faster until it overshoots. Useful: 0.005 to 0.02.",
                ),
                *inputs.stop_rule(),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The picture's text, and the tuned negative of every step. "
                "Give an edit its target text, or BAM Edit through Transition Embedding.",
                reconstruction="What the text and the tuned negative redraw. "
                "If it does not look like your picture, the edit will not either.",
            ),
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, steps, cfg, iterations, step_rule, learning_rate=1e-2, stop_threshold=1e-5, stop_growth=2e-5,
    ) -> io.NodeOutput:  # fmt: skip
        with errors_of(cls):
            problem = _Problem.read(model, positive, negative, latent, steps)
            rule = (
                Adam(learning_rate, decay=1 / (2 * steps), test_after=True)
                if step_rule == "adam"
                else STEP_RULES[step_rule](learning_rate)
            )
            return problem.tune(
                null_text, "negative", cfg, rule=rule, iterations=iterations, stop=StopRule(stop_threshold, stop_growth)
            )


class BaretInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretInversion",
            display_name="Inversion",
            category=CATEGORY,
            description="Inversion without tuning, in the time of one or two samplings: "
            "DDIM, negative-prompt or direct inversion.",
            search_aliases=[*SEARCH_ALIASES, "negative prompt inversion", "direct inversion", "PnP inversion"],
            inputs=[
                *inputs.inversion_sockets(
                    positive=inputs.SOURCE_PROMPT,
                    negative="The negative text, mostly empty. "
                    "Negative-prompt inversion puts the picture's own text in its place.",
                ),
                io.Combo.Input(
                    "method",
                    options=[_DIRECT, _NEGATIVE_PROMPT, _DDIM],
                    default=_DIRECT,
                    tooltip="direct: what each step misses is added back to the picture's path; it is redrawn exactly. "
                    "negative-prompt: the picture's text is the negative too; nearly exact, edits are weaker. "
                    "DDIM: plain guided sampling, which drifts away.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance of the picture's path. "
                    "Higher drifts further away with DDIM; direct and negative-prompt do not mind. "
                    "Use the same in the edit."
                ),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The picture's text at every step, and the negative. "
                "Give an edit its target text, or BAM Edit through Transition Embedding.",
                reconstruction="The end of the picture's path: what an edit that changes nothing would give.",
            ),
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, method, steps, cfg) -> io.NodeOutput:
        with errors_of(cls):
            problem = _Problem.read(model, positive, negative, latent, steps)
            if method == _NEGATIVE_PROMPT:
                problem = replace(problem, negative=problem.text, negative_options=problem.text_options)
            report = run.progress(model, steps if method == _DIRECT else 2 * steps)

            def invert(predict, images):
                pivots = ddim_inversion(predict, images, problem.text, problem.schedule, on_step=report(0))
                if method == _DIRECT:
                    return pivots, pivots, {}
                null = None if method == _NEGATIVE_PROMPT else problem.negative
                return (
                    pivots,
                    sample_source(
                        predict,
                        Trajectory(pivots, pivots, problem.schedule, cfg, problem.family),
                        problem.text,
                        null,
                        on_step=report(steps),
                    ),
                    {},
                )

            return problem.solve(invert, cfg)
