"""Run the linters and the whole test suite against a real ComfyUI, which is set up on first use.

    python dev/test.py                        # everything
    python dev/test.py --no-browser           # without the tests in a headless Chromium
    python dev/test.py --no-lint              # the tests alone
    python dev/test.py --frontend newest tests/browser    # the page of another version of ComfyUI's frontend
    python dev/test.py tests/core -k schedule # any pytest arguments; where they choose tests, the linters are left out

The exit status is 0 only where the linters and the tests have nothing to complain of.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import comfyui
import lint

ROOT = Path(__file__).resolve().parent.parent
CHOOSING = {"-k", "-m", "--lf", "--last-failed", "--deselect", "--ignore", "--co", "--collect-only", "-h", "--help"}


def side_by_side() -> list[str]:
    """What makes pytest run two files at a time where the machine can: each test takes one core.

    In the order of their names: the longest tests come early, and no core waits for them at the end.
    """
    return ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"] if (os.cpu_count() or 1) > 1 else []


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the tests; every further argument goes to pytest.")
    parser.add_argument("--no-lint", action="store_true", help="leave out ruff and the type checker")
    parser.add_argument(
        "--frontend",
        metavar="VERSION",
        help=f"{comfyui.FRONTEND} to serve in place of the one that ComfyUI pins, or {comfyui.NEWEST}",
    )
    comfyui.add_arguments(parser)
    options, arguments = parser.parse_known_args()
    host = comfyui.enter(options, tests=True)
    import pytest  # the host's

    os.chdir(ROOT)
    os.environ["COMFYUI_PATH"] = str(host.path)  # where the tests look for it
    if options.frontend:
        try:
            os.environ["BARET_FRONTEND"] = str(comfyui.frontend(options.frontend, host.python))
        except comfyui.HostError as error:
            sys.exit(f"error: {error}")
    names_tests = any(Path(argument.split("::")[0]).exists() for argument in arguments)
    chooses = names_tests or any(argument.split("=")[0] in CHOOSING for argument in arguments)
    failed = [] if chooses or options.no_lint else lint.complaints(host)
    status = pytest.main(arguments if names_tests else [*side_by_side(), *arguments, "tests"])
    if failed:
        sys.exit(f"error: {', '.join(failed)} complained; what they say stands above the tests.")
    sys.exit(status)


if __name__ == "__main__":
    main()
