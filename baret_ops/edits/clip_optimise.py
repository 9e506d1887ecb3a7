"""A picture's latent tuned until CLIP finds that it fits a text: one loop, and the settings of three methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clip_loss import Encoder, distances, tune
from .cutouts import cutouts

RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the updates, as in StyleCLIP


@dataclass(frozen=True)
class Recipe:
    """How a latent is tuned. The loss of one picture ``x`` of latent ``z`` that were ``x0`` and ``z0`` is

    ``clip * sum_p(weight_p * mean(distance(E(view), E(text_p)))) + keep * (latent * sum((z - z0)^2) + pixel * mean((x
    - x0)^2) + perceptual * mean((F(x) - F(x0))^2))``

    with latents in units of the picture's own deviation, ``F`` the encoder's tokens, each of unit length.

    distance: as :func:`distances` names them.
    views: random cutouts of a picture in each update; 0 judges the picture as a whole. steps: updates. rate: of Adam.
    ramps: whether the rate rises at first and falls at last (StyleCLIP). clip, latent, pixel, perceptual: weights.
    """

    distance: str
    steps: int
    rate: float
    ramps: bool = False
    views: int = 0
    clip: float = 1.0
    latent: float = 0.0
    pixel: float = 0.0
    perceptual: float = 0.0

    def rate_at(self, step: int) -> float:
        """Adam's rate at an update, from 0."""
        if not self.ramps:
            return self.rate
        progress = step / self.steps
        fall = min(1.0, (1.0 - progress) / RAMP_DOWN)
        return self.rate * (0.5 - 0.5 * math.cos(fall * math.pi)) * min(1.0, progress / RAMP_UP)


RECIPES = {
    "StyleCLIP": Recipe("cosine", steps=300, rate=0.1, ramps=True, latent=0.008),
    "VQGAN-CLIP": Recipe("arc", steps=500, rate=0.1, views=32),
    "TediGAN": Recipe("cosine", steps=200, rate=0.01, clip=2.0, pixel=1.0, perceptual=1.0),
}
"""Patashnik et al. 2021 (latent optimisation), Crowson et al. 2022, Xia et al. 2021 (instance-level optimisation).

The numbers are those of the published code, but for TediGAN's perceptual weight: its features are those of another
network, which is no part of the host.
"""


@dataclass(frozen=True, eq=False)
class Optimised:
    """latent: ``[B,C,h,w]``. losses: ``[S,B]`` before each of the updates."""

    latent: Tensor
    losses: Tensor


def optimise(
    decode: Callable[[Tensor], Tensor],
    encode: Encoder,
    latent: Tensor,
    texts: Tensor,
    weights: Tensor,
    recipe: Recipe,
    *,
    keep: float = 1.0,
    mask: Tensor | None = None,
    seed: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Optimised:
    """Tune ``latent [B,C,h,w]`` by ``recipe``; the pictures of a batch are independent problems.

    decode: latents to pictures ``[B,3,H,W]`` in 0..1, differentiable. texts: ``[P,D]`` embeddings in CLIP's space.
    weights: ``[P]``; what has a negative one is kept away from. keep: multiplies what holds the picture. mask:
    ``[1 or B,1,h,w]`` in 0..1, how much of a change each cell takes. on_step: called with the number of each update and
    the pictures before it. Raises NotFinite.
    """
    if recipe.steps == 0:
        return Optimised(latent, latent.new_zeros(0, len(latent)))
    loss_of = _Loss(decode, encode, latent, texts, weights, recipe, keep, mask)
    moved = torch.zeros_like(latent).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    rates = [recipe.rate_at(step) for step in range(recipe.steps)]
    pictures = latent

    def loss_at(step: int) -> Tensor:
        nonlocal pictures
        pictures, loss = loss_of(moved, generator)
        return loss

    report = on_step and (lambda step: on_step(step, pictures.detach()))
    losses = tune([moved], loss_at, rates, report)
    return Optimised(loss_of.latent(moved).detach(), losses)


class _Loss:
    """The loss of each picture as a function of how far its latent has moved, in units of its deviation."""

    def __init__(self, decode, encode, latent, texts, weights, recipe, keep, mask):
        self._decode, self._encode, self._recipe, self._keep = decode, encode, recipe, keep
        self._texts, self._weights = texts, weights
        self._start = latent
        unit = latent.flatten(1).std(1)[:, None, None, None]
        self._reach = unit if mask is None else unit * mask
        self._mask = mask
        self._picture = decode(latent).detach()
        self._tokens = self._looks(self._picture).detach()

    def latent(self, moved: Tensor) -> Tensor:
        return self._start + self._reach * moved

    def __call__(self, moved: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The pictures ``[B,3,H,W]`` and their losses ``[B]``."""
        recipe = self._recipe
        pictures = self._decode(self.latent(moved))
        loss = recipe.clip * self._misfit(pictures, generator)
        if recipe.latent:
            change = moved if self._mask is None else moved * self._mask
            loss = loss + self._keep * recipe.latent * change.square().flatten(1).sum(1)
        if recipe.pixel:
            loss = loss + self._keep * recipe.pixel * (pictures - self._picture).square().flatten(1).mean(1)
        if recipe.perceptual:
            change = self._looks(pictures) - self._tokens
            loss = loss + self._keep * recipe.perceptual * change.square().sum(-1).mean(1)
        return pictures, loss

    def _misfit(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted distances from the texts, ``[B]``."""
        views = pictures
        if self._recipe.views:
            views = cutouts(pictures, self._recipe.views, self._encode.side, generator)
        found = distances(self._encode(views)[0], self._texts, self._recipe.distance) @ self._weights
        return found.view(-1, len(pictures)).mean(0)

    def _looks(self, pictures: Tensor) -> Tensor:
        """The encoder's tokens ``[B,T,W]`` of pictures, each of unit length."""
        return torch.nn.functional.normalize(self._encode(pictures)[1], dim=-1)
