"""Who runs and who lends what to whom in one step of balanced attention: decided here, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..attention import EDIT, RECONSTRUCTION, TRANSITION, Lenders, Sharing
from .sampling import injected_steps

NEVER = 1 << 30
"""A step that no run reaches."""


@dataclass(frozen=True)
class Dials:
    """What an edit borrows, in steps.

    self_steps: in how many steps, from the noisiest, its self-attention takes Q and K from the reconstruction (Eq. 4).
    cross_steps: in how many its cross-attention takes them from the transition (Eq. 5).
    looks_from: from which step on its self-attention takes K and V from the reconstruction; NEVER is not at all.
    """

    self_steps: int
    cross_steps: int
    looks_from: int = NEVER

    @classmethod
    def of(cls, steps: int, tau_sa: float, tau_ca: float, appearance: float = 0.0) -> Dials:
        """From shares of N steps, each 0..1; ``appearance`` counts from the last step. Raises ValueError outside."""
        looks = injected_steps(appearance, steps, "appearance")
        return cls(
            self_steps=injected_steps(tau_sa, steps, "tau_sa"),
            cross_steps=injected_steps(tau_ca, steps, "tau_ca"),
            looks_from=steps - looks if looks else NEVER,
        )

    def followed(self, step: int) -> Dials:
        """What an edit has followed of these before a step: edits that have followed the same are still one."""
        begun = self.looks_from if self.looks_from < step else NEVER
        return Dials(min(self.self_steps, step), min(self.cross_steps, step), begun)

    def lends_layout(self, step: int) -> bool:
        """Whether self-attention takes Q and K from the reconstruction at a step."""
        return step < self.self_steps

    def lends_words(self, step: int) -> bool:
        """Whether cross-attention takes Q and K from the transition at a step."""
        return step < self.cross_steps

    def lends_looks(self, step: int) -> bool:
        """Whether self-attention takes K and V from the reconstruction at a step."""
        return step >= self.looks_from


def distinct(dials: Iterable[Dials], step: int) -> list[Dials]:
    """The different ways that edits have gone before a step, in the edits' order."""
    return list(dict.fromkeys(each.followed(step) for each in dials))


@dataclass(frozen=True)
class Entry:
    """Edits with one transition, as a plan sees them. rigid: whether the transition is the reconstruction."""

    dials: tuple[Dials, ...]
    rigid: bool


@dataclass(frozen=True)
class Process:
    """One process of a forward.

    role: EDIT, TRANSITION or RECONSTRUCTION. entry: whose it is. dials: of an edit, what it will have followed then.
    """

    role: str
    entry: int = 0
    dials: Dials = Dials(0, 0)


@dataclass(frozen=True)
class Plan:
    """One step's forward: its processes, and what each borrows from which.

    processes: edits, then transitions, then the reconstruction, which comes last because it needs no guidance: its path
        is known.
    self_from, cross_from, looks_from: see :class:`.attention.Sharing`; None where nobody borrows.
    """

    processes: tuple[Process, ...]
    self_from: Lenders | None
    cross_from: Lenders | None
    looks_from: Lenders | None

    @property
    def guided(self) -> int:
        """How many processes, the first ones, need both passes."""
        return sum(process.role != RECONSTRUCTION for process in self.processes)

    def places(self, role: str) -> dict[int, int]:
        """The places of a role's processes, by their entries; of several edits of an entry the last."""
        return {process.entry: place for place, process in enumerate(self.processes) if process.role == role}

    def sharing(self, max_tokens: int | None, uncond: bool) -> Sharing | None:
        """This plan as the forward takes it; None where nobody borrows."""
        if self.self_from is None and self.cross_from is None and self.looks_from is None:
            return None
        return Sharing(len(self.processes), self.self_from, self.cross_from, self.looks_from, max_tokens, uncond)


def plan_step(i: int, entries: Sequence[Entry], watched: bool = False) -> Plan:
    """What runs at step i (paper, Eq. 4 and 5), and nothing that nobody needs.

    An edit takes ``softmax(Q_rec K_rec^T / sqrt(d)) V_edit`` in self-attention for its first ``self_steps`` steps, and
    ``softmax(Q_tra K_tra^T / sqrt(d)) V_edit`` in cross-attention for its first ``cross_steps``. From ``looks_from``
    on, self-attention takes K and V of the reconstruction. Edits that have gone the same way so far are one process;
    one reconstruction serves all, and it stands for the transition where that is the same (eta 1).
    watched: somebody looks at the reconstruction and the transitions, so that they run at every step.
    """
    edits = [
        Process(EDIT, number, dials) for number, entry in enumerate(entries) for dials in distinct(entry.dials, i + 1)
    ]
    crossing = {edit.entry for edit in edits if edit.dials.lends_words(i)}
    transitions = [
        Process(TRANSITION, number)
        for number, entry in enumerate(entries)
        if not entry.rigid and (watched or number in crossing)
    ]
    layout = any(edit.dials.lends_layout(i) for edit in edits)
    looks = any(edit.dials.lends_looks(i) for edit in edits)
    rigid_crossing = any(entries[number].rigid for number in crossing)
    reconstruction = [Process(RECONSTRUCTION)] if watched or layout or looks or rigid_crossing else []

    processes = (*edits, *transitions, *reconstruction)
    own = range(len(processes))
    last = len(processes) - 1  # the reconstruction, where there is one
    place_of = {transition.entry: len(edits) + place for place, transition in enumerate(transitions)}

    self_from, cross_from, looks_from = list(own), list(own), list(own)
    for place, edit in enumerate(edits):
        if edit.dials.lends_layout(i):
            self_from[place] = last
        if edit.dials.lends_words(i):
            cross_from[place] = place_of.get(edit.entry, last)
        if edit.dials.lends_looks(i):
            looks_from[place] = last
    return Plan(
        processes,
        self_from=tuple(self_from) if layout else None,
        cross_from=tuple(cross_from) if crossing else None,
        looks_from=tuple(looks_from) if looks else None,
    )
