"""Balanced attention (paper, Eq. 4 and 5) by sharing the inputs of the projections.

``Q = W_q n``, ``K = W_k c``, ``V = W_v v``: giving one row the ``n`` and ``c`` of another row gives it that
row's Q and K. So no attention map is formed, any attention kernel serves, and a patch is a few row copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sharing:
    """Which process lends its queries and keys to which, in one forward of ``processes`` x B rows.

    self_from, cross_from: the process whose Q and K the receiving process (index ``receiver``) takes in
        self- and in cross-attention; None leaves that attention alone.
    max_tokens: blocks with more tokens than this keep their own attention; None is no limit.
    uncond: whether the unconditional pass shares too.
    """

    processes: int
    receiver: int = 0
    self_from: int | None = None
    cross_from: int | None = None
    max_tokens: int | None = None
    uncond: bool = False

    def share_self(self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """``softmax(Q_lender K_lender^T / sqrt(d)) V_own`` for self-attention; see :meth:`_share`."""
        return self._share(self.self_from, n, context, value, passes)

    def share_cross(self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """``softmax(Q_lender K_lender^T / sqrt(d)) V_own`` for cross-attention; see :meth:`_share`."""
        return self._share(self.cross_from, n, context, value, passes)

    def _share(self, lender: int | None, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]):
        """Copy the lender's rows of ``n`` and ``context`` over the receiver's, chunk by chunk.

        n ``[R,L,d]``, context and value ``[R,S,d']`` are the inputs of the query, key and value projections;
        R is split evenly over ``passes``, one entry per chunk, True where the chunk is a conditional pass.
        Raises ValueError when the rows cannot be the ``processes`` this was made for.
        """
        if lender is None or (self.max_tokens is not None and n.shape[1] > self.max_tokens):
            return n, context, value
        chunk, left = divmod(n.shape[0], len(passes))
        rows, odd = divmod(chunk, self.processes)
        if left or odd:
            raise ValueError(
                f"attention of {n.shape[0]} rows came where {len(passes)} pass(es) of {self.processes} processes were "
                "expected: another patch on this model changes the batch size; remove it from the model that goes into the edit."
            )
        order = []  # slices of rows, so that nothing has to be sent to the device
        for index, conditional in enumerate(passes):
            for process in range(self.processes):
                borrows = process == self.receiver and (conditional or self.uncond)
                start = index * chunk + (lender if borrows else process) * rows
                order.append(slice(start, start + rows))
        lent = torch.cat([n[rows] for rows in order])
        return lent, lent if context is n else torch.cat([context[rows] for rows in order]), value
