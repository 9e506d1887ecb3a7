"""Auto Edit: an edit from a text that says only what is new, chosen by the model among its own candidates.

A few edits of different boldness begin side by side. As soon as their clean latents can be told, the model says which
of them the text explains (:mod:`.judge`); of those that obey, the one that changes least outside goes on to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import smoothed
from .bam import Edits, advance
from .judge import Answers, ask
from .plan import NEVER, Dials
from .region import Region, dilated, renoised, whole

LOOKS_FROM = 0.2
"""Share of the steps after which self-attention takes K and V from the reconstruction (MasaCtrl: step 4)."""
CHOOSE_AT = 0.4
"""Share of the steps after which the candidates are judged and one of them goes on."""
REGION_SHARE, CORE_SHARE = 0.2, 0.4
"""Shares of the greatest difference between the texts above which a place may change, and above which it must."""
FRESH = 0.8
"""Share of fresh noise where the picture must change."""
OBEYED = 0.35
"""How far the target text must explain an edit (:meth:`.judge.Answers.obeyed`) for it to count as obeyed."""


@dataclass(frozen=True)
class Candidate:
    """A way to edit. name: for the report.

    boldness: share of the guidance above 1 that it takes. looks: whether it takes what things look like from the
    picture, late. fresh: share of new noise where the picture must change.
    """

    name: str
    boldness: float = 1.0
    looks: bool = False
    fresh: float = 0.0

    def guidance(self, guidance_scale: float) -> float:
        """The guidance of this candidate."""
        return 1.0 + self.boldness * (guidance_scale - 1.0)


CANDIDATES = (
    Candidate("gentle", boldness=0.46),
    Candidate("new shape, old looks", looks=True),
    Candidate("old shape let go, old looks", looks=True, fresh=FRESH),
    Candidate("free"),
)
"""From the gentlest to the boldest; ``effort`` says how many of the first are tried."""


@dataclass(frozen=True, eq=False)
class AutoEdit:
    """The outcome for B images of K candidates.

    edit: ``[B,C,h,w]``, VP form. mask: ``[B,1,h,w]``, where it was let differ at the last step.
    candidates: ``[K,B,C,h,w]``, their clean latents when they were judged.
    obeyed: ``[K,B]``, how far the text explains each. changed: ``[K,B]``, how much each changes the picture.
    chosen: ``[B]``, which one went on.
    """

    edit: Tensor
    mask: Tensor
    candidates: Tensor
    obeyed: Tensor
    changed: Tensor
    chosen: Tensor
    names: tuple[str, ...]

    def report(self) -> str:
        """What was chosen and why, a line for each image."""
        return "\n".join(self._line(b) for b in range(self.obeyed.shape[1]))

    def _line(self, b: int) -> str:
        scores = self.obeyed[:, b]
        good = int((scores >= OBEYED).sum())
        chosen = int(self.chosen[b])
        each = ", ".join(f"{name} {float(score):.2f}" for name, score in zip(self.names, scores))
        head = f"picture {b + 1}: {good} of {len(self.names)} candidates obey the text ({each}); "
        if good == 0:
            return (
                f"{head}none reaches {OBEYED}: the edit shows {self.names[chosen]!r}, the nearest, and is probably not "
                "what you asked for. Try another seed, more effort, or other words."
            )
        return f"{head}taken: {self.names[chosen]!r}, which obeys and changes least."


def regions(answers: Answers) -> tuple[Tensor, Tensor]:
    """Where a picture may change and where it must, each ``[B,1,h,w]``, 0 or 1, from what was asked of the picture.

    The places where the two texts differ by more than a share of their greatest difference (DiffEdit, Couairon et al.
    2022, with the tuned text for the caption).
    """
    difference = smoothed(answers.difference())
    greatest = difference.amax((2, 3), keepdim=True)
    may = (difference > REGION_SHARE * greatest).to(difference)
    must = (difference > CORE_SHARE * greatest).to(difference)
    return dilated(may, 1), must


def choose(obeyed: Tensor, changed: Tensor, keep: float) -> Tensor:
    """Which candidate each image takes, ``[B]``: of those that obey about as well as the best, the one that changes
    least.

    obeyed, changed: ``[K,B]``. keep: 0 takes the most obedient, 1 whichever changes least; at 0.5 half of the best's
    obedience is enough.
    """
    best = obeyed.amax(0)
    enough = obeyed >= best - keep * best.clamp_min(0.0)
    return torch.where(enough, changed, float("inf")).argmin(0)


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
    on_candidates: Callable[[Tensor, Tensor], None] | None = None,
) -> AutoEdit:
    """Edit by the embeddings' target text, which need say no more than what is in the picture and what is new.

    Every image of a batch is decided on its own. Row-forwards of an image, with N steps, K candidates and L levels of
    the judge: ``2 L`` for the picture, ``2 K`` a step up to the choice and ``2 K L`` at it, 2 a step after it, and 2 a
    step for the reconstruction while it lends.

    effort: how many of CANDIDATES are tried, from 1. keep: see :func:`choose`. seed: of the judge's noise and of the
        candidates'. mask: ``[1 or B,1,h,w]`` in 0..1, where the picture may change beside what the texts say.
    regroup: let images go on apart from each other once they are decided; False where the model carries something that
        belongs to image positions.
    on_step: reports the first candidate, then the edit that was taken. on_candidates: called with the candidates' clean
        latents ``[K,B,C,h,w]`` and scores ``[K,B]`` when they are judged.
    Raises ValueError for a misfit or an effort outside 1..4, NotFinite.
    """
    require_match(trajectory, embeddings)
    if not 1 <= effort <= len(CANDIDATES):
        raise ValueError(f"effort is {effort}; a whole number of candidates from 1 to {len(CANDIDATES)} fits.")
    schedule, picture = trajectory.schedule, trajectory.pivots[-1]
    embeddings = embeddings.to(picture.device).with_transition(1.0, 1.0)
    tried = CANDIDATES[:effort]
    source = ask(predict, schedule, embeddings, picture, seed)
    may, must = regions(source)
    if mask is not None:
        may, must = may * mask, must * mask

    looks_from, choose_at = round(LOOKS_FROM * schedule.steps), round(CHOOSE_AT * schedule.steps)
    begun = []
    for number, candidate in enumerate(tried):
        start = renoised(trajectory.pivots[0], candidate.fresh, must, seed + number) if candidate.fresh else None
        dials = Dials(0, 0, looks_from if candidate.looks else NEVER)
        guidance = candidate.guidance(guidance_scale)
        begun.append(Edits.begin(trajectory, embeddings, [dials], guidance, Region(may), start))
    judged = advance(predict, trajectory, begun, range(choose_at), uncond_too=True, on_step=on_step)

    candidates = torch.stack([_seen(edits, picture, may, choose_at) for edits in judged])
    obeyed = ask(predict, schedule, embeddings, candidates.flatten(0, 1), seed).obeyed().unflatten(0, (effort, -1))
    changed = (candidates - picture).square().mean((2, 3, 4))
    chosen = choose(obeyed, changed, keep)
    if on_candidates is not None:
        on_candidates(candidates, obeyed)

    edit, allowed = torch.empty_like(picture), whole(may, picture)
    for number in sorted(set(chosen.tolist())):
        rows = (chosen == number).nonzero().flatten().tolist()
        among = rows if regroup else list(range(len(chosen)))
        part = trajectory.rows(among)
        (done,) = advance(
            predict,
            part,
            [judged[number].rows(among)],
            range(choose_at, schedule.steps),
            uncond_too=True,
            on_step=on_step,
        )
        (finished,) = done.results()
        edit[rows] = finished if regroup else finished[rows]
    names = tuple(candidate.name for candidate in tried)
    return AutoEdit(edit, allowed, candidates, obeyed, changed, chosen, names)


def _seen(edits: Edits, picture: Tensor, may: Tensor, step: int) -> Tensor:
    """The clean latent ``[B,C,h,w]`` that an edit predicts, and the picture's own where it may not change."""
    (clean,) = edits.clean.values()
    return torch.lerp(picture, clean, may)
