"""DDIM inversion: walk pictures up to noise, to the pivots that every inversion follows back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..predict import IN_FULL_PRECISION, OnStep, Predict, require_finite
from ..schedule import Schedule

_ADVICE = f"{IN_FULL_PRECISION}, and check the VAE's latent"


@torch.no_grad()
def ddim_inversion(
    predict: Predict,
    latent: Tensor,
    embedding: Tensor,
    schedule: Schedule,
    *,
    uncond: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk images up to noise at guidance 1 (DDIM inversion): N row-forwards per image.

    From level i+1 to the noisier level i the model sees the cleaner latent ``z_{i+1}`` at time ``t_i``.

    latent: ``[B,C,h,w]`` in VP form. embedding: ``[B,T,D]``; ``uncond`` says that it is the negative one.
    Returns the pivots ``[N+1,B,C,h,w]`` in VP form, noisiest first, in the latent's dtype. Raises NotFinite.
    """
    pivots = [latent]
    embedding = embedding.to(latent.device)
    for count, i in enumerate(reversed(range(schedule.steps))):
        z = pivots[-1]
        eps = one_pass(predict, schedule.to_sampler(z, i), schedule.sigma(i), embedding, uncond)
        noisier = schedule.step(z, eps, i + 1, i)
        require_finite(noisier, during="inversion", schedule=schedule, step=i, advice=_ADVICE)
        pivots.append(noisier)
        if on_step is not None:
            on_step(count, schedule.clean(z, eps, i + 1), noisier)
    return torch.stack(pivots[::-1])


def one_pass(predict: Predict, x: Tensor, sigma: float, embedding: Tensor, uncond: bool) -> Tensor:
    """The noise ``[R,C,h,w]`` that one pass alone predicts, the unconditional one or the conditional one."""
    if uncond:
        return predict(x, sigma, uncond=embedding)[1]
    return predict(x, sigma, cond=embedding)[0]
