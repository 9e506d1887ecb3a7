"""What travels on wires: texts of other lengths, and the pictures that they were made for."""

from dataclasses import replace

import pytest
import torch

from baret_ops.values import Embeddings, fingerprints, unrepeated

STEPS, B, WIDTH = 4, 2, 3


def text(tokens, seed=0):
    return torch.randn(B, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def embeddings(tokens):
    target = text(tokens)
    tuned = torch.stack([target + 0.1 * step for step in range(STEPS)])
    return Embeddings(tuned, target, text(3), torch.ones(STEPS), torch.zeros(STEPS, B), torch.zeros(STEPS, B).long())


def test_chained_texts_stay_as_short_as_they_can_be():
    """Each text is brought to a common length with the tuned one, not with every text that came before it."""
    first = embeddings(4)
    chained = first.with_target(text(6), {}).with_target(text(10), {}).with_target(text(4, seed=5), {})
    assert chained.tuned.shape[2] == 4
    assert torch.equal(chained.tuned, first.tuned) and torch.equal(chained.target, text(4, seed=5))
    assert first.with_target(text(6), {}).with_target(text(10), {}).tuned.shape[2] == 20


@pytest.mark.parametrize("tokens, times, found", [(4, 3, 4), (1, 5, 1), (6, 1, 6)])
def test_repetitions_are_found(tokens, times, found):
    assert torch.equal(unrepeated(text(tokens).repeat(1, times, 1)), text(tokens))
    assert unrepeated(text(tokens).repeat(1, times, 1)).shape[1] == found


def test_a_text_that_only_begins_alike_is_not_cut():
    twice = text(4).repeat(1, 2, 1)
    twice[1, -1, -1] += 1
    assert torch.equal(unrepeated(twice), twice)


def test_a_beginning_that_does_not_go_in_evenly_is_no_repetition():
    cut = text(4).repeat(1, 2, 1)[:, :6]  # begins again, and ends half-way
    assert torch.equal(unrepeated(cut), cut)


def test_every_picture_has_a_fingerprint_of_its_own():
    pictures = torch.randn(3, 4, 2, 2)
    marks = fingerprints(pictures)
    assert len(set(marks)) == 3 and fingerprints(pictures.clone()) == marks
    pictures[1, 0, 0, 0] += 1e-6
    assert [a == b for a, b in zip(fingerprints(pictures), marks)] == [True, False, True]


def test_a_choice_of_images_keeps_their_fingerprints():
    marked = replace(embeddings(4), pictures=("first", "second"))
    assert marked.rows([1, 0]).pictures == ("second", "first")
    assert embeddings(4).rows([1]).pictures is None
    with pytest.raises(ValueError, match=r"1 pictures came for embeddings of 2 image\(s\)"):
        replace(embeddings(4), pictures=("first",))
