"""The command for machines with a card, on one without: it says so, and its judgement is right on made-up figures."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

ROOT = Path(gpu_check.__file__).parents[1]

HOLDS = {
    "memory": [
        {"run": "TTIS", "peak above rest, MB": 740, "estimated for backward, MB": 800, "2 steps, s": 1.0},
        {"run": gpu_check.AGAIN, "peak above rest, MB": 150, "estimated for backward, MB": 170, "2 steps, s": 1.2},
        {"run": "BAM", "peak above rest, MB": 90, "estimated for backward, MB": None, "2 steps, s": 0.5},
    ],
    "overhead": [{"run": "TTIS, default rule", "overhead": 1.01}, {"run": "BAM", "overhead": 0.8}],
}
TESTS = {
    "test_the_dynamic_patcher_and_the_classic_one_agree": "passed",
    "test_16_bit_does_what_32_bit_does[--bf16-unet]": "passed",
    "test_16_bit_does_what_32_bit_does[--fp16-unet]": "passed",
    "test_short_vram_works_or_says_why_not[options0]": "passed",
    "test_cancel_on_the_card_leaves_nothing_behind": "passed",
}


def verdicts(tables, outcomes):
    return [verdict for _, _, verdict in gpu_check.judged(tables, outcomes)]


def test_without_a_card_it_says_so(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "dev" / "gpu_check.py"), "--out", str(tmp_path / "card.md")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "card.md").exists()
    assert done.stderr == "error: no NVIDIA card is here (nvidia-smi lists none); run this on a machine with one.\n"


@pytest.mark.parametrize("claim", gpu_check.CLAIMS, ids=[claim.quote[:30] for claim in gpu_check.CLAIMS])
def test_each_claim_stands_where_it_is_said_to_stand(claim):
    assert claim.quote in " ".join((ROOT / claim.file).read_text().split())


def test_each_test_that_a_claim_is_measured_by_is_there():
    written = (ROOT / gpu_check.TESTS).read_text()
    assert all(f"def {test.split('[')[0]}(" in written for test in TESTS)


def test_verdicts():
    assert verdicts(HOLDS, TESTS) == ["confirmed"] * len(gpu_check.CLAIMS)
    assert verdicts({}, {}) == ["not reached"] * len(gpu_check.CLAIMS)
    more = {
        name: [{**row, "peak above rest, MB": 4000, "overhead": 2.0} for row in rows] for name, rows in HOLDS.items()
    }
    failed = dict.fromkeys(TESTS, "failed")
    assert verdicts(more, failed).count("contradicted") == len(gpu_check.CLAIMS) - 1, "the ratio of times is as before"


def test_outcomes_are_read_from_pytests_report():
    cases = '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
    found = gpu_check.read_outcomes(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert found == {"a": "passed", "b": "failed", "c": "skipped"}


def test_the_file_that_is_written_has_every_claim():
    from types import SimpleNamespace

    judged = gpu_check.judged(HOLDS, TESTS)
    text = gpu_check.report("A Card", SimpleNamespace(version="0.30.0"), 60.0, judged, TESTS, "# Benchmark\n")
    assert text.startswith("# A Card\n") and text.count("| confirmed |") == len(gpu_check.CLAIMS)
    assert text.count("\n# ") == 0, "one heading"
