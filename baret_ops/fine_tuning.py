"""Fine-tuning on one picture by the denoising loss at random times: what Imagic and SINE have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .predict import IN_FULL_PRECISION, OnStep, Predict, require_finite
from .schedule import Schedule

_ADVICE = f"lower the learning rate, or {IN_FULL_PRECISION}"


@dataclass(frozen=True)
class FineTuning:
    """Adam on the loss that the model was trained by, with one picture as the whole data set.

    An update draws a level and noise, and goes down ``mean((eps(x, sigma, text) - noise)**2)``, the latent being
    ``x = picture + sigma * noise``: Imagic's phases A and B (Kawar et al. 2022, eq. 3) and SINE's fine-tuning (Zhang et
    al. 2022, eq. 5), without guidance.

    updates: how many. learning_rate: constant, default betas and eps.
    patch: ``(h, w)`` of the part of the picture that an update sees, at a random place; None for the whole.
    """

    updates: int
    learning_rate: float
    patch: tuple[int, int] | None = None

    def seen(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what an update sees of a latent of ``shape`` (...,h,w)."""
        *others, height, width = shape
        if self.patch is None:
            return (*others, height, width)
        return (*others, min(height, self.patch[0]), min(width, self.patch[1]))

    def __call__(
        self,
        predict: Predict,
        picture: Tensor,
        text: Tensor,
        schedule: Schedule,
        tuned: Sequence[Tensor],
        generator: torch.Generator,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Change the ``tuned`` leaves in place; return the loss before each update, ``[updates]`` float32 on the CPU.

        picture: ``[1,C,h,w]``, VP form. text: ``[1,T,D]``, which may be one of the tuned. schedule: every level of it
        is drawn from. tuned: float32 leaves that require gradients and that the prediction depends on.
        generator: on the CPU, from which each update takes the place of the patch (row, then column; nothing where
        there is none), the level and the noise, in this order.
        Raises NotFinite, and ValueError where the prediction cannot be followed back to what is tuned.
        """
        optimizer = torch.optim.Adam(tuned, lr=self.learning_rate)
        losses = []
        for update in range(self.updates):
            seen = picture if self.patch is None else _random_patch(picture, self.seen(picture.shape), generator)
            level = int(torch.randint(schedule.steps + 1, (1,), generator=generator))
            noise = torch.randn(seen.shape, generator=generator, dtype=seen.dtype).to(seen.device)
            sigma = schedule.sigma(level)
            x = seen + sigma * noise

            with torch.enable_grad():
                eps, _ = predict(x, sigma, cond=text)
                residual = eps - noise
            loss = residual.detach().square().mean()
            require_finite(
                loss, during="fine-tuning", schedule=schedule, step=min(level, schedule.steps - 1), advice=_ADVICE
            )
            _descend(optimizer, residual, tuned)
            losses.append(loss.float().cpu())
            if on_step is not None:
                on_step(update, x - sigma * eps.detach(), x / (1.0 + sigma**2) ** 0.5)
        return torch.stack(losses) if losses else torch.zeros(0)


def _random_patch(picture: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A part of ``picture [1,C,h,w]`` of the shape, anywhere in it."""
    for side, length in enumerate(shape[-2:], -2):
        room = picture.shape[side] - length
        start = int(torch.randint(room + 1, (1,), generator=generator))
        picture = picture.narrow(side, start, picture.shape[side] - room)
    return picture


def _descend(optimizer: torch.optim.Optimizer, residual: Tensor, tuned: Sequence[Tensor]) -> None:
    """One update down ``mean(residual**2)``.

    The sum over pixels goes backward, and the mean is restored after: a mean's gradient lies below float16's normal
    range. Raises ValueError where the residual does not depend on what is tuned.
    """
    if not residual.requires_grad:
        raise ValueError(
            "the model's prediction cannot be followed back to what is tuned, as a patch or wrapper on it computes "
            "without gradients (tiles, caches of earlier steps, perturbed attention); remove it from the model."
        )
    gradients = torch.autograd.grad(residual, tuned, residual.detach())
    for leaf, gradient in zip(tuned, gradients):
        leaf.grad = gradient * (2.0 / residual.numel())
    optimizer.step()
