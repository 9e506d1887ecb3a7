"""Attack the pack on purpose, and say what it withstood.

    python dev/campaign.py files --tries 100000    # saved inversions, bytes and structure changed at random
    python dev/campaign.py faults                  # an error at every UNet call of every node, of four kinds
    python dev/campaign.py interrupts --tries 300  # Cancel at random moments
    python dev/campaign.py prompts --tries 2000    # inputs at extremes and of wrong types, through a real server
    python dev/campaign.py soak --tries 500        # workflows back to back from two clients
    python dev/campaign.py kills --tries 200       # batch/run.py and its server killed at random moments

A campaign goes slice by slice, each with a seed of its own, and what is done is kept in the cache folder: started
again, it goes on where it was stopped. --anew forgets that. The last line is the row for docs/reliability.md. The exit
status is 1 where something happened that must not. The tests run the same at a small size.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import comfyui
from campaigns import Report

TRIES = {"files": 100_000, "faults": 10, "interrupts": 300, "prompts": 2000, "soak": 500, "kills": 200}
SLICES = {"files": 5000, "faults": 1, "interrupts": 50, "prompts": 100, "soak": 500, "kills": 20}
"""Tries between two marks of what is done. Those of faults are nodes; memory is flat or not over a whole soak; each
slice of kills is of one run, 200 of them over 500 rows in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRIES)
    parser.add_argument("--tries", type=int, help="default: the full size; those of faults are nodes")
    parser.add_argument("--every", type=int, default=1, help="faults: of so many UNet calls one (default: each)")
    parser.add_argument("--anew", action="store_true", help="forget what an earlier start has done")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    os.environ["COMFYUI_PATH"] = str(host.path)
    tries = TRIES[options.name] if options.tries is None else options.tries
    done = Done(options.name, host, options.every)
    if options.anew:
        done.path.unlink(missing_ok=True)
    run = _RUN[options.name](host, options.every)
    for first in range(0, tries, SLICES[options.name]):
        if first not in done:
            began = time.monotonic()
            report = run(min(SLICES[options.name], tries - first), first)
            done.put(first, report, time.monotonic() - began)
            comfyui.say(f"{options.name}, from {first}: {report.tries} tries, {len(report.failures)} failures")
    whole, seconds = done.whole()
    print(f"{options.name}, ComfyUI {host.version}, {seconds:.0f} s: {whole}\n{whole.row(options.name)}")
    sys.exit(1 if whole.failures else 0)


class Done:
    """The slices of a campaign that are done, in a file: their reports and seconds, by the number of their first try.

    A file for each commit and version of ComfyUI: what was tried on other code does not count.
    """

    def __init__(self, name: str, host: comfyui.Host, every: int):
        describe = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
        folder = comfyui.cache_root() / "campaigns"
        folder.mkdir(exist_ok=True)
        each = f"-every-{every}" if every > 1 else ""
        self.path = folder / f"{name}-{host.version}-{commit}{each}.json"

    def _read(self) -> dict[str, dict]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def __contains__(self, first: int) -> bool:
        return str(first) in self._read()

    def put(self, first: int, report: Report, seconds: float) -> None:
        found = {**self._read(), str(first): {"report": report.to_json(), "seconds": seconds}}
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(found))
        temporary.replace(self.path)

    def whole(self) -> tuple[Report, float]:
        """All reports as one, and the seconds of all."""
        whole, slices = Report(), self._read().values()
        for each in slices:
            whole.add(Report.from_json(each["report"]))
        return whole, sum(each["seconds"] for each in slices)


def _inside():
    """The pack in this process."""
    import in_process

    in_process.load_host()
    logging.disable(logging.WARNING)  # the nodes' hints to users would fill pages
    return in_process.load_pack()


def _files(host: comfyui.Host, every: int):
    pack = _inside()
    import folder_paths
    import in_process
    from campaigns import files

    model = in_process.random_model(in_process.TINY, heads=4)

    def run(tries: int, first: int) -> Report:
        with tempfile.TemporaryDirectory() as folder:
            folder_paths.set_input_directory(folder)
            campaign = files.Campaign(pack, model, Path(folder))
            campaign.bytes(tries // 2, first)
            campaign.structure(tries - tries // 2, first)
        return campaign.report

    return run


def _faults(host: comfyui.Host, every: int):
    pack = _inside()
    from campaigns import faults

    return lambda tries, first: faults.attack(pack, every, faults.NODES[first : first + tries])


def _interrupts(host: comfyui.Host, every: int):
    pack = _inside()
    from campaigns import faults

    return lambda tries, first: faults.interrupt(pack, tries, first)


def _prompts(host: comfyui.Host, every: int):
    from campaigns import served

    return lambda tries, first: served.prompts(host, tries, first)


def _soak(host: comfyui.Host, every: int):
    from campaigns import served

    return lambda tries, first: served.soak(host, tries, first)


def _kills(host: comfyui.Host, every: int):
    from campaigns import batches

    os.environ["COMFYUI_PYTHON"] = sys.executable
    return lambda tries, first: batches.kills(host, tries, first)


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
