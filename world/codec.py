"""The world's codec: 3 x H x W pictures in -1..1 to 4 x H/8 x W/8 latents of about unit variance, and back."""

from typing import Any

import torch
from torch import nn


def _conv(ops, channels_in, channels_out, size=3):
    return ops.Conv2d(channels_in, channels_out, size, padding=size // 2)


class _Residual(nn.Module):
    def __init__(self, ops, width):
        super().__init__()
        self.first, self.second = _conv(ops, width, width), _conv(ops, width, width)

    def forward(self, x):
        return x + self.second(torch.nn.functional.silu(self.first(torch.nn.functional.silu(x))))


def _residuals(ops, width, count):
    return [_Residual(ops, width) for _ in range(count)]


class Codec(nn.Module):
    """A plain convolutional autoencoder without normalisation.

    `encode` takes (b, 3, h, w) to (b, 4, h/8, w/8), `decode` back. `ops` gives the Conv2d class: torch's own for
    training, the host's when the host shall place and cast the weights.
    """

    def __init__(self, ops: Any = nn, wide=96, middle=64, thin=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            _conv(ops, 48, middle),
            *_residuals(ops, middle, 1),
            nn.PixelUnshuffle(2),
            _conv(ops, 4 * middle, wide, 1),
            *_residuals(ops, wide, 2),
            nn.SiLU(),
            _conv(ops, wide, 4),
        )
        self.decoder = nn.Sequential(
            _conv(ops, 4, wide),
            *_residuals(ops, wide, 3),
            _conv(ops, wide, 4 * middle, 1),
            nn.PixelShuffle(2),
            *_residuals(ops, middle, 2),
            _conv(ops, middle, 4 * thin, 1),
            nn.PixelShuffle(2),
            *_residuals(ops, thin, 1),
            nn.SiLU(),
            _conv(ops, thin, 12),
            nn.PixelShuffle(2),
        )

    def encode(self, pictures):
        if min(pictures.shape[-2:]) < 8:
            raise ValueError("a picture of less than 8x8 pixels came; the drawn world's VAE takes larger ones.")
        return self.encoder(pictures)

    def decode(self, latents):
        return self.decoder(latents)
