"""The balanced attention module (BAM): sample the edit with attention from two other processes."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Sharing
from .auto_mask import auto_mask as find_mask
from .inversion import OnStep
from .predict import Predict
from .sampling import injected_steps, sample_edit
from .values import Embeddings, Trajectory, require_match


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
    auto_mask: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample the edit (paper, Eq. 4 and 5).

    For the first ``tau_sa`` of the steps the edit's self-attention takes Q and K from the reconstruction, for the
    first ``tau_ca`` its cross-attention takes them from the transition; V stays its own. The reconstruction
    repeats what TTIS did, so it costs one conditional row-forward a step and only while it lends; the transition costs two
    while it lends, and none beside the reconstruction where it is the reconstruction (eta 1 at the tuned guidance).

    uncond_too: share in the unconditional pass as well. max_tokens: no sharing in blocks of more tokens.
    mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept at every step. auto_mask: above 0 the threshold of a mask
        that is found from the text (:mod:`.auto_mask`) and multiplied with the given one.
    Returns the edited latent ``[B,C,h,w]``, VP form. Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    steps_sa = injected_steps(tau_sa, schedule.steps, "tau_sa")
    steps_ca = injected_steps(tau_ca, schedule.steps, "tau_ca")
    rigid = embeddings.is_rigid and (trajectory.is_direct or guidance_scale == trajectory.guidance_scale)

    device = trajectory.pivots.device
    target = embeddings.target.to(device)

    def step(i: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor]:
        sharing_self, sharing_cross = i < steps_sa, i < steps_ca
        own_transition = sharing_cross and not rigid

        # The processes of this step, guided ones first: a lender that needs no guidance has no unconditional row.
        guided = 2 if own_transition else 1
        latents, texts = [x[: guided * images]], [target]
        if own_transition:
            texts.append(embeddings.transition(i).to(device))
        if sharing_self or (sharing_cross and rigid):
            latents.append(trajectory.latents[i] * schedule.scale(i))
            texts.append(embeddings.tuned[i].to(device))
        sharing = None
        if sharing_self or sharing_cross:
            sharing = Sharing(
                processes=len(texts),
                self_from=len(texts) - 1 if sharing_self else None,
                cross_from=1 if sharing_cross else None,
                max_tokens=max_tokens,
                uncond=uncond_too,
            )

        x = torch.cat(latents)
        cond = torch.cat(texts)
        negative = embeddings.negative_at(i).to(device)
        rows = guided * images
        if guided == len(texts) or uncond_too:
            eps_cond, eps_uncond = predict(x, sigma, cond=cond, uncond=negative.repeat(len(texts), 1, 1), sharing=sharing)
        else:
            eps_cond, _ = predict(x, sigma, cond=cond, sharing=sharing)
            _, eps_uncond = predict(x[:rows], sigma, uncond=negative.repeat(guided, 1, 1))
        return eps_cond[:rows], eps_uncond[:rows]

    if auto_mask:
        found = find_mask(predict, trajectory, embeddings, auto_mask)
        mask = found if mask is None else mask * found
    processes = 2 if steps_ca and not rigid else 1
    return sample_edit(trajectory, step, guidance_scale=guidance_scale, processes=processes, mask=mask, on_step=on_step)
