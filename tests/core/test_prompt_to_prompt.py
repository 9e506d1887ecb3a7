"""Which source token lends its map to which target token, when, and where local blend lets the picture change."""

import pytest
import torch

from baret_ops.edits.prompt_to_prompt import CrossEdit, LocalBlend, refinement, replacement
from baret_ops.prompts import Tokens


def tokens(text, length=8):
    """Words of a letter a token between a start and ends; a capital letter is a word's continuation."""
    words = []
    for place, letter in enumerate(text, 1):
        if letter.isupper():
            words[-1] = (words[-1][0] + letter, (*words[-1][1], place))
        else:
            words.append((letter, (place,)))
    return Tokens(("<", *text, *">" * (length - 1 - len(text))), tuple(words))


def partners(matrix):
    """Target token -> source token, None where it has none; every column is all or nothing."""
    assert set(matrix.flatten().tolist()) <= {0.0, 1.0} and (matrix.sum(0) <= 1).all()
    return [int(column.argmax()) if column.any() else None for column in matrix.T]


@pytest.mark.parametrize(
    ("source", "target", "wanted"),
    [
        ("abc", "abc", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("abc", "abxc", [0, 1, 2, None, 3, 4, 6, 7]),  # an insertion
        ("abc", "axc", [0, 1, None, 3, 4, 5, 6, 7]),  # a swap
        ("abxyc", "abc", [0, 1, 2, 5, 6, 6, 6, 7]),  # a deletion: ends that the source has words for take its end
        ("aBc", "aBxc", [0, 1, 2, None, 3, 4, 6, 7]),
        ("", "ab", [0, None, None, 1, 4, 5, 6, 7]),
    ],
)
def test_refine(source, target, wanted):
    assert partners(refinement(tokens(source), tokens(target))) == wanted


def test_replace_word_for_word():
    assert partners(replacement(tokens("abc"), tokens("axc"))) == list(range(8)), "one token for one"
    assert partners(replacement(tokens("aBc"), tokens("xYc"))) == list(range(8)), "two for two, in order"
    one_for_two = replacement(tokens("abc"), tokens("axYc"))
    assert one_for_two[2].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0], "a map is shared among a longer word's tokens"
    assert partners(one_for_two[:, [0, 1, 4, 5, 6, 7]]) == [0, 1, 3, 4, 6, 7]
    two_for_one = replacement(tokens("abCd"), tokens("axd"))
    assert two_for_one[:, 2].tolist() == [0, 0, 1, 1, 0, 0, 0, 0], "and a longer word's maps go to one"
    with pytest.raises(ValueError, match="source_text has 3 words and target_text 2"):
        replacement(tokens("abc"), tokens("ab"))


def test_texts_of_several_windows():
    matrix = refinement(tokens("abc", 8), tokens("abcx", 16))
    assert matrix.shape == (8, 16)
    assert partners(matrix)[:5] == [0, 1, 2, 3, None] and partners(matrix)[8:] == [4] * 8


def test_shares_end_word_by_word():
    cross = CrossEdit(
        refinement(tokens("ab", 5), tokens("axb", 5)),
        torch.tensor([0.5, 0.5, 0.5, 1.0, 0.0]),
        torch.tensor([1.0, 1.0, 3.0, 2.0, 1.0]),
    )
    lent, own = cross.at(0, 10)
    assert lent.sum(0).tolist() == [1, 1, 0, 2, 0] and own.tolist() == [0, 0, 3, 0, 1]
    lent, own = cross.at(5, 10)
    assert lent.sum(0).tolist() == [0, 0, 0, 2, 0] and own.tolist() == [1, 1, 1, 0, 1]
    with pytest.raises(ValueError, match="cross_share is 1.5"):
        CrossEdit(cross.lent, cross.shares + 1.0, cross.weights).at(0, 10)


def test_local_blend_marks_what_either_looks_at():
    source, edit = torch.zeros(2, 1, 1, 8, 8)
    source[..., 2, 1] = 1.0
    source[..., 7, 7] = 0.2  # below the threshold
    edit[..., 2, 6] = 0.1  # its own greatest
    mask = LocalBlend(None, None, threshold=0.3).mask(source, edit, (8, 8))[0, 0]
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[1:4, 0:3] = wanted[1:4, 5:8] = True
    assert torch.equal(mask, wanted)
    nothing = torch.zeros(1, 1, 4, 4)
    assert not LocalBlend(None, None).mask(nothing, nothing, (8, 8)).any(), "words that nothing looks at"
