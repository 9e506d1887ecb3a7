"""Prompt-to-prompt (Hertz et al. 2022): an edit whose attention maps are made of the source's, token by token.

``A' = A_source M + A_own d`` for a matrix ``M`` and weights ``d`` of the tokens, so ``A' V = A_source (M V) + A_own (d V)``: all of its
cross-attention edits are attentions over changed values, and no map is formed but those that local blend sums up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ..attention import Attend, Hooks, Sharing, Site
from ..inversions.tuning import OnStep
from ..maps import MapSums
from ..predict import Predict
from ..prompts import Tokens, align
from ..values import Embeddings, Trajectory, require_match
from .sampling import injected_steps, sample_edit

_EDIT, _SOURCE = 0, 1


def refine(source: Tokens, target: Tokens) -> Tensor:
    """Which source token lends its map to which target token, ``[Ts,Tt]``: those that the two texts have in common.

    Words are aligned as sequences of tokens; a token without partner has a column of zeros and keeps its own map.
    """
    matrix = _frame(source, target)
    theirs, ours = ([position for _, positions in text.words for position in positions] for text in (source, target))
    for place, partner in zip(ours, align([source.ids[p] for p in theirs], [target.ids[p] for p in ours])):
        if partner is not None:
            matrix[theirs[partner], place] = 1.0
    return matrix


def replace(source: Tokens, target: Tokens) -> Tensor:
    """As :func:`refine`, but word for word: every word takes the map of the word at its place.

    Words of different numbers of tokens share alike. Raises ValueError unless both texts have the same number of words.
    """
    if len(source.words) != len(target.words):
        raise ValueError(
            f"source_text has {len(source.words)} words and target_text {len(target.words)}, and replace exchanges them one for one; "
            "write as many words, or choose refine."
        )
    matrix = _frame(source, target)
    for (_, theirs), (_, ours) in zip(source.words, target.words):
        matrix[torch.tensor(theirs)[:, None], torch.tensor(ours)] = (
            torch.eye(len(ours)) if len(theirs) == len(ours) else 1.0 / len(ours)
        )
    return matrix


def _frame(source: Tokens, target: Tokens) -> Tensor:
    """The columns of starts, ends and padding: the end of the words takes the end's map, any other that of its like
    at its place, or the end's where the source still has words."""
    matrix = torch.zeros(len(source.ids), len(target.ids))
    theirs, ours = ({position for _, positions in text.words for position in positions} for text in (source, target))
    their_end, our_end = (max(places, default=0) + 1 for places in (theirs, ours))
    for place in set(range(len(target.ids))) - ours:
        alike = place < len(source.ids) and place not in theirs and place != our_end
        matrix[place if alike else min(their_end, len(source.ids) - 1), place] = 1.0
    return matrix


@dataclass(frozen=True, eq=False)
class CrossEdit:
    """How the edit's cross-attention maps are made of the source's.

    lent: ``[Ts,Tt]``, the source's part in the map of each token (:func:`refine`, :func:`replace`). shares: ``[Tt]`` in 0..1, for how much of
    the steps a token's map is edited. weights: ``[Tt]``, what an edited map is multiplied with (reweighting).
    """

    lent: Tensor
    shares: Tensor
    weights: Tensor

    def at(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """``(M [Ts,Tt], d [Tt])`` of one step."""
        edited = torch.tensor(
            [float(step < injected_steps(share, steps, "cross_share")) for share in self.shares.tolist()]
        )
        return self.lent * (edited * self.weights), (1.0 - edited) + edited * self.weights * (self.lent.sum(0) == 0)


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Outside the places that look at chosen words the edit is kept to the source.

    source ``[Ts]``, target ``[Tt]``: 1 for each token of these words. threshold: what share of the greatest attention counts as looking.
    start: share of the steps before blending begins.
    """

    source: Tensor
    target: Tensor
    threshold: float = 0.3
    start: float = 0.2

    def mask(self, source: Tensor, edit: Tensor, size: tuple[int, int]) -> Tensor:
        """Where either looks at its words, ``[B,1,*size]`` bool, from their maps ``[B,1,h,w]``."""
        return self._looks(source, size) | self._looks(edit, size)

    def _looks(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        maps = interpolate(max_pool2d(maps, 3, 1, 1), size=size, mode="bilinear")
        return (maps > self.threshold * maps.amax((2, 3), keepdim=True)) & (maps > 0)


def prompt_to_prompt(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    cross: CrossEdit,
    *,
    guidance_scale: float = 7.5,
    self_share: float = 0.6,
    max_tokens: int | None = None,
    local: LocalBlend | None = None,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample the embeddings' target text as an edit of the source, whose path is the trajectory and whose text is the tuned one.

    In the conditional pass, the edit's self-attention takes Q and K from the source for the first ``self_share`` of the steps, and its
    cross-attention maps are made by ``cross``. The source costs one conditional row-forward a step while it lends.

    max_tokens: no shared self-attention in blocks of more tokens. mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept.
    Returns the edit ``[B,C,h,w]`` in VP form, and where it was let differ, ``[B,1,h,w]`` in 0..1. Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    steps_self = injected_steps(self_share, schedule.steps, "self_share")
    start = schedule.steps if local is None else injected_steps(local.start, schedule.steps, "blend_start")
    device, size = trajectory.pivots.device, tuple(trajectory.pivots.shape[-2:])
    # A text that was repeated to another's length spreads its maps over the repetitions.
    target, length = embeddings.target.to(device), embeddings.target.shape[1]
    repeats = tuple(length // each for each in cross.lent.shape)
    if any(times * each != length for times, each in zip(repeats, cross.lent.shape)):
        raise ValueError(
            f"source_text and target_text have {tuple(cross.lent.shape)} tokens with padding and the embeddings {length}; "
            "give as source_text the text the picture was inverted with."
        )
    words = (
        None
        if local is None
        else [each.to(device).repeat(times)[:, None] for each, times in zip((local.source, local.target), repeats)]
    )
    looks: list[MapSums] = []
    open_to_change = torch.ones(images, 1, *size, device=device)

    def attention(lent: Tensor, own: Tensor):
        def hook(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            edit, source = (site.rows(len(q), 2, process) for process in (_EDIT, _SOURCE))
            if words is not None and site.coarse:
                if not looks:
                    looks.extend((MapSums(site.grid), MapSums(site.grid)))
                looks[_SOURCE].add(q[source], k[source], site.heads, words[0], site.grid)
                looks[_EDIT].add(q[source], k[source], site.heads, lent @ words[1], site.grid)
                looks[_EDIT].add(q[edit], k[edit], site.heads, own[:, None] * words[1], site.grid)
            if not lends:
                return attend(q, k, v)
            values = v[edit]
            out = attend(_put(q, edit, q[source]), _put(k, edit, k[source]), _put(v, edit, lent.to(v.dtype) @ values))
            if keeps:
                out = _put(out, edit, out[edit] + site.plain(q[edit], k[edit], own.to(v.dtype)[:, None] * values))
            return out

        lends, keeps = bool(lent.any()), bool(own.any())
        return hook if lends or words is not None else None

    def step(i: int, sigma: float, x: Tensor) -> tuple[Tensor, Tensor]:
        lent, own = cross.at(i, schedule.steps)
        hook = attention((lent.repeat(*repeats) / repeats[1]).to(device), own.repeat(repeats[1]).to(device))
        negative = embeddings.negative_at(i).to(device)
        share = i < steps_self
        if hook is None and not share:
            return predict(x, sigma, cond=target, uncond=negative)
        eps_cond, _ = predict(
            torch.cat([x, trajectory.latents[i] * schedule.scale(i)]),
            sigma,
            cond=torch.cat([target, embeddings.tuned[i].to(device)]),
            sharing=Sharing(processes=2, self_from=(_SOURCE, _SOURCE), max_tokens=max_tokens) if share else None,
            hooks=Hooks(cross_attention=hook),
        )
        return eps_cond[:images], predict(x, sigma, uncond=negative)[1]

    def blend(i: int, z: Tensor) -> Tensor:
        nonlocal open_to_change
        if i < start:
            return z
        open_to_change = local.mask(looks[_SOURCE].mean(), looks[_EDIT].mean(), size).to(z.dtype)
        return torch.lerp(trajectory.latents[i + 1], z, open_to_change)

    edit = sample_edit(trajectory, step, guidance_scale=guidance_scale, blend=blend, mask=mask, on_step=on_step)
    return edit, open_to_change if mask is None else open_to_change * mask


def _put(rows: Tensor, where: slice, values: Tensor) -> Tensor:
    """``rows`` with some of them exchanged; what came in stays as it is, for it may be another's."""
    rows = rows.clone()
    rows[where] = values
    return rows
