"""Cross-attention maps of words, formed in blocks of bounded memory and kept as running sums alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .attention import RECONSTRUCTION, TRANSITION, Attend, Hooks, Site

BLOCK = 1 << 22
"""Most entries of an attention map that exist at a time (16 MB in float32)."""


def word_maps(q: Tensor, k: Tensor, heads: int, words: Tensor) -> Tensor:
    """How much each place looks at each word: ``softmax(q k^T / sqrt(d))``, mean over heads, summed over a word's
    tokens.

    q: ``[R,L,heads*d]``. k: ``[R,T,heads*d]``. words: ``[T,W]`` or ``[R,T,W]``, the share of each token in each word.
    Returns ``[R,L,W]`` float32. The queries are taken in blocks, so that no more than ``BLOCK`` entries of a map exist
    at a time (one query of all rows at least).
    """
    rows, _, width = q.shape
    keys = _by_head(k, heads).transpose(-1, -2) * (width // heads) ** -0.5
    words = words.to(q.device, torch.float32)
    per_block = max(1, BLOCK // (rows * heads * k.shape[1]))
    blocks = []
    for queries in q.split(per_block, 1):
        maps = torch.softmax(_by_head(queries, heads) @ keys, -1)
        blocks.append(maps.mean(1) @ words)
    return torch.cat(blocks, 1)


def _by_head(t: Tensor, heads: int) -> Tensor:
    """``[R,L,heads*d]`` to ``[R,heads,L,d]`` float32."""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2).float()


class MapSums:
    """The sum of word maps over blocks and steps at one grid; all it holds is ``[R,W,h,w]``.

    grid: (h,w); None is that of the first attention that is added.
    """

    def __init__(self, grid: tuple[int, int] | None = None):
        self.grid, self.count = grid, 0
        self._sum: Tensor | None = None

    def add(self, q: Tensor, k: Tensor, heads: int, words: Tensor, grid: tuple[int, int]) -> None:
        """Add the :func:`word_maps` of one attention whose L tokens stand on ``grid`` (h,w), brought to this one's."""
        maps = word_maps(q, k, heads, words).transpose(1, 2).unflatten(2, grid)
        self.grid = self.grid or grid
        if grid != self.grid:
            maps = interpolate(maps, size=self.grid, mode="bilinear", antialias=True)
        self._sum = maps if self._sum is None else self._sum + maps
        self.count += 1

    def mean(self) -> Tensor:
        """``[R,W,h,w]`` float32, the maps' average so far. Raises ValueError when nothing was added."""
        if self._sum is None:
            raise ValueError("no attention map was seen: none of the model's cross-attention blocks was asked for one.")
        return self._sum / self.count


def watch_words(
    sums: MapSums, words: Tensor, steps: range, wanted: Callable[[Site], bool]
) -> Callable[[int, dict[str, int]], Hooks | None]:
    """A :data:`.bam.Watch` that sums the word maps of reconstruction, transition and edit, in this order.

    sums: takes them in, R = 3 B. words: ``[T,W]`` as for :func:`word_maps`; a text that the model was given several
    times over counts as one. steps, wanted: when and where to look.
    """

    def watch(step: int, places: dict[str, int]) -> Hooks | None:
        if step not in steps:
            return None
        processes = places[RECONSTRUCTION] + 1  # it is the last of them
        shown = (places[RECONSTRUCTION], places[TRANSITION], 0)

        def look(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            rows = [site.rows(len(q), processes, place) for place in shown]
            if None not in rows and wanted(site):
                queries = torch.cat([q[each] for each in rows])
                keys = torch.cat([k[each] for each in rows])
                sums.add(queries, keys, site.heads, _repeated(words, k.shape[1]), site.grid)
            return attend(q, k, v)

        return Hooks(cross_attention=look)

    return watch


def _repeated(words: Tensor, tokens: int) -> Tensor:
    """``words [T,W]`` as often as the text stands in ``tokens``. Raises ValueError when it does not fit in evenly."""
    times, rest = divmod(tokens, len(words))
    if rest:
        raise ValueError(
            f"attention sees {tokens} tokens where the text has {len(words)}: another node adds its own; "
            "take its patch off the model."
        )
    return words.repeat(times, 1)
