"""Sharing the inputs of the projections equals sharing Q and K: explicit softmax(Q K^T) V."""

import pytest
import torch

from baret_ops.attention import Sharing

B, L, S, D = 2, 5, 3, 8
TRANSITION, RECONSTRUCTION = 1, 2  # the edit is process 0


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1) @ v


@pytest.mark.parametrize("passes", [[True], [False, True], [True, False], [False]])
@pytest.mark.parametrize("uncond", [False, True])
def test_equals_explicit_softmax(passes, uncond):
    generator = torch.Generator().manual_seed(0)
    rows = 3 * B * len(passes)
    n, context = torch.randn(rows, L, D, generator=generator), torch.randn(rows, S, D, generator=generator)
    wq, wk, wv = torch.randn(3, D, D, generator=generator)
    sharing = Sharing(processes=3, self_from=(RECONSTRUCTION, 1, 2), cross_from=(TRANSITION, 1, 2), uncond=uncond)

    for share, lender, source in ((sharing.share_self, RECONSTRUCTION, n), (sharing.share_cross, TRANSITION, context)):
        q, k, v = n @ wq, source @ wk, source @ wv
        wanted = attend(q, k, v)
        for index, conditional in enumerate(passes):
            if not (conditional or uncond):
                continue
            for image in range(B):
                edit = index * 3 * B + image
                lent = edit + lender * B
                wanted[edit] = attend(q[lent], k[lent], v[edit])
        got_n, got_context, got_value = share(n, source, source, passes)
        torch.testing.assert_close(attend(got_n @ wq, got_context @ wk, got_value @ wv), wanted)


@pytest.mark.parametrize("layout", [None, (RECONSTRUCTION, 1, 2)])
@pytest.mark.parametrize("uncond", [False, True])
def test_looks_are_keys_and_values(layout, uncond):
    """The edit's own queries over the lender's K and V; with its queries lent too, it is the lender's attention."""
    passes = [False, True]
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(3 * B * len(passes), L, D, generator=generator)
    wq, wk, wv = torch.randn(3, D, D, generator=generator)
    q, k, v = n @ wq, n @ wk, n @ wv
    wanted = attend(q, k, v)
    for index, conditional in enumerate(passes):
        if conditional or uncond:
            edit, lender = (index * 3 * B + process * B for process in (0, RECONSTRUCTION))
            edit, lender = slice(edit, edit + B), slice(lender, lender + B)
            wanted[edit] = attend(q[edit] if layout is None else q[lender], k[lender], v[lender])
    sharing = Sharing(processes=3, self_from=layout, looks_from=(RECONSTRUCTION, 1, 2), uncond=uncond)
    got_n, got_context, got_value = sharing.share_self(n, n, n, passes)
    torch.testing.assert_close(attend(got_n @ wq, got_context @ wk, got_value @ wv), wanted)


def test_leaves_alone_what_it_does_not_share():
    n = torch.randn(3 * B, L, D)
    assert Sharing(processes=3).share_self(n, n, n, [True])[0] is n
    assert Sharing(processes=3, self_from=(2, 1, 2), max_tokens=L - 1).share_self(n, n, n, [True])[0] is n
    assert Sharing(processes=3, self_from=(2, 1, 2), max_tokens=L).share_self(n, n, n, [True])[0] is not n


def test_rows_that_cannot_be_the_processes_are_refused():
    n = torch.randn(7, L, D)
    with pytest.raises(ValueError, match="another patch on this model changes the batch size"):
        Sharing(processes=3, self_from=(2, 1, 2)).share_self(n, n, n, [True])
