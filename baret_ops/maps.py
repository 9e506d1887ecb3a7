"""Cross-attention maps of words, formed in blocks of bounded memory and kept as running sums alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .attention import Attend, Hooks, Site
from .edits.bam import RECONSTRUCTION, TRANSITION

BLOCK = 1 << 22
"""Most entries of an attention map that exist at a time (16 MB in float32)."""


def word_maps(q: Tensor, k: Tensor, heads: int, words: Tensor) -> Tensor:
    """How much each place looks at each word: ``softmax(q k^T / sqrt(d))`` averaged over the heads, summed over a word's tokens.

    q: ``[R,L,heads*d]``. k: ``[R,T,heads*d]``. words: ``[T,W]`` or ``[R,T,W]``, the share of each token in each word.
    Returns ``[R,L,W]`` float32. The queries are taken in blocks, so that no more than ``BLOCK`` entries of a map exist at a time
    (one query of all rows at least).
    """
    rows, length, width = q.shape
    split = lambda t: t.unflatten(-1, (heads, width // heads)).transpose(1, 2).float()  # noqa: E731
    keys = split(k).transpose(-1, -2) * (width // heads) ** -0.5
    words = words.to(q.device, torch.float32)
    per_block = max(1, BLOCK // (rows * heads * k.shape[1]))
    return torch.cat([torch.softmax(split(block) @ keys, -1).mean(1) @ words for block in q.split(per_block, 1)], 1)


class MapSums:
    """The sum of word maps over blocks and steps at one grid; all it holds is ``[R,W,h,w]``."""

    def __init__(self, grid: tuple[int, int]):
        self.grid, self.count = grid, 0
        self._sum: Tensor | None = None

    def add(self, q: Tensor, k: Tensor, heads: int, words: Tensor, grid: tuple[int, int]) -> None:
        """Add the :func:`word_maps` of one attention whose L tokens stand on ``grid`` (h,w), brought to this one's."""
        maps = word_maps(q, k, heads, words).transpose(1, 2).unflatten(2, grid)
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
    """A ``watch`` for :func:`.bam.advance`: in ``steps`` and where ``wanted``, the word maps of reconstruction, transition and edit, in this order.

    sums: takes them in, R = 3 B. words: ``[T,W]`` as for :func:`word_maps`; a text that the model was given several times over counts as one.
    """

    def watch(step: int, places: dict[str, int]) -> Hooks | None:
        if step not in steps:
            return None

        def hook(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            # The reconstruction is the last of the processes.
            rows = [
                site.rows(len(q), places[RECONSTRUCTION] + 1, place)
                for place in (places[RECONSTRUCTION], places[TRANSITION], 0)
            ]
            if None not in rows and wanted(site):
                times, rest = divmod(k.shape[1], len(words))
                if rest:
                    raise ValueError(
                        f"attention sees {k.shape[1]} tokens where the text has {len(words)}: another node adds its own; take its patch off the model."
                    )
                sums.add(
                    *(torch.cat([part[each] for each in rows]) for part in (q, k)),
                    site.heads,
                    words.repeat(times, 1),
                    site.grid,
                )
            return attend(q, k, v)

        return Hooks(cross_attention=hook)

    return watch
