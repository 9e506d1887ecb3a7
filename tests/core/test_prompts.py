"""Alignment of token sequences against hand-made cases."""

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
