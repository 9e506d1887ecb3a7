"""What edits share: guided DDIM sampling from an image's own noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..predict import IN_FULL_PRECISION, OnStep, require_finite
from ..schedule import Schedule, guide
from ..values import Trajectory
from .region import EVERYWHERE, Region, whole

_ADVICE = f"lower cfg, or {IN_FULL_PRECISION}"

Predicted = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""``predicted(i, x [B,C,h,w])``: ``(eps_cond, eps_uncond)`` of the edit at step i; ``x`` in the sampler's form."""


def injected_steps(tau: float, steps: int, name: str = "tau") -> int:
    """``floor(tau * N + 0.5)``: in how many steps, from the noisiest, attention is injected.

    Raises ValueError outside 0..1.
    """
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"{name} is {tau}; it is a share of the steps and lies from 0 (never) to 1 (always).")
    return math.floor(tau * steps + 0.5)


def guided_step(
    schedule: Schedule, i: int, z: Tensor, eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """The guided DDIM step i from ``z [R,C,h,w]``: where it arrives, and the clean latent predicted; both in VP form.

    Raises NotFinite.
    """
    eps = guide(eps_cond, eps_uncond, guidance_scale)
    arrived = schedule.step(z, eps, i, i + 1)
    require_finite(arrived, during="sampling", schedule=schedule, step=i, advice=_ADVICE)
    return arrived, schedule.clean(z, eps, i)


@torch.no_grad()
def sample_from_pivots(
    trajectory: Trajectory,
    predicted: Predicted,
    *,
    guidance_scale: float,
    blend: Callable[[int, Tensor], Tensor] | None = None,
    region: Region = EVERYWHERE,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample an edit from ``pivots[0]``.

    blend: ``blend(i, z)`` changes the edit ``[B,C,h,w]`` (VP form) that step i arrived at.
    region: where the edit may differ from the picture.
    Returns the edit ``[B,C,h,w]``, VP form, and where it was let differ at the last step, ``[B,1,h,w]`` in 0..1.
    Raises NotFinite.
    """
    schedule, z, mask = trajectory.schedule, trajectory.pivots[0], None
    for i in range(schedule.steps):
        eps_cond, eps_uncond = predicted(i, schedule.to_sampler(z, i))
        z, clean = guided_step(schedule, i, z, eps_cond, eps_uncond, guidance_scale)
        if blend is not None:
            z = blend(i, z)
        mask = region.at(i, clean, trajectory)
        if mask is not None:
            z = torch.lerp(trajectory.pivots[i + 1], z, mask)
        if on_step is not None:
            on_step(i, clean, z)
    return z, whole(mask, z)
