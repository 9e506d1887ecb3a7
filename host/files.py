"""Where inversions lie: written to the output folder, read from the input and output folders, never from elsewhere."""

from __future__ import annotations

from pathlib import Path

import folder_paths

_SUFFIX = ".safetensors"


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
    """Names of the ``.safetensors`` files in the input folder, and of those in the output folder as ``name [output]``."""
    found = []
    for folder, mark in ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), " [output]")):
        paths = sorted(Path(folder).rglob(f"*{_SUFFIX}")) if Path(folder).is_dir() else []
        found += [path.relative_to(folder).as_posix() + mark for path in paths]
    return found


def find_file(name: str) -> Path:
    """The path of a name from :func:`list_files`. Raises ValueError for one that leaves its folder or does not exist."""
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
