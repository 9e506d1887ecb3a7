"""Attacks on purpose: `dev/campaign.py` runs them at any size, the tests at a small one.

A campaign takes a number of tries and a seed, and gives a `Report`. What it found wrong stands in it, a line each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

LONGEST = 400
"""Characters of a sentence that a person can be shown."""

_OF_PYTHON = (
    "Traceback",
    "NoneType",
    "__init__",
    "positional argument",
    "keyword argument",
    "unhashable",
    "not iterable",
)


@dataclass
class Report:
    """What a campaign did: how often each outcome came, what must not have happened, and the most that was measured.

    most: figures by what they are of, with their unit, such as seconds of the longest load.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    most: dict[str, float] = field(default_factory=dict)

    @property
    def tries(self) -> int:
        return sum(self.outcomes.values())

    def measured(self, what: str, value: float) -> None:
        """Keep a figure if it is the most so far."""
        self.most[what] = max(value, self.most.get(what, value))

    def add(self, other: Report) -> None:
        """Take another report's tries in."""
        self.outcomes.update(other.outcomes)
        self.failures += other.failures
        for what, value in other.most.items():
            self.measured(what, value)

    def to_json(self) -> dict:
        return {"outcomes": dict(self.outcomes), "failures": self.failures, "most": self.most}

    @classmethod
    def from_json(cls, about: dict) -> Report:
        return cls(Counter(about["outcomes"]), about["failures"], about["most"])

    def row(self, name: str) -> str:
        """The line of docs/reliability.md."""
        counts = [f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common() if count]
        figures = [f"{what} {value:.3g}" for what, value in self.most.items()]
        return f"| `{name}` | {self.tries:,} | {', '.join([*counts, *figures])} | {len(self.failures)} |"

    def __str__(self) -> str:
        lines = [f"{count:8}  {outcome}" for outcome, count in self.outcomes.most_common()]
        lines += [f"{value:8.3g}  {what}" for what, value in self.most.items()]
        return "\n".join([f"{self.tries} tries, {len(self.failures)} failures", *lines, *self.failures[:50]])


def complaint(sentence: str, names: tuple[str, ...]) -> str | None:
    """What is wrong with a message that a person is shown, None for nothing. names: one of them begins it."""
    if not sentence.startswith(names):
        return f"does not say where: {sentence[:200]}"
    if len(sentence) > LONGEST or "\n" in sentence:
        return f"is {len(sentence)} characters long: {sentence[:200]}"
    if any(word in sentence for word in _OF_PYTHON):
        return f"speaks of Python: {sentence[:200]}"
    return None
