"""The README's main command, and what it says when something is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import comfyui
from PIL import Image

DEV = Path(comfyui.__file__).parent


def edit(folder, *arguments):
    environment = {**os.environ, "COMFYUI_PYTHON": sys.executable}
    return subprocess.run(
        [sys.executable, str(DEV / "edit.py"), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_edit_writes_the_picture_and_the_strip(tmp_path):
    done = edit(tmp_path, "--steps", "4", "--iterations", "1", "--text", "a blue cat", "--out", "out/cat.png")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "cat.png") in done.stdout and "Edited by: a blue cat" in done.stdout
    assert Image.open(tmp_path / "out" / "cat.png").size == (128, 128)
    assert Image.open(tmp_path / "out" / "cat_strip.png").size == (3 * 128 + 16, 128)


def test_edit_takes_a_checkpoint_and_a_picture(checkpoint, tmp_path):
    Image.new("RGB", (400, 200), "orange").save(tmp_path / "photo.jpg")
    what = ["--checkpoint", str(checkpoint), "--image", "photo.jpg", "--text", "a cat"]
    small = ["--size", "128", "--steps", "2", "--iterations", "1"]
    done = edit(tmp_path, *what, *small)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "edited.png").size == (192, 64)


def test_a_missing_file_is_said_before_anything_starts(tmp_path):
    done = edit(tmp_path, "--checkpoint", "nowhere.safetensors")
    assert done.returncode == 2 and "there is no file nowhere.safetensors" in done.stderr


def test_a_folder_that_is_no_comfyui(tmp_path):
    done = edit(tmp_path, "--comfyui", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "is not a ComfyUI folder" in done.stderr
    assert not any(tmp_path.iterdir())


def test_the_benchmark_runs_to_its_end(tmp_path):
    environment = {**os.environ, "COMFYUI_PYTHON": sys.executable}
    options = ["--quick", "--models", "world", "--repeats", "1", "--out", "bench"]
    command = [sys.executable, str(DEV / "bench.py"), *options]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    tables = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["run"]: (row["rows"], row["rows with gradient"]) for row in tables["overhead"]}
    steps = tables["overhead"][0]["steps"]
    assert rows["TTIS, default rule"] == (3 * steps, steps)
    assert rows["TTIS, adam, 5 updates"] == (3 * steps, 5 * steps)
    assert all(row["overhead"] > 0 for row in tables["overhead"] + tables["growth"])
    assert "| drawn world | null-text inversion, diffusers, 10 update(s) |" in (tmp_path / "bench.md").read_text()
