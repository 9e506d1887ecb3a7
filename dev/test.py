"""Run the whole test suite against a real ComfyUI, which is set up on first use.

python dev/test.py                        # everything
python dev/test.py --no-browser           # without the tests in a headless Chromium
python dev/test.py tests/core -k schedule # any pytest arguments
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import comfyui

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the tests; every further argument goes to pytest.")
    comfyui.add_arguments(parser)
    options, arguments = parser.parse_known_args()
    host = comfyui.enter(options, tests=True)
    import pytest  # the host's

    os.chdir(ROOT)
    os.environ["COMFYUI_PATH"] = str(host.path)  # where the tests look for it
    if not any(Path(argument.split("::")[0]).exists() for argument in arguments):
        arguments.append("tests")
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main()
