"""On a machine with an NVIDIA card: what of our claims about cards is true there.

    python dev/gpu_check.py                  # writes dev/benchmarks/card-<name of the card>.md, to be committed
    python dev/gpu_check.py --out FILE

It sets up ComfyUI as every command here does, runs tests/server/test_cuda.py and the benchmark's rows for a card, and
says of each claim whether it was confirmed, contradicted or not reached. The measuring takes less than ten minutes: a
part that does not end in its time is stopped, and its claims count as not reached. The exit status is 1 where a claim
is contradicted, and 2 where there is no card.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import comfyui

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/server/test_cuda.py"
BENCH = ["--models", "sd15", "--latents", "64", "--dtypes", "bfloat16", "--steps", "20", "--repeats", "1"]
MINUTES = {"tests": 6.0, "bench": 3.5}
README, BENCHMARKS = "README.md", "dev/benchmarks/README.md"
KEPT, AGAIN = "TTIS", "TTIS, blocks computed again"

Tables = dict[str, list[dict]]
Outcomes = dict[str, str]
"""A test's outcome by its name: passed, failed or skipped."""


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A sentence of the documentation that a card can contradict.

    file, quote: where it stands, and its words there. measure: what was found, in words, and whether that is what the
    sentence says; None where nothing was measured.
    """

    file: str
    quote: str
    measure: Callable[[Tables, Outcomes], tuple[str, bool] | None]


def _row(tables: Tables, table: str, run: str) -> dict | None:
    return next((row for row in tables.get(table, []) if row["run"] == run), None)


def peak_is_about(run: str, gigabytes: float) -> Callable:
    """The peak above rest of a run lies within a third of so much."""

    def measure(tables: Tables, _: Outcomes) -> tuple[str, bool] | None:
        if (row := _row(tables, "memory", run)) is None:
            return None
        found = row["peak above rest, MB"] / 1000
        return f"{found:.2f} GB", gigabytes / 1.33 <= found <= gigabytes * 1.33

    return measure


def estimate_holds(tables: Tables, _: Outcomes) -> tuple[str, bool] | None:
    """Tuning takes no more than its estimate and a third."""
    rows = [row for row in tables.get("memory", []) if row["estimated for backward, MB"] is not None]
    if not rows:
        return None
    shares = [row["peak above rest, MB"] / row["estimated for backward, MB"] for row in rows]
    return f"at most {max(shares):.2f} of the estimate", max(shares) < 1.3


def overhead_at_most(runs: tuple[str, ...], most: float) -> Callable:
    def measure(tables: Tables, _: Outcomes) -> tuple[str, bool] | None:
        found = [row["overhead"] for row in tables.get("overhead", []) if row["run"] in runs]
        return (f"{max(found):.2f}", max(found) <= most) if found else None

    return measure


def time_over(run: str, other: str, most: float) -> Callable:
    def measure(tables: Tables, _: Outcomes) -> tuple[str, bool] | None:
        rows = [_row(tables, "memory", name) for name in (run, other)]
        if None in rows:
            return None
        ratio = rows[0]["2 steps, s"] / rows[1]["2 steps, s"]
        return f"{ratio:.2f}", ratio <= most

    return measure


def tests_pass(name: str) -> Callable:
    """All cases of one test passed; None where one was skipped or not reached."""

    def measure(_: Tables, outcomes: Outcomes) -> tuple[str, bool] | None:
        found = [outcome for test, outcome in outcomes.items() if test.split("[")[0] == name]
        if not found or "skipped" in found:
            return None
        return f"{found.count('passed')} of {len(found)} cases of {name} pass", "failed" not in found

    return measure


CLAIMS = (
    Claim(README, "about 0.75 GB beside the model for a 512x512 picture in 16 bit", peak_is_about(KEPT, 0.75)),
    Claim(README, "again instead (0.15 GB)", peak_is_about(AGAIN, 0.15)),
    Claim(
        README,
        "what cannot fit at all is refused before it begins",
        tests_pass("test_short_vram_works_or_says_why_not"),
    ),
    Claim(README, "fp32 / fp16 / bf16", tests_pass("test_16_bit_does_what_32_bit_does")),
    Claim(BENCHMARKS, "the estimate for one is the count of the tensors", estimate_holds),
    Claim(
        BENCHMARKS,
        "TTIS over its bare passes, SD1.5's size, card, at most 1.3",
        overhead_at_most(("TTIS, default rule", "TTIS, adam, 5 updates"), 1.3),
    ),
    Claim(BENCHMARKS, "BAM over its bare passes, at most 1.08", overhead_at_most(("BAM",), 1.08)),
    Claim(BENCHMARKS, "blocks computed again: time over keeping all", time_over(AGAIN, KEPT, 1.5)),
    Claim(
        "dev/host-assumptions.md",
        "tuned on a copy that is loaded whole",
        tests_pass("test_the_dynamic_patcher_and_the_classic_one_agree"),
    ),
    Claim(
        "docs/reliability.md",
        "whatever happens, the model, the queue and the files are as before",
        tests_pass("test_cancel_on_the_card_leaves_nothing_behind"),
    ),
)


def judged(tables: Tables, outcomes: Outcomes) -> list[tuple[Claim, str, str]]:
    """Each claim with what was found and the verdict: confirmed, contradicted or not reached."""
    found = []
    for claim in CLAIMS:
        measured = claim.measure(tables, outcomes)
        if measured is None:
            found.append((claim, "", "not reached"))
        else:
            words, holds = measured
            found.append((claim, words, "confirmed" if holds else "contradicted"))
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file that is written")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    card = card_name()
    if card is None:
        print("error: no NVIDIA card is here (nvidia-smi lists none); run this on a machine with one.", file=sys.stderr)
        sys.exit(2)
    host = comfyui.enter(options, tests=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_tests(host, Path(folder))
        tables, markdown = run_bench(host, Path(folder))
    verdicts = judged(tables, outcomes)
    out = options.out or ROOT / "dev" / "benchmarks" / f"card-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.md"
    out.write_text(report(card, host, time.monotonic() - began, verdicts, outcomes, markdown))
    for claim, words, verdict in verdicts:
        print(f"{verdict:13} {claim.file}: {claim.quote} ({words or 'nothing was measured'})")
    print(f"Written to {out}; commit it.")
    sys.exit(1 if any(verdict == "contradicted" for *_, verdict in verdicts) else 0)


def card_name() -> str | None:
    """The name of the first NVIDIA card, by its driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True)
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    return next((name.strip() for name in names if name.strip()), None)


def _run_for(minutes: float, command: list[str]) -> None:
    """Run a command for so long at most. What it has written until then stays."""
    try:
        subprocess.run(command, cwd=ROOT, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        comfyui.say(f"stopped after {minutes:g} minutes: {' '.join(command[1:3])}")


def run_tests(host: comfyui.Host, folder: Path) -> Outcomes:
    """The outcome of each test for cards. One process for each test: what ends in time counts."""
    listed = re.findall(r"^def (test_\w+)", (ROOT / TESTS).read_text(), re.MULTILINE)
    outcomes: Outcomes = {}
    ends = time.monotonic() + 60 * MINUTES["tests"]
    for name in listed:
        found = folder / f"{name}.xml"
        chosen = ["--comfyui", str(host.path), f"{TESTS}::{name}", "-q", f"--junit-xml={found}"]
        left = (ends - time.monotonic()) / 60
        if left > 0:
            _run_for(left, [str(host.python), str(ROOT / "dev" / "test.py"), "--no-lint", *chosen])
        if found.exists():
            outcomes.update(read_outcomes(found.read_text()))
    return outcomes


def read_outcomes(junit: str) -> Outcomes:
    """The outcomes in pytest's report as XML."""
    outcomes = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        kinds = {part.tag for part in case}
        failed = kinds & {"failure", "error"}
        outcomes[case.get("name", "")] = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
    return outcomes


def run_bench(host: comfyui.Host, folder: Path) -> tuple[Tables, str]:
    """The benchmark's tables for a card, as rows and in Markdown; nothing where they were not reached."""
    out = folder / "bench"
    command = [str(host.python), str(ROOT / "dev" / "bench.py"), "--comfyui", str(host.path), *BENCH, "--out", str(out)]
    _run_for(MINUTES["bench"], command)
    if not out.with_suffix(".json").exists():
        return {}, ""
    return json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()


def report(card: str, host: comfyui.Host, seconds: float, verdicts: list, outcomes: Outcomes, bench: str) -> str:
    """The file to commit."""
    lines = [
        f"# {card}",
        "",
        f"`python dev/gpu_check.py`, ComfyUI {host.version}, {time.strftime('%Y-%m-%d')}, {seconds / 60:.1f} minutes.",
        "",
        "| claim | where | found | |",
        "|---|---|---|---|",
        *(f"| {claim.quote} | {claim.file} | {words} | {verdict} |" for claim, words, verdict in verdicts),
        "",
        f"| {TESTS} | |",
        "|---|---|",
        *(f"| {name} | {outcome} |" for name, outcome in outcomes.items()),
        "",
        bench.replace("# Benchmark", "## Benchmark", 1) or "The benchmark was not reached.",
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
