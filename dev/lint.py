"""Check how the code is written: ruff's rules and format everywhere, types in the core, the door and the nodes.

    python dev/lint.py          # all three; the exit status is 1 where one of them complains
    python dev/lint.py --fix    # first let ruff correct what it can, and format

`python dev/test.py` and the hook of `.pre-commit-config.yaml` run the same. What is checked stands in `pyproject.toml`,
the tools' versions in `TEST_PACKAGES` of `comfyui.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import comfyui

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "pyproject.toml"


def complaints(host: comfyui.Host) -> list[str]:
    """The names of the checks that fail; what they have to say goes to the terminal."""
    checks = {"ruff check": _ruff("check"), "ruff format": _ruff("format", "--check")}
    failed = [name for name, command in checks.items() if _fails(command)]
    if host.version != comfyui.DEFAULT_VERSION:
        comfyui.say(f"types are checked against ComfyUI {comfyui.DEFAULT_VERSION} alone, and this is {host.version}")
    elif _types_fail(host):
        failed.append("basedpyright")
    return failed


def fix() -> None:
    """Let ruff correct what it can and format the rest."""
    _fails(_ruff("check", "--fix-only"))
    _fails(_ruff("format"))


def _ruff(command: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "ruff", command, "--quiet", *options, "."]


def _types_fail(host: comfyui.Host) -> bool:
    """Whether the type checker complains.

    Where ComfyUI lies differs from machine to machine, so a file of the moment adds it to the settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder, "pyrightconfig.json")
        here.write_text(json.dumps({"extends": str(SETTINGS), "extraPaths": [str(host.path)]}))
        command = ["-m", "basedpyright", "--project", str(here), "--pythonpath", str(host.python)]
        return _fails([sys.executable, *command])


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, cwd=ROOT).returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Check how the code is written.")
    parser.add_argument("--fix", action="store_true", help="first let ruff correct what it can, and format")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    if options.fix:
        fix()
    if failed := complaints(host):
        sys.exit(f"error: {', '.join(failed)} complained; what they say stands above.")


if __name__ == "__main__":
    main()
