"""Where a text asks for something else than the picture shows, from the model's own predictions.

After DiffEdit (Couairon et al. 2022), which takes two texts; here the tuned text stands for the picture as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ..predict import Predict
from ..schedule import guide
from ..values import Embeddings, Trajectory

LEVELS = 8


@torch.no_grad()
def noise_difference(predict: Predict, trajectory: Trajectory, embeddings: Embeddings) -> Tensor:
    """How much more the target text asks of each latent cell than the tuned one, ``[B,1,h,w]``, smoothed over 3x3
    cells.

    On the reconstruction's path the target text and the tuned one predict different noise where the text asks for a
    change. This is their difference per unit of guidance: mean over channels and over LEVELS levels of the noisier
    half. Needs no map of attention. Costs two row-forwards a level and image.
    """
    schedule, guidance_scale = trajectory.schedule, trajectory.guidance_scale
    embeddings = embeddings.to(trajectory.pivots.device)
    levels = sorted({index * schedule.steps // (2 * LEVELS) for index in range(LEVELS)})
    total = torch.zeros_like(trajectory.pivots[0][:, :1])
    for i in levels:
        here, there = trajectory.latents[i], trajectory.latents[i + 1]
        x = schedule.to_sampler(here, i)
        eps = predict(x, schedule.sigma(i), cond=embeddings.target, uncond=embeddings.negative_at(i))
        asked = guide(*eps, guidance_scale)
        shown = schedule.noise_between(here, i, there, i + 1)
        total += (asked - shown).abs().mean(1, keepdim=True)
    return smoothed(total / (len(levels) * guidance_scale))


def smoothed(values: Tensor, reach: int = 1) -> Tensor:
    """``[B,1,h,w]``: the mean over each cell and those within ``reach`` of it; beyond the border stands the border."""
    return avg_pool2d(pad(values, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)


def auto_mask(predict: Predict, trajectory: Trajectory, embeddings: Embeddings, threshold: float) -> Tensor:
    """The share of the edit in each latent cell, ``[B,1,h,w]`` in 0..1, from :func:`noise_difference`.

    0 up to ``threshold`` and 1 from three times that on. Between lies a ramp: a hard border costs fidelity beside the
    object and success within it. A picture of :func:`another_scene` is free throughout.
    """
    difference = noise_difference(predict, trajectory, embeddings)
    mask = ((difference - threshold) / (2 * threshold)).clamp(0.0, 1.0)
    return torch.where(another_scene(mask), 1.0, mask)


def another_scene(mask: Tensor) -> Tensor:
    """Whether a text asks for another scene, whose parts must fit together: more than half of a picture is to change.

    mask: ``[B,1,h,w]`` in 0..1. Returns ``[B,1,1,1]`` bool.
    """
    return mask.mean((1, 2, 3), keepdim=True) > 0.5


def edit_mask(
    predict: Predict, trajectory: Trajectory, embeddings: Embeddings, mask: Tensor | None, threshold: float
) -> Tensor | None:
    """The given mask ``[1 or B,1,h,w]``, times the one that :func:`auto_mask` finds where ``threshold`` is above 0."""
    if not threshold:
        return mask
    found = auto_mask(predict, trajectory, embeddings, threshold)
    return found if mask is None else mask.to(found.device) * found
