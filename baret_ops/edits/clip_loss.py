"""What methods that tune by CLIP have in common: distances in its space, and the loop that goes down them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..predict import NotFinite


class Encoder(Protocol):
    """A picture encoder of CLIP. side: the pictures that it looks at are squares of so many pixels."""

    side: int

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[R,D]`` of pictures ``[R,3,h,w]`` in 0..1, and the tokens ``[R,T,W]`` of its last layer but one.

        Other pictures than squares of its side are resized and cropped to the middle. Differentiable.
        """
        ...


def distances(images: Tensor, texts: Tensor, kind: str) -> Tensor:
    """Distances ``[R,P]`` of embeddings ``[R,D]`` and ``[P,D]``.

    kind: "cosine", ``1 - cos``, or "arc", ``2 arcsin(|a - b| / 2)^2`` of unit vectors, half the squared angle.
    """
    images, texts = normalize(images, dim=-1), normalize(texts, dim=-1)
    if kind == "cosine":
        return 1 - images @ texts.T
    return 2 * ((images[:, None] - texts).norm(dim=-1) / 2).arcsin().square()


def tune(
    tuned: Sequence[Tensor],
    loss_at: Callable[[int], Tensor],
    rates: Sequence[float],
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Change the ``tuned`` leaves in place by Adam, one update for each of ``rates``.

    loss_at: from the number of an update to the losses ``[B]``, whose sum goes down. on_step: called with it after the
    update. Returns the losses ``[S,B]`` before each update. Raises NotFinite.
    """
    optimiser = torch.optim.Adam(tuned)
    losses = []
    for step, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        with torch.enable_grad():
            loss = loss_at(step)
            gradients = torch.autograd.grad(loss.sum(), tuned)
        finite = torch.stack([torch.isfinite(value).all() for value in (loss, *gradients)])
        if not finite.all():  # one look for all of them: each would wait for the card
            raise NotFinite(
                f"NaN or infinity appeared at update {step} of {len(rates)}: run the VAE and CLIP in float32, or "
                "lower the learning rate."
            )
        for leaf, gradient in zip(tuned, gradients):
            leaf.grad = gradient
        optimiser.step()
        losses.append(loss.detach())
        if on_step is not None:
            on_step(step)
    return torch.stack(losses)
