"""MasaCtrl (Cao et al. 2023): the edit's own layout, filled with the source's content by its self-attention K and V."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention import Attend, Hooks, Site
from ..inversions.tuning import OnStep
from ..maps import MapSums
from ..predict import Predict
from ..values import Embeddings, Trajectory, require_match
from .sampling import sample_edit

_EDIT, _SOURCE = 0, 1


@dataclass(frozen=True, eq=False)
class Foreground:
    """What looks at chosen words takes content from the source's places that do, and the rest from the rest.

    source ``[Ts]``, target ``[Tt]``: 1 for each token of these words. threshold: what share of the range of the source's map counts as looking.
    """

    source: Tensor
    target: Tensor
    threshold: float = 0.1


def masactrl(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    *,
    guidance_scale: float = 7.5,
    start_step: int = 4,
    first_block: int = 10,
    foreground: Foreground | None = None,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample the embeddings' target text with K and V of the source's self-attention, in both passes.

    The source's path is the trajectory, its text the tuned one. From step ``start_step`` on, and from transformer block ``first_block``
    on, ``softmax(Q_edit K_source^T / sqrt(d)) V_source``. The source costs two row-forwards a step then.

    foreground: keeps foreground and background apart, by cross-attention maps of the steps before; they are averaged over the steps so far
        (chosen: so that a pass run alone has them too). Needs the source from the first step on.
    mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept.
    Returns the edit ``[B,C,h,w]``, VP form. Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    device = trajectory.pivots.device
    target = embeddings.target.to(device)
    words = (
        None
        if foreground is None
        else [
            each.to(device).repeat(target.shape[1] // len(each))[:, None]
            for each in (foreground.target, foreground.source)
        ]
    )
    looks: list[MapSums] = []

    def look(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if site.coarse and True in site.passes:
            if not looks:
                looks.extend((MapSums(site.grid), MapSums(site.grid)))
            for process in (_EDIT, _SOURCE):
                rows = site.rows(len(q), 2, process)
                looks[process].add(q[rows], k[rows], site.heads, words[process], site.grid)
        return attend(q, k, v)

    def borrowing(maps: list[Tensor]):
        def hook(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if site.block < first_block:
                return attend(q, k, v)
            k, v = k.clone(), v.clone()
            edits = []
            for conditional in set(site.passes):
                edit, source = (site.rows(len(q), 2, process, conditional) for process in (_EDIT, _SOURCE))
                k[edit], v[edit] = k[source], v[source]
                edits.append(edit)
            out = attend(q, k, v)
            if maps:
                inside, belongs = (
                    interpolate(each, size=site.grid, mode="bilinear").flatten(2) for each in maps
                )  # [B,1,S]
                never = torch.finfo(q.dtype).min / 2
                apart = [
                    torch.zeros_like(inside, dtype=q.dtype).masked_fill(~place, never)
                    for place in (inside > 0.5, inside <= 0.5)
                ]
                weight = belongs.transpose(1, 2).to(q.dtype)
                for edit in edits:
                    front, back = (site.plain(q[edit], k[edit], v[edit], mask=each) for each in apart)
                    out[edit] = torch.lerp(back, front, weight)
            return out

        return hook

    def step(i: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor]:
        negative = embeddings.negative_at(i).to(device)
        if i < start_step and foreground is None:
            return predict(x, sigma, cond=target, uncond=negative)
        maps = []
        if looks:
            inside, belongs = (_stretched(looks[process].mean()) for process in (_SOURCE, _EDIT))
            maps = [(inside >= foreground.threshold).float(), belongs]
        eps_cond, eps_uncond = predict(
            torch.cat([x, trajectory.latents[i] * schedule.scale(i)]),
            sigma,
            cond=torch.cat([target, embeddings.tuned[i].to(device)]),
            uncond=negative.repeat(2, 1, 1),
            hooks=Hooks(
                self_attention=borrowing(maps) if i >= start_step else None,
                cross_attention=None if foreground is None else look,
            ),
        )
        return eps_cond[:images], eps_uncond[:images]

    return sample_edit(trajectory, step, guidance_scale=guidance_scale, mask=mask, on_step=on_step)


def _stretched(maps: Tensor) -> Tensor:
    """Each image's map ``[B,1,h,w]`` from its least, 0, to its greatest, 1."""
    least, greatest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - least) / (greatest - least).clamp_min(1e-12)
