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

ASKED_AT = (0.05, 0.1, 0.15, 0.2, 0.3)
"""The levels, as shares of the steps from the noisiest, at which the model is asked. Later ones see colours and no
longer poses: an edit that did one of two things looks obedient there."""
_LEVEL_SEEDS = 1000  # between the seeds of two levels' noise, so that the seeds of two tries share none


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model predicted in pictures that were noised to L levels.

    noise ``[L,1,C,h,w]``: what was added, the same for every picture.
    target, tuned ``[L,R,C,h,w]``: the predictions with the target text and with the tuned one.
    """

    noise: Tensor
    target: Tensor
    tuned: Tensor

    def obeyed(self) -> Tensor:
        """Where the true noise lies from the tuned text's prediction, 0, to the target's, 1; ``[L,R]``.

        ``<n - eps(e_i), eps(e_g) - eps(e_i)> / |eps(e_g) - eps(e_i)|**2``. It goes with no scale of the model's.
        """
        way = self.target - self.tuned
        along = ((self.noise - self.tuned) * way).flatten(2).sum(2)
        return along / way.square().flatten(2).sum(2).clamp_min(1e-12)

    def difference(self) -> Tensor:
        """How much the two texts differ at each place of the pictures, ``[R,1,h,w]``."""
        return (self.target - self.tuned).abs().mean((0, 2))[:, None]

    def score(self, source: Answers) -> Tensor:
        """How far pictures obey the target text, ``[R]``: 0 for the picture as it was, about 1 for what was asked.

        The way from the source's place to the edit's, as the mean of the levels without the lowest and the highest
        quarter: single levels err. source: what was asked of the pictures as they are.
        """
        ways = (self.obeyed() - source.obeyed()).sort(0).values
        outer = len(ways) // 4
        return ways[outer : len(ways) - outer].mean(0)

    def of(self, images: list[int]) -> Answers:
        """The answers about some of the pictures."""
        return Answers(self.noise, self.target[:, images], self.tuned[:, images])


def levels_of(schedule: Schedule) -> list[int]:
    """The steps at which the model is asked, each once."""
    return sorted({min(int(share * schedule.steps + 0.5), schedule.steps - 1) for share in ASKED_AT})


@torch.no_grad()
def ask(predict: Predict, schedule: Schedule, embeddings: Embeddings, pictures: Tensor, seed: int) -> Answers:
    """Ask the model about clean latents ``[B,C,h,w]``: two row-forwards a picture and level.

    seed: of the noise, which is the same for every picture and on every device, so that comparisons share it.
    """
    noises, targets, tuned = [], [], []
    for i in levels_of(schedule):
        generator = torch.Generator().manual_seed(seed + _LEVEL_SEEDS * i)
        noise = torch.randn(pictures.shape[1:], generator=generator).to(pictures)[None]
        x = pictures + schedule.sigma(i) * noise
        texts = torch.cat([embeddings.target, embeddings.tuned[i]])
        eps, _ = predict(torch.cat([x, x]), schedule.sigma(i), cond=texts)
        of_target, of_tuned = eps.chunk(2)
        noises.append(noise)
        targets.append(of_target)
        tuned.append(of_tuned)
    return Answers(torch.stack(noises), torch.stack(targets), torch.stack(tuned))
