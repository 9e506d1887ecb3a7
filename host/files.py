"""Where inversions lie: written to the output folder, read from the input and output folders, never from elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

_SUFFIX = ".safetensors"

_SETTLED = 2.0
"""Seconds after which a folder's time of change tells every change: some file systems count it in steps of two."""


def new_file(filename_prefix: str) -> tuple[Path, dict[str, str]]:
    """The next free path under the output folder for a prefix, and its description for the host's UI.

    Raises ValueError for a prefix that leaves the folder.
    """
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
    except Exception as error:
        raise ValueError(
            f"filename_prefix {filename_prefix!r} leaves the output folder; use a name such as baret/inversion."
        ) from error
    file = f"{name}_{counter:05}_{_SUFFIX}"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def list_files() -> list[str]:
    """Names of the ``.safetensors`` files in the input folder, and of those in the output folder as ``name [output]``.

    The host asks for this list with every description of the nodes, several times for each queue; a folder that has
    not changed since is not read again.
    """
    inputs = sorted(_names(folder_paths.get_input_directory()), key=_by_folder)
    outputs = sorted(_names(folder_paths.get_output_directory()), key=_by_folder)
    return inputs + [f"{name} [output]" for name in outputs]


def find_file(name: str) -> Path:
    """The path of a name from :func:`list_files`.

    Raises ValueError for a name that leaves its folder or does not exist.
    """
    plain, folder = folder_paths.annotated_filepath(name)
    folder = Path(folder or folder_paths.get_input_directory()).resolve()
    path = (folder / plain).resolve()
    if not path.is_relative_to(folder) or path.suffix != _SUFFIX:
        raise ValueError(
            f"the file {name!r} is no {_SUFFIX} file in the input or output folder; choose one from the list."
        )
    if not path.is_file():
        raise ValueError(f"the file {name!r} does not exist; choose one from the list, or save the inversion again.")
    return path


def fingerprint(name: str) -> str:
    """What changes when the file does, so that the host reads it again."""
    status = find_file(name).stat()
    return f"{name}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


# --- folders as they were read last -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """What one folder held when it was read: names of the files that may be inversions, and of its folders.

    changed: its time of change then, in ns. settled: whether a later change is sure to show in that time.
    """

    changed: int
    settled: bool
    files: tuple[str, ...]
    folders: tuple[str, ...]


_read_before: dict[str, _Folder] = {}


def _by_folder(name: str) -> list[str]:
    return name.split("/")


def _names(path: str, prefix: str = "") -> Iterator[str]:
    """Names of the files at any depth of a folder, with ``/`` between the folders. Links to folders are left out."""
    try:
        folder = _folder(path)
    except OSError:  # it is gone, or not ours to read
        _read_before.pop(path, None)
        return
    for file in folder.files:
        yield prefix + file
    for name in folder.folders:
        yield from _names(os.path.join(path, name), f"{prefix}{name}/")


def _folder(path: str) -> _Folder:
    """What a folder holds, read again only where it changed. Raises OSError."""
    changed = os.stat(path).st_mtime_ns
    folder = _read_before.get(path)
    if folder is None or folder.changed != changed or not folder.settled:
        folder = _read_before[path] = _read(path, changed)
    return folder


def _read(path: str, changed: int) -> _Folder:
    settled = time.time() - changed / 1e9 > _SETTLED
    with os.scandir(path) as entries:
        entries = list(entries)
    files = tuple(entry.name for entry in entries if entry.name.endswith(_SUFFIX) and entry.is_file())
    folders = tuple(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return _Folder(changed, settled, files, folders)
