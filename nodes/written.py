"""Lists of eta ranges and taus as a person types them, and edits over all of them with their work shared."""

from __future__ import annotations

import re

_NUMBER = r"\d*\.?\d+(?:e-?\d+)?"


def read_ranges(text: str, name: str) -> list[tuple[float, float]]:
    """``"0.8-0.1, 1"`` to ``[(0.8, 0.1), (1.0, 1.0)]``: ranges with commas between them, each once; a single number starts and ends a range.

    Raises ValueError for anything else and for numbers outside 0..1.
    """
    ranges = []
    for part in filter(None, re.split(r"[,;\n]", re.sub(r"[ \t]+", " ", text))):
        found = re.fullmatch(rf" ?({_NUMBER})(?: ?(?:-|\u2013|to) ?({_NUMBER}))? ?", part)
        if part.strip() and not found:
            raise ValueError(
                f"{name} has {part.strip()!r}; numbers from 0 to 1 with commas between them fit, ranges as 0.8-0.1."
            )
        if found:
            ranges.append((float(found[1]), float(found[2] or found[1])))
    for value in (value for each in ranges for value in each):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} has {value:g}; numbers from 0 to 1 fit.")
    if not ranges:
        raise ValueError(f"{name} is empty; write one number or more, with commas between them.")
    return list(dict.fromkeys(ranges))


def read_numbers(text: str, name: str) -> list[float]:
    """``"0.1, 0.2"`` to ``[0.1, 0.2]``, as :func:`read_ranges`, which also raises for a range here."""
    ranges = read_ranges(text, name)
    if wrong := [each for each in ranges if each[0] != each[1]]:
        raise ValueError(
            f"{name} has the range {wrong[0][0]:g}-{wrong[0][1]:g}; single numbers with commas between them fit."
        )
    return [start for start, _ in ranges]
