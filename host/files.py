"""Where inversions lie: written to the output folder, read from the input and output folders, never from elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..baret_ops.wording import quoted, told

_SUFFIX = ".safetensors"

_TRIES = 20
"""Names that are tried for a new file, where other servers save under the same prefix at the same moment."""

_SETTLED = 2.0
"""Seconds after which a folder's time of change tells every change: some file systems count it in steps of two."""


def write_new(filename_prefix: str, write: Callable[[Path], None]) -> dict[str, str]:
    """Have ``write(path)`` write the next free file under the output folder for a prefix.

    Returns the file's description for the host's UI. ``write`` raises FileExistsError where another server has just
    taken the name; the next number is tried then.
    Raises ValueError for a prefix that leaves the folder, or that no file can have, and what ``write`` raises.
    """
    for _ in range(_TRIES):
        path, shown = _new_file(filename_prefix)
        try:
            write(path)
        except FileExistsError:
            continue
        return shown
    raise ValueError(f"filename_prefix {quoted(filename_prefix)} is taken again and again; use another name.")


def _new_file(filename_prefix: str) -> tuple[Path, dict[str, str]]:
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have such a name"
        raise ValueError(
            f"filename_prefix {quoted(filename_prefix)} cannot be a file in the output folder ({reason}); "
            "use a name such as baret/inversion."
        ) from error
    except Exception as error:  # the host has no class of its own for this
        raise ValueError(
            f"filename_prefix {quoted(filename_prefix)} leaves the output folder; use a name such as baret/inversion."
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


def find_file(name: object) -> Path:
    """The path of a name from :func:`list_files`.

    Raises ValueError for a name that leaves its folder or does not exist, and for what is no name.
    """
    if not isinstance(name, str):
        raise ValueError(f"the file is {told(name)}; choose one from the list.")
    plain, folder = folder_paths.annotated_filepath(name)
    try:
        root = Path(folder or folder_paths.get_input_directory()).resolve()
        path = (root / plain).resolve()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # characters that no name may have, links in a circle
        raise ValueError(f"the file {quoted(name)} cannot be found; choose one from the list.") from error
    if not path.is_relative_to(root) or path.suffix != _SUFFIX:
        raise ValueError(
            f"the file {quoted(name)} is no {_SUFFIX} file in the input or output folder; choose one from the list."
        )
    if not is_file:
        raise ValueError(
            f"the file {quoted(name)} does not exist; choose one from the list, or save the inversion again."
        )
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


def _names(path: str, prefix: str = "", root: str = "") -> Iterator[str]:
    """Names of the files at any depth of a folder, with ``/`` between the folders. Links to folders are left out."""
    root = root or os.path.realpath(path)
    try:
        folder = _folder(path, root)
    except OSError:  # it is gone, or not ours to read
        _read_before.pop(path, None)
        return
    for file in folder.files:
        yield prefix + file
    for name in folder.folders:
        yield from _names(os.path.join(path, name), f"{prefix}{name}/", root)


def _folder(path: str, root: str) -> _Folder:
    """What a folder under ``root`` holds, read again only where it changed. Raises OSError."""
    changed = os.stat(path).st_mtime_ns
    folder = _read_before.get(path)
    if folder is None or folder.changed != changed or not folder.settled:
        folder = _read_before[path] = _read(path, changed, root)
    return folder


def _read(path: str, changed: int, root: str) -> _Folder:
    settled = time.time() - changed / 1e9 > _SETTLED
    with os.scandir(path) as entries:
        entries = list(entries)
    files = tuple(entry.name for entry in entries if _can_be_loaded(entry, root))
    folders = tuple(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return _Folder(changed, settled, files, folders)


def _can_be_loaded(entry: os.DirEntry, root: str) -> bool:
    """Whether :func:`find_file` takes an entry: a file with our ending, no link that leads out of the folder."""
    if os.path.splitext(entry.name)[1] != _SUFFIX:
        return False
    if not entry.is_symlink():
        return entry.is_file()
    target = os.path.realpath(entry.path)
    return target.startswith(os.path.join(root, "")) and target.endswith(_SUFFIX) and os.path.isfile(target)
