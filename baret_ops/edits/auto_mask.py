"""Where a text asks for something else than the picture shows, from the model's own predictions (after DiffEdit, Couairon et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..predict import Predict
from ..schedule import guide
from ..values import Embeddings, Trajectory

LEVELS = 8


@torch.no_grad()
def auto_mask(predict: Predict, trajectory: Trajectory, embeddings: Embeddings, threshold: float) -> Tensor:
    """The share of the edit in each latent cell, ``[B,1,h,w]`` in 0..1.

    On the reconstruction's path the target text and the tuned one predict different noise where the text asks for a change.
    Their difference per unit of guidance, mean over channels and over LEVELS levels of the noisier half, smoothed over 3x3 cells, gives 0 up to
    ``threshold`` and 1 from three times that on. Between lies a ramp: a hard border costs fidelity beside the object and success within it.
    A picture of which more than half is to change is free throughout: such a text asks for another scene, whose parts must fit together.

    Needs no map of attention. Costs two row-forwards a level and image.
    """
    schedule, device = trajectory.schedule, trajectory.pivots.device
    target = embeddings.target.to(device)
    levels = sorted({index * schedule.steps // (2 * LEVELS) for index in range(LEVELS)})
    total = torch.zeros_like(trajectory.pivots[0][:, :1])
    for i in levels:
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        x, x_next = (trajectory.latents[level] * schedule.scale(level) for level in (i, i + 1))
        asked = guide(
            *predict(x, sigma, cond=target, uncond=embeddings.negative_at(i).to(device)), trajectory.guidance_scale
        )
        shown = (x_next - x) / (sigma_next - sigma)
        total += (asked - shown).abs().mean(1, keepdim=True)
    difference = total / (len(levels) * trajectory.guidance_scale)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(difference, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mask = ((smooth - threshold) / (2 * threshold)).clamp(0.0, 1.0)
    return torch.where(mask.mean((1, 2, 3), keepdim=True) > 0.5, 1.0, mask)
