"""Runs of `batch/run.py` that are killed at random moments, and must end as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import comfyui
import psutil

from . import Report

ROWS_FOR_A_KILL = 2.5
COMMAND = Path(__file__).resolve().parents[2] / "batch" / "run.py"
UNFINISHED = ".unfinished"

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}, "_meta": {"title": "Your picture"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Invert"}},
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 0], "filename_prefix": "inverted"},
        "_meta": {"title": "Result"},
    },
}
"""A workflow of a moment, so that most kills meet the runner at work and not the model."""


def kills(host: comfyui.Host, tries: int, seed: int) -> Report:
    """So many kills, of the driver or of its server, over one run; at the end all must be as if there had been none."""
    report, drawn, rows = Report(), random.Random(seed), round(tries * ROWS_FOR_A_KILL)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _squares(work / "in", rows)
        (work / "graph.json").write_text(json.dumps(GRAPH))
        quiet, out = work / "quiet", work / "out"
        subprocess.run(_command(work, quiet, host), check=True, capture_output=True)
        expected, in_flight = _pictures(quiet), 0
        while report.tries < tries and (process := _started(work, out, host, drawn)):
            victim = drawn.choice(["driver", "server"])
            servers = psutil.Process(process.pid).children(recursive=True)
            hit = [process.pid] if victim == "driver" else [server.pid for server in servers]
            for pid in hit:
                psutil.Process(pid).kill()
            if victim == "server":
                time.sleep(drawn.random())  # into its start, or before it was missed
                process.kill()
                report.outcomes["driver killed after its server"] += 1
                in_flight += 1
            report.outcomes[f"{victim} killed"] += 1
            in_flight += 1
            process.wait()
            _, alive = psutil.wait_procs(servers, timeout=60)
            report.failures += [f"a server outlived its driver: {server.pid}" for server in alive]
            wrong = [name for name, data in _pictures(out).items() if expected.get(name) != data]
            report.failures += [f"after kill {report.tries}: {name} is not what it should be" for name in wrong]
            _cut_what_was_not_synced(out, drawn)
        done = subprocess.run(_command(work, out, host), capture_output=True, text=True)
        _compare(report, quiet, out, rows, in_flight, done)
    return report


def _compare(report: Report, quiet: Path, out: Path, rows: int, in_flight: int, done) -> None:
    if done.returncode:
        report.failures.append(f"the last run ended with {done.returncode}: {done.stderr[-300:]}")
        return
    before, after = _results(quiet), _results(out)
    alike = [name for name in before[0] if name not in ("seconds", "attempts")]
    differ = [b["id"] for a, b in zip(before, after) if any(a[name] != b[name] for name in alike)]
    report.failures += [f"row {id} differs from the undisturbed run" for id in differ]
    if len(after) != rows or _pictures(out) != _pictures(quiet):
        report.failures.append(f"{len(after)} of {rows} rows, or other pictures than in the undisturbed run")
    twice = sum(int(row["attempts"]) for row in after) - rows
    report.outcomes[f"{rows} rows, {twice} starts more than rows, {in_flight} kills"] = 0
    if twice > in_flight:
        report.failures.append(f"{twice} rows were run again for {in_flight} kills")


def _started(work: Path, out: Path, host: comfyui.Host, drawn: random.Random) -> subprocess.Popen | None:
    """A run at a random moment after it has begun on its rows; None where it had nothing more to do."""
    before = len(_names(out))
    process = subprocess.Popen(_command(work, out, host), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = before + drawn.choice([0, 1, 1, 2, 3])
    deadline = time.monotonic() + 600
    while len(_names(out)) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(drawn.random() * 0.1)
    if wanted == before:  # while it starts
        time.sleep(drawn.random() * 10)
    return process if process.poll() is None else None


def _cut_what_was_not_synced(out: Path, drawn: random.Random) -> None:
    """As a power cut may: what has no name of its own yet loses its end."""
    for path in out.rglob("*" + UNFINISHED):
        os.truncate(path, drawn.randrange(path.stat().st_size + 1))


def _command(work: Path, out: Path, host: comfyui.Host) -> list[str]:
    return [
        *(sys.executable, str(COMMAND), str(work / "in"), "--out", str(out)),
        *("--workflow", str(work / "graph.json"), "--comfyui", str(host.path)),
    ]


def _squares(folder: Path, count: int) -> None:
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 128)).save(folder / f"{number:05}.png")


def _names(out: Path) -> list[str]:
    folder = out / "pictures"
    return [name for name in os.listdir(folder) if not name.endswith(UNFINISHED)] if folder.exists() else []


def _pictures(out: Path) -> dict[str, bytes]:
    return {name: (out / "pictures" / name).read_bytes() for name in _names(out)}


def _results(out: Path) -> list[dict]:
    if (out / "results.parquet").exists():
        import pyarrow.parquet

        return pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    import csv

    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
