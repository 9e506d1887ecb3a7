"""Inversions from anyone: bytes and structure of a file changed at random, through Load Inversion and what follows."""

from __future__ import annotations

import json
import math
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import in_process
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save_file

from . import Report, complaint

STEPS = 3
MOST_SECONDS = 5.0  # of one load; the machine may be busy, and what went wrong before took minutes
MOST_MEMORY = 200.0  # MB of one load, beyond the file


class Campaign:
    """Mutations of one good file, in a work folder that is the host's input folder.

    pack: the pack in this process. model: a small MODEL, whose family the file has.
    """

    def __init__(self, pack: in_process.Pack, model, folder: Path):
        self.pack, self.model, self.report = pack, model, Report()
        self.path = folder / "attacked.safetensors"
        width = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k.in_features
        generator = torch.Generator().manual_seed(0)
        text = [[torch.randn(1, 6, width, generator=generator), {}]]
        latent = {"samples": torch.randn(2, 4, 8, 8, generator=generator)}
        trajectory, embeddings, _ = pack.call(
            "BaretTTISInversion", model=model, positive=text, negative=text, latent=latent, steps=STEPS, iterations=1
        )
        self.path.unlink(missing_ok=True)
        pack.module("baret_ops.storage").save_inversion(self.path, trajectory, embeddings)
        self.whole = self.path.read_bytes()
        self.tensors = load(self.whole)  # of the file itself they would be a view, of whatever lies there later
        with safe_open(self.path, "pt") as file:
            self.about = json.loads(file.metadata()["baret"])

    # --- what must hold -----------------------------------------------------------------------------------------------

    def attempt(self, what: str) -> None:
        """Load the file as it lies there; note what became of it, and whatever must not have happened."""
        before = in_process.begin_peak()
        began = time.monotonic()
        loaded = self._call("BaretLoadInversion", what, file=self.path.name)
        spent = time.monotonic() - began
        taken = (in_process.peak() - before - self.path.stat().st_size) / 1e6 if before else 0.0
        self.report.measured("seconds of a load, at most", spent)
        self.report.measured("MB of a load beyond the file, at most", taken)
        if spent > MOST_SECONDS:
            self.report.failures.append(f"{what}: {spent:.1f} s")
        if taken > MOST_MEMORY:
            self.report.failures.append(f"{what}: {taken:.0f} MB beyond the file")
        if loaded is None:
            self.report.outcomes["refused at load"] += 1
            return
        trajectory, embeddings = loaded
        moving = self._call("BaretTransitionEmbedding", what, embeddings=embeddings)
        self._call("BaretToSampler", what, trajectory=trajectory, embeddings=embeddings)
        self._call("BaretBAMEdit", what, model=self.model, trajectory=trajectory, embeddings=moving[0])
        if not self.report.tries % 50:  # drawing takes a second
            self._call("BaretInversionReport", what, trajectory=trajectory, embeddings=embeddings)
        self.report.outcomes["loaded"] += 1

    def _call(self, node_id: str, what: str, **inputs) -> tuple | None:
        """A node's outputs, which must be finite, or None where it refuses with a proper sentence."""
        name = self.pack.nodes[node_id].define_schema().display_name
        try:
            outputs = self.pack.call(node_id, **inputs)
        except (ValueError, RuntimeError) as error:
            wrong = complaint(str(error), (f"{name}: ",))
            if wrong:
                self.report.failures.append(f"{what}: {name}: {type(error).__name__} {wrong}")
            return None
        except Exception as error:
            self.report.failures.append(f"{what}: {name}: {type(error).__name__} {str(error)[:200]}")
            return None
        if not all(map(_is_finite, outputs)):
            self.report.failures.append(f"{what}: {name} gives NaN or infinity")
        return outputs

    # --- bytes --------------------------------------------------------------------------------------------------------

    def bytes(self, tries: int, start: int) -> None:
        """Flipped, cut, doubled and exchanged bytes, in the header more often than behind it."""
        for number in range(start, start + tries):
            drawn = random.Random(number)
            name, change = drawn.choice(list(_BYTES.items()))
            self.path.write_bytes(change(drawn, self.whole))
            self.attempt(f"bytes {number} ({name})")

    # --- structure ----------------------------------------------------------------------------------------------------

    def structure(self, tries: int, start: int) -> None:
        """Descriptions and tensors of other values, types, shapes and numbers, drawn by hypothesis."""
        checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

        @seed(start)
        @settings(max_examples=tries, deadline=None, database=None, suppress_health_check=checks)
        @given(st.lists(_DESCRIPTIONS, max_size=2), st.lists(_TENSORS, max_size=2))
        def attack(descriptions, changes):
            about, tensors = json.loads(json.dumps(self.about)), dict(self.tensors)
            for where, value in descriptions:
                _put(about, where, value)
            for name, kind, shape, number in changes:
                _change(tensors, name, kind, shape, number)
            save_file(tensors, self.path, {"baret": json.dumps(about)})
            self.attempt(f"structure {descriptions} {changes}"[:300])

        attack()


def _is_finite(value) -> bool:
    if torch.is_tensor(value):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


# --- mutations --------------------------------------------------------------------------------------------------------


def _header(whole: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + length], whole[8 + length :]


def _flip(drawn: random.Random, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for _ in range(drawn.choice((1, 1, 4, 64))):
        changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def _flip_header(drawn: random.Random, whole: bytes) -> bytes:
    header, rest = _header(whole)
    changed = _flip(drawn, header)
    return struct.pack("<Q", len(changed)) + changed + rest


def _exchange_words(drawn: random.Random, whole: bytes) -> bytes:
    """Words of the header for others that JSON or safetensors give a meaning to, where the file stays readable."""
    header, rest = _header(whole)
    words = (
        b"0",
        b"-1",
        b"1e999",
        b"NaN",
        b"null",
        b"[]",
        b"{}",
        b"true",
        b'"x"',
        b"99999999999999999999",
        b"F16",
        b"I64",
    )
    places = [i for i, byte in enumerate(header) if byte in b"0123456789"]
    place = drawn.choice(places)
    changed = header[:place] + drawn.choice(words) + header[place + drawn.choice((0, 1)) :]
    return struct.pack("<Q", len(changed)) + changed + rest


def _length(drawn: random.Random, whole: bytes) -> bytes:
    return (
        struct.pack("<Q", drawn.choice((0, 1, 8, 100, len(whole), 1 << 20, 1 << 31, 1 << 62, (1 << 64) - 1)))
        + whole[8:]
    )


_BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped": _flip,
    "header flipped": _flip_header,
    "words of the header": _exchange_words,
    "header's length": _length,
    "cut": lambda drawn, whole: whole[: drawn.randrange(len(whole))],
    "longer": lambda drawn, whole: whole + drawn.randbytes(drawn.choice((1, 8, 4096))),
    "doubled": lambda drawn, whole: whole[: drawn.randrange(len(whole))] + whole,
    "noise": lambda drawn, whole: drawn.randbytes(drawn.choice((0, 7, 8, 64, 4096))),
}

_NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 4, 9, 0.5, True, False, 10**400, -(10**400), 1e308, math.inf, -math.inf, math.nan]),
)
_PLAIN = st.one_of(st.none(), _NUMBERS, st.text(max_size=60), st.sampled_from(["x" * 5000, "\ud800", "\n", "epsilon"]))
_NESTED = st.integers(1, 900).map(lambda depth: json.loads("[" * depth + "]" * depth))
_ANY = st.one_of(
    st.recursive(
        _PLAIN,
        lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    ),
    _NESTED,
    st.lists(st.integers(0, 1000), max_size=6),
)
_WHERE = st.sampled_from(
    [
        *((name,) for name in ("format", "version", "timesteps", "guidance_scale", "family")),
        *((name,) for name in ("positive_options", "negative_options")),
        *(("family", name) for name in ("prediction", "latent_channels", "context_dim", "sigma_max", "latent_scale")),
        *(("timesteps", place) for place in range(STEPS)),
    ]
)
_DESCRIPTIONS = st.tuples(_WHERE, _ANY)
_TENSORS = st.tuples(
    st.sampled_from(
        ["sigmas", "pivots", "latents", "tuned", "target", "negative", "eta", "losses", "updates", "thresholds"]
    ),
    st.sampled_from(["kind", "shape", "number", "all", "gone"]),
    st.lists(st.integers(0, 9), max_size=6),
    st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, -1.0, 5.0, 1e-30, 3e38, math.nan, math.inf])),
)


def _put(about: dict, where: tuple, value) -> None:
    """Put a value at a place of the description; where the place is gone, at the top."""
    *way, last = where
    for step in way:
        about = about[step] if isinstance(about, dict) and isinstance(about.get(step), (dict, list)) else about
    if isinstance(about, list) and isinstance(last, int) and last < len(about):
        about[last] = value
    elif isinstance(about, dict):
        about[str(last)] = value


def _change(tensors: dict, name: str, kind: str, shape: list[int], number: float) -> None:
    value = tensors.get(name)
    if value is None:
        return
    if kind == "gone":
        del tensors[name]
    elif kind == "kind":
        tensors[name] = value.to(torch.float16 if value.is_floating_point() else torch.float32)
    elif kind == "shape":
        tensors[name] = torch.ones(shape, dtype=value.dtype)
    elif value.is_floating_point():
        changed = value.double().clone()  # some numbers do not fit into 16 bit
        changed.view(-1)[: None if kind == "all" else 1] = number
        tensors[name] = changed.to(value.dtype)
    else:
        tensors[name] = torch.full_like(value, int(max(-1e9, min(1e9, number))) if math.isfinite(number) else -1)
