"""Where the model looks for words while it edits: balanced attention, watched."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import Site
from ..maps import MapSums, watch_words
from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory
from .bam import Edits, advance, transition_is_reconstruction
from .plan import Dials


@dataclass(frozen=True)
class Grids:
    """Which of the model's attention grids to look at.

    coarse: the coarsest that several blocks have. widths: those of these widths in tokens, as written. With neither,
        all.
    written: how they were asked for, for messages. seen: the grids (h,w) that the model has, filled while it runs.
    """

    coarse: bool = False
    widths: frozenset[str] = frozenset()
    written: str = ""
    seen: dict[tuple[int, int], None] = field(default_factory=dict)

    def wanted(self, site: Site) -> bool:
        """Whether to look at an attention."""
        self.seen[site.grid] = None
        if self.coarse:
            return site.coarse
        return not self.widths or str(site.grid[1]) in self.widths


@dataclass(frozen=True, eq=False)
class WordHeat:
    """What was seen of an edit of B images.

    latents: of reconstruction, transition and edit, each ``[B,C,h,w]``, VP form.
    heat: ``[B,W,3,h,w]`` float32, how much each place of the three looks at each of W words, mean over steps and
        blocks.
    """

    latents: tuple[Tensor, Tensor, Tensor]
    heat: Tensor


def watched_steps(start: float, end: float, steps: int) -> range:
    """The steps from one share of the run to another, each 0..1. Raises ValueError where none is between."""
    span = range(int(start * steps + 0.5), int(end * steps + 0.5))
    if not span:
        raise ValueError(f"start_percent {start:g} to end_percent {end:g} of {steps} steps leaves none; widen it.")
    return span


def watch_edit(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    words: Tensor,
    *,
    span: range,
    grids: Grids,
    tau_sa: float,
    tau_ca: float,
    guidance_scale: float,
    on_step: OnStep | None = None,
) -> WordHeat:
    """Edit as :func:`.bam.bam` and see where the three processes look for words.

    words: ``[T,W]``, the share of each token of the text in each word. span: the steps to look at. grids: where.
    Raises ValueError for a misfit and for grids that the model does not have, NotFinite.
    """
    steps, images = trajectory.schedule.steps, trajectory.images
    sums = MapSums(trajectory.size)

    def check(step: int, clean: Tensor, z: Tensor) -> None:
        if step == span[0] and not sums.count:
            there = ", ".join(f"{width}x{height}" for height, width in grids.seen)
            raise ValueError(
                f"resolutions has {grids.written} and the grids of this picture are {there}; name widths of these."
            )
        if on_step is not None:
            on_step(step, clean, z)

    begun = Edits.begin(trajectory, embeddings, [Dials.of(steps, tau_sa, tau_ca)])
    watch = watch_words(sums, words, span, grids.wanted)
    (edits,) = advance(
        predict, trajectory, [begun], range(steps), guidance_scale=guidance_scale, on_step=check, watch=watch
    )
    redrawn = trajectory.latents[-1]
    same = transition_is_reconstruction(trajectory, embeddings, guidance_scale)
    heat = sums.mean().unflatten(0, (3, images)).movedim(0, 2)
    return WordHeat((redrawn, redrawn if same else edits.transition, edits.results()[0]), heat)


def word_shares(tokens: int, positions: list[tuple[int, ...]]) -> Tensor:
    """``[T,W]``: 1 where a token belongs to a word, from the positions of each word's tokens."""
    shares = torch.zeros(tokens, len(positions))
    for column, places in enumerate(positions):
        shares[list(places), column] = 1.0
    return shares
