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
        # A letter for each different word: strings are searched in linear time.
        letters: dict[tuple[Hashable, ...], str] = {}
        own, wanted = self._spelt(letters), phrase._spelt(letters)
        if not wanted:
            return ()
        found: list[int] = []
        taken = 0  # words that are in it already, where places overlap
        first = own.find(wanted)
        while first >= 0:
            end = first + len(wanted)
            found += [place for _, places in self.words[max(first, taken) : end] for place in places]
            taken = end
            first = own.find(wanted, first + 1)
        return tuple(found)

    def _spelt(self, letters: dict[tuple[Hashable, ...], str]) -> str:
        """The words as a string of one letter each; words that ``letters`` does not have yet are added."""
        words = [tuple(self.ids[position] for position in positions) for _, positions in self.words]
        return "".join(letters.setdefault(word, chr(len(letters))) for word in words)


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int | None]:
    """For each element of ``target`` the place of its partner in ``source``, or None.

    Needleman-Wunsch with match 1, mismatch -1 and gap 0, as in prompt-to-prompt: the longest common subsequence. Of
    equally long ones it takes the partners that stand furthest to the left.
    """
    # Bit by bit side by side, the longest common subsequence of source[i:] and target[j:] for all j at once (Hyyro
    # 2004): bit[j] of a row is clear where target[j] makes it longer. A row for each i, the empty rest first.
    bit = [1 << place for place in reversed(range(len(target)))]
    places: dict[Hashable, int] = {}
    for element, own in zip(target, bit):
        places[element] = places.get(element, 0) | own
    rows = [every := (1 << len(target)) - 1]
    for element in reversed(source):
        met = rows[-1] & places.get(element, 0)
        rows.append((rows[-1] + met | rows[-1] - met) & every)

    partners: list[int | None] = [None] * len(target)
    i = j = 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            partners[j] = i
            i, j = i + 1, j + 1
        elif rows[len(source) - i] & bit[j]:
            j += 1
        else:
            i += 1
    return partners
