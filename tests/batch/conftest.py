"""The command of `batch/` as a user starts it, and its modules in this process."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "batch"))  # last, so that nothing of the host's is hidden

COMMAND = ROOT / "batch" / "run.py"

INVERTED = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}, "_meta": {"title": "Your picture"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Invert"}},
    "3": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["2", 0], "upscale_method": "nearest-exact", "scale_by": 1.0},
        "_meta": {"title": "Size"},
    },
    "4": {
        "class_type": "SaveImage",
        "inputs": {"images": ["3", 0], "filename_prefix": "inverted"},
        "_meta": {"title": "Result"},
    },
}
"""A workflow of a moment: the picture inverted, and enlarged."""


def environment() -> dict:
    return {**os.environ, "COMFYUI_PYTHON": sys.executable}


@pytest.fixture
def batch(tmp_path):
    """Run the command in a folder of its own; returns what subprocess.run does."""

    def run(*arguments, **options):
        command = [sys.executable, str(COMMAND), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, **options)

    return run


NODE = """
class Kept:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION = (), "run"
    def run(self): return ()
NODE_CLASS_MAPPINGS = {"OwnNode": Kept}
"""


@pytest.fixture(scope="session")
def server(installed, tmp_path_factory):
    """One server for the tests that do not end theirs, beside a ComfyUI folder with a model and a node."""
    import comfy_server
    import worker

    own = tmp_path_factory.mktemp("own")
    for path, content in (("models/loras/mine.safetensors", ""), ("custom_nodes/mine.py", NODE)):
        (own / path).parent.mkdir(parents=True)
        (own / path).write_text(content)
    with comfy_server.running(installed, options=worker.OPTIONS, threads=1, own=own) as client:
        yield client


@pytest.fixture
def here(inside, server, monkeypatch):
    """Run the command as `batch` does, but in this process, and on the server that is there whenever it starts one."""
    import comfy_server
    import run as command

    monkeypatch.setattr(comfy_server, "running", lambda *_, **__: contextlib.nullcontext(server))
    return lambda *arguments: inside(command.main, *arguments)


@pytest.fixture
def plain() -> dict:
    return json.loads(json.dumps(INVERTED))


@pytest.fixture
def inverted(tmp_path, plain) -> Path:
    path = tmp_path / "inverted.json"
    path.write_text(json.dumps(plain))
    return path


@pytest.fixture
def squares(tmp_path):
    """Make a folder of so many small pictures of different colours; returns it."""
    from PIL import Image

    def make(count: int, name: str = "squares") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16), (number % 256, number // 256, 128)).save(folder / f"{number:04}.png")
        return folder

    return make


def results_of(out: Path) -> list[dict]:
    """The results that a run wrote, read back; of JSON what it says."""
    if (out / "results.parquet").exists():
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    else:
        import csv

        with open(out / "results.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    for row in rows:
        row["pictures"] = json.loads(row["pictures"])
        row["attempts"] = int(row["attempts"])
    return rows


@pytest.fixture
def results():
    return results_of
