"""A sweep's plan: every cell is the edit that runs alone, and no forward is larger than it may be."""

import pytest
import torch

from baret_ops.edits.bam import advance
from baret_ops.edits.sweep import Sweep

from .test_bam import STEPS, B, Network, W, edited, inversion

RANGES = [(0.8, 0.1), (1.0, 1.0), (0.4, 0.0)]
TAUS = [(0.25, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 0.75), (1.0, 0.0)]


def run(sweep, trajectory):
    """The rows of a sweep, the processes of each forward and the steps they took."""
    seen, steps = [], []

    class Watched(Network):
        def __call__(self, x, sigma, **how):
            seen.append(len(x) // B)
            return super().__call__(x, sigma, **how)

    def through(edits, span):
        done = advance(Watched(), trajectory, edits, span, guidance_scale=W)
        steps.append(len(span))
        return done

    return list(sweep.rows(through)), max(seen), sum(steps)


@pytest.mark.parametrize("most", [3, 4, 7, 100])
def test_each_cell_is_the_edit_alone_and_no_forward_is_larger(most):
    trajectory, embeddings = inversion((1.0, 1.0))
    sweep = Sweep(trajectory, embeddings, RANGES, TAUS, most)
    rows, largest, steps = run(sweep, trajectory)
    assert largest <= sweep.processes <= most
    assert steps == sweep.forwards
    for etas, row in zip(RANGES, rows, strict=True):
        moving = embeddings.with_transition(*etas)
        for taus, got in zip(TAUS, row, strict=True):
            alone = edited(Network(), trajectory, moving, guidance_scale=W, tau_sa=taus[0], tau_ca=taus[1])
            torch.testing.assert_close(got, alone)


def test_many_taus_are_bounded_as_many_etas_are():
    trajectory, embeddings = inversion((0.8, 0.1))
    taus = [(a / STEPS, b / STEPS) for a in range(STEPS) for b in range(STEPS)]
    sweep = Sweep(trajectory, embeddings, [(0.8, 0.1)], taus, 10)
    assert sweep.processes == 10
    rows, largest, _ = run(sweep, trajectory)
    assert len(rows[0]) == len(taus) == 64 and largest <= 10
