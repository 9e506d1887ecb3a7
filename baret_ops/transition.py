"""The progressive transition scheme (paper, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def eta_schedule(eta_start: float, eta_end: float, steps: int) -> Tensor:
    """Share of the tuned embedding per step, ``[N]`` float32: linear from ``eta_start`` to ``eta_end``.

    Raises ValueError for an eta outside 0..1.
    """
    for name, eta in (("eta_start", eta_start), ("eta_end", eta_end)):
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"{name} is {eta}; it is a share and lies from 0 (the text) to 1 (the tuned embedding).")
    return torch.linspace(eta_start, eta_end, steps, dtype=torch.float64).float()


def blend(tuned: Tensor, target: Tensor, eta: float) -> Tensor:
    """``eta * tuned + (1 - eta) * target``; exactly ``tuned`` at eta 1 and exactly ``target`` at eta 0."""
    if eta == 1.0:
        return tuned
    return target + eta * (tuned - target)
