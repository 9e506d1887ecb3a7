"""Whole inversions: from pictures and texts to the two values that travel on wires, by every method of the pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..edits.sampling import sample_from_pivots
from ..predict import OnStep, Predict, later
from ..schedule import Schedule
from ..transition import eta_schedule
from ..values import Embeddings, ModelFamily, Trajectory, fingerprints
from .ddim import ddim_inversion
from .step_rules import StepRule
from .tuning import DEFAULT_STOP, StopRule, Tuning, null_text, ttis


@dataclass(frozen=True, eq=False)
class Problem:
    """What every inversion starts from: B pictures, their texts, and what the model is.

    images: ``[B,C,h,w]`` float32, VP form. text, negative: ``[B,T,D]`` float32; text_options, negative_options: what
    their conditioning carried beside them, opaque here. guidance_scale: w of the picture's path.
    """

    images: Tensor
    text: Tensor
    negative: Tensor
    schedule: Schedule
    guidance_scale: float
    family: ModelFamily
    text_options: Mapping[str, Any]
    negative_options: Mapping[str, Any]

    def to(self, device: torch.device) -> Problem:
        """This problem with its pictures and texts on a device."""
        images, text, negative = (value.to(device) for value in (self.images, self.text, self.negative))
        return replace(self, images=images, text=text, negative=negative)

    def trajectory(self, pivots: Tensor, latents: Tensor) -> Trajectory:
        """The trajectory of these pictures; pivots and latents are ``[N+1,B,C,h,w]``, VP form."""
        return Trajectory(pivots, latents, self.schedule, self.guidance_scale, self.family)

    def untuned(self, trajectory: Trajectory) -> Embeddings:
        """The text at every step, and how far its path is from the pivots."""
        steps, images = self.schedule.steps, len(self.images)
        missed = trajectory.latents[1:] - trajectory.pivots[1:]
        return Embeddings(
            tuned=self.text.expand(steps, -1, -1, -1),
            target=self.text,
            negative=self.negative,
            eta=eta_schedule(1.0, 1.0, steps),
            losses=missed.square().flatten(2).mean(2),
            updates=torch.zeros(steps, images, dtype=torch.int64),
            positive_options=self.text_options,
            negative_options=self.negative_options,
            pictures=fingerprints(self.images),
        )

    def tuned(self, tuning: Tuning, stop: StopRule, tuned: Tensor, negative: Tensor) -> Embeddings:
        """What a tuning found, with the text ``[N,B,T,D]`` and the negative of each step."""
        return Embeddings(
            tuned=tuned,
            target=self.text,
            negative=negative,
            eta=eta_schedule(1.0, 1.0, self.schedule.steps),
            losses=tuning.losses,
            updates=tuning.updates,
            positive_options=self.text_options,
            negative_options=self.negative_options,
            thresholds=stop.levels(self.schedule.steps),
            pictures=fingerprints(self.images),
        )


class Inversion(Protocol):
    """A way from pictures to a trajectory and its embeddings.

    needs_gradients: whether it differentiates the model. walks: how many times it goes through the schedule's steps.
    """

    needs_gradients: ClassVar[bool]
    walks: ClassVar[int]

    def invert(
        self, predict: Predict, problem: Problem, on_step: OnStep | None = None
    ) -> tuple[Trajectory, Embeddings]:
        """Invert the problem's pictures; ``on_step`` counts the steps of all walks together. Raises NotFinite."""
        ...


@dataclass(frozen=True)
class _TunedInversion:
    """What the inversions by tuning share.

    rule, iterations, stop, skip_finished: see :func:`.tuning.tune`.
    """

    rule: StepRule
    iterations: int
    stop: StopRule = DEFAULT_STOP
    skip_finished: bool = True
    needs_gradients: ClassVar[bool] = True
    walks: ClassVar[int] = 2

    def _tune(
        self,
        search: Callable[..., Tuning],
        predict: Predict,
        problem: Problem,
        pivots: Tensor,
        on_step: OnStep | None,
    ) -> Tuning:
        """Search with these settings, after the walk to the pivots. search: ``ttis`` or ``null_text``."""
        return search(
            predict,
            pivots,
            problem.text,
            problem.negative,
            problem.schedule,
            guidance_scale=problem.guidance_scale,
            rule=self.rule,
            iterations=self.iterations,
            stop=self.stop,
            skip_finished=self.skip_finished,
            on_step=later(on_step, problem.schedule.steps),
        )


@dataclass(frozen=True)
class TargetTextInversion(_TunedInversion):
    """TTIS (paper, Algorithm 1): the text is tuned.

    walk_with_negative: walk the pictures up to noise with the negative text instead of the target.
    """

    walk_with_negative: bool = False

    def invert(
        self, predict: Predict, problem: Problem, on_step: OnStep | None = None
    ) -> tuple[Trajectory, Embeddings]:
        negative = self.walk_with_negative
        text = problem.negative if negative else problem.text
        pivots = ddim_inversion(predict, problem.images, text, problem.schedule, uncond=negative, on_step=on_step)
        tuning = self._tune(ttis, predict, problem, pivots, on_step)
        embeddings = problem.tuned(tuning, self.stop, tuned=tuning.embeddings, negative=problem.negative)
        return problem.trajectory(pivots, tuning.latents), embeddings


@dataclass(frozen=True)
class NullTextInversion(_TunedInversion):
    """Null-text inversion (Mokady et al. 2023): the negative is tuned."""

    def invert(
        self, predict: Predict, problem: Problem, on_step: OnStep | None = None
    ) -> tuple[Trajectory, Embeddings]:
        pivots = ddim_inversion(predict, problem.images, problem.text, problem.schedule, on_step=on_step)
        tuning = self._tune(null_text, predict, problem, pivots, on_step)
        tuned = problem.text.expand(problem.schedule.steps, -1, -1, -1)
        embeddings = problem.tuned(tuning, self.stop, tuned=tuned, negative=tuning.embeddings)
        return problem.trajectory(pivots, tuning.latents), embeddings


@dataclass(frozen=True)
class DirectInversion:
    """Direct inversion (Ju et al. 2023): what each step misses is added back, so the path is the pivots themselves."""

    needs_gradients: ClassVar[bool] = False
    walks: ClassVar[int] = 1

    def invert(
        self, predict: Predict, problem: Problem, on_step: OnStep | None = None
    ) -> tuple[Trajectory, Embeddings]:
        pivots = ddim_inversion(predict, problem.images, problem.text, problem.schedule, on_step=on_step)
        trajectory = problem.trajectory(pivots, pivots)
        return trajectory, problem.untuned(trajectory)


@dataclass(frozen=True)
class SampledInversion:
    """DDIM inversion whose path is guided sampling of the text, which drifts away from the pivots.

    text_as_negative: negative-prompt inversion (Miyake et al. 2023). The text is the negative too, so that the guided
    prediction is the conditional one whatever the guidance; a step costs one row-forward instead of two.
    """

    text_as_negative: bool = False
    needs_gradients: ClassVar[bool] = False
    walks: ClassVar[int] = 2

    def invert(
        self, predict: Predict, problem: Problem, on_step: OnStep | None = None
    ) -> tuple[Trajectory, Embeddings]:
        if self.text_as_negative:
            problem = replace(problem, negative=problem.text, negative_options=problem.text_options)
        schedule = problem.schedule
        pivots = ddim_inversion(predict, problem.images, problem.text, schedule, on_step=on_step)
        latents = [pivots[0]]

        def predicted(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
            if self.text_as_negative:
                eps_cond, _ = predict(x, schedule.sigma(i), cond=problem.text)
                return eps_cond, eps_cond
            return predict(x, schedule.sigma(i), cond=problem.text, uncond=problem.negative)

        def note(i: int, clean: Tensor, z: Tensor) -> None:
            latents.append(z)
            if on_step is not None:
                on_step(schedule.steps + i, clean, z)

        sample_from_pivots(
            problem.trajectory(pivots, pivots), predicted, guidance_scale=problem.guidance_scale, on_step=note
        )
        trajectory = problem.trajectory(pivots, torch.stack(latents))
        return trajectory, problem.untuned(trajectory)
