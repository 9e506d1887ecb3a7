"""The network that paints Text2LIVE's layer: a U-Net with skip connections, trained on one picture from nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

LEAST_SIDE = 8  # pixels
_SKIPPED = 4  # channels that pass beside the levels below
_LEVELS = 7  # at most
_LOWEST = 4  # pixels of the shorter side at the lowest level


class LayerGenerator(nn.Module):
    """From pictures ``[1,3,h,w]`` in 0..1 to a layer ``[1,4,h,w]``: its colours and its alpha, in 0..1.

    The network of Bar-Tal et al. 2022 (appendix; after the deep image prior of Ulyanov et al. 2018). It normalises over
    a picture, so that a picture is painted alike in training and after.
    """

    def __init__(self, shorter_side: int, channels: int, seed: int):
        """shorter_side: of the pictures, at least LEAST_SIDE pixels; small ones have fewer levels.

        channels: of each level. seed: of the first weights.
        """
        super().__init__()
        levels = max(1, min(_LEVELS, (shorter_side // _LOWEST).bit_length() - 1))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's: a card's is nobody's to seed anew
            self.levels = _Level(3, channels, levels)
            self.out = nn.Conv2d(channels, 4, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(self.levels(pictures)).sigmoid()


class _Level(nn.Module):
    """Half the size, the levels below, and back to the size that came; a few channels pass beside."""

    def __init__(self, came: int, channels: int, levels: int):
        super().__init__()
        self.beside = _convolution(came, _SKIPPED, 1)
        down = [_convolution(came, channels, 3, stride=2), _convolution(channels, channels, 3)]
        below = [_Level(channels, channels, levels - 1)] if levels > 1 else []
        self.through = nn.Sequential(*down, *below)
        self.joined = nn.Sequential(
            nn.InstanceNorm2d(_SKIPPED + channels, affine=True),
            _convolution(_SKIPPED + channels, channels, 3),
            _convolution(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        through = interpolate(self.through(x), size=x.shape[-2:], mode="bilinear")
        return self.joined(torch.cat([self.beside(x), through], 1))


def _convolution(came: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(came, channels, size, stride, padding=size // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(channels, affine=True),
        nn.LeakyReLU(0.2),
    )
