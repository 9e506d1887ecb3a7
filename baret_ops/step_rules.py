"""How TTIS searches for the embedding of one step: a rule is a callable, made once per run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Land = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]
"""``land(e [A,T,D], rows)``: the images ``rows`` taken through this step with ``e``; ``(x_next [A,C,h,w], loss [A])``."""


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search: ``embedding [B,T,D]``, the ``x_next [B,C,h,w]`` it gives, its ``losses [B]``, ``updates [B]`` spent."""

    embedding: Tensor
    x_next: Tensor
    losses: Tensor
    updates: Tensor


class StepRule(Protocol):
    def __call__(self, land: Land, embedding: Tensor, threshold: float, iterations: int) -> Found:
        """Search from ``embedding [B,T,D]`` with at most ``iterations`` updates an image.

        An image whose loss is at most ``threshold`` is done. The returned embedding is the one whose forward gave
        ``x_next``: nothing is evaluated twice. A loss that is not finite ends the search; the caller sees it.
        """
        ...


@dataclass(frozen=True)
class Adam:
    """The paper's rule: a fresh Adam each step (default betas and eps), constant learning rate."""

    learning_rate: float = 1e-3

    def __call__(self, land: Land, embedding: Tensor, threshold: float, iterations: int) -> Found:
        # One parameter per image: Adam skips a parameter without gradient, so a finished image stays as it is
        # while the others go on, and no image's moments see another's gradient.
        images = [row.clone().requires_grad_() for row in embedding.detach().split(1)]
        optimizer = torch.optim.Adam(images, lr=self.learning_rate)
        x_next: list[Tensor] = [embedding] * len(images)
        losses = embedding.new_zeros(len(images))
        updates = torch.zeros(len(images), dtype=torch.int64)

        active = list(range(len(images)))
        for j in range(iterations + 1):
            with torch.set_grad_enabled(j < iterations):
                x_active, loss = land(torch.cat([images[b] for b in active]), active)
            for b, x in zip(active, x_active.detach().split(1)):
                x_next[b] = x
            values = loss.detach()
            losses[active] = values
            going = [k for k, value in enumerate(values.tolist()) if threshold < value < float("inf")]
            if j == iterations or not going:
                break
            # The sum over pixels is what goes backward and the mean is restored on the gradient: a mean's gradient
            # lies below float16's normal range.
            pixels = x_active[0].numel()
            moving = [images[active[k]] for k in going]
            with torch.enable_grad():
                squares = loss[going].sum() * pixels
            gradients = torch.autograd.grad(squares, moving)
            optimizer.zero_grad(set_to_none=True)
            for image, gradient in zip(moving, gradients):
                image.grad = gradient / pixels
            optimizer.step()
            active = [active[k] for k in going]
            updates[active] += 1

        return Found(torch.cat(images).detach(), torch.cat(x_next), losses.detach(), updates)


STEP_RULES: dict[str, Callable[[float], StepRule]] = {"adam": Adam}
"""Rules by the name of the node's ``step_rule`` input, each made from the learning rate."""
