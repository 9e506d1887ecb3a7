"""MasaCtrl (Cao et al. 2023): the edit's own layout, filled with the source's content by its self-attention K and V."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention import Attend, Hooks, Site
from ..maps import MapSums
from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import edit_mask
from .region import Region
from .sampling import sample_from_pivots

_EDIT, _SOURCE = 0, 1
_PROCESSES = 2


@dataclass(frozen=True, eq=False)
class Foreground:
    """What looks at chosen words takes content from the source's places that do, and the rest from the rest.

    source ``[Ts]``, target ``[Tt]``: 1 for each token of these words.
    threshold: what share of the range of the source's map counts as looking.
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
    auto_mask: float = 0.0,
    change_mask: float = 0.0,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample the embeddings' target text with K and V of the source's self-attention, in both passes.

    The source's path is the trajectory, its text the tuned one. From step ``start_step`` on, and from transformer block
    ``first_block`` on, ``softmax(Q_edit K_source^T / sqrt(d)) V_source``. The source costs two row-forwards a step
    then.

    foreground: keeps foreground and background apart, by cross-attention maps of the steps before; they are averaged
        over the steps so far (chosen: so that a pass run alone has them too). Needs the source from the first step on.
    mask, auto_mask, change_mask: where the picture is kept, as for :func:`.bam.bam`.
    Returns the edit ``[B,C,h,w]``, VP form, and where it was let differ at the last step, ``[B,1,h,w]`` in 0..1.
    Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    embeddings = embeddings.to(trajectory.pivots.device)
    target = embeddings.target
    words = None if foreground is None else _WordWatch(foreground, target)

    def predicted(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, negative = schedule.sigma(i), embeddings.negative_at(i)
        if i < start_step and words is None:
            return predict(x, sigma, cond=target, uncond=negative)
        borrow = _Borrowing(first_block, None if words is None else words.places()) if i >= start_step else None
        eps_cond, eps_uncond = predict(
            torch.cat([x, schedule.to_sampler(trajectory.latents[i], i)]),
            sigma,
            cond=torch.cat([target, embeddings.tuned[i]]),
            uncond=negative.repeat(_PROCESSES, 1, 1),
            hooks=Hooks(self_attention=borrow, cross_attention=words),
        )
        return eps_cond[:images], eps_uncond[:images]

    region = Region(edit_mask(predict, trajectory, embeddings, mask, auto_mask), change_mask)
    return sample_from_pivots(trajectory, predicted, guidance_scale=guidance_scale, region=region, on_step=on_step)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the foreground is: ``inside [B,1,h,w]``, 1 where the source looks at the words, and ``belongs [B,1,h,w]``
    in 0..1, how much the edit does."""

    inside: Tensor
    belongs: Tensor


class _WordWatch:
    """A cross-attention hook that sums up where edit and source look at the foreground's words."""

    def __init__(self, foreground: Foreground, target: Tensor):
        tokens, device = target.shape[1], target.device
        self._threshold = foreground.threshold
        self._words = {
            _EDIT: foreground.target.to(device).repeat(tokens // len(foreground.target))[:, None],
            _SOURCE: foreground.source.to(device).repeat(tokens // len(foreground.source))[:, None],
        }
        self._sums = {_EDIT: MapSums(), _SOURCE: MapSums()}

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if site.coarse and True in site.passes:
            for process, words in self._words.items():
                rows = site.rows(len(q), _PROCESSES, process)
                self._sums[process].add(q[rows], k[rows], site.heads, words, site.grid)
        return attend(q, k, v)

    def places(self) -> _Places | None:
        """By what was seen so far; None before the first step."""
        if not self._sums[_SOURCE].count:
            return None
        source, edit = (_stretched(self._sums[process].mean()) for process in (_SOURCE, _EDIT))
        return _Places((source >= self._threshold).float(), edit)


@dataclass(frozen=True, eq=False)
class _Borrowing:
    """A self-attention hook that gives the edit K and V of the source, from a block on, in each pass.

    places: where given, foreground takes them from foreground and the rest from the rest.
    """

    first_block: int
    places: _Places | None

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if site.block < self.first_block:
            return attend(q, k, v)
        k, v = k.clone(), v.clone()
        edits = []
        for conditional in set(site.passes):
            edit = site.rows(len(q), _PROCESSES, _EDIT, conditional)
            source = site.rows(len(q), _PROCESSES, _SOURCE, conditional)
            k[edit], v[edit] = k[source], v[source]
            edits.append(edit)
        out = attend(q, k, v)
        if self.places is not None:
            for edit in edits:
                out[edit] = self._apart(self.places, q[edit], k[edit], v[edit], site)
        return out

    @staticmethod
    def _apart(places: _Places, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Attention ``[B,L,heads*d]`` of one pass's edit, in which foreground and background do not see each other."""
        inside = interpolate(places.inside, size=site.grid, mode="bilinear").flatten(2)  # [B,1,S]
        belongs = interpolate(places.belongs, size=site.grid, mode="bilinear").flatten(2)
        never = torch.finfo(q.dtype).min / 2
        nothing = torch.zeros_like(inside, dtype=q.dtype)
        front = site.plain(q, k, v, mask=nothing.masked_fill(inside <= 0.5, never))
        back = site.plain(q, k, v, mask=nothing.masked_fill(inside > 0.5, never))
        return torch.lerp(back, front, belongs.transpose(1, 2).to(q.dtype))


def _stretched(maps: Tensor) -> Tensor:
    """Each image's map ``[B,1,h,w]`` from its least, 0, to its greatest, 1."""
    least, greatest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - least) / (greatest - least).clamp_min(1e-12)
