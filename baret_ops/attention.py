"""What a forward may do with attention: share inputs of the projections between processes, or look at and change single attentions.

Balanced attention (paper, Eq. 4 and 5) is shared inputs: ``Q = W_q n``, ``K = W_k c``, ``V = W_v v``: giving one row the ``n`` and ``c`` of another row gives it that
row's Q and K. So no attention map is formed, any attention kernel serves, and a patch is a few row copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def rows_of(total: int, passes: list[bool], processes: int) -> int:
    """B, from the rows of an attention: ``total = len(passes) * processes * B``. Raises ValueError when that leaves a rest."""
    images, rest = divmod(total, len(passes) * processes)
    if rest:
        raise ValueError(
            f"attention of {total} rows came where {len(passes)} pass(es) of {processes} processes were "
            "expected: another patch on this model changes the batch size; remove it from the model that goes into the edit."
        )
    return images


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend(q [R,L,heads*d], k [R,S,heads*d], v [R,S,heads*d])``: attention, ``[R,L,heads*d]``."""


@dataclass(frozen=True)
class Site:
    """One attention of one forward.

    passes: one entry per chunk of rows, True where the chunk is a conditional pass. block: number of the transformer block, from 0
    in the order they run (0..15 in SD1.5). grid: (h,w) of its L tokens. heads: number of heads. coarse: whether its grid is
    the coarsest that several blocks have (16x16 of a 512x512 picture in SD1.5), where cross-attention shows things best.
    plain: attention of any rows by the kernel in use, past what other nodes put in its place; takes ``mask [R,1,S]``, added to the logits.
    """

    passes: list[bool]
    block: int
    grid: tuple[int, int]
    heads: int
    coarse: bool
    plain: Callable[..., Tensor]

    def rows(self, total: int, processes: int, process: int, conditional: bool = True) -> slice | None:
        """The rows of one process in one pass, of ``total`` rows; None when the pass is not among these. Raises ValueError as :func:`rows_of`."""
        images = rows_of(total, self.passes, processes)
        if conditional not in self.passes:
            return None
        start = (self.passes.index(conditional) * processes + process) * images
        return slice(start, start + images)


Hook = Callable[[Attend, Tensor, Tensor, Tensor, Site], Tensor]
"""``hook(attend, q, k, v, site)`` stands in an attention's place and returns its output. ``attend`` is what would have run, another
node's replacement included; it takes all rows of the forward, as replacements may tell rows apart by their place."""


@dataclass(frozen=True)
class Hooks:
    """What stands in the place of self- and of cross-attention in one forward. Sharing comes before: hooks see lent Q and K."""

    self_attention: Hook | None = None
    cross_attention: Hook | None = None


@dataclass(frozen=True)
class Sharing:
    """Which process lends its queries and keys to which, in one forward of ``processes`` x B rows.

    self_from, cross_from: for each process the one whose Q and K it takes in self- and in cross-attention, itself where it
        keeps its own; None leaves that attention alone.
    max_tokens: blocks with more tokens than this keep their own attention; None is no limit.
    uncond: whether the unconditional pass shares too.
    """

    processes: int
    self_from: tuple[int, ...] | None = None
    cross_from: tuple[int, ...] | None = None
    max_tokens: int | None = None
    uncond: bool = False

    def share_self(
        self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``softmax(Q_lender K_lender^T / sqrt(d)) V_own`` for self-attention; see :meth:`_share`."""
        return self._share(self.self_from, n, context, value, passes)

    def share_cross(
        self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``softmax(Q_lender K_lender^T / sqrt(d)) V_own`` for cross-attention; see :meth:`_share`."""
        return self._share(self.cross_from, n, context, value, passes)

    def _share(self, lenders: tuple[int, ...] | None, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]):
        """Copy each lender's rows of ``n`` and ``context`` over those of who borrows from it, chunk by chunk.

        n ``[R,L,d]``, context and value ``[R,S,d']`` are the inputs of the query, key and value projections;
        R is split evenly over ``passes``, one entry per chunk, True where the chunk is a conditional pass.
        Raises ValueError when the rows cannot be the ``processes`` this was made for.
        """
        if lenders is None or (self.max_tokens is not None and n.shape[1] > self.max_tokens):
            return n, context, value
        images = rows_of(n.shape[0], passes, self.processes)
        order = []  # slices of rows, so that nothing has to be sent to the device
        for index, conditional in enumerate(passes):
            for process, lender in enumerate(lenders):
                start = (index * self.processes + (lender if conditional or self.uncond else process)) * images
                order.append(slice(start, start + images))
        lent = torch.cat([n[rows] for rows in order])
        return lent, lent if context is n else torch.cat([context[rows] for rows in order]), value
