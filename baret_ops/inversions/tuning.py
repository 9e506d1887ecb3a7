"""DDIM inversion to pivots, and the target-text inversion schedule (TTIS) that tunes the text to follow them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..predict import Predict
from ..schedule import Schedule, ddim_step, guide
from .step_rules import Step, StepRule

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its number (from 0), the clean latent predicted there and the noisy one, VP form ``[B,C,h,w]``."""


class NotFinite(RuntimeError):
    """NaN or infinity appeared in a run."""


@dataclass(frozen=True)
class StopRule:
    """Early stop of the tuning at step i: the loss is at most ``threshold + growth * i`` (null-text inversion's rule)."""

    threshold: float = 1e-5
    growth: float = 2e-5

    def __call__(self, step: int) -> float:
        return self.threshold + self.growth * step

    def levels(self, steps: int) -> Tensor:
        """The loss at which each step stops, ``[N]`` float32."""
        return torch.tensor([self(step) for step in range(steps)])


@dataclass(frozen=True, eq=False)
class Tuning:
    """What TTIS found: ``latents [N+1,B,C,h,w]``, ``embeddings [N,B,T,D]``, ``losses [N,B]``, ``updates [N,B]``."""

    latents: Tensor
    embeddings: Tensor
    losses: Tensor
    updates: Tensor


def _report(on_step: OnStep | None, step: int, x: Tensor, eps: Tensor, schedule: Schedule, level: int) -> None:
    if on_step is not None:
        on_step(step, x - float(schedule.sigmas[level]) * eps, x / schedule.scale(level))


@torch.no_grad()
def ddim_inversion(
    predict: Predict,
    latent: Tensor,
    embedding: Tensor,
    schedule: Schedule,
    *,
    uncond: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk images up to noise at guidance 1 (DDIM inversion): N row-forwards per image.

    From level i+1 to the noisier level i the model sees the cleaner latent ``z_{i+1}`` at time ``t_i``.

    latent: ``[B,C,h,w]`` in VP form. embedding: ``[B,T,D]``; ``uncond`` says that it is the negative one.
    Returns the pivots ``[N+1,B,C,h,w]`` in VP form, noisiest first, in the latent's dtype. Raises NotFinite.
    """
    pivots = [latent]
    embedding = embedding.to(latent.device)
    for count, i in enumerate(reversed(range(schedule.steps))):
        sigma, cleaner = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        z = pivots[-1]
        eps = predict(z * schedule.scale(i), sigma, **{"uncond" if uncond else "cond": embedding})[uncond]
        x = ddim_step(z * schedule.scale(i + 1), eps, cleaner, sigma)
        pivots.append(x / schedule.scale(i))
        if not torch.isfinite(x).all():
            raise NotFinite(
                f"NaN or infinity appeared in the inversion at step {i} of {schedule.steps} (time {schedule.timesteps[i]}): "
                "run the model in float32 or bfloat16 (for example --fp32-unet), and check the VAE's latent."
            )
        _report(on_step, count, x, eps, schedule, i)
    return torch.stack(pivots[::-1])


def ttis(predict: Predict, pivots: Tensor, target: Tensor, negative: Tensor, schedule: Schedule, **how) -> Tuning:
    """Target-text inversion schedule (paper, Algorithm 1; Eq. 1 and 2): the text is tuned, the negative fixed. See :func:`tune`."""
    return tune(predict, pivots, target, negative, schedule, **how)


def null_text(predict: Predict, pivots: Tensor, text: Tensor, negative: Tensor, schedule: Schedule, **how) -> Tuning:
    """Null-text inversion (Mokady et al. 2023, Algorithm 1): the negative is tuned, the text fixed. See :func:`tune`."""
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
    stop: StopRule = StopRule(),
    skip_finished: bool = True,
    on_step: OnStep | None = None,
) -> Tuning:
    """Tune one of the two embeddings, step by step.

    At each step the embedding is tuned so that the guided DDIM step lands on the next pivot; the embedding
    found is where the next step starts from. The images of a batch are independent problems. Cost per image and
    step: one row-forward of the fixed pass and ``updates + 1`` of the tuned one (more with rules that probe).

    pivots: ``[N+1,B,C,h,w]`` VP form. tuned, fixed: ``[B,T,D]``; tune_negative: whether the tuned one is the negative's.
    iterations: K, most updates a step. rule: how a step searches. skip_finished: leave images that have stopped out of the batch; False where
        the model carries something that belongs to image positions (a ControlNet hint per image).
    Raises NotFinite.
    """
    device = pivots.device
    fixed = fixed.to(device)
    embedding, memory = tuned.to(device), None
    latents, embeddings, losses, updates = [pivots[0]], [], [], []

    def one_pass(x: Tensor, sigma: float, e: Tensor, negative: bool) -> Tensor:
        return predict(x, sigma, **{"uncond" if negative else "cond": e})[negative]

    for i in range(schedule.steps):
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        x = latents[-1] * schedule.scale(i)
        goal = (pivots[i + 1] * schedule.scale(i + 1) - x) / (sigma_next - sigma)
        with torch.no_grad():
            eps_fixed = one_pass(x, sigma, fixed, not tune_negative)

        def guided(e: Tensor, rows: list[int]) -> Tensor:
            if skip_finished:
                eps = one_pass(x[rows], sigma, e, tune_negative)
            else:
                eps = one_pass(x, sigma, embedding.index_copy(0, torch.tensor(rows, device=device), e), tune_negative)[
                    rows
                ]
            return (
                guide(eps_fixed[rows], eps, guidance_scale)
                if tune_negative
                else guide(eps, eps_fixed[rows], guidance_scale)
            )

        found = rule(
            Step(
                predict=guided,
                goal=goal,
                weight=((sigma_next - sigma) / schedule.scale(i + 1)) ** 2,
                threshold=stop(i),
                iterations=iterations,
            ),
            embedding,
            memory,
        )
        if not (torch.isfinite(found.losses).all() and torch.isfinite(found.embedding).all()):
            raise NotFinite(
                f"NaN or infinity appeared in the tuning at step {i} of {schedule.steps} (time {schedule.timesteps[i]}): "
                "lower learning_rate where the step rule is adam, or run the model in float32 or bfloat16 (for example --fp32-unet)."
            )
        embedding, memory = found.embedding, found.memory
        eps = goal + found.residual
        x_next = ddim_step(x, eps, sigma, sigma_next)
        latents.append(x_next / schedule.scale(i + 1))
        embeddings.append(embedding)
        losses.append(found.losses)
        updates.append(found.updates)
        if on_step is not None:
            on_step(i, x - sigma * eps, latents[-1])

    return Tuning(torch.stack(latents), torch.stack(embeddings), torch.stack(losses), torch.stack(updates))
