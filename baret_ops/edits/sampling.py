"""What edits share: guided DDIM sampling from an image's own noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..inversions.tuning import NotFinite, OnStep
from ..schedule import Schedule, ddim_step, guide
from ..values import Trajectory

Step = Callable[[int, float, Tensor], tuple[Tensor, Tensor]]
"""``step(i, sigma, x [B,C,h,w])``: ``(eps_cond, eps_uncond)`` of the edit."""


def injected_steps(tau: float, steps: int, name: str = "tau") -> int:
    """``floor(tau * N + 0.5)``: how many steps, from the noisiest, attention is injected. Raises ValueError outside 0..1."""
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"{name} is {tau}; it is a share of the steps and lies from 0 (never) to 1 (always).")
    return math.floor(tau * steps + 0.5)


def guided_step(
    schedule: Schedule, i: int, x: Tensor, eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """The guided DDIM step i from ``x [R,C,h,w]``: where it arrives, in VP form, and the clean latent predicted. Raises NotFinite."""
    sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
    eps = guide(eps_cond, eps_uncond, guidance_scale)
    x_next = ddim_step(x, eps, sigma, sigma_next)
    if not torch.isfinite(x_next).all():
        raise NotFinite(
            f"NaN or infinity appeared in the sampling at step {i} of {schedule.steps} (time {schedule.timesteps[i]}): "
            "lower cfg, or run the model in float32 or bfloat16 (for example --fp32-unet)."
        )
    return x_next / schedule.scale(i + 1), x - sigma * eps


@torch.no_grad()
def sample_edit(
    trajectory: Trajectory,
    step: Step,
    *,
    guidance_scale: float,
    blend: Callable[[int, Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample an edit from ``pivots[0]``.

    blend: ``blend(i, z)`` changes the edit ``[B,C,h,w]`` (VP form) that step i arrived at.
    mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept at every step.
    Returns the edit ``[B,C,h,w]``, VP form. Raises NotFinite.
    """
    schedule, z = trajectory.schedule, trajectory.pivots[0]
    for i in range(schedule.steps):
        x = z * schedule.scale(i)
        z, denoised = guided_step(schedule, i, x, *step(i, float(schedule.sigmas[i]), x), guidance_scale)
        if blend is not None:
            z = blend(i, z)
        if mask is not None:
            z = torch.lerp(trajectory.pivots[i + 1], z, mask)
        if on_step is not None:
            on_step(i, denoised, z)
    return z
