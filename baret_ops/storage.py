"""An inversion as one ``.safetensors`` file: a trajectory, its embeddings, and what is needed to refuse a misfit."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .schedule import Schedule
from .values import Embeddings, ModelFamily, Trajectory, require_match

FORMAT = "baret-inversion"
VERSION = 1
_TRAJECTORY = ("pivots", "latents")
_EMBEDDINGS = ("tuned", "target", "negative", "eta", "losses", "updates")
_OPTIONAL = ("thresholds",)  # of the embeddings; the first files lack it
_DTYPES = {"sigmas": torch.float64, "updates": torch.int64}  # all else is float32


def save_inversion(path: Path, trajectory: Trajectory, embeddings: Embeddings) -> None:
    """Write both values to ``path``, whole or not at all.

    Options of the conditioning (ControlNet and the like) are live objects that no file can hold; their names are
    written, so that a loaded inversion can ask for them. Raises ValueError when the values do not belong together.
    """
    require_match(trajectory, embeddings)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "timesteps": trajectory.schedule.timesteps,
        "guidance_scale": trajectory.guidance_scale,
        "family": asdict(trajectory.family),
        "positive_options": sorted({*embeddings.positive_options, *embeddings.missing_positive} - _TEXT_OPTIONS),
        "negative_options": sorted({*embeddings.negative_options, *embeddings.missing_negative} - _TEXT_OPTIONS),
    }
    tensors = {"sigmas": trajectory.schedule.sigmas}
    for name in _TRAJECTORY:
        tensors[name] = getattr(trajectory, name)
    for name in (*_EMBEDDINGS, *_OPTIONAL):
        if getattr(embeddings, name) is not None:
            tensors[name] = getattr(embeddings, name)
    # Copies: safetensors refuses tensors that share memory, and an expanded batch does.
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(whole, partial, {"baret": json.dumps(about)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_TEXT_OPTIONS = frozenset({"pooled_output"})
"""Options that describe the text alone and mean nothing to a model without pooled input."""


def load_inversion(path: Path) -> tuple[Trajectory, Embeddings]:
    """Read what :func:`save_inversion` wrote. Raises ValueError with one sentence for anything else."""
    name = path.name
    try:
        about, tensors = _read(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name} cannot be read as a safetensors file ({error}); it is truncated or of another kind: "
            "save the inversion again."
        ) from error
    for key, value in tensors.items():
        expected = _DTYPES.get(key, torch.float32)
        if value.dtype != expected:
            raise ValueError(f"{name} holds {key} as {value.dtype} where {expected} fits; save the inversion again.")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity in {key}; make the inversion again.")
    try:
        trajectory = Trajectory(
            pivots=tensors["pivots"],
            latents=tensors["latents"],
            schedule=_schedule(about, tensors["sigmas"]),
            guidance_scale=float(about["guidance_scale"]),
            family=ModelFamily(**about["family"]),
        )
        embeddings = Embeddings(
            tuned=tensors["tuned"],
            target=tensors["target"],
            negative=tensors["negative"],
            eta=tensors["eta"],
            losses=tensors["losses"],
            updates=tensors["updates"],
            thresholds=tensors.get("thresholds"),
            missing_positive=tuple(map(str, about["positive_options"])),
            missing_negative=tuple(map(str, about["negative_options"])),
        )
        require_match(trajectory, embeddings)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a whole inversion ({error}); save the inversion again.") from error
    return trajectory, embeddings


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The description and the tensors of a file, as copies: a file that stays mapped cannot be replaced on Windows."""
    with safe_open(path, framework="pt", device="cpu") as file:
        about = _about(file.metadata(), path.name)
        there = set(file.keys())
        wanted = {*_TRAJECTORY, *_EMBEDDINGS, "sigmas"}
        if missing := sorted(wanted - there):
            raise ValueError(f"{path.name} lacks {', '.join(missing)}; save the inversion again.")
        return about, {key: file.get_tensor(key).clone() for key in wanted | (set(_OPTIONAL) & there)}


def _schedule(about: dict, sigmas: Tensor) -> Schedule:
    """The schedule of a file. Raises ValueError unless its levels fall, one more than there are times."""
    timesteps = tuple(int(t) for t in about["timesteps"])
    one_more = len(timesteps) >= 2 and sigmas.shape == (len(timesteps) + 1,)
    if not one_more or not (sigmas[:-1] > sigmas[1:]).all() or sigmas[-1] <= 0:
        raise ValueError(
            f"its schedule has {len(timesteps)} times and sigmas of shape {list(sigmas.shape)}; "
            "falling levels, one more than times, fit."
        )
    return Schedule(timesteps, sigmas)


def _about(metadata: dict[str, str] | None, name: str) -> dict:
    """The description in a file's metadata. Raises ValueError for a file of another kind or version."""
    try:
        about = json.loads((metadata or {})["baret"])
        kind, version = about["format"], about["version"]
    except (KeyError, TypeError, ValueError):
        about, kind, version = {}, None, None
    if kind != FORMAT:
        raise ValueError(
            f"{name} is a safetensors file but not an inversion of this pack; choose one written by Save Inversion."
        )
    if version != VERSION:
        raise ValueError(
            f"{name} has format version {version} and this pack reads version {VERSION}; "
            "update the pack or save the inversion again."
        )
    return about
