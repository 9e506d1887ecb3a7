"""Edits over a grid of etas and taus, with their work shared: what runs together, planned within a bound of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..values import Embeddings, Trajectory
from .bam import Edits
from .plan import Dials

Advance = Callable[[list[Edits], range], list[Edits]]
"""``advance(edits, steps)``: take edits through steps side by side, as :func:`.bam.advance`."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """A grid of edits: a row for each transition, a column for each pair of taus.

    ranges: ``(eta_start, eta_end)`` of each row. taus: ``(tau_sa, tau_ca)`` of each column.
    most: most processes of B rows in one forward, at least 3: an edit, its transition and the reconstruction.
    """

    trajectory: Trajectory
    embeddings: Embeddings
    ranges: Sequence[tuple[float, float]]
    taus: Sequence[tuple[float, float]]
    most: int

    @property
    def _columns(self) -> list[list[Dials]]:
        """The columns in groups that fit into one forward beside their transition and the reconstruction."""
        steps = self.trajectory.schedule.steps
        dials = [Dials.of(steps, tau_sa, tau_ca) for tau_sa, tau_ca in self.taus]
        width = max(1, self.most - 2)
        return [dials[first : first + width] for first in range(0, len(dials), width)]

    @property
    def _together(self) -> int:
        """How many rows go side by side while the reconstruction lends."""
        widest = max(len(group) for group in self._columns)
        return max(1, (self.most - 1) // (widest + 1))

    def _lending(self, group: list[Dials]) -> int:
        """In how many steps the reconstruction lends to a group of columns."""
        return max(dials.self_steps for dials in group)

    @property
    def processes(self) -> int:
        """Most processes in one forward."""
        widest = max(len(group) for group in self._columns)
        return min(self._together, len(self.ranges)) * (widest + 1) + 1

    @property
    def forwards(self) -> int:
        """How many steps all forwards take together, for a progress bar."""
        steps, blocks = self.trajectory.schedule.steps, -(-len(self.ranges) // self._together)
        lending = [self._lending(group) for group in self._columns]
        return sum(blocks * shared + len(self.ranges) * (steps - shared) for shared in lending)

    def rows(self, advance: Advance) -> Iterator[list[Tensor]]:
        """The edited latents ``[B,C,h,w]`` of each row, VP form, row by row as they come.

        While the reconstruction lends, several rows go side by side, so that it runs once for all of them; then each
        goes to its end alone.
        """
        steps, groups = self.trajectory.schedule.steps, self._columns
        for first in range(0, len(self.ranges), self._together):
            ranges = self.ranges[first : first + self._together]
            edited: list[list[Tensor]] = [[] for _ in ranges]
            for number, group in enumerate(groups, 1):
                lending = self._lending(group)
                begun = [self._begin(each, group) for each in ranges]
                for row, edits in enumerate(advance(begun, range(lending))):
                    (done,) = advance([edits], range(lending, steps))
                    edited[row] += done.results()
                    if number == len(groups):
                        yield edited[row]

    def _begin(self, etas: tuple[float, float], group: list[Dials]) -> Edits:
        moving = self.embeddings.with_transition(*etas)
        return Edits.begin(self.trajectory, moving, group)
