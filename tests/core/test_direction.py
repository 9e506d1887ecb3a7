"""Directions between two phrases: means over templates, at every token but a window's first, nothing at strength 0."""

import pytest
import torch

from baret_ops.direction import directed, directed_embeddings, text_direction
from baret_ops.values import Embeddings

STEPS, B, WIDTH, WINDOW = 3, 2, 5, 4


def text(tokens, seed=0, rows=1):
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


DIRECTION = text(1, 11)[0, 0]


def test_is_the_mean_over_templates_of_the_difference_of_the_phrases():
    """In double precision, by the formula; the phrases may have different numbers of tokens."""
    pairs = [(text(n, seed)[0], text(m, seed + 1)[0]) for n, m, seed in ((1, 1, 1), (2, 1, 3), (1, 3, 5))]
    wanted = torch.zeros(WIDTH, dtype=torch.float64)
    for to, of in pairs:
        wanted += sum(row.double() for row in to) / len(to) / 3 - sum(row.double() for row in of) / len(of) / 3
    torch.testing.assert_close(text_direction(pairs).double(), wanted, rtol=0, atol=1e-6)


def test_there_and_back_is_nothing():
    to, of = text(2, 1)[0], text(3, 2)[0]
    assert torch.equal(text_direction([(to, of)]), -text_direction([(of, to)]))


@pytest.mark.parametrize("strength", [-0.5, 2.0])
@pytest.mark.parametrize("windows", [1, 2])
def test_every_token_moves_but_the_first_of_each_window(strength, windows):
    before = text(windows * WINDOW, 2, rows=B)
    after = directed(before, DIRECTION, strength, WINDOW)
    for token in range(windows * WINDOW):
        moved = before[:, token] + strength * DIRECTION
        torch.testing.assert_close(after[:, token], before[:, token] if token % WINDOW == 0 else moved)


def embeddings():
    target = text(WINDOW, 7, rows=B)
    tuned = torch.stack([target + 0.1 * step for step in range(STEPS)])
    negative = text(WINDOW, 9, rows=B)
    return Embeddings(tuned, target, negative, torch.ones(STEPS), torch.zeros(STEPS, B), torch.zeros(STEPS, B).long())


@pytest.mark.parametrize("which", ["target", "tuned", "both"])
def test_the_texts_of_an_inversion_that_are_asked_for_move(which):
    before = embeddings()
    after = directed_embeddings(before, DIRECTION, 0.5, WINDOW, which)
    for name in ("target", "tuned"):
        wanted = getattr(before, name)
        if which in (name, "both"):
            wanted = directed(wanted, DIRECTION, 0.5, WINDOW)
        assert torch.equal(getattr(after, name), wanted)
    assert torch.equal(after.negative, before.negative)


def test_strength_0_changes_no_bit():
    before = embeddings()
    after = directed_embeddings(before, DIRECTION, 0.0, WINDOW, "both")
    assert torch.equal(after.target, before.target) and torch.equal(after.tuned, before.tuned)
