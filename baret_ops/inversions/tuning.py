"""The tuning of a text to a picture's path: target-text inversion (TTIS) and null-text inversion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..predict import IN_FULL_PRECISION, OnStep, Predict, require_finite
from ..schedule import Schedule, guide
from .ddim import one_pass
from .step_rules import StepRule, TuningStep

_ADVICE = f"lower learning_rate where the step rule is adam, or {IN_FULL_PRECISION}"


@dataclass(frozen=True)
class StopRule:
    """Early stop of the tuning at step i: the loss is at most ``threshold + growth * i``, as in null-text inversion."""

    threshold: float = 1e-5
    growth: float = 2e-5

    def __call__(self, step: int) -> float:
        return self.threshold + self.growth * step

    def levels(self, steps: int) -> Tensor:
        """The loss at which each step stops, ``[N]`` float32."""
        return torch.tensor([self(step) for step in range(steps)])


DEFAULT_STOP = StopRule()


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a tuning found: ``latents [N+1,B,C,h,w]``, ``embeddings [N,B,T,D]``, ``losses [N,B]``, ``updates [N,B]``."""

    latents: Tensor
    embeddings: Tensor
    losses: Tensor
    updates: Tensor


def ttis(predict: Predict, pivots: Tensor, target: Tensor, negative: Tensor, schedule: Schedule, **how) -> Tuning:
    """Target-text inversion schedule (paper, Algorithm 1; Eq. 1 and 2): the text is tuned, the negative fixed.

    how: see :func:`tune`.
    """
    return tune(predict, pivots, target, negative, schedule, **how)


def null_text(predict: Predict, pivots: Tensor, text: Tensor, negative: Tensor, schedule: Schedule, **how) -> Tuning:
    """Null-text inversion (Mokady et al. 2023, Algorithm 1): the negative is tuned, the text fixed.

    how: see :func:`tune`.
    """
    return tune(predict, pivots, negative, text, schedule, tune_negative=True, **how)


def tune(
    predict: Predict,
    pivots: Tensor,
    tuned: Tensor,
    fixed: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    rule: StepRule,
    tune_negative: bool = False,
    iterations: int = 5,
    stop: StopRule = DEFAULT_STOP,
    skip_finished: bool = True,
    on_step: OnStep | None = None,
) -> Tuning:
    """Tune one of the two embeddings, step by step.

    At each step the embedding is tuned so that the guided DDIM step lands on the next pivot; the embedding
    found is where the next step starts from. The images of a batch are independent problems. Cost per image and
    step: one row-forward of the fixed pass and ``updates + 1`` of the tuned one (more with rules that probe).

    pivots: ``[N+1,B,C,h,w]`` VP form.
    tuned, fixed: ``[B,T,D]``; tune_negative: whether the tuned one is the negative's.
    iterations: K, most updates a step. rule: how a step searches. stop: when a step is done.
    skip_finished: leave images that have stopped out of the batch; False where the model carries something that belongs
        to image positions (a ControlNet hint per image).
    Raises NotFinite.
    """
    fixed = fixed.to(pivots.device)
    embedding, memory = tuned.to(pivots.device), None
    latents, embeddings, losses, updates = [pivots[0]], [], [], []

    for i in range(schedule.steps):
        z = latents[-1]
        x, sigma = schedule.to_sampler(z, i), schedule.sigma(i)
        with torch.no_grad():
            eps_fixed = one_pass(predict, x, sigma, fixed, uncond=not tune_negative)
        guided = _Guided(predict, x, sigma, eps_fixed, embedding, guidance_scale, tune_negative, skip_finished)
        step = TuningStep(
            predict=guided,
            goal=schedule.noise_between(z, i, pivots[i + 1], i + 1),
            weight=((schedule.sigma(i + 1) - sigma) / schedule.scale(i + 1)) ** 2,
            threshold=stop(i),
            iterations=iterations,
            progress=i / schedule.steps,
        )
        found = rule(step, embedding, memory)
        require_finite(found.losses, found.embedding, during="tuning", schedule=schedule, step=i, advice=_ADVICE)

        embedding, memory = found.embedding, found.memory
        eps = step.goal + found.residual
        latents.append(schedule.step(z, eps, i, i + 1))
        embeddings.append(embedding)
        losses.append(found.losses)
        updates.append(found.updates)
        if on_step is not None:
            on_step(i, schedule.clean(z, eps, i), latents[-1])

    return Tuning(torch.stack(latents), torch.stack(embeddings), torch.stack(losses), torch.stack(updates))


@dataclass(frozen=True, eq=False)
class _Guided:
    """The guided noise of one step as a function of the tuned embedding: what a step rule calls ``predict``.

    x: ``[B,C,h,w]`` in x-form. eps_fixed: ``[B,C,h,w]``, the pass that is not tuned. embedding: ``[B,T,D]``, what
    images that have stopped are given where they stay in the batch.
    """

    predict: Predict
    x: Tensor
    sigma: float
    eps_fixed: Tensor
    embedding: Tensor
    guidance_scale: float
    tune_negative: bool
    skip_finished: bool

    def __call__(self, e: Tensor, rows: list[int]) -> Tensor:
        """``[A,C,h,w]`` for embeddings ``e [A,T,D]`` of the images ``rows``.

        Raises ValueError where a gradient is wanted and the model gives none.
        """
        if self.skip_finished:
            eps = one_pass(self.predict, self.x[rows], self.sigma, e, self.tune_negative)
        else:
            every = self.embedding.index_copy(0, torch.tensor(rows, device=e.device), e)
            eps = one_pass(self.predict, self.x, self.sigma, every, self.tune_negative)[rows]
        if e.requires_grad and torch.is_grad_enabled() and not eps.requires_grad:
            raise ValueError(
                "the model's prediction cannot be followed back to the text, as a patch or wrapper on it computes "
                "without gradients (tiles, caches of earlier steps, perturbed attention); remove it from the model "
                "that goes into the inversion."
            )
        fixed = self.eps_fixed[rows]
        return guide(fixed, eps, self.guidance_scale) if self.tune_negative else guide(eps, fixed, self.guidance_scale)
