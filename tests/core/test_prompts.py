"""Alignment of token sequences against hand-made cases."""

import random

import pytest

from baret_ops.prompts import Tokens, align


@pytest.mark.parametrize(
    ("source", "target", "partners"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "abxc", [0, 1, None, 2]),  # an insertion
        ("abxc", "abc", [0, 1, 3]),  # a deletion
        ("abc", "axc", [0, None, 2]),  # a swap: a mismatch is never worth more than two gaps
        ("abcd", "axyd", [0, None, None, 3]),
        ("abc", "xabcx", [None, 0, 1, 2, None]),  # at both ends
        ("abc", "bca", [1, 2, None]),  # what has moved is new at one of its places
        ("aab", "ab", [0, 2]),
        (
            "the cat sat",
            "the big cat sat on it",
            [0, 1, 2, 3, None, None, None, None, 4, 5, 6, 7, 8, 9, 10] + [None] * 6,
        ),
        ("", "ab", [None, None]),
        ("ab", "", []),
    ],
)
def test_align(source, target, partners):
    assert align(source, target) == partners


def aligned_by_table(source, target):
    """As :func:`align`, from the whole table of lengths."""
    common = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in reversed(range(len(source))):
        for j in reversed(range(len(target))):
            met = source[i] == target[j]
            common[i][j] = 1 + common[i + 1][j + 1] if met else max(common[i + 1][j], common[i][j + 1])
    partners, i, j = [None] * len(target), 0, 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            partners[j] = i
            i, j = i + 1, j + 1
        elif common[i][j + 1] >= common[i + 1][j]:
            j += 1
        else:
            i += 1
    return partners


@pytest.mark.parametrize("letters", [1, 2, 4])
def test_align_is_the_tables_alignment(letters):
    """Of equally long common subsequences too it takes the one that the table leads to."""
    drawn = random.Random(letters)
    for _ in range(300):
        source, target = ([drawn.randrange(letters) for _ in range(drawn.randrange(20))] for _ in range(2))
        assert align(source, target) == aligned_by_table(source, target)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source, target", [("a," * 2464, ",a" * 2464), ("a" * 4928, "a" * 4928), ("ab" * 2464, "cd" * 2464)]
)
def test_the_longest_texts_are_aligned_at_once(source, target):
    """With a table it takes minutes to do this fifty times."""
    for _ in range(50):
        assert len(align(source, target)) == len(target)


class Counted:
    """A word of its own each time, that knows how often words were compared."""

    compared = 0

    def __init__(self, written):
        self.written = written

    def __hash__(self):
        return hash(self.written)

    def __eq__(self, other):
        Counted.compared += 1
        return self.written == other.written


def test_a_long_phrase_is_found_in_a_long_text_at_once():
    """Each word is looked at once, and not once for each place where the phrase may begin."""
    text, phrase = ([Counted("dog") for _ in range(count)] for count in (4928, 2464))
    text, phrase = (Tokens(tuple(ids), tuple(("dog", (i,)) for i in range(len(ids)))) for ids in (text, phrase))
    Counted.compared = 0
    assert text.find(phrase) == tuple(range(4928))
    assert Counted.compared <= 2 * (4928 + 2464)


def tokens(*words):
    """Words of one token each, but those written with a hyphen; a start before and an end after."""
    ids, found = ["<"], []
    for word in words:
        parts = word.split("-")
        found.append((word, tuple(range(len(ids), len(ids) + len(parts)))))
        ids += parts
    return Tokens((*ids, ">"), tuple(found))


def test_find():
    text = tokens("a", "dal-matian", "and", "a", "dog", "matian")
    assert text.find(tokens("dog")) == (6,)
    assert text.find(tokens("a")) == (1, 5), "every place it stands"
    assert text.find(tokens("dal-matian")) == (2, 3)
    assert text.find(tokens("matian")) == (7,), "no word begins inside another"
    assert text.find(tokens("a", "dog")) == (5, 6)
    assert text.find(tokens("dog", "a")) == ()
    assert text.find(tokens()) == ()
    assert tokens("a", "a", "a").find(tokens("a", "a")) == (1, 2, 3), "places that overlap count once"
