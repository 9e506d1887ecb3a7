"""Lists as a person types them into a widget: numbers, ranges and words, with commas between them.

Every parser takes a time that grows no faster than the text, and quotes no more than the beginning of a long one.
"""

from __future__ import annotations

import re

from ..baret_ops.edits.word_maps import Grids
from ..baret_ops.wording import quoted

_LONGEST = 40  # characters of a number or range
_MOST_WORDS = 256  # each of them is looked for in the texts
_GREATEST = 1000  # of the numbers that words are weighed with
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)(?:e-?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(?: ?(?:-|\u2013|to) ?({_NUMBER}))?")


# --- numbers ----------------------------------------------------------------------------------------------------------


def read_ranges(text: str, name: str) -> list[tuple[float, float]]:
    """``"0.8-0.1, 1"`` to ``[(0.8, 0.1), (1.0, 1.0)]``: ranges with commas between them, each once.

    A single number is the start and the end of its range. name: the input's, for messages. Raises ValueError for
    anything else, and for numbers outside 0..1.
    """
    parts = [" ".join(part.split()) for part in re.split(r"[,;\n]", text)]
    ranges = [_read_range(part, name) for part in parts if part]
    if not ranges:
        raise ValueError(f"{name} is empty; write one number or more, with commas between them.")
    return list(dict.fromkeys(ranges))


def _read_range(part: str, name: str) -> tuple[float, float]:
    found = _RANGE.fullmatch(part) if len(part) <= _LONGEST else None
    if found is None:
        raise ValueError(
            f"{name} has {quoted(part)}; numbers from 0 to 1 with commas between them fit, ranges as 0.8-0.1."
        )
    start = float(found[1])
    end = float(found[2] or found[1])
    for value in (start, end):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} has {value:g}; numbers from 0 to 1 fit.")
    return start, end


def read_numbers(text: str, name: str) -> list[float]:
    """``"0.1, 0.2"`` to ``[0.1, 0.2]``, as :func:`read_ranges`; here a range raises ValueError too."""
    ranges = read_ranges(text, name)
    for start, end in ranges:
        if start != end:
            raise ValueError(f"{name} has the range {start:g}-{end:g}; single numbers with commas between them fit.")
    return [start for start, _ in ranges]


# --- words ------------------------------------------------------------------------------------------------------------


def read_words(text: str, name: str) -> list[str]:
    """``"dog, a red cat"`` to ``["dog", "a red cat"]``: words or phrases with commas between them, each once.

    Raises ValueError for more of them than anybody looks at.
    """
    return list(dict.fromkeys(_parts(text, name)))


def read_values(text: str, name: str) -> list[tuple[str, float]]:
    """``"dog:1.5, red:0.3"`` to ``[("dog", 1.5), ("red", 0.3)]``.

    Raises ValueError for another form, for numbers that no attention can be weighed with, and as :func:`read_words`.
    """
    return [_read_value(part, name) for part in _parts(text, name)]


def _parts(text: str, name: str) -> list[str]:
    stripped = (part.strip() for part in text.split(","))
    parts = [part for part in stripped if part]
    if len(parts) > _MOST_WORDS:
        raise ValueError(f"{name} has {len(parts)} words; at most {_MOST_WORDS} fit.")
    return parts


def _read_value(part: str, name: str) -> tuple[str, float]:
    word, _, number = part.rpartition(":")  # without a colon the word is empty
    word = word.strip()
    value = _number(number.strip())
    if not word or value is None:
        raise ValueError(f'{name} holds {quoted(part)}; words and numbers such as "dog:1.5, red:0.3" fit.')
    if not abs(value) <= _GREATEST:
        raise ValueError(f"{name} holds {quoted(part)}; numbers from -{_GREATEST} to {_GREATEST} fit.")
    return word, value


def _number(text: str) -> float | None:
    """A written number, or None for what is none."""
    if len(text) > _LONGEST:
        return None
    try:
        return float(text)
    except ValueError:
        return None


# --- texts ------------------------------------------------------------------------------------------------------------


def read_templates(text: str, name: str) -> list[str]:
    """The lines of a text, each with ``{}`` where a phrase stands. Raises ValueError where that is missing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines) > _MOST_WORDS:
        raise ValueError(f"{name} has {len(lines)} lines; 1 to {_MOST_WORDS} fit.")
    for line in lines:
        if "{}" not in line:
            raise ValueError(
                f"{name} has {quoted(line)}; write {{}} where the phrase stands, as in: a photo of a {{}}."
            )
    return lines


def read_prompts(text: str, name: str) -> list[tuple[str, float]]:
    """``"a red dog | snow: 0.5"`` to ``[("a red dog", 1.0), ("snow", 0.5)]``: texts with bars or lines between them.

    A number behind a colon is the text's weight; below 0 the text is kept away from. Raises ValueError for too many of
    them, and for numbers that nothing can be weighed with.
    """
    parts = [part.strip() for part in re.split(r"[|\n]", text) if part.strip()]
    if len(parts) > _MOST_WORDS:
        raise ValueError(f"{name} has {len(parts)} texts; at most {_MOST_WORDS} fit.")
    return [_read_prompt(part, name) for part in parts]


def _read_prompt(part: str, name: str) -> tuple[str, float]:
    written, colon, number = part.rpartition(":")
    weight = _number(number.strip()) if colon else None
    if weight is None:  # the colon is the text's own
        return part, 1.0
    if not written.strip() or not abs(weight) <= _GREATEST:
        raise ValueError(f'{name} holds {quoted(part)}; texts and numbers such as "a red dog: 1 | snow: -0.5" fit.')
    return written.strip(), weight


# --- grids ------------------------------------------------------------------------------------------------------------


def read_resolutions(text: str, name: str) -> Grids:
    """Which attention grids are meant by ``"coarse"``, ``"all"`` or widths such as ``"16, 32"``.

    Raises ValueError for anything else.
    """
    words = text.replace(",", " ").split()
    if words == ["coarse"]:
        return Grids(coarse=True, written=quoted(text))
    if words == ["all"]:
        return Grids(written=quoted(text))
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"{name} has {quoted(text)}; coarse, all, or widths such as 16, 32 fit.")
    return Grids(widths=frozenset(words), written=quoted(text))
