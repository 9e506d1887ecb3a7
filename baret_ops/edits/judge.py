"""The model judges an edit: which of two texts explains a picture better, the target or the picture's own tuned one.

A diffusion classifier (Li et al. 2023) made relative: the picture is noised, and the noise that was added is compared
with what the model predicts for either text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..predict import Predict
from ..schedule import Schedule
from ..values import Embeddings

ASKED_AT = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
"""The levels, as shares of the steps from the noisiest, at which the model is asked."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model predicted in noised pictures at L levels.

    noise ``[L,1,C,h,w]``: what was added, the same for every picture. target, tuned ``[L,R,C,h,w]``: the predictions
    with the target text and with the tuned one.
    """

    noise: Tensor
    target: Tensor
    tuned: Tensor

    def obeyed(self) -> Tensor:
        """How far the target text explains each picture, ``[R]``: about 0 for the picture as it was, 1 for all of it.

        The noise's projection on the way from the tuned text's prediction to the target's, over all levels. It goes
        with no scale of the model's: twice the latent or twice the difference of the texts give the same.
        """
        way = self.target - self.tuned
        gone = ((self.noise - self.tuned) * way).sum((0, 2, 3, 4))
        return gone / way.square().sum((0, 2, 3, 4)).clamp_min(1e-12)

    def difference(self) -> Tensor:
        """How much the two texts differ at each place of the pictures, ``[R,1,h,w]``."""
        return (self.target - self.tuned).abs().mean((0, 2))[:, None]


def levels_of(schedule: Schedule) -> list[int]:
    """The steps at which the model is asked, each once."""
    return sorted({min(round(share * schedule.steps), schedule.steps - 1) for share in ASKED_AT})


@torch.no_grad()
def ask(predict: Predict, schedule: Schedule, embeddings: Embeddings, pictures: Tensor, seed: int) -> Answers:
    """Ask the model about pictures: two row-forwards a picture and level.

    pictures: clean latents ``[P*B,C,h,w]``, P of each of B images (process-major). seed: of the noise, which is the
    same for every picture and on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    times = len(pictures) // embeddings.images
    noises, targets, tuned = [], [], []
    for i in levels_of(schedule):
        noise = torch.randn(pictures.shape[1:], generator=generator).to(pictures)
        x = pictures + schedule.sigma(i) * noise
        texts = torch.cat([embeddings.target.repeat(times, 1, 1), embeddings.tuned[i].repeat(times, 1, 1)])
        eps, _ = predict(torch.cat([x, x]), schedule.sigma(i), cond=texts)
        of_target, of_tuned = eps.chunk(2)
        noises.append(noise[None])
        targets.append(of_target)
        tuned.append(of_tuned)
    return Answers(torch.stack(noises), torch.stack(targets), torch.stack(tuned))
