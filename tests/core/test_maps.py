"""Maps of words in bounded memory, against softmax(q k^T / sqrt(d)) written out."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from baret_ops import maps
from baret_ops.attention import Site

R, HEADS, D, T, GRID = 3, 2, 4, 5, (4, 6)
L = GRID[0] * GRID[1]


@pytest.fixture
def qk():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(R, L, HEADS * D, generator=generator), torch.randn(R, T, HEADS * D, generator=generator)


def explicit(q, k):
    q, k = (t.reshape(R, -1, HEADS, D).transpose(1, 2) for t in (q, k))
    return torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1).mean(1)


@pytest.mark.parametrize("block", [1, 7 * R * HEADS * T, maps.BLOCK])
def test_word_maps(qk, monkeypatch, block):
    monkeypatch.setattr(maps, "BLOCK", block)
    shares = torch.rand(R, T, 2)
    torch.testing.assert_close(maps.word_maps(*qk, HEADS, torch.eye(T)), explicit(*qk))
    torch.testing.assert_close(maps.word_maps(*qk, HEADS, shares), explicit(*qk) @ shares)


def test_no_more_of_a_map_exists_than_a_block(qk, monkeypatch):
    monkeypatch.setattr(maps, "BLOCK", 4 * R * HEADS * T)
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(out.numel() if torch.is_tensor(out) and out.shape[-1] == T else 0)
            return out

    with Watch():
        maps.word_maps(*qk, HEADS, torch.eye(T)[:, :2])
    assert max(largest) == maps.BLOCK


def test_sums_over_blocks_of_other_grids(qk):
    q, k = qk
    sums = maps.MapSums(GRID)
    with pytest.raises(ValueError, match="no attention map was seen"):
        sums.mean()
    sums.add(q, k, HEADS, torch.eye(T), GRID)
    coarse = q[:, : L // 4]
    sums.add(coarse, k, HEADS, torch.eye(T), (2, 3))
    mean = sums.mean()
    assert mean.shape == (R, T, *GRID)
    fine_map = explicit(q, k).transpose(1, 2).unflatten(2, GRID)
    coarse_map = explicit(coarse, k).transpose(1, 2).unflatten(2, (2, 3))
    enlarged = torch.nn.functional.interpolate(coarse_map, size=GRID, mode="bilinear")
    torch.testing.assert_close(mean, (fine_map + enlarged) / 2)
    # Each place spreads its attention over all tokens.
    torch.testing.assert_close(mean.sum(1), torch.ones(R, *GRID))


def test_rows_of_a_process():
    site = Site([False, True], block=0, grid=GRID, heads=1, coarse=False, plain=None)
    assert site.rows(12, processes=3, process=1) == slice(8, 10)
    assert site.rows(12, processes=3, process=1, conditional=False) == slice(2, 4)
    assert Site([False], 0, GRID, 1, False, None).rows(6, 3, 0) is None
    with pytest.raises(ValueError, match="changes the batch size"):
        site.rows(7, 3, 0)
