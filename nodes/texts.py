"""What the edits by two texts share: their tokens, and settings written by word."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.prompts import Tokens
from ..baret_ops.values import Embeddings
from ..host import conditioning, text
from .common import EDIT_MODEL_TOOLTIP, EMBEDDINGS_TOOLTIP, TRAJECTORY_TOOLTIP, EmbeddingsWire, TrajectoryWire

SOURCE_TEXT_TOOLTIP = "The text the picture was inverted with, word for word."
TARGET_TEXT_TOOLTIP = "What the picture should become: the same text with words changed, added or left out."
CLIP_TOOLTIP = "The CLIP of the same checkpoint, with which the texts are read and encoded."


def edit_inputs() -> list:
    """The sockets of an edit by texts."""
    return [
        io.Model.Input("model", tooltip=EDIT_MODEL_TOOLTIP),
        io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
        TrajectoryWire.Input("trajectory", tooltip=TRAJECTORY_TOOLTIP),
        EmbeddingsWire.Input("embeddings", tooltip=EMBEDDINGS_TOOLTIP),
    ]


def with_target(clip, embeddings: Embeddings, target_text: str) -> tuple[Embeddings, Tokens]:
    """These embeddings with a target text, under the options of the inversion's own, and its tokens."""
    conditioning.require_options(embeddings)
    target, _ = conditioning.read_text(
        text.encode(clip, target_text), "target_text", embeddings.images, embeddings.target.shape[-1]
    )
    return embeddings.with_target(target, embeddings.positive_options), text.read_tokens(clip, target_text)


def source_tokens(clip, embeddings: Embeddings, written: str) -> Tokens:
    """The tokens of the source's text. Raises ValueError unless it is the text that the picture was inverted with."""
    return _own_tokens(
        clip,
        (embeddings.target, embeddings.tuned[0]),
        written,
        "source_text",
        "the text that the picture was inverted with",
    )


def target_tokens(clip, embeddings: Embeddings, written: str) -> Tokens:
    """The tokens of the embeddings' target text, from the input ``text``. Raises ValueError for another text."""
    return _own_tokens(clip, (embeddings.target,), written, "text", "the target text of these embeddings")


def _own_tokens(clip, own: tuple[Tensor, ...], written: str, role: str, whose: str) -> Tokens:
    encoded, _ = conditioning.read_text(text.encode(clip, written), role, own[0].shape[0], own[0].shape[-1])
    # They may have been repeated to the length of another text.
    own = (each[:, : encoded.shape[1]] for each in own)
    if not any(
        each.shape == encoded.shape
        and torch.allclose(each, encoded.to(each.device), rtol=0.0, atol=0.05 * float(encoded.abs().max()))
        for each in own
    ):
        raise ValueError(f"{role} is not {whose}; write the same text, with the same CLIP, into both.")
    return text.read_tokens(clip, written)


def read_values(clip, tokens: Tokens, written: str, role: str) -> list[tuple[tuple[int, ...], float]]:
    """Token positions and number of each ``word:number`` in a list with commas. Raises ValueError for another form, or a word that is not in target_text."""
    found = []
    for part in filter(None, map(str.strip, written.split(","))):
        word, colon, number = part.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not colon or not word.strip() or not abs(value) < float("inf"):
            raise ValueError(f'{role} holds {part!r}; words and numbers such as "dog:1.5, red:0.3" fit.')
        found.append((text.find_word(clip, tokens, word, "target_text"), value))
    return found


def mark_words(clip, source: Tokens, target: Tokens, written: str, role: str) -> tuple[Tensor, Tensor]:
    """``([Ts], [Tt])``, 1 for every token of the words in a list with commas. Raises ValueError for a word that is in neither text."""
    marks = torch.zeros(len(source.ids)), torch.zeros(len(target.ids))
    for word in filter(None, map(str.strip, written.split(","))):
        places = [tokens.find(text.read_tokens(clip, word)) for tokens in (source, target)]
        if not any(places):
            raise ValueError(
                f"{word!r} of {role} is in neither text; source_text: {text.has_words(source)}; target_text: {text.has_words(target)}."
            )
        for mark, place in zip(marks, places):
            mark[list(place)] = 1.0
    return marks
