"""The balanced attention module (BAM): sample the edit with attention from two other processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention import Sharing
from .inversion import NotFinite, OnStep
from .predict import Predict
from .schedule import ddim_step, guide
from .values import Embeddings, Trajectory, require_match


def injected_steps(tau: float, steps: int, name: str = "tau") -> int:
    """``floor(tau * N + 0.5)``: how many steps, from the noisiest, attention is injected. Raises ValueError outside 0..1."""
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"{name} is {tau}; it is a share of the steps and lies from 0 (never) to 1 (always).")
    return math.floor(tau * steps + 0.5)


@torch.no_grad()
def bam(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    *,
    guidance_scale: float = 7.5,
    tau_sa: float = 0.3,
    tau_ca: float = 0.6,
    uncond_too: bool = False,
    max_tokens: int | None = None,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample the edit (paper, Eq. 4 and 5).

    For the first ``tau_sa`` of the steps the edit's self-attention takes Q and K from the reconstruction, for the
    first ``tau_ca`` its cross-attention takes them from the transition; V stays its own. The reconstruction
    repeats what TTIS did, so it costs one conditional row-forward a step and only while it lends; the transition costs two
    while it lends, and none beside the reconstruction where it is the reconstruction (eta 1 at the tuned guidance).

    uncond_too: share in the unconditional pass as well. max_tokens: no sharing in blocks of more tokens.
    mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept at every step.
    Returns the edited latent ``[B,C,h,w]``, VP form. Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    steps_sa = injected_steps(tau_sa, schedule.steps, "tau_sa")
    steps_ca = injected_steps(tau_ca, schedule.steps, "tau_ca")
    rigid = embeddings.is_rigid and guidance_scale == trajectory.guidance_scale

    device = trajectory.pivots.device
    target = embeddings.target.to(device)
    negative = embeddings.negative.to(device)
    edit = transition = trajectory.pivots[0]

    for i in range(schedule.steps):
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        sharing_self, sharing_cross = i < steps_sa, i < steps_ca
        own_transition = sharing_cross and not rigid

        # The processes of this step, guided ones first: a lender that needs no guidance has no unconditional row.
        latents, texts = [edit], [target]
        if own_transition:
            latents.append(transition)
            texts.append(embeddings.transition(i).to(device))
        guided = len(latents)
        if sharing_self or (sharing_cross and rigid):
            latents.append(trajectory.latents[i])
            texts.append(embeddings.tuned[i].to(device))
        sharing = None
        if sharing_self or sharing_cross:
            sharing = Sharing(
                processes=len(latents),
                self_from=len(latents) - 1 if sharing_self else None,
                cross_from=1 if sharing_cross else None,
                max_tokens=max_tokens,
                uncond=uncond_too,
            )

        x = torch.cat(latents) * schedule.scale(i)
        cond = torch.cat(texts)
        rows = guided * images
        if guided == len(latents) or uncond_too:
            eps_cond, eps_uncond = predict(x, sigma, cond=cond, uncond=negative.repeat(len(latents), 1, 1), sharing=sharing)
        else:
            eps_cond, _ = predict(x, sigma, cond=cond, sharing=sharing)
            _, eps_uncond = predict(x[:rows], sigma, uncond=negative.repeat(guided, 1, 1))
        eps = guide(eps_cond[:rows], eps_uncond[:rows], guidance_scale)
        x_next = ddim_step(x[:rows], eps, sigma, sigma_next)
        if not torch.isfinite(x_next).all():
            raise NotFinite(
                f"NaN or infinity appeared in the edit at step {i} of {schedule.steps} (time {schedule.timesteps[i]}): "
                "lower cfg, or run the model in float32 or bfloat16 (for example --fp32-unet)."
            )
        z_next = x_next / schedule.scale(i + 1)
        edit = z_next[:images]
        if own_transition:
            transition = z_next[images:]
        if mask is not None:
            edit = torch.lerp(trajectory.pivots[i + 1], edit, mask)
        if on_step is not None:
            on_step(i, x[:images] - sigma * eps[:images], edit)
    return edit
