"""Files that are there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished"


def write_whole(path: Path, data: bytes) -> None:
    """Write, sync, rename: a reader finds the old file, or none, or the whole new one, after a power cut as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(unfinished, path)


def publish(unfinished: Path, path: Path) -> None:
    """Give a file that is synced its name, and sync the name."""
    os.replace(unfinished, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what was being written when something ended."""
    for path in folder.rglob("*" + UNFINISHED):
        path.unlink(missing_ok=True)
