"""What an inversion holds, declared once: for values in memory, and for files, whose word nobody can take.

A shape is written with a letter for each size, and a letter is the same size wherever it stands: N steps, M = N + 1
levels, B images, C channels, h and w of a latent, T tokens of the text, U of the negative one, D numbers of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .wording import shortened, told

Sizes = dict[str, int]
"""The sizes that are known, by their letters."""

MOST_TOKENS = 77 * 64
"""Tokens of the longest text: 64 windows of CLIP's."""

_MOST = {"B": 4096, "h": 8192, "w": 8192, "T": MOST_TOKENS, "U": MOST_TOKENS}


@dataclass(frozen=True)
class Number:
    """A number from ``least`` to ``most``. whole: without a fraction."""

    least: float
    most: float
    whole: bool = False

    def require(self, name: str, value: object) -> None:
        """Raise ValueError unless the value is such a number; NaN, infinity, and True for 1 are none."""
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.least <= value <= self.most:
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"{name} is {told(value)}; {kind} from {self.least:.10g} to {self.most:.10g} fits.")


@dataclass(frozen=True)
class Tensors:
    """Tensors of one kind.

    shapes: those that fit. numbers: what all of its numbers are. dtype: of a file. optional: it may be left out.
    """

    shapes: tuple[str, ...]
    numbers: Number
    dtype: torch.dtype = torch.float32
    optional: bool = False

    def require_shape(self, name: str, shape: Sequence[int], sizes: Sizes) -> None:
        """Raise ValueError unless a shape fits what is known of the sizes; note those that it tells."""
        for letters in self.shapes:
            if _fits(letters, shape, sizes):
                sizes.update(zip(letters, shape))
                return
        fitting = " or ".join(_written(letters, sizes) for letters in self.shapes)
        raise ValueError(f"{name} of shape {shortened(list(shape))} came; {fitting} fits.")

    def require_numbers(self, name: str, value: Tensor) -> None:
        """Raise ValueError unless all numbers of a tensor are finite and in their range."""
        low, high = (float(end) for end in torch.aminmax(value))  # NaN comes through
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} holds NaN or infinity.")
        if low < self.numbers.least or high > self.numbers.most:
            outside = low if low < self.numbers.least else high
            raise ValueError(
                f"{name} holds {outside:.4g}; numbers from {self.numbers.least:.10g} to {self.numbers.most:.10g} fit."
            )


def _fits(letters: str, shape: Sequence[int], sizes: Sizes) -> bool:
    if len(shape) != len(letters):
        return False
    return all(
        1 <= size <= _MOST.get(letter, size) and sizes.get(letter, size) == size for letter, size in zip(letters, shape)
    )


def _written(letters: str, sizes: Sizes) -> str:
    return "[" + ",".join(str(sizes.get(letter, letter)) for letter in letters) + "]"


def require_shapes(fields: Mapping[str, Tensors], given: Mapping[str, Sequence[int] | None], sizes: Sizes) -> None:
    """Raise ValueError unless the shapes that are given, None for what is left out, fit each other and the sizes."""
    for name, field in fields.items():
        shape = given.get(name)
        if shape is not None:
            field.require_shape(name, shape, sizes)
        elif not field.optional:
            raise ValueError(f"{name} is missing.")


# --- what an inversion holds ------------------------------------------------------------------------------------------

PREDICTIONS = ("epsilon", "v_prediction")

FAMILY = {
    "latent_channels": Number(1, 1024, whole=True),
    "context_dim": Number(1, 1 << 16, whole=True),
    "sigma_max": Number(1e-3, 1e6),
    "latent_scale": Number(1e-4, 1e4),
}
GUIDANCE = Number(-1e3, 1e3)
TIME = Number(0, 99_999, whole=True)

_LATENTS = Number(-1e6, 1e6)
_TEXTS = Number(-1e6, 1e6)
_LOSSES = Number(0.0, 1e12)

SCHEDULE = {"sigmas": Tensors(("M",), Number(1e-4, 1e6), torch.float64)}
TRAJECTORY = {
    "pivots": Tensors(("MBChw",), _LATENTS),
    "latents": Tensors(("MBChw",), _LATENTS),
}
EMBEDDINGS = {
    "tuned": Tensors(("NBTD",), _TEXTS),
    "target": Tensors(("BTD",), _TEXTS),
    "negative": Tensors(("BUD", "NBUD"), _TEXTS),
    "eta": Tensors(("N",), Number(0.0, 1.0)),
    "losses": Tensors(("NB",), _LOSSES),
    "updates": Tensors(("NB",), Number(0, 1_000_000), torch.int64),
    "thresholds": Tensors(("N",), _LOSSES, optional=True),
}
