"""What a forward may do with attention: share the projections' inputs between processes, or look at and change
attentions.

Balanced attention (paper, Eq. 4 and 5) is shared inputs: with ``Q = W_q n``, ``K = W_k c`` and ``V = W_v v``, a row
that is given another row's ``n`` and ``c`` has that row's Q and K, and one that is given its ``c`` and ``v`` has its K
and V. So no attention map is formed, any attention kernel serves, and a patch is a few row copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EDIT, TRANSITION, RECONSTRUCTION = "edit", "transition", "reconstruction"
"""The processes of an edit by balanced attention."""

Lenders = tuple[int, ...]
"""For each process of a forward the one it borrows from, itself where it keeps its own."""


def rows_of(total: int, passes: Sequence, processes: int) -> int:
    """B, from the rows of an attention, ``total = len(passes) * processes * B``. Raises ValueError for a rest."""
    images, rest = divmod(total, len(passes) * processes)
    if rest:
        raise _other_rows(total, f"{len(passes)} pass(es) of {processes} processes")
    return images


def require_rows(total: int, passes: Sequence, rows: int) -> None:
    """Raise ValueError unless a forward or an attention has as many rows as it was asked for.

    A number that divides evenly does not tell: a batch of tiles is as many rows as a batch of pictures.
    """
    if total != len(passes) * rows:
        raise _other_rows(total, f"{len(passes)} pass(es) of {rows} rows")


def require_tokens(total: int, grid: tuple[int, int]) -> None:
    """Raise ValueError unless an attention that is looked into has a token for each place of its grid (h,w)."""
    if total != grid[0] * grid[1]:
        raise ValueError(
            f"attention of {total} tokens came where {grid[1]}x{grid[0]} were expected: another patch on this model "
            "merges or cuts them; remove it from the model that goes into this node."
        )


def _other_rows(total: int, expected: str) -> ValueError:
    return ValueError(
        f"attention of {total} rows came where {expected} were expected: another patch on this model changes the batch "
        "size (tiles, for instance); remove it from the model that goes into the edit."
    )


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend(q [R,L,heads*d], k [R,S,heads*d], v [R,S,heads*d])``: attention, ``[R,L,heads*d]``."""


@dataclass(frozen=True)
class Site:
    """One attention of one forward.

    passes: one entry per chunk of rows, True where the chunk is a conditional pass.
    block: number of the transformer block, from 0 in the order they run (0..15 in SD1.5).
    grid: (h,w) of its L tokens.
    heads: number of heads.
    coarse: whether its grid is the coarsest that several blocks have (16x16 of a 512x512 picture in SD1.5), where
        cross-attention shows things best.
    plain: attention of any rows by the kernel in use, past what other nodes put in its place; takes ``mask [R,1,S]``,
        which is added to the logits.
    """

    passes: list[bool]
    block: int
    grid: tuple[int, int]
    heads: int
    coarse: bool
    plain: Callable[..., Tensor]

    def rows(self, total: int, processes: int, process: int, conditional: bool = True) -> slice | None:
        """The rows of one process in one pass, of ``total`` rows; None when the pass is not among these.

        Raises ValueError as :func:`rows_of`.
        """
        images = rows_of(total, self.passes, processes)
        if conditional not in self.passes:
            return None
        start = (self.passes.index(conditional) * processes + process) * images
        return slice(start, start + images)


Hook = Callable[[Attend, Tensor, Tensor, Tensor, Site], Tensor]
"""``hook(attend, q, k, v, site)`` stands in an attention's place and returns its output. ``attend`` is what would have
run, another node's replacement included; it takes all rows of the forward, as replacements may tell rows apart by their
place."""


@dataclass(frozen=True)
class Hooks:
    """What stands in the place of attentions in one forward. Sharing comes before: hooks see what was lent."""

    self_attention: Hook | None = None
    cross_attention: Hook | None = None


@dataclass(frozen=True)
class Sharing:
    """Which process lends its attention inputs to which, in one forward of ``processes`` x B rows.

    self_from: whose Q and K each process takes in self-attention: where things are (paper, Eq. 4).
    cross_from: whose Q and K it takes in cross-attention (paper, Eq. 5).
    looks_from: whose K and V it takes in self-attention: what things look like (MasaCtrl, Cao et al. 2023). A process
        that takes its queries from another one takes the keys of that one.
        None leaves the attention alone.
    max_tokens: blocks with more tokens than this keep their own attention; None is no limit.
    uncond: whether the unconditional pass shares too.
    """

    processes: int
    self_from: Lenders | None = None
    cross_from: Lenders | None = None
    looks_from: Lenders | None = None
    max_tokens: int | None = None
    uncond: bool = False

    def share_self(
        self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into the query, key and value projections of a self-attention; see :meth:`_share`."""
        return self._share(self.self_from, self.looks_from, n, context, value, passes)

    def share_cross(
        self, n: Tensor, context: Tensor, value: Tensor, passes: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into the query, key and value projections of a cross-attention; see :meth:`_share`."""
        return self._share(self.cross_from, None, n, context, value, passes)

    def _share(
        self,
        layout_from: Lenders | None,
        looks_from: Lenders | None,
        n: Tensor,
        context: Tensor,
        value: Tensor,
        passes: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put each lender's rows in the place of those of who borrows from it, pass by pass.

        n ``[R,L,d]``, context and value ``[R,S,d']`` are the inputs of the query, key and value projections; R is split
        evenly over ``passes``, one entry per chunk, True where the chunk is a conditional pass.
        Raises ValueError when the rows cannot be the ``processes`` this was made for.
        """
        nothing_lent = layout_from is None and looks_from is None
        too_large = self.max_tokens is not None and n.shape[1] > self.max_tokens
        if nothing_lent or too_large:
            return n, context, value
        images = rows_of(n.shape[0], passes, self.processes)
        own = range(self.processes)
        queries, keys, values = [], [], []
        for number, conditional in enumerate(passes):
            shares = conditional or self.uncond
            first = number * self.processes
            for process in own:
                layout = layout_from[process] if layout_from is not None and shares else process
                looks = looks_from[process] if looks_from is not None and shares else process
                queries.append(first + layout)
                keys.append(first + (looks if layout == process else layout))
                values.append(first + looks)
        lent_n = _taken(n, queries, images)
        lent_context = lent_n if context is n and keys == queries else _taken(context, keys, images)
        lent_value = lent_context if value is context and values == keys else _taken(value, values, images)
        return lent_n, lent_context, lent_value


def _taken(rows: Tensor, chunks: list[int], images: int) -> Tensor:
    """``rows`` with the chunk of B rows at each place taken from the place that ``chunks`` names."""
    if chunks == list(range(len(rows) // images)):
        return rows
    # Slices of rows, so that nothing has to be sent to the device.
    return torch.cat([rows[chunk * images : (chunk + 1) * images] for chunk in chunks])
