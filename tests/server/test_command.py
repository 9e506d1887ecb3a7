"""The README's main command, and what it says when something is not there."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import comfy_server
import comfyui
import edit as command
import pytest
from PIL import Image

DEV = Path(comfyui.__file__).parent


def edit(folder, *arguments):
    environment = {**os.environ, "COMFYUI_PYTHON": sys.executable}
    return subprocess.run(
        [sys.executable, str(DEV / "edit.py"), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def edit_here(inside, on_client):
    """The same in this process, on the server that is there."""
    return lambda *arguments: inside(command.main, *arguments)


def test_an_edit_by_a_short_text(tmp_path):
    done = edit(tmp_path, "--text", "a yellow dog", "--effort", "2", "--out", "out/dog.jpg")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "dog.jpg") in done.stdout and "Edited by: a yellow dog" in done.stdout
    assert "how far each candidate obeys" in done.stdout, "the report of Auto Edit"
    edited = Image.open(tmp_path / "out" / "dog.jpg")
    assert (edited.format, edited.size) == ("JPEG", (512, 512)), "enlarged to be looked at"
    assert Image.open(tmp_path / "out" / "dog_strip.png").size == (2 * 512 + 8, 512)


def test_the_dials_of_the_paper(edit_here, tmp_path):
    few = ["--dials", "--steps", "4", "--iterations", "1"]
    done = edit_here(*few, "--text", "a blue cat in space", "--out", "cat.png")
    assert done.returncode == 0, done.stderr
    assert "Edited by: a blue cat in space\nUnknown words: space" in done.stdout
    assert "how far each candidate obeys" not in done.stdout
    assert Image.open(tmp_path / "cat_strip.png").size == (3 * 512 + 16, 512)


def test_a_checkpoint_and_a_picture(edit_here, checkpoint, tmp_path):
    """The picture is shrunk to the size, with its proportions."""
    Image.new("RGB", (400, 200), "orange").save(tmp_path / "photo.jpg")
    what = ["--checkpoint", str(checkpoint), "--image", "photo.jpg", "--text", "a cat"]
    small = ["--dials", "--size", "128", "--steps", "2", "--iterations", "1"]
    done = edit_here(*what, *small)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "edited.png").size == (192, 64)


def test_a_picture_without_a_checkpoint(edit_here, tmp_path):
    """It is shrunk to what the drawn world knows, and the command says that this is no model for photos."""
    Image.new("RGB", (1200, 800), "orange").save(tmp_path / "photo.png")
    few = ["--dials", "--steps", "2", "--iterations", "1"]
    done = edit_here("--image", "photo.png", *few)
    assert done.returncode == 0, done.stderr
    assert "knows drawn scenes only" in done.stdout
    assert Image.open(tmp_path / "edited.png").size == (4 * 128, 4 * 128)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--checkpoint", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (["--checkpoint", "picture.png"], "picture.png is no checkpoint"),
        (["--checkpoint", "cut.safetensors"], "cut.safetensors is no checkpoint, or is cut short"),
        (["--image", "words.png"], "words.png is no picture"),
        (["--dials", "--eta-start", "3"], "--eta-start is 3; 0 to 1 fits"),
        (["--eta-start", "0.5"], "--eta-start works only with --dials"),
        (["--dials", "--effort", "2"], "--effort works only without --dials"),
        (["--effort", "9"], "--effort is 9; 1 to 4 fits"),
        (["--out", "words.png/edited.png"], "no file can be written there"),
        (["--out", "edited.txt"], "--out is edited.txt"),
        (["--size", "512"], "--size is for a picture of your own"),
        (["--text", " "], "--text is empty"),
    ],
)
def test_what_cannot_be_right_is_said_before_anything_starts(tmp_path, arguments, sentence):
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "cut.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    done = edit(tmp_path, *arguments)
    assert done.returncode == 2 and sentence in done.stderr and "Starting" not in done.stdout


def test_options_fit_what_the_nodes_take():
    """The command checks its numbers itself, so their limits are those of the nodes' inputs."""
    schemas = json.loads((DEV.parent / "tests" / "host" / "schemas.json").read_text(encoding="utf-8"))
    for name, (_, least, most, nodes, _) in {**command.NUMBERS, **command.DIAL_NUMBERS}.items():
        for node in nodes:
            (limits,) = (entry for entry in schemas[node]["inputs"] if entry["id"] == name)
            assert (least, most) == (limits["min"], limits["max"]), name


def test_one_command_sets_up_at_a_time(tmp_path, capsys):
    ends = []

    def second():
        with comfyui._alone(tmp_path):
            ends.append("second")

    with comfyui._alone(tmp_path):
        other = threading.Thread(target=second)
        other.start()
        other.join(2)
        ends.append("first")
    other.join(30)
    assert ends == ["first", "second"] and "another command sets up ComfyUI" in capsys.readouterr().err


def test_a_torch_that_does_not_import(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: libcudart is not there' >&2\nexit 1\n")
    python.chmod(0o755)
    host = comfyui.Host(tmp_path, python, "0")
    with pytest.raises(comfy_server.ServerError, match="cannot import torch: ImportError: libcudart is not there"):
        comfy_server.accelerators(host)


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
