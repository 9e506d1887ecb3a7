"""Run the tests and one edit on other versions of ComfyUI, one after another, and print a row for each.

    python dev/hosts.py                  # every version in dev/comfyui.py, the oldest first
    python dev/hosts.py 0.16.3 0.24.0    # these
    python dev/hosts.py 0.16.3 --keep    # and leave what was set up for it in the cache

Setting a version up takes minutes and 7 GB; it is removed again afterwards, unless it was there before. The rows are
for docs/reliability.md. The exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import comfyui

DEV = Path(__file__).resolve().parent
TESTS = ["tests/core", "tests/host", "tests/server"]
NEEDED = 8 * 10**9
"""Bytes of disk that a version takes, and some more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"of {', '.join(comfyui.VERSIONS)}")
    parser.add_argument("--keep", action="store_true", help="leave what was set up in the cache")
    options = parser.parse_args()
    unknown = [version for version in options.versions if version not in comfyui.VERSIONS]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(comfyui.VERSIONS)}")
    rows = [tried(version, options.keep) for version in options.versions or comfyui.VERSIONS]
    print("| ComfyUI | tests | edit |\n|---|---|---|")
    print("\n".join(f"| {version} | {tests} | {edit} |" for version, tests, edit in rows))
    sys.exit(1 if any("failed" in cell or "error" in cell for _, *cells in rows for cell in cells) else 0)


def tried(version: str, keep: bool) -> tuple[str, str, str]:
    """A version, what came of the tests on it, and of the edit."""
    root = comfyui.cache_root()
    folders = [root / f"comfyui-{version}", root / f"venv-{version}"]
    new = [folder for folder in folders if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    if new and shutil.disk_usage(root).free < NEEDED:
        sys.exit(f"error: {root} has less than {NEEDED / 1e9:.0f} GB free, which ComfyUI {version} needs.")
    try:
        tests = _run("test.py", "--no-lint", "--version", version, *TESTS, "-q")
        with tempfile.TemporaryDirectory() as folder:
            edit = _run("edit.py", "--version", version, "--out", str(Path(folder, "edited.png")))
        return version, summary(tests), "works" if edit.returncode == 0 else f"failed: {comfyui.last_line(edit)}"
    finally:
        for folder in [] if keep else new:
            shutil.rmtree(folder, ignore_errors=True)


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script beside this one; what it says is shown as it comes."""
    command, said = [sys.executable, str(DEV / name), *arguments], []
    own = ("COMFYUI_PATH", "COMFYUI_PYTHON")  # would stand for every version
    environment = {name: value for name, value in os.environ.items() if name not in own}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            said.append(line)
    return subprocess.CompletedProcess(command, process.returncode, "".join(said), "")


def summary(tests: subprocess.CompletedProcess) -> str:
    """What pytest counted, without its time; its last words where it counted nothing."""
    counts = re.findall(r"(?m)^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", tests.stdout)
    return counts[-1] if counts else f"failed: {comfyui.last_line(tests)}"


if __name__ == "__main__":
    main()
