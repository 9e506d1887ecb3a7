"""Quotations in messages: whatever came, a message stays one short sentence."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 40
"""Characters that a message quotes of one text."""

_MOST_NAMES = 12


def quoted(text: str) -> str:
    """A text in quotes; of a long one its beginning, and how long it is."""
    if len(text) <= LONGEST:
        return repr(text)
    return f"{text[:LONGEST]!r}... ({len(text)} characters)"


def shortened(value: object) -> str:
    """A value as it is written, without quotes; of a long one the beginning."""
    written = str(value)
    return written if len(written) <= LONGEST else f"{written[:LONGEST]}..."


def told(value: object) -> str:
    """A value of any kind in a few words; of what is no text and no number, its kind alone."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of many digits"  # writing it out may take long
    if value is None or isinstance(value, (bool, int, float)):
        return shortened(value)
    return f"a {type(value).__name__}"


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Names one after another, each cut short; of many the first ones, and how many more there are."""
    names = list(names)
    shown = separator.join(shortened(name) for name in names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
