"""What the edits by two texts share: their tokens, and settings written by word."""

from __future__ import annotations

import torch
from torch import Tensor

from ..baret_ops.prompts import Tokens
from ..baret_ops.values import Embeddings
from ..baret_ops.wording import quoted
from ..host import conditioning, text
from .written import read_values, read_words

_SAME = 0.05  # of the greatest number in an embedding: how far two encodings of one text may differ, as in 16 bit


def with_target(clip, embeddings: Embeddings, target_text: str) -> tuple[Embeddings, Tokens]:
    """These embeddings with a target text, under the options of the inversion's own, and its tokens."""
    conditioning.require_options(embeddings)
    target = _encode(clip, target_text, "target_text", embeddings)
    return embeddings.with_target(target, embeddings.positive_options), text.read_tokens(clip, target_text)


def source_tokens(clip, embeddings: Embeddings, written: str) -> Tokens:
    """The tokens of the source's text. Raises ValueError unless the picture was inverted with it."""
    encoded = _encode(clip, written, "source_text", embeddings)
    inverted_with = (embeddings.target, embeddings.tuned[0])
    if not any(_is_same(own, encoded) for own in inverted_with):
        raise _another_text("source_text", "the text that the picture was inverted with")
    return text.read_tokens(clip, written)


def target_tokens(clip, embeddings: Embeddings, written: str) -> Tokens:
    """The tokens of the embeddings' target text, from the input ``text``. Raises ValueError for another text."""
    encoded = _encode(clip, written, "text", embeddings)
    if not _is_same(embeddings.target, encoded):
        raise _another_text("text", "the target text of these embeddings")
    return text.read_tokens(clip, written)


def _encode(clip, written: str, role: str, embeddings: Embeddings) -> Tensor:
    """The embedding ``[B,T,D]`` of a text for all images. role: the input's name, for messages."""
    text.require_length(written, role)
    width = embeddings.target.shape[-1]
    encoded, _ = conditioning.read_text(text.encode(clip, written), role, embeddings.images, width)
    return encoded


def _is_same(own: Tensor, encoded: Tensor) -> bool:
    """Whether two embeddings ``[B,T,D]`` are of one text."""
    own = own[:, : encoded.shape[1]]  # it may have been repeated to the length of another text
    if own.shape != encoded.shape:
        return False
    tolerance = _SAME * float(encoded.abs().max())
    return torch.allclose(own, encoded.to(own.device), rtol=0.0, atol=tolerance)


def _another_text(role: str, whose: str) -> ValueError:
    return ValueError(f"{role} is not {whose}; write the same text, with the same CLIP, into both.")


def token_values(clip, target: Tokens, written: str, role: str, default: float) -> Tensor:
    """A number ``[T]`` for each token of the target text, from a list such as ``"dog:1.5, red:0.3"``.

    default: for the words that are not in the list. Raises ValueError for another form, or a word that is not in the
    text.
    """
    values = torch.full([len(target.ids)], default)
    for word, value in read_values(written, role):
        values[list(text.find_word(clip, target, word, "target_text"))] = value
    return values


def mark_words(clip, source: Tokens, target: Tokens, written: str, role: str) -> tuple[Tensor, Tensor]:
    """Where the words of a list stand in two texts: ``([Ts], [Tt])``, 1 at their tokens and 0 elsewhere.

    Raises ValueError for a word that is in neither text.
    """
    marks = torch.zeros(len(source.ids)), torch.zeros(len(target.ids))
    for word in read_words(written, role):
        phrase = text.read_tokens(clip, word)
        places = source.find(phrase), target.find(phrase)
        if not any(places):
            raise ValueError(
                f"{quoted(word)} of {role} is in neither text; source_text: {text.has_words(source)}; "
                f"target_text: {text.has_words(target)}."
            )
        for mark, place in zip(marks, places):
            mark[list(place)] = 1.0
    return marks
