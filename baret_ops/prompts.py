"""The tokens of a text, its words, and the alignment of two texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """A text as a text encoder sees it.

    ids: one entry for each of the T tokens of the embedding, starts, ends and padding of its windows included.
    words: each word with its positions among them, in order; starts, ends and padding belong to none.
    """

    ids: tuple[Hashable, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...]

    def find(self, phrase: Tokens) -> tuple[int, ...]:
        """Positions of every place where the words of ``phrase`` stand one after another; empty when there is none."""
        wanted = [phrase.ids[position] for _, positions in phrase.words for position in positions]
        found: list[int] = []
        for first in range(len(self.words)):
            here = [
                position for _, positions in self.words[first : first + len(phrase.words)] for position in positions
            ]
            if wanted and [self.ids[position] for position in here] == wanted:
                found += here
        return tuple(dict.fromkeys(found))


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int | None]:
    """For each element of ``target`` the place of its partner in ``source``, or None.

    Needleman-Wunsch with match 1, mismatch -1 and gap 0, as in prompt-to-prompt: the longest common subsequence. Of
    equally long ones it takes the partners that stand furthest to the left.
    """
    # common[i][j]: length of the longest common subsequence of source[i:] and target[j:].
    common = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in reversed(range(len(source))):
        for j in reversed(range(len(target))):
            if source[i] == target[j]:
                common[i][j] = 1 + common[i + 1][j + 1]
            else:
                common[i][j] = max(common[i + 1][j], common[i][j + 1])
    partners: list[int | None] = [None] * len(target)
    i = j = 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            partners[j] = i
            i, j = i + 1, j + 1
        elif common[i][j + 1] >= common[i + 1][j]:
            j += 1
        else:
            i += 1
    return partners
