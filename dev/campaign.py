"""Attack the pack on purpose, and say what it withstood.

    python dev/campaign.py files --tries 100000    # saved inversions, bytes and structure changed at random
    python dev/campaign.py faults                  # an error at every UNet call of every node, of three kinds
    python dev/campaign.py interrupts --tries 300  # Cancel at random moments
    python dev/campaign.py prompts --tries 2000    # inputs at extremes and of wrong types, through a real server
    python dev/campaign.py soak --tries 500        # workflows back to back from two clients
    python dev/campaign.py kills --tries 200       # batch/run.py and its server killed at random moments

The exit status is 1 where something happened that must not. What was tried and found stands in docs/reliability.md; the
tests run the same at a small size.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import comfyui

TRIES = {"files": 100_000, "faults": 0, "interrupts": 300, "prompts": 2000, "soak": 500, "kills": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRIES)
    parser.add_argument("--tries", type=int, help="default: the full size; faults has one of its own")
    parser.add_argument("--seed", type=int, default=0)
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    os.environ["COMFYUI_PATH"] = str(host.path)
    tries = TRIES[options.name] if options.tries is None else options.tries
    began = time.monotonic()
    report = _RUN[options.name](host, tries, options.seed)
    print(f"{options.name}, seed {options.seed}, ComfyUI {host.version}, {time.monotonic() - began:.0f} s: {report}")
    sys.exit(1 if report.failures else 0)


def _inside():
    """The pack in this process."""
    import in_process

    in_process.load_host()
    return in_process.load_pack()


def _files(host: comfyui.Host, tries: int, seed: int):
    pack = _inside()
    import folder_paths
    import in_process
    from campaigns import files

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_input_directory(folder)
        model = in_process.random_model(in_process.SMALL, heads=4)
        campaign = files.Campaign(pack, model, Path(folder))
        campaign.bytes(tries // 2, seed)
        campaign.structure(tries - tries // 2, seed)
    return campaign.report


def _faults(host: comfyui.Host, tries: int, seed: int):
    from campaigns import faults

    return faults.attack(_inside(), every=max(1, tries))


def _interrupts(host: comfyui.Host, tries: int, seed: int):
    from campaigns import faults

    return faults.interrupt(_inside(), tries, seed)


def _prompts(host: comfyui.Host, tries: int, seed: int):
    from campaigns import served

    return served.prompts(host, tries, seed)


def _soak(host: comfyui.Host, tries: int, seed: int):
    from campaigns import served

    return served.soak(host, tries, seed)


def _kills(host: comfyui.Host, tries: int, seed: int):
    from campaigns import batches

    os.environ["COMFYUI_PYTHON"] = sys.executable
    return batches.kills(host, tries, seed)


_RUN = {
    "files": _files,
    "faults": _faults,
    "interrupts": _interrupts,
    "prompts": _prompts,
    "soak": _soak,
    "kills": _kills,
}


if __name__ == "__main__":
    main()
