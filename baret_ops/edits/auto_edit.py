"""Auto Edit: an edit from a text that says only what is new, chosen by the model among its own candidates.

1. The model is asked about the noised picture with both texts, the target and the tuned one. Where they disagree is the
   region that may change.
2. Candidates are sampled one after another, those that change least first, and each is judged (:mod:`.judge`): 0 is
   "as it was", 1 is "as asked". The first that obeys is taken.
3. Where none obeys, the best judged one is, and the report says so.

All are guided away from the tuned text, which is the picture as it is, and not from the negative one: what both texts
agree on stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..attention import Sharing
from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import another_scene, smoothed
from .judge import Answers, ask
from .region import Region, dilated, renoised
from .sampling import guided_step, injected_steps

MAY_CHANGE, AT_ODDS = 0.2, 0.4
"""Shares of the greatest difference between the texts: above the first a place may change, above the second the text is
at odds with the picture there, and that is where fresh noise goes."""
GUIDED = 0.8
"""Share of the steps with guidance (Kynkäänniemi et al. 2024): the last ones add detail; the text alone does that."""
LENIENCE = 0.8
"""How much ``keep`` lowers the score from which on an edit obeys, 1 where it is 0."""
GAIN = 0.5
"""How much ``keep`` asks of fresh noise beyond the best candidate without it."""
FRESH = 0.8
"""Share of fresh noise, in variance."""
GRID = 16
"""Cells of the latents on which one cell of smoothing and growth was measured; finer ones take proportionally more."""

Span = tuple[float, float]
"""From when on and up to when, as shares of the steps."""
NEVER: Span = (0.0, 0.0)


@dataclass(frozen=True)
class Candidate:
    """A way to edit. Times are shares of the steps.

    name: for the report. begins: when it leaves the reconstruction's path. guidance: as a share of what is asked for.
    layout: when self-attention takes Q and K from the reconstruction, which is where things are (paper, Eq. 4).
    looks: when it takes K and V from it, which is what things look like (MasaCtrl, Cao et al. 2023).
    fresh: whether it begins with fresh noise where the text is at odds with the picture.
    """

    name: str
    begins: float = 0.0
    guidance: float = 1.0
    layout: Span = NEVER
    looks: Span = NEVER
    fresh: bool = False

    def first(self, steps: int) -> int:
        """The first of its steps, of N."""
        return injected_steps(self.begins, steps)


_OLD_LOOKS = (0.2, 0.7)  # a shape is settled before, and colours that the text asks for come after
CANDIDATES = (
    Candidate("late start", begins=0.5, guidance=4 / 3),
    Candidate("new shape, old looks", guidance=0.7, looks=_OLD_LOOKS),
    Candidate("fresh noise, old looks", looks=_OLD_LOOKS, fresh=True),
    Candidate("new looks, old layout", layout=(0.0, 0.2)),
)
"""In the order in which they are tried; ``effort`` says how many of the first."""


def within(span: Span, i: int, steps: int) -> bool:
    """Whether step i of N lies in a span."""
    start, end = span
    return injected_steps(start, steps) <= i < injected_steps(end, steps)


@dataclass(frozen=True, eq=False)
class AutoEdit:
    """The outcome for B images of K candidates.

    edit: ``[B,C,h,w]``, VP form. mask: ``[B,1,h,w]``, where it was let differ.
    candidates: ``[K,B,C,h,w]``, VP form; where an image needed none, the picture as it was.
    scores: ``[K,B]``, how far the text explains each, NaN where an image needed none.
    obeys: ``[K,B]`` bool, which obey by the model's own judgement. chosen: ``[B]``, which one was taken.
    """

    edit: Tensor
    mask: Tensor
    candidates: Tensor
    scores: Tensor
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
            return f"{head}, the first that obeys."
        if bool(self.obeys[:, b].any()):
            return f"{head}, which keeps more than what obeys fully. Lower keep to follow the text more."
        return (
            f"{head}, the nearest, but NONE OBEYS: this is probably not what you asked for. "
            "Try another seed, more effort, or other words."
        )


# --- regions and the choice -------------------------------------------------------------------------------------------


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
    at_odds = torch.where(another_scene(at_odds), 0.0, at_odds)  # no fresh noise there
    return dilated(may_change, reach), at_odds


def choose(scores: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Which candidate each image takes, ``[B]``, and which obey, ``[K,B]`` bool.

    One obeys that has a score of at least ``1 - LENIENCE * keep``. Fresh noise takes away more than it shows: it counts
    only with a score of ``GAIN * keep`` more than the best from the picture's own noise. Of those that obey and count
    the first is taken; where there is none, the one of the best score that counts.
    scores: ``[K,B]``, NaN where an image has no such candidate.
    """
    there = ~scores.isnan()
    fresh = torch.tensor([candidate.fresh for candidate in CANDIDATES[: len(scores)]], device=scores.device)[:, None]
    of_own_noise = scores.masked_fill(fresh | ~there, 0.0).amax(0).clamp_min(0.0)
    obeys = there & (scores >= 1 - LENIENCE * keep)
    counts = there & (~fresh | (scores >= of_own_noise + GAIN * keep))
    good = obeys & counts
    best = scores.masked_fill(~counts, float("-inf")).argmax(0)
    return torch.where(good.any(0), good.int().argmax(0), best), obeys


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
    effort: int = 4,
    keep: float = 0.5,
    seed: int = 0,
    mask: Tensor | None = None,
    regroup: bool = True,
    on_step: OnStep | None = None,
) -> AutoEdit:
    """Edit by the embeddings' target text, which need say no more than what is in the picture and what is new.

    Every image of a batch is decided on its own. Row-forwards of an image, with N steps and L levels of the judge: ``2
    L`` for the picture; then for each candidate that it needs 2 a step while there is guidance, 1 a step after that, 1
    more while the reconstruction lends, and ``2 L``.

    effort: how many of CANDIDATES are tried at most, from 1. keep: see :func:`choose`. seed: of the judge's noise and
        of the candidates'. mask: ``[1 or B,1,h,w]`` in 0..1, where the picture may change at all.
    regroup: let images that are done leave the batch; False where the model carries something that belongs to image
        positions.
    on_step: reports the candidate, beside the earlier ones as they became; :func:`reports` says how often. Where no
        further candidate is needed, the last report comes at once.
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
    chosen, obeys = choose(scores, keep)
    steps = trajectory.schedule.steps
    for number, candidate in enumerate(CANDIDATES[:effort]):
        waiting = (~of_chosen(obeys, chosen)).nonzero().flatten().tolist()
        if not waiting:
            run.show_last(list(candidates[:number]), reports(effort, steps))
            break
        among = waiting if regroup else everyone
        taken = [among.index(b) for b in waiting]
        before = reports(number, steps) - candidate.first(steps)
        show = partial(run.show, list(candidates[:number, among]), before)
        edited = run.sample(candidate, seed + number, among, may_change, at_odds, show)
        candidates[number, waiting] = edited[taken]
        scores[number, waiting] = run.ask(edited, among).score(source.of(among))[taken]
        chosen, obeys = choose(scores, keep)

    edit = of_chosen(candidates, chosen)
    names = tuple(candidate.name for candidate in CANDIDATES[:effort])
    return AutoEdit(edit, may_change, candidates, scores, obeys, chosen, names)


def reports(effort: int, steps: int) -> int:
    """How many steps are reported for an effort, of N steps each."""
    return sum(steps - candidate.first(steps) for candidate in CANDIDATES[:effort])


@dataclass(frozen=True, eq=False)
class _Run:
    """What all candidates of an edit share."""

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
        self, candidate: Candidate, seed: int, images: list[int], may_change: Tensor, at_odds: Tensor, show: OnStep
    ) -> Tensor:
        """A candidate of some images, ``[A,C,h,w]``, VP form. seed: of its fresh noise."""
        trajectory, embeddings = self.trajectory.rows(images), self.embeddings.rows(images)
        schedule, region = trajectory.schedule, Region(may_change[images])
        guidance_scale = candidate.guidance * self.guidance_scale
        first = candidate.first(schedule.steps)
        z = trajectory.latents[first]
        if candidate.fresh:
            z = renoised(z, FRESH, at_odds[images], seed)
        for i in range(first, schedule.steps):
            eps_target, eps_tuned = self._predicted(candidate, i, z, trajectory, embeddings)
            z, clean = guided_step(schedule, i, z, eps_target, eps_tuned, guidance_scale)
            where = region.at(i, clean, trajectory)
            assert where is not None, "the region has a mask"
            z = torch.lerp(trajectory.pivots[i + 1], z, where)
            show(i, clean, z)
        return z

    def _predicted(
        self, candidate: Candidate, i: int, z: Tensor, trajectory: Trajectory, embeddings: Embeddings
    ) -> tuple[Tensor, Tensor]:
        """The noise in ``z [A,C,h,w]`` by the target text and by the tuned one; by the target's alone in the last
        steps.

        One forward: the edit with each text, then the reconstruction where it lends.
        """
        schedule = trajectory.schedule
        latents, texts = [z], [embeddings.target]
        if within((0.0, GUIDED), i, schedule.steps):
            latents.append(z)
            texts.append(embeddings.tuned[i])
        edits = len(latents)
        layout, looks = within(candidate.layout, i, schedule.steps), within(candidate.looks, i, schedule.steps)
        sharing = None
        if layout or looks:
            latents.append(trajectory.latents[i])
            texts.append(embeddings.tuned[i])
            of_reconstruction = (edits,) * (edits + 1)
            sharing = Sharing(
                processes=edits + 1,
                self_from=of_reconstruction if layout else None,
                looks_from=of_reconstruction if looks else None,
            )
        x = schedule.to_sampler(torch.cat(latents), i)
        eps, _ = self.predict(x, schedule.sigma(i), cond=torch.cat(texts), sharing=sharing)
        parts = eps.split(len(z))
        return parts[0], parts[edits - 1]

    def show(self, earlier: list[Tensor], before: int, i: int, clean: Tensor, latents: Tensor) -> None:
        """Report a step, after ``before`` others, with earlier candidates to the left."""
        if self.on_step is not None:
            self.on_step(before + i, torch.cat([*earlier, clean], -1), torch.cat([*earlier, latents], -1))

    def show_last(self, candidates: list[Tensor], reports: int) -> None:
        """Report the last step, as no further candidate is needed."""
        *earlier, last = candidates
        self.show(earlier, reports - 1, 0, last, last)
