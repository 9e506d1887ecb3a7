"""Directions between two phrases in the space of text embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .values import Embeddings


def text_direction(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean difference ``[D]`` between two phrases over texts that differ in them alone.

    pairs: for each template the embeddings of the tokens that hold the phrase to go to, ``[n,D]``, and of those that
    hold the one to come from, ``[m,D]``. StyleCLIP's global directions (Patashnik et al. 2021, sec. 6) begin with this
    mean difference over templates, of CLIP's pooled texts.
    """
    differences = [to.double().mean(0) - of.double().mean(0) for to, of in pairs]
    return torch.stack(differences).mean(0).float()


def directed(embedding: Tensor, direction: Tensor, strength: float, window: int) -> Tensor:
    """``embedding [..,T,D] + strength * direction [D]``, at all tokens but those that begin a window of ``window``.

    What begins a window is the same in every text. Strength 0 gives the embedding itself.
    """
    if strength == 0.0:
        return embedding
    moves = torch.arange(embedding.shape[-2], device=embedding.device) % window != 0
    return embedding + strength * moves[:, None] * direction.to(embedding)


MOVED = {"target": ("target",), "tuned": ("tuned",), "both": ("target", "tuned")}
"""Which texts of an inversion can be moved: what the edits are to become, what stands for the picture, or both."""


def directed_embeddings(
    embeddings: Embeddings, direction: Tensor, strength: float, window: int, which: str = "target"
) -> Embeddings:
    """These embeddings with the texts that ``which`` (of :data:`MOVED`) names moved, tuned ones alike in all steps."""
    moved = {name: directed(getattr(embeddings, name), direction, strength, window) for name in MOVED[which]}
    return replace(embeddings, **moved)
