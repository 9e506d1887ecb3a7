"""Text2LIVE (Bar-Tal et al. 2022): a layer of colours and alpha over a picture, painted by a small network of its own.

The network is trained on the one picture, until CLIP finds that the layer over the picture, and the layer over a green
screen, fit their texts. The picture itself is never changed: where alpha is 0, it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize

from .clip_loss import Encoder, distances, tune
from .cutouts import cutouts
from .layer_generator import LayerGenerator

SCREEN = (0.0, 177 / 255, 64 / 255)
"""The green that the layer is judged over."""
TEMPLATES = (
    "photo of {}.",
    "high quality photo of {}.",
    "a photo of {}.",
    "the photo of {}.",
    "image of {}.",
    "an image of {}.",
    "high quality image of {}.",
    "a high quality image of {}.",
    "the {}.",
    "a {}.",
    "{}.",
    "{}",
    "{}!",
    "{}...",
)
SCREEN_TEMPLATES = ("{} over a green screen.", "{} in front of a green screen.")
_WHOLE_EVERY = 75  # updates
_FLIPPED = 0.5  # share of the examples
_SCALES = (0.8, 1.2)
_COVER = 0.85  # share of either side that an example shows at least


@dataclass(frozen=True)
class Painting:
    """How a layer is painted. The loss of a layer of colours ``c`` and alpha ``a`` over a picture ``x`` is

    ``composition * (arc(E(y), asked) + 1 - cos(E(y) - E(x), asked - before)) + screen * arc(E(a c + (1 - a) green),
    layer) + structure * mean((S(y) - S(x))^2) + sparsity * mean(a + 2 sigmoid(5 a) - 1) + bootstrap * (1 - (s + 1) /
    steps) * mean((a - mask)^2)``

    with ``y = a c + (1 - a) x``, ``E`` the embeddings of random views of a picture, ``S`` the cosines between CLIP's
    tokens of it, and the mean over the texts of each kind (the published code draws some of them in each update).

    The weights and the rate are those of the published code. It has another optimiser (MADGRAD), changes the colours of
    one example in ten, and has its own kinds of views.

    steps: updates. rate: of Adam at first, times ``decay`` with each update, ``least_rate`` at least.
    views: random cutouts of a picture in each update. channels: of the network.
    """

    steps: int = 1000
    rate: float = 0.0025
    decay: float = 0.99
    least_rate: float = 1e-5
    views: int = 16
    channels: int = 128
    composition: float = 1.0
    screen: float = 1.0
    structure: float = 2.0
    sparsity: float = 0.06
    bootstrap: float = 10.0

    def rate_at(self, step: int) -> float:
        """Adam's rate at an update, from 0."""
        return max(self.least_rate, self.rate * self.decay**step)


@dataclass(frozen=True)
class LayerTexts:
    """Embeddings in CLIP's space: what the edited picture shows, what the layer shows over a green screen, and what the
    picture shows before, template by template like the first; None where nobody said.

    asked: ``[P,D]``. layer: ``[Q,D]``. before: ``[P,D]`` or None.
    """

    asked: Tensor
    layer: Tensor
    before: Tensor | None = None

    def to(self, place: Callable[[Tensor], Tensor]) -> LayerTexts:
        """The same embeddings, each moved by ``place``."""
        return LayerTexts(place(self.asked), place(self.layer), None if self.before is None else place(self.before))


@dataclass(frozen=True, eq=False)
class Layer:
    """colours: ``[1,3,H,W]``. alpha: ``[1,1,H,W]``, both in 0..1. losses: ``[S]`` before each of the updates."""

    colours: Tensor
    alpha: Tensor
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))

    def over(self, picture: Tensor) -> Tensor:
        """The layer over a picture or a colour ``[1,3,H,W]``."""
        return self.alpha * self.colours + (1 - self.alpha) * picture


def paint_layer(
    encode: Encoder,
    picture: Tensor,
    texts: LayerTexts,
    how: Painting,
    *,
    mask: Tensor | None = None,
    seed: int = 0,
    on_step: Callable[[int, Callable[[], Tensor]], None] | None = None,
) -> Layer:
    """Paint a layer over ``picture [1,3,H,W]`` in 0..1; with no updates, one of alpha 0 in the picture's colours.

    mask: ``[1,1,H,W]`` in 0..1, where the layer is to be at first; None leaves that to the texts. seed: of the
    network's first weights, of the examples and of the views. on_step: called after each update with its number and a
    function that gives the picture with the layer over it as it is then. Raises NotFinite.
    """
    if how.steps == 0:
        return Layer(picture, torch.zeros_like(picture[:, :1]))
    network = LayerGenerator(min(picture.shape[-2:]), how.channels, seed).to(picture)
    loss_of = _Loss(encode, texts, how)
    generator = torch.Generator().manual_seed(seed)
    sources = picture if mask is None else torch.cat([picture, mask], 1)

    def painted() -> Layer:
        with torch.no_grad():
            return Layer(*network(picture).split([3, 1], 1))

    def loss_at(step: int) -> Tensor:
        seen = [_example(sources, generator)]
        if step % _WHOLE_EVERY == 0:
            seen.append(sources)
        share = how.bootstrap * (1 - (step + 1) / how.steps)
        return torch.stack([loss_of(network, example, share, generator) for example in seen]).mean(0)

    rates = [how.rate_at(step) for step in range(how.steps)]
    report = on_step and (lambda step: on_step(step, lambda: painted().over(picture)))
    losses = tune(list(network.parameters()), loss_at, rates, report)
    return replace(painted(), losses=losses[:, 0])


def sparsity(alpha: Tensor) -> Tensor:
    """How much of a picture a layer covers, ``[B]``: the mean of alpha and of a smooth count of where it is not 0."""
    return (alpha + 2 * (5 * alpha).sigmoid() - 1).flatten(1).mean(1)


def self_similarity(tokens: Tensor) -> Tensor:
    """The cosines ``[B,T,T]`` between the tokens ``[B,T,W]`` of each picture: its structure without its colours."""
    tokens = normalize(tokens, dim=-1)
    return tokens @ tokens.transpose(1, 2)


def _example(sources: Tensor, generator: torch.Generator) -> Tensor:
    """A part of ``sources [1,C,H,W]``, at random flipped, scaled and cut: what one update sees."""
    flip, scale, *rest = torch.rand(6, generator=generator).tolist()
    if flip < _FLIPPED:
        sources = sources.flip(-1)
    scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * scale
    sizes = [max(2, round(scale * side)) for side in sources.shape[-2:]]
    sources = interpolate(sources, size=sizes, mode="bilinear", antialias=True)
    for dim, (cover, place) in zip((-2, -1), (rest[:2], rest[2:])):
        side = sources.shape[dim]
        length = max(2, int(side * (_COVER + (1 - _COVER) * cover)))
        sources = sources.narrow(dim, int(place * (side - length + 1)), length)
    return sources


class _Loss:
    """The loss of what a network paints over an example."""

    def __init__(self, encode: Encoder, texts: LayerTexts, how: Painting):
        self._encode, self._texts, self._how = encode, texts, how

    def __call__(self, network, example: Tensor, bootstrap: float, generator: torch.Generator) -> Tensor:
        """The loss ``[1]``. example: a mask may be its last channel."""
        how, picture = self._how, example[:, :3]
        layer = Layer(*network(picture).split([3, 1], 1))
        edited = layer.over(picture)
        screened = layer.over(picture.new_tensor(SCREEN).view(1, 3, 1, 1))
        on_picture, on_screen, before = self._views(edited, screened, picture, generator)
        composition = distances(on_picture, self._texts.asked, "arc").mean()
        if self._texts.before is not None:
            way = self._texts.asked - self._texts.before
            composition = composition + 1 - cosine_similarity((on_picture - before)[:, None], way, dim=-1).mean()
        loss = how.composition * composition
        loss = loss + how.screen * distances(on_screen, self._texts.layer, "arc").mean()
        loss = loss + how.structure * (self._structure(edited) - self._structure(picture).detach()).square().mean()
        loss = loss + how.sparsity * sparsity(layer.alpha)
        if example.shape[1] > 3:
            loss = loss + bootstrap * (layer.alpha - example[:, 3:]).square().mean()
        return loss

    def _views(self, edited: Tensor, screened: Tensor, picture: Tensor, generator: torch.Generator) -> tuple:
        """The embeddings ``[views,D]`` of views of three pictures, changed alike."""
        seen = cutouts(torch.cat([edited, screened, picture]), self._how.views, self._encode.side, generator)
        edited, screened, picture = seen.view(-1, 3, *seen.shape[1:]).unbind(1)
        tuned = self._encode(torch.cat([edited, screened]))[0]
        with torch.no_grad():
            before = self._encode(picture)[0]
        return *tuned.chunk(2), before

    def _structure(self, picture: Tensor) -> Tensor:
        side = self._encode.side
        whole = interpolate(picture, size=(side, side), mode="bicubic", antialias=True)
        return self_similarity(self._encode(whole)[1])
