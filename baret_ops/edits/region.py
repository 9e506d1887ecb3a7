"""Where an edit may differ from its picture, and what lets go of the old there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..values import Trajectory
from .auto_mask import smoothed

CHANGE_START = 0.4
"""Share of the steps before the change mask begins: earlier the clean latent is predicted too coarsely."""


def dilated(region: Tensor, cells: int) -> Tensor:
    """``[B,1,h,w]``: the greatest value within ``cells`` cells, up, down and across."""
    return max_pool2d(region, 2 * cells + 1, 1, cells) if cells else region


def otsu(values: Tensor) -> Tensor:
    """The threshold ``[B,1,1,1]`` that parts each image's values ``[B,1,h,w]`` into the two most distinct classes.

    Otsu 1979: of all cuts through the sorted values the one with the largest variance between the classes.
    """
    ordered = values.flatten(1).double().sort(1).values
    count = ordered.shape[1]
    below = torch.arange(1, count, device=values.device, dtype=torch.float64)
    sums = ordered.cumsum(1)
    low = sums[:, :-1] / below
    high = (sums[:, -1:] - sums[:, :-1]) / (count - below)
    between = below * (count - below) * (low - high).square()
    cut = between.argmax(1, keepdim=True)
    threshold = (ordered.gather(1, cut) + ordered.gather(1, cut + 1)) / 2
    return threshold.to(values.dtype)[:, :, None, None]


def change_of(clean: Tensor, picture: Tensor) -> Tensor:
    """How far a predicted clean latent is from the picture's own, ``[B,1,h,w]``: mean over channels, smoothed."""
    return smoothed((clean - picture).abs().mean(1, keepdim=True))


def change_mask(clean: Tensor, picture: Tensor, threshold: float | Tensor) -> Tensor:
    """The share of the edit in each cell, ``[B,1,h,w]`` in 0..1, from what it changes: costs no pass.

    0 up to ``threshold`` of :func:`change_of`, 1 from twice that on, and one cell wider on every side.
    clean, picture: ``[B,C,h,w]``, the clean latent that the edit predicts and the picture's.
    """
    change = change_of(clean, picture)
    return dilated(((change - threshold) / threshold).clamp(0.0, 1.0), 1)


@dataclass(frozen=True, eq=False)
class Region:
    """Where an edit may differ from its picture; elsewhere the pivots are kept at every step.

    mask: ``[1 or B,1,h,w]`` in 0..1, None is everywhere.
    change: threshold of the change mask (:func:`change_mask`), 0 does without.
    """

    mask: Tensor | None = None
    change: float = 0.0

    def to(self, device: torch.device) -> Region:
        """This region with its mask on a device."""
        return self if self.mask is None else replace(self, mask=self.mask.to(device))

    def at(self, i: int, clean: Tensor, trajectory: Trajectory) -> Tensor | None:
        """The share of the edit after step i, ``[1 or B,1,h,w]``, None everywhere.

        clean: ``[B,C,h,w]``, the clean latent that the edit predicts there.
        """
        if not self.change or i < CHANGE_START * trajectory.schedule.steps:
            return self.mask
        found = change_mask(clean, trajectory.pivots[-1], self.change)
        return found if self.mask is None else self.mask * found


EVERYWHERE = Region()


def whole(mask: Tensor | None, z: Tensor) -> Tensor:
    """A mask at full size, ``[B,1,h,w]``: of ``[1 or B,1,h,w]``, or None for everywhere. z: ``[B,C,h,w]``."""
    everywhere = torch.ones_like(z[:, :1])
    return everywhere if mask is None else mask * everywhere


def renoised(z: Tensor, amount: float, region: Tensor | None, seed: int) -> Tensor:
    """``sqrt(1 - a) z + sqrt(a) noise``: an inverted latent whose hold on the old picture is loosened.

    z: ``[B,C,h,w]`` at the noisiest level, VP form. amount: a, 0..1; times ``region [1 or B,1,h,w]`` where given.
    seed: of the noise, which is the same for every image of a batch and on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(z.shape[1:], generator=generator).to(z)
    share = amount if region is None else amount * region
    share = torch.as_tensor(share, dtype=z.dtype, device=z.device)
    return (1 - share).sqrt() * z + share.sqrt() * noise
