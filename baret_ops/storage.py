"""An inversion as one ``.safetensors`` file: a trajectory, its embeddings, and what is needed to refuse a misfit.

A file may come from anyone. What it must hold is declared in :mod:`.schema`; types and shapes are compared with that as
the file's header tells them, and only then tensors are read, small ones first.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .schedule import Schedule
from .schema import EMBEDDINGS, GUIDANCE, SCHEDULE, TRAJECTORY, Sizes, Tensors, require_shapes
from .values import Embeddings, ModelFamily, Trajectory, require_match
from .wording import quoted, shortened, told

FORMAT = "baret-inversion"
VERSION = 1
_FIELDS: dict[str, Tensors] = {**SCHEDULE, **TRAJECTORY, **EMBEDDINGS}
_WRITTEN = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
"""Types as a file's header names them."""

_TEXT_OPTIONS = frozenset({"pooled_output"})
"""Options that describe the text alone and mean nothing to a model without pooled input."""

_LONGEST_HEADER = 1 << 20
"""Bytes. What this pack writes takes a few thousand; reading a header takes many times its size in memory."""

_MOST_OPTIONS, _MOST_PICTURES, _LONGEST_NAME = 64, 4096, 200


# --- saving -----------------------------------------------------------------------------------------------------------


def save_inversion(path: Path, trajectory: Trajectory, embeddings: Embeddings) -> None:
    """Write both values to ``path``, whole or not at all; a file that is there is left as it is.

    Options of the conditioning (ControlNet and the like) are live objects that no file can hold; their names are
    written, so that a loaded inversion can ask for them. Raises ValueError when the values do not belong together, when
    they could not be loaded again and where the disk refuses, FileExistsError where the name is taken.
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
    if embeddings.pictures is not None:
        about["pictures"] = list(embeddings.pictures)
    tensors = {"sigmas": trajectory.schedule.sigmas}
    for name in TRAJECTORY:
        tensors[name] = getattr(trajectory, name)
    for name in EMBEDDINGS:
        if getattr(embeddings, name) is not None:
            tensors[name] = getattr(embeddings, name)
    # Copies: safetensors refuses tensors that share memory, and an expanded batch does.
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    for name, value in whole.items():
        _FIELDS[name].require_numbers(name, value)
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        save_file(whole, partial, {"baret": json.dumps(about)})
        _put_in_place(partial, path)
    except FileExistsError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{quoted(path.name)} cannot be written ({_reason(error)}); {_AFTER_WRITING}.") from error
    finally:
        partial.unlink(missing_ok=True)


_AFTER_WRITING = "use a short plain name, in a folder with space that may be written to"


def _put_in_place(partial: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError where that is taken, by another server too."""
    path.touch(exist_ok=False)
    try:
        os.replace(partial, path)
    except OSError:
        path.unlink()
        raise


def _reason(error: Exception) -> str:
    """Why the system refused, in its own words, without the paths that an exception may carry."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValueError):
        return "no file can have such a name"
    found = re.search(r"I/O error: (.{1,80}?) \(os error", str(error))
    return found[1] if found else "the system refused"


# --- loading ----------------------------------------------------------------------------------------------------------


def load_inversion(path: Path) -> tuple[Trajectory, Embeddings]:
    """Read what :func:`save_inversion` wrote. Raises ValueError with one short sentence for anything else."""
    name = shortened(path.name)
    try:
        return _load(path)
    except SafetensorError as error:
        raise ValueError(
            f"{name} cannot be read as a safetensors file, as it is cut short, damaged or of another kind; "
            "save the inversion again."
        ) from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({_reason(error)}); choose another file.") from error
    except ValueError as error:
        came = str(error).rstrip(".")
        raise ValueError(f"{name} is not an inversion that fits: {came}; save the inversion again.") from error


def _load(path: Path) -> tuple[Trajectory, Embeddings]:
    _require_short_header(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        about = _about(file.metadata())
        guidance_scale: Any = about.get("guidance_scale")
        GUIDANCE.require("guidance_scale", guidance_scale)
        timesteps = tuple(_list(about, "timesteps"))
        family = _family(about)
        missing_positive, missing_negative = _names(about, "positive_options"), _names(about, "negative_options")
        pictures = _names(about, "pictures", _MOST_PICTURES) if "pictures" in about else None
        sizes = {
            "N": len(timesteps),
            "M": len(timesteps) + 1,
            "C": family.latent_channels,
            "D": family.context_dim,
        }
        names = _fitting(file, sizes)
        schedule = Schedule(timesteps, _tensor(file, "sigmas"))
        tensors: dict[str, Any] = {name: _tensor(file, name) for name in names if name not in SCHEDULE}
    trajectory = Trajectory(
        **{name: tensors.pop(name) for name in TRAJECTORY},
        schedule=schedule,
        guidance_scale=guidance_scale,
        family=family,
    )
    embeddings = Embeddings(
        **tensors, missing_positive=missing_positive, missing_negative=missing_negative, pictures=pictures
    )
    return trajectory, embeddings


# --- the header -------------------------------------------------------------------------------------------------------


def _require_short_header(path: Path) -> None:
    """Raise ValueError for a header that would take long to read. Raises OSError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _LONGEST_HEADER < length < path.stat().st_size:
        raise ValueError(f"its header has {length} bytes; at most {_LONGEST_HEADER} fit.")


def _about(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The description in a file's metadata. Raises ValueError for a file of another kind or version."""
    try:
        about = json.loads((metadata or {})["baret"])
    except (KeyError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError("it was not written by Save Inversion")
    version = about.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(
            f"it has format version {told(version)} and this pack reads version {VERSION}; update the pack"
        )
    return about


def _list(about: Mapping[str, Any], name: str) -> list:
    value = about.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is {told(value)}; a list fits.")
    return value


def _family(about: Mapping[str, Any]) -> ModelFamily:
    family = about.get("family")
    if not isinstance(family, dict):
        raise ValueError(f"family is {told(family)}; a description of a model fits.")
    given: dict[str, Any] = {field.name: family.get(field.name) for field in fields(ModelFamily)}
    return ModelFamily(**given)


def _names(about: Mapping[str, Any], name: str, most: int = _MOST_OPTIONS) -> tuple[str, ...]:
    """A list of names: what a conditioning carried, or the pictures. Raises ValueError for what is no such list."""
    names = _list(about, name)
    for each in names:
        if not isinstance(each, str) or len(each) > _LONGEST_NAME or not each.isprintable():
            raise ValueError(f"{name} has {told(each)}; names of at most {_LONGEST_NAME} plain characters fit.")
    if len(names) > most:
        raise ValueError(f"{name} has {len(names)} names; at most {most} fit.")
    return tuple(names)


def _fitting(file, sizes: Sizes) -> list[str]:
    """The tensors of a file that belong to an inversion, the smallest first.

    Raises ValueError, before any of them is read, where one is missing or of another type or shape.
    """
    there = set(file.keys())
    slices = {name: file.get_slice(name) for name in _FIELDS if name in there}
    for name, part in slices.items():
        wanted = _WRITTEN[_FIELDS[name].dtype]
        if part.get_dtype() != wanted:
            raise ValueError(f"{name} is of type {shortened(part.get_dtype())}; {wanted} fits.")
    shapes = {name: part.get_shape() for name, part in slices.items()}
    require_shapes(_FIELDS, shapes, sizes)
    return sorted(shapes, key=lambda name: math.prod(shapes[name]))


def _tensor(file, name: str) -> Tensor:
    """A tensor of a file, as a copy: a file that stays mapped cannot be replaced on Windows.

    Raises ValueError for numbers that are not finite, or outside of their range.
    """
    value = file.get_tensor(name)
    _FIELDS[name].require_numbers(name, value)
    return value.clone()
