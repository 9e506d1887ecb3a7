"""Prompt-to-prompt (Hertz et al. 2022): an edit whose attention maps are made of the source's, token by token.

``A' = A_source M + A_own d`` for a matrix ``M`` and weights ``d`` of the tokens, so
``A' V = A_source (M V) + A_own (d V)``: all of its cross-attention edits are attentions over changed values, and no map
is formed but those that local blend sums up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ..attention import Attend, Hooks, Sharing, Site
from ..maps import MapSums
from ..predict import OnStep, Predict
from ..prompts import Tokens, align
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import edit_mask
from .region import Region
from .sampling import injected_steps, sample_from_pivots

_EDIT, _SOURCE = 0, 1
_PROCESSES = 2


def refinement(source: Tokens, target: Tokens) -> Tensor:
    """Which source token lends its map to which target token, ``[Ts,Tt]``: those that the two texts have in common.

    Words are aligned as sequences of tokens; a token without partner has a column of zeros and keeps its own map.
    """
    matrix = _lent_outside_words(source, target)
    theirs, ours = _word_positions(source), _word_positions(target)
    partners = align([source.ids[p] for p in theirs], [target.ids[p] for p in ours])
    for place, partner in zip(ours, partners):
        if partner is not None:
            matrix[theirs[partner], place] = 1.0
    return matrix


def replacement(source: Tokens, target: Tokens) -> Tensor:
    """As :func:`refinement`, but word for word: every word takes the map of the word at its place.

    Words of different numbers of tokens share alike. Raises ValueError unless both texts have the same number of words.
    """
    if len(source.words) != len(target.words):
        raise ValueError(
            f"source_text has {len(source.words)} words and target_text {len(target.words)}, and replace exchanges "
            "them one for one; write as many words, or choose refine."
        )
    matrix = _lent_outside_words(source, target)
    for (_, theirs), (_, ours) in zip(source.words, target.words):
        shares = torch.eye(len(ours)) if len(theirs) == len(ours) else 1.0 / len(ours)
        matrix[torch.tensor(theirs)[:, None], torch.tensor(ours)] = shares
    return matrix


def _word_positions(text: Tokens) -> list[int]:
    """The positions of all tokens that belong to words, in order."""
    return [position for _, positions in text.words for position in positions]


def _lent_outside_words(source: Tokens, target: Tokens) -> Tensor:
    """``[Ts,Tt]`` with the columns of starts, ends and padding alone.

    The end of the words takes the end's map, any other that of its like at its place, or the end's where the source
    still has words.
    """
    matrix = torch.zeros(len(source.ids), len(target.ids))
    theirs, ours = set(_word_positions(source)), set(_word_positions(target))
    our_end = max(ours, default=0) + 1
    their_end = min(max(theirs, default=0) + 1, len(source.ids) - 1)
    for place in range(len(target.ids)):
        if place in ours:
            continue
        has_its_like = place < len(source.ids) and place not in theirs and place != our_end
        matrix[place if has_its_like else their_end, place] = 1.0
    return matrix


@dataclass(frozen=True, eq=False)
class CrossEdit:
    """How the edit's cross-attention maps are made of the source's.

    lent: ``[Ts,Tt]``, the source's part in the map of each token (:func:`refinement`, :func:`replacement`).
    shares: ``[Tt]`` in 0..1, for how much of the steps a token's map is edited.
    weights: ``[Tt]``, what an edited map is multiplied with (reweighting).
    """

    lent: Tensor
    shares: Tensor
    weights: Tensor

    def at(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """``(M [Ts,Tt], d [Tt])`` of one step."""
        ends = [injected_steps(share, steps, "cross_share") for share in self.shares.tolist()]
        edited = (torch.tensor(ends) > step).float()
        weighed = edited * self.weights
        without_partner = self.lent.sum(0) == 0
        return self.lent * weighed, (1.0 - edited) + weighed * without_partner


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Outside the places that look at chosen words the edit is kept to the source.

    source ``[Ts]``, target ``[Tt]``: 1 for each token of these words.
    threshold: what share of the greatest attention counts as looking.
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
    auto_mask: float = 0.0,
    change_mask: float = 0.0,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample the embeddings' target text as an edit of the source: its path is the trajectory, its text the tuned one.

    In the conditional pass, the edit's self-attention takes Q and K from the source for the first ``self_share`` of the
    steps, and its cross-attention maps are made by ``cross``. The source costs one conditional row-forward a step while
    it lends.

    max_tokens: no shared self-attention in blocks of more tokens.
    mask, auto_mask, change_mask: where the picture is kept, as for :func:`.bam.bam`.
    Returns the edit ``[B,C,h,w]`` in VP form, and where it was let differ, ``[B,1,h,w]`` in 0..1.
    Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    schedule, images = trajectory.schedule, trajectory.images
    steps_self = injected_steps(self_share, schedule.steps, "self_share")
    start = schedule.steps if local is None else injected_steps(local.start, schedule.steps, "blend_start")
    embeddings = embeddings.to(trajectory.pivots.device)
    target = embeddings.target
    repeats = _repetitions(cross, target.shape[1])
    size = trajectory.size
    looks = None if local is None else _Looks(local, repeats, target.device)
    may_differ = torch.ones(images, 1, *size, device=target.device)

    def predicted(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, negative = schedule.sigma(i), embeddings.negative_at(i)
        lent, own = cross.at(i, schedule.steps)
        lends, keeps, shares_self = bool(lent.any()), bool(own.any()), i < steps_self
        if not lends and looks is None and not shares_self:
            return predict(x, sigma, cond=target, uncond=negative)
        # A text that was repeated to another's length spreads its maps over the repetitions.
        lent = (lent.repeat(*repeats) / repeats[1]).to(target.device)
        own = own.repeat(repeats[1]).to(target.device)
        hook = _EditedMaps(lent, own, lends, keeps, looks) if lends or looks is not None else None
        sharing = Sharing(_PROCESSES, self_from=(_SOURCE, _SOURCE), max_tokens=max_tokens) if shares_self else None
        eps_cond, _ = predict(
            torch.cat([x, schedule.to_sampler(trajectory.latents[i], i)]),
            sigma,
            cond=torch.cat([target, embeddings.tuned[i]]),
            sharing=sharing,
            hooks=Hooks(cross_attention=hook),
        )
        _, eps_uncond = predict(x, sigma, uncond=negative)
        return eps_cond[:images], eps_uncond

    def blend(i: int, z: Tensor) -> Tensor:
        nonlocal may_differ
        if local is None or looks is None or i < start:
            return z
        may_differ = local.mask(looks.source.mean(), looks.edit.mean(), size).to(z.dtype)
        return torch.lerp(trajectory.latents[i + 1], z, may_differ)

    region = Region(edit_mask(predict, trajectory, embeddings, mask, auto_mask), change_mask)
    edit, kept = sample_from_pivots(
        trajectory, predicted, guidance_scale=guidance_scale, blend=blend, region=region, on_step=on_step
    )
    return edit, may_differ * kept


def _repetitions(cross: CrossEdit, length: int) -> tuple[int, int]:
    """How often source and target text stand in embeddings of ``length`` tokens. Raises ValueError for a misfit."""
    theirs, ours = cross.lent.shape
    if length % theirs or length % ours:
        raise ValueError(
            f"source_text and target_text have {(theirs, ours)} tokens with padding and the embeddings {length}; "
            "give as source_text the text the picture was inverted with."
        )
    return length // theirs, length // ours


class _Looks:
    """Where source and edit look at local blend's words, summed up over the steps."""

    def __init__(self, local: LocalBlend, repeats: tuple[int, int], device: torch.device):
        self._in_source = local.source.to(device).repeat(repeats[0])[:, None]
        self._in_target = local.target.to(device).repeat(repeats[1])[:, None]
        self.source, self.edit = MapSums(), MapSums()

    def add(self, site: Site, q: Tensor, k: Tensor, edit: slice, source: slice, lent: Tensor, own: Tensor) -> None:
        """Take in one cross-attention: the source's maps, and the edit's as they are made of both."""
        self.source.add(q[source], k[source], site.heads, self._in_source, site.grid)
        self.edit.add(q[source], k[source], site.heads, lent @ self._in_target, site.grid)
        self.edit.add(q[edit], k[edit], site.heads, own[:, None] * self._in_target, site.grid)


@dataclass(frozen=True, eq=False)
class _EditedMaps:
    """A cross-attention hook: the edit's output is ``A_source (M V) + A_own (d V)``.

    lent: M, ``[Ts,Tt]``; lends: whether there is any of it. own: d, ``[Tt]``; keeps: whether there is any of it.
    looks: takes the maps in, where local blend wants them.
    """

    lent: Tensor
    own: Tensor
    lends: bool
    keeps: bool
    looks: _Looks | None

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        edit = site.rows(len(q), _PROCESSES, _EDIT)
        source = site.rows(len(q), _PROCESSES, _SOURCE)
        if edit is None or source is None:
            return attend(q, k, v)
        if self.looks is not None and site.coarse:
            self.looks.add(site, q, k, edit, source, self.lent, self.own)
        if not self.lends:
            return attend(q, k, v)
        values = v[edit]
        lent_values = self.lent.to(v.dtype) @ values
        out = attend(_with(q, edit, q[source]), _with(k, edit, k[source]), _with(v, edit, lent_values))
        if self.keeps:
            own_values = self.own.to(v.dtype)[:, None] * values
            out = _with(out, edit, out[edit] + site.plain(q[edit], k[edit], own_values))
        return out


def _with(rows: Tensor, where: slice, values: Tensor) -> Tensor:
    """``rows`` with some of them exchanged; what came in stays as it is, for it may be another's."""
    rows = rows.clone()
    rows[where] = values
    return rows
