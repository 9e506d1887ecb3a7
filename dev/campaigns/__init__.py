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
    """What a campaign did: how often each outcome came, and what must not have happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def tries(self) -> int:
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        lines = [f"{count:8}  {outcome}" for outcome, count in self.outcomes.most_common()]
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
