"""An inversion as one ``.safetensors`` file: a trajectory and its embeddings, with what is needed to refuse a misfit."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .schedule import Schedule
from .values import Embeddings, ModelFamily, Trajectory, require_match

FORMAT = "baret-inversion"
VERSION = 1
_TRAJECTORY = ("pivots", "latents")
_EMBEDDINGS = ("tuned", "target", "negative", "eta", "losses", "updates")
_OPTIONAL = ("thresholds",)  # of the embeddings; the first files lack it


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
    tensors = {name: getattr(trajectory, name) for name in _TRAJECTORY} | {
        name: getattr(embeddings, name) for name in _EMBEDDINGS
    }
    tensors |= {name: value for name in _OPTIONAL if (value := getattr(embeddings, name)) is not None}
    tensors["sigmas"] = trajectory.schedule.sigmas
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        # clone: safetensors refuses tensors that share memory, and an expanded batch does.
        save_file(
            {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in tensors.items()
            },
            partial,
            {"baret": json.dumps(about)},
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_TEXT_OPTIONS = frozenset({"pooled_output"})
"""Options that describe the text alone and mean nothing to a model without pooled input."""


def load_inversion(path: Path) -> tuple[Trajectory, Embeddings]:
    """Read what :func:`save_inversion` wrote. Raises ValueError with one sentence for anything else."""
    name = path.name
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = _about(file.metadata(), name)
            wanted = {*_TRAJECTORY, *_EMBEDDINGS, "sigmas"}
            missing = sorted(wanted - set(file.keys()))
            if missing:
                raise ValueError(f"{name} lacks {', '.join(missing)}; save the inversion again.")
            tensors = {key: file.get_tensor(key) for key in wanted | ({*_OPTIONAL} & {*file.keys()})}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name} cannot be read as a safetensors file ({error}); it is truncated or of another kind: save the inversion again."
        ) from error

    for key, value in tensors.items():
        expected = {"sigmas": torch.float64, "updates": torch.int64}.get(key, torch.float32)
        if value.dtype != expected:
            raise ValueError(f"{name} holds {key} as {value.dtype} where {expected} fits; save the inversion again.")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity in {key}; make the inversion again.")
    try:
        timesteps = tuple(int(t) for t in about["timesteps"])
        sigmas = tensors["sigmas"]
        if (
            len(timesteps) < 2
            or sigmas.shape != (len(timesteps) + 1,)
            or not (sigmas[:-1] > sigmas[1:]).all()
            or sigmas[-1] <= 0
        ):
            raise ValueError(
                f"its schedule has {len(timesteps)} times and sigmas of shape {list(sigmas.shape)}; falling levels, one more than times, fit."
            )
        trajectory = Trajectory(
            pivots=tensors["pivots"],
            latents=tensors["latents"],
            schedule=Schedule(timesteps, sigmas),
            guidance_scale=float(about["guidance_scale"]),
            family=ModelFamily(**about["family"]),
        )
        embeddings = Embeddings(
            **{key: tensors[key] for key in (*_EMBEDDINGS, *_OPTIONAL) if key in tensors},
            missing_positive=tuple(map(str, about["positive_options"])),
            missing_negative=tuple(map(str, about["negative_options"])),
        )
        require_match(trajectory, embeddings)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a whole inversion ({error}); save the inversion again.") from error
    return trajectory, embeddings


def _about(metadata: dict[str, str] | None, name: str) -> dict:
    try:
        about = json.loads((metadata or {})["baret"])
        kind, version = about["format"], about["version"]
    except (KeyError, TypeError, ValueError):
        kind = version = None
    if kind != FORMAT:
        raise ValueError(
            f"{name} is a safetensors file but not an inversion of this pack; choose one written by Save Inversion."
        )
    if version != VERSION:
        raise ValueError(
            f"{name} has format version {version} and this pack reads version {VERSION}; update the pack or save the inversion again."
        )
    return about
