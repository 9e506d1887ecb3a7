"""Texts through the CLIP on the wire: their tokens and words, and their conditioning."""

from __future__ import annotations

import re

import torch

from ..baret_ops.prompts import Tokens
from ..baret_ops.values import common_length
from ..baret_ops.wording import listed, quoted

_MOST_CHARACTERS = 20_000

_WORD_END = "</w>"  # with which CLIP's byte pair encoding marks the last token of a word


def read_tokens(clip, text: str) -> Tokens:
    """The tokens of a text and which of them make its words; weights and embeddings are understood as the host does.

    Raises ValueError for a CLIP of another family.
    """
    windows = clip.tokenize(text, return_word_ids=True)
    name = getattr(clip.tokenizer, "clip", None)
    if len(windows) != 1 or name is None:
        raise ValueError(
            f"the CLIP has the text encoders {listed(windows)}; the CLIP of an SD1.x or SD2.x checkpoint fits."
        )
    tokenizer = getattr(clip.tokenizer, name)
    (windows,) = windows.values()
    embeddings = _embeddings(clip, text)
    marks_ends = any(piece.endswith(_WORD_END) for piece in tokenizer.inv_vocab.values())

    ids, words, pieces, group = [], [], [], 0
    for token, _, segment in (entry for window in windows for entry in window):
        position = len(ids)
        vector = torch.is_tensor(token)
        ids.append(token.detach().cpu().float().numpy().tobytes() if vector else int(token))
        if segment == 0:  # a start, an end or padding; a word that a window's end cuts goes on after it
            continue
        if vector:
            if group != segment:
                words.append((next(embeddings, "embedding"), ()))
            words[-1] = (words[-1][0], (*words[-1][1], position))
        else:
            pieces.append(position)
            if not marks_ends or tokenizer.inv_vocab[ids[position]].endswith(_WORD_END):
                words.append((tokenizer.tokenizer.decode([ids[p] for p in pieces]).strip(), tuple(pieces)))
                pieces = []
        group = segment
    return Tokens(tuple(ids), tuple(words))


def _embeddings(clip, text: str):
    """Names of the textual inversions in a text that the host finds, in order."""
    for name in re.findall(r"embedding:[^\s,():<>\[\]]+", text):
        (windows,) = clip.tokenize(name).values()
        if any(torch.is_tensor(token) for window in windows for token, _ in window):
            yield name


def say_unknown_words(clip, text: str) -> None:
    """Have a CLIP that knows few words (the drawn world's) say under the node which of a text it does not know."""
    clip.tokenize(text)


def find_word(clip, tokens: Tokens, phrase: str, role: str) -> tuple[int, ...]:
    """Positions of a word or phrase in a text. role: the text's input, for messages.

    Raises ValueError, which lists the words, when it is not there.
    """
    found = tokens.find(read_tokens(clip, phrase))
    if not found:
        raise ValueError(f"{quoted(phrase.strip())} is not in {role}; {has_words(tokens)}.")
    return found


def has_words(tokens: Tokens) -> str:
    """What the words of a text are, for messages."""
    words = dict.fromkeys(word for word, _ in tokens.words)
    return f"its words are: {listed(words, ' ')}" if words else "it has no words"


def require_length(written: str, role: str) -> None:
    """Raise ValueError for a text that would take long to read. role: its input, for messages."""
    if len(written) > _MOST_CHARACTERS:
        raise ValueError(f"{role} has {len(written)} characters; at most {_MOST_CHARACTERS} fit: write a shorter text.")


def encode(clip, text: str) -> list:
    """The CONDITIONING of a text, as CLIP Text Encode makes it. Raises ValueError for one of too many tokens."""
    windows = clip.tokenize(text)
    common_length(*(sum(map(len, windows_of_one)) for windows_of_one in windows.values()))
    return clip.encode_from_tokens_scheduled(windows)
