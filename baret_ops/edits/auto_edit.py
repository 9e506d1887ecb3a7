"""Auto Edit: an edit from a text that says only what is new, chosen by the model among its own candidates.

1. The model is asked about the noised picture with both texts, the target and the tuned one. Where they disagree is the
   region that may change.
2. Two candidates are sampled side by side, a gentle one and one of new shapes with the old looks, and judged
   (:mod:`.judge`): 0 is "as it was", 1 is "as asked".
3. Images without a good candidate get further ones, from fresh noise where the text is at odds with the picture.
4. Of the good ones the one that takes least away from the picture is taken; where none is good, the best judged one,
   and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import smoothed
from .bam import Edits, advance
from .judge import Answers, ask
from .plan import NEVER, Dials
from .region import Region, dilated, renoised

MAY_CHANGE, AT_ODDS = 0.2, 0.4
"""Shares of the greatest difference between the texts: above the first a place may change, above the second the text is
at odds with the picture there, and that is where fresh noise goes."""
LOOKS_FROM = 0.2
"""Share of the steps after which self-attention takes K and V from the reconstruction (MasaCtrl, Cao et al. 2023)."""
GUIDED = 0.8
"""Share of the steps with guidance (Kynkäänniemi et al. 2024): the last ones add detail; the text alone does that."""
GENTLE = 4.0 / 7.5
"""The gentle candidate's share of the guidance."""
LENIENCE = 0.3
"""How much ``keep`` lowers the score from which on an edit obeys, 1 where it is 0."""
FRESH = 0.8
"""Share of fresh noise, in variance."""
GRID = 16
"""Cells of the latents on which one cell of smoothing and growth was measured; finer ones take proportionally more."""
MATCHED_CELLS = 64
"""Longest side, in cells, at which contents are matched: that needs the square of the cells."""


@dataclass(frozen=True)
class Candidate:
    """A way to edit. name: for the report.

    share: of the guidance that it takes. looks: whether it takes from the picture what things look like.
    fresh: whether it starts from fresh noise where the text is at odds with the picture.
    """

    name: str
    share: float = 1.0
    looks: bool = True
    fresh: bool = False


CANDIDATES = (
    Candidate("gentle", share=GENTLE, looks=False),
    Candidate("new shape, old looks"),
    Candidate("fresh noise", fresh=True),
    Candidate("other fresh noise", fresh=True),
)
"""From the gentlest on; ``effort`` says how many of the first are tried. The first two go side by side."""
_SIDE_BY_SIDE = 2


@dataclass(frozen=True, eq=False)
class AutoEdit:
    """The outcome for B images of K candidates.

    edit: ``[B,C,h,w]``, VP form. mask: ``[B,1,h,w]``, where it was let differ.
    candidates: ``[K,B,C,h,w]``, VP form; where an image needed none, the picture as it was.
    scores: ``[K,B]``, how far the text explains each, NaN where an image needed none.
    distances: ``[K,B]``, how much each takes away from the picture, likewise.
    obeys: ``[K,B]`` bool, which obey by the model's own judgement. chosen: ``[B]``, which one was taken.
    """

    edit: Tensor
    mask: Tensor
    candidates: Tensor
    scores: Tensor
    distances: Tensor
    obeys: Tensor
    chosen: Tensor
    names: tuple[str, ...]

    @property
    def good(self) -> Tensor:
        """Whether what was taken obeys, ``[B]`` bool."""
        return of_chosen(self.obeys, self.chosen)

    def report(self) -> str:
        """What was chosen and why, a line for each image."""
        return "\n".join(self._line(b) for b in range(self.scores.shape[1]))

    def _line(self, b: int) -> str:
        scores = self.scores[:, b]
        tried = ", ".join(f"{name} {float(s):.2f}" for name, s in zip(self.names, scores) if not s.isnan())
        taken = self.names[int(self.chosen[b])]
        head = f"picture {b + 1}: how far each candidate obeys, from 0 to 1: {tried}; taken: {taken}"
        if bool(self.good[b]):
            return f"{head}, which obeys and keeps most."
        if bool(self.obeys[:, b].any()):
            return f"{head}, which keeps more than what obeys fully. Lower keep to follow the text more."
        return (
            f"{head}, the nearest, but NONE OBEYS: this is probably not what you asked for. "
            "Try another seed, more effort, or other words."
        )


# --- regions, distances, the choice -----------------------------------------------------------------------------------


def regions(source: Answers) -> tuple[Tensor, Tensor]:
    """Where a picture may change, and where the text is at odds with it, each ``[B,1,h,w]``, 0 or 1.

    source: what was asked of the picture as it is. After DiffEdit (Couairon et al. 2022), with the tuned text for the
    caption and shares of the picture's own greatest difference for a threshold.
    """
    difference = source.difference()
    reach = max(1, round(max(difference.shape[-2:]) / GRID))
    difference = smoothed(difference, reach)
    greatest = difference.amax((2, 3), keepdim=True)
    may_change = (difference > MAY_CHANGE * greatest).to(difference)
    at_odds = (difference > AT_ODDS * greatest).to(difference)
    return dilated(may_change, reach), at_odds


def distance(edited: Tensor, picture: Tensor) -> Tensor:
    """How much an edit ``[B,C,h,w]`` takes away from its picture, ``[B]``, in units of the latent.

    The root mean square of the change in place, and of what each cell is from the most like cell anywhere, both ways
    (bidirectional similarity, Simakov et al. 2008): an animal that turns keeps its colours, one of another colour does
    not, and a tree that is lost has no like left.
    """
    in_place = (edited - picture).square().mean((1, 2, 3))
    side = max(edited.shape[-2:])
    if side > MATCHED_CELLS:
        scale = MATCHED_CELLS / side
        edited = interpolate(edited, scale_factor=scale, mode="area")
        picture = interpolate(picture, scale_factor=scale, mode="area")
    apart = torch.cdist(edited.flatten(2).transpose(1, 2), picture.flatten(2).transpose(1, 2)).square()
    anywhere = apart.amin(2).mean(1) + apart.amin(1).mean(1)
    return in_place.sqrt() + anywhere.sqrt()


def choose(scores: Tensor, distances: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Which candidate each image takes, ``[B]``, and which obey, ``[K,B]`` bool.

    One obeys that has a score of at least ``1 - LENIENCE * keep``. Fresh noise takes away more than it shows: it counts
    only with a score of ``keep`` more than the best from the picture's own noise. Of those that obey and count the
    least distant is taken; where there is none, the one of the best score that counts.
    scores, distances: ``[K,B]``, NaN where an image has no such candidate.
    """
    there = ~scores.isnan()
    fresh = torch.tensor([candidate.fresh for candidate in CANDIDATES[: len(scores)]], device=scores.device)[:, None]
    of_own_noise = scores.masked_fill(fresh | ~there, 0.0).amax(0).clamp_min(0.0)
    obeys = there & (scores >= 1 - LENIENCE * keep)
    counts = there & (~fresh | (scores >= of_own_noise + keep))
    nearest = distances.masked_fill(~(obeys & counts), float("inf")).argmin(0)
    best = scores.masked_fill(~counts, float("-inf")).argmax(0)
    return torch.where((obeys & counts).any(0), nearest, best), obeys


def of_chosen(values: Tensor, chosen: Tensor) -> Tensor:
    """Of values ``[K,B,...]`` those of the candidates that were chosen, ``[B,...]``."""
    return values[chosen, torch.arange(len(chosen), device=chosen.device)]


# --- the edit ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def auto_edit(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    *,
    guidance_scale: float = 7.5,
    effort: int = 3,
    keep: float = 0.5,
    seed: int = 0,
    mask: Tensor | None = None,
    regroup: bool = True,
    on_step: OnStep | None = None,
) -> AutoEdit:
    """Edit by the embeddings' target text, which need say no more than what is in the picture and what is new.

    Every image of a batch is decided on its own. Row-forwards of an image, with N steps and L levels of the judge: ``2
    L`` for the picture; then for each candidate that it needs 2 a step while there is guidance, 1 a step after that,
    and ``2 L``; and 1 a step for the reconstruction while it lends looks to those that run.

    effort: how many of CANDIDATES are tried at most, from 1. keep: see :func:`choose`. seed: of the judge's noise and
        of the candidates'. mask: ``[1 or B,1,h,w]`` in 0..1, where the picture may change at all.
    regroup: let images that are done leave the batch; False where the model carries something that belongs to image
        positions.
    on_step: reports the candidates side by side, those of earlier rounds as they became; :func:`reports` says how
        often. Where no further round is needed, the last report comes at once.
    Raises ValueError for a misfit, for a target text that is the picture's own, and for an effort outside 1..4,
    NotFinite.
    """
    require_match(trajectory, embeddings)
    if not 1 <= effort <= len(CANDIDATES):
        raise ValueError(f"effort is {effort}; a whole number of candidates from 1 to {len(CANDIDATES)} fits.")
    embeddings = embeddings.to(trajectory.pivots.device).with_transition(1.0, 1.0)
    if torch.equal(embeddings.tuned, embeddings.target.expand_as(embeddings.tuned)):
        raise ValueError(
            "the embeddings hold one text, for the picture as it is and for what it should become; "
            "invert with TTIS Inversion and at least 1 iteration, or give a target text through Transition Embedding."
        )
    run = _Run(predict, trajectory, embeddings, guidance_scale, seed, on_step)
    source = run.ask(trajectory.pivots[-1], range(trajectory.images))
    may_change, at_odds = regions(source)
    if mask is not None:
        may_change, at_odds = may_change * mask, at_odds * mask

    everyone = list(range(trajectory.images))
    candidates = trajectory.pivots[-1].expand(effort, -1, -1, -1, -1).clone()
    scores = candidates.new_full([effort, trajectory.images], float("nan"))
    distances = scores.clone()
    chosen, obeys = choose(scores, distances, keep)
    steps = trajectory.schedule.steps
    for number_of_round, group in enumerate(_rounds(effort)):
        waiting = (~of_chosen(obeys, chosen)).nonzero().flatten().tolist()
        if not waiting:
            run.show_last(list(candidates[: group[0]]), reports(effort, steps))
            break
        among = waiting if regroup else everyone
        taken = [among.index(b) for b in waiting]
        show = partial(run.show, list(candidates[: group[0], among]), number_of_round * steps)
        for number, edited in zip(group, run.sample(group, among, may_change, at_odds, show)):
            answers = run.ask(edited, among)
            picture = trajectory.pivots[-1][among]
            candidates[number, waiting] = edited[taken]
            scores[number, waiting] = answers.score(source.of(among))[taken]
            distances[number, waiting] = distance(edited, picture)[taken]
        chosen, obeys = choose(scores, distances, keep)

    edit = of_chosen(candidates, chosen)
    names = tuple(candidate.name for candidate in CANDIDATES[:effort])
    return AutoEdit(edit, may_change, candidates, scores, distances, obeys, chosen, names)


def reports(effort: int, steps: int) -> int:
    """How many steps are reported for an effort, of N steps each."""
    return len(_rounds(effort)) * steps


def _rounds(effort: int) -> list[list[int]]:
    """The numbers of the candidates that go side by side, round by round."""
    first = list(range(min(effort, _SIDE_BY_SIDE)))
    return [first, *([number] for number in range(_SIDE_BY_SIDE, effort))]


@dataclass(frozen=True, eq=False)
class _Run:
    """What all rounds of an edit share."""

    predict: Predict
    trajectory: Trajectory
    embeddings: Embeddings
    guidance_scale: float
    seed: int
    on_step: OnStep | None

    def ask(self, pictures: Tensor, images: Sequence[int]) -> Answers:
        """Ask about clean latents ``[A,C,h,w]`` of the images."""
        return ask(self.predict, self.trajectory.schedule, self.embeddings.rows(list(images)), pictures, self.seed)

    def sample(
        self, group: list[int], images: list[int], may_change: Tensor, at_odds: Tensor, show: OnStep
    ) -> list[Tensor]:
        """The candidates of a group side by side, of some images: ``[A,C,h,w]`` each, VP form."""
        trajectory, embeddings = self.trajectory.rows(images), self.embeddings.rows(images)
        steps = trajectory.schedule.steps
        region = Region(may_change[images])
        begun = []
        for number in group:
            candidate, start = CANDIDATES[number], None
            if candidate.fresh:
                start = renoised(trajectory.pivots[0], FRESH, at_odds[images], self.seed + number)
            dials = Dials(0, 0, int(LOOKS_FROM * steps + 0.5) if candidate.looks else NEVER)
            guidance = candidate.share * self.guidance_scale
            begun.append(Edits.begin(trajectory, embeddings, [dials], guidance, region, start))
        done = advance(
            self.predict,
            trajectory,
            begun,
            range(steps),
            looks_too=True,
            guided_steps=int(GUIDED * steps + 0.5),
            on_step=show,
        )
        return [edits.results()[0] for edits in done]

    def show(self, earlier: list[Tensor], before: int, i: int, clean: Tensor, latents: Tensor) -> None:
        """Report a step, after ``before`` others, with earlier candidates to the left."""
        if self.on_step is not None:
            self.on_step(before + i, torch.cat([*earlier, clean], -1), torch.cat([*earlier, latents], -1))

    def show_last(self, candidates: list[Tensor], reports: int) -> None:
        """Report the last step, as no further candidate is needed."""
        *earlier, last = candidates
        self.show(earlier, reports - 1, 0, last, last)
