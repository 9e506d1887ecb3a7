"""The list of what is taken for granted of the host: what it names is there, on both sides."""

import os
import re
from pathlib import Path

import comfyui
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`([^`]+\.py)` `([^`]+)`")
ROWS = [
    line for line in (ROOT / "dev" / "host-assumptions.md").read_text().splitlines() if len(NAMED.findall(line)) == 2
]
OLDER = set(comfyui.VERSIONS) - {comfyui.DEFAULT_VERSION}
DOORS = sorted(path.name for path in (ROOT / "host").glob("*.py") if "comfy" in path.read_text())


@pytest.mark.parametrize("row", ROWS, ids=[NAMED.findall(row)[0][1] for row in ROWS])
def test_what_an_assumption_names_is_there(row):
    """Ours in the checkout, ComfyUI's in the version that the list is of; older ones lack some of it."""
    (our_file, ours), (their_file, theirs) = NAMED.findall(row)
    assert ours in (ROOT / our_file).read_text(), f"{ours} is not in {our_file}"
    host = Path(os.environ["COMFYUI_PATH"])
    if comfyui.version_of(host) not in OLDER:
        assert theirs in (host / their_file).read_text(), f"{theirs} is not in ComfyUI's {their_file}"


def test_every_part_of_the_door_that_touches_the_host_has_its_row():
    named = {Path(NAMED.findall(row)[0][0]).name for row in ROWS}
    listed = len(re.findall(r"(?m)^\| [^|]+ \| `host", (ROOT / "dev" / "host-assumptions.md").read_text()))
    assert listed == len(ROWS) > 30, "a row that cannot be read is not looked at"
    assert set(DOORS) - named <= {"__init__.py", "comparison.py", "wires.py"}, "these hold no more than public types"
