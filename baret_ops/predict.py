"""What the core asks of a model, and what every process reports on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .attention import Hooks, Sharing
from .schedule import Schedule


class Predict(Protocol):
    """A noise prediction network behind one call.

    Rows are process-major: with B images and P processes row ``p * B + b`` is image b of process p, so a
    batch of one process is simply its B rows.
    """

    def __call__(
        self,
        x: Tensor,
        sigma: float,
        *,
        cond: Tensor | None = None,
        uncond: Tensor | None = None,
        sharing: Sharing | None = None,
        hooks: Hooks | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise in ``x`` at level ``sigma``.

        x: ``[R,C,h,w]`` in x-form. cond, uncond: ``[R,T,D]`` embeddings of the conditional and of the
        unconditional pass; a pass whose embedding is None is not run, and None stands in its place.
        sharing: attention to share between the rows of a pass. hooks: what stands in the place of attentions.
        Returns ``(eps_cond, eps_uncond)``, each ``[R,C,h,w]`` float32. Differentiable in ``cond`` and ``uncond``
        where gradients are enabled.
        """
        ...


OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its number (from 0), the clean latent predicted there and the noisy one, VP form
``[B,C,h,w]``."""


def later(on_step: OnStep | None, first: int) -> OnStep | None:
    """``on_step`` for a walk whose steps come after ``first`` others."""
    if on_step is None:
        return None
    return lambda i, clean, z: on_step(first + i, clean, z)


class NotFinite(RuntimeError):
    """NaN or infinity appeared in a run."""


IN_FULL_PRECISION = "run the model in float32 or bfloat16 (for example --fp32-unet)"


def require_finite(*values: Tensor, during: str, schedule: Schedule, step: int, advice: str) -> None:
    """Raise NotFinite unless all values are finite. during, advice: what went on, and what may help, in words."""
    if all(bool(torch.isfinite(value).all()) for value in values):
        return
    raise NotFinite(
        f"NaN or infinity appeared in the {during} at step {step} of {schedule.steps} "
        f"(time {schedule.timesteps[step]}): {advice}."
    )
