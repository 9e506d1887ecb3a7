"""Random views of a picture, so that CLIP judges what it shows and not a pattern of its pixels (VQGAN-CLIP).

Crowson et al. 2022: many cutouts of one picture, each changed at random, are judged together. The settings are those
of the published code: an affine map, a perspective, a change of colours, an erased rectangle, and noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, grid_sample

CHANCE = 0.7  # of each change
_DEGREES, _SHEAR, _SHIFT = 15.0, 5.0, 0.1  # of the affine map, each to either side; the shift in shares of a side
_PERSPECTIVE = 0.7  # how far a corner moves inwards at most, in shares of half a side
_JITTER = 0.1  # of brightness, contrast and saturation; of hue in whole turns
_ERASED = (0.1, 0.4)  # share of the area
_ASPECT = (0.3, 1 / 0.3)  # of the erased rectangle
_NOISE = 0.1  # the greatest deviation


def cutouts(pictures: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """``count`` random views ``[count*B,3,side,side]`` of each of ``pictures [B,3,H,W]`` in 0..1, view by view.

    All pictures are changed alike, so that a picture's views do not depend on what else is in the batch.
    generator: on the CPU. Differentiable in the pictures. What lies beyond a picture is black.
    """
    draw = _Draw(count, generator, pictures)
    pooled = (adaptive_avg_pool2d(pictures, side) + adaptive_max_pool2d(pictures, side)) / 2
    views = pooled.repeat(count, 1, 1, 1)
    rows = len(pictures)
    to_source = (_affine(draw) @ _perspective(draw)).repeat_interleave(rows, 0)
    views = grid_sample(views, _grid(to_source, side), padding_mode="zeros", align_corners=False)
    views = _recoloured(views, draw, rows)
    views = views * _kept(draw, side)
    noise = draw.normal(count, 3, side, side) * draw.uniform(0.0, _NOISE, count, 1, 1, 1)
    return views + noise.repeat_interleave(rows, 0)


class _Draw:
    """Random numbers for ``count`` views, of the type of ``like`` and where it is."""

    def __init__(self, count: int, generator: torch.Generator, like: Tensor):
        self.count, self._generator, self._like = count, generator, like

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self._generator)).to(self._like)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._like)

    def either_side(self, most: float, *shape: int) -> Tensor:
        return self.uniform(-most, most, *shape)

    def happens(self, *shape: int) -> Tensor:
        """1 where a change is made, else 0."""
        return (self.uniform(0.0, 1.0, *shape) < CHANCE).to(self._like)


def _affine(draw: _Draw) -> Tensor:
    """Maps ``[count,3,3]`` from a view's coordinates (-1..1) to the picture's: turned, sheared and shifted."""
    made = draw.happens(draw.count)
    angle = draw.either_side(math.radians(_DEGREES), draw.count) * made
    shear = draw.either_side(math.radians(_SHEAR), draw.count).tan() * made
    shift = draw.either_side(2 * _SHIFT, draw.count, 2) * made[:, None]
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros_like(cos)[:, None, None].repeat(1, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, shear * cos - sin
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, shear * sin + cos
    matrix[:, :2, 2] = shift
    matrix[:, 2, 2] = 1.0
    return matrix


def _perspective(draw: _Draw) -> Tensor:
    """Maps ``[count,3,3]`` under which the picture's corners stand inside a view, each moved by itself."""
    corners = draw.uniform(0.0, 1.0, 1, 4, 2).new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    inwards = draw.uniform(0.0, _PERSPECTIVE, draw.count, 4, 2) * draw.happens(draw.count)[:, None, None]
    return homography(corners * (1 - inwards), corners.expand(draw.count, 4, 2))


def homography(points: Tensor, images: Tensor) -> Tensor:
    """The projective maps ``[n,3,3]`` that take four ``points [n,4,2]`` to their ``images [n,4,2]``.

    ``(u,v) = (h1 x + h2 y + h3, h4 x + h5 y + h6) / (h7 x + h8 y + 1)`` for each point: eight linear equations.
    """
    x, y = points.unbind(-1)
    u, v = images.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    for_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    for_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    found = torch.linalg.solve(torch.cat([for_u, for_v], 1), torch.cat([u, v], 1))
    return torch.cat([found, one[:, :1]], 1).view(-1, 3, 3)


def _grid(to_source: Tensor, side: int) -> Tensor:
    """Where in the picture each pixel of a view is taken from, ``[n,side,side,2]``."""
    line = (2 * torch.arange(side, dtype=to_source.dtype, device=to_source.device) + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    found = places @ to_source.transpose(1, 2)
    return (found[..., :2] / found[..., 2:]).view(-1, side, side, 2)


def _recoloured(views: Tensor, draw: _Draw, rows: int) -> Tensor:
    """Views whose brightness, contrast, saturation and hue are changed, in 0..1."""
    made = draw.happens(draw.count, 1)
    brightness, contrast, saturation = (1 + draw.either_side(_JITTER, draw.count, 3) * made).unbind(1)
    turn = draw.either_side(2 * math.pi * _JITTER, draw.count) * made[:, 0]
    matrix = brightness[:, None, None] * _saturated(saturation) @ _turned(turn)
    matrix, contrast = matrix.repeat_interleave(rows, 0), contrast.repeat_interleave(rows)[:, None, None, None]
    views = torch.einsum("nij,njhw->nihw", matrix, views)
    mean = views.mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (views - mean)).clamp(0.0, 1.0)


def _saturated(saturation: Tensor) -> Tensor:
    """Colour matrices ``[n,3,3]``: 0 is grey, 1 changes nothing."""
    grey = saturation.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
    share = saturation[:, None, None]
    return share * torch.eye(3).to(saturation) + (1 - share) * grey


def _turned(turn: Tensor) -> Tensor:
    """Colour matrices ``[n,3,3]`` that turn the hue by an angle: rotations about the axis of greys (Rodrigues)."""
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    cross = turn.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cos * torch.eye(3).to(turn) + sin * cross + (1 - cos) / 3


def _kept(draw: _Draw, side: int) -> Tensor:
    """``[1,1,side,side]``: 0 in one rectangle, the same in all views, if at all; 1 elsewhere."""
    area, place = draw.uniform(*_ERASED, 1), draw.uniform(0.0, 1.0, 2)
    aspect = draw.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]), 1).exp()
    height, width = ((area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0))
    line = (torch.arange(side, dtype=area.dtype, device=area.device) + 0.5) / side
    top, left = place[0] * (1 - height), place[1] * (1 - width)
    rows = ((line >= top) & (line < top + height)).to(area)
    columns = ((line >= left) & (line < left + width)).to(area)
    return 1 - draw.happens(1, 1, 1, 1) * (rows[:, None] * columns)
