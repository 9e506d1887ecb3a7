"""Inversion without tuning: what a source's own path is, given its pivots and its text."""

from __future__ import annotations

import torch
from torch import Tensor

from ..edits.sampling import sample_edit
from ..inversions.tuning import OnStep
from ..predict import Predict
from ..values import Trajectory


def sample_source(
    predict: Predict, trajectory: Trajectory, text: Tensor, negative: Tensor | None, *, on_step: OnStep | None = None
) -> Tensor:
    """The latents ``[N+1,B,C,h,w]`` (VP form) of guided DDIM sampling from ``pivots[0]`` at the trajectory's guidance.

    text: ``[B,T,D]``. negative: ``[B,T,D]``, or None where it is the text itself (negative-prompt inversion, Miyake et al. 2023): the guided
    prediction is the conditional one then, whatever the guidance, and a step costs one row-forward instead of two. Raises NotFinite.
    """
    device = trajectory.pivots.device
    text, negative = text.to(device), None if negative is None else negative.to(device)
    latents = [trajectory.pivots[0]]

    def step(i: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor]:
        eps_cond, eps_uncond = predict(x, sigma, cond=text, uncond=negative)
        return eps_cond, eps_cond if negative is None else eps_uncond

    def keep(i: int, denoised: Tensor, z: Tensor) -> None:
        latents.append(z)
        if on_step is not None:
            on_step(i, denoised, z)

    sample_edit(trajectory, step, guidance_scale=trajectory.guidance_scale, on_step=keep)
    return torch.stack(latents)
