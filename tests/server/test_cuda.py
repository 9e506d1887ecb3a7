"""What only a CUDA card shows: the dynamic patcher, 16-bit kernels, device memory, cancel.

Skipped only where torch sees no card. The other server tests run on the card as well where there is one; these ask for
what a CPU cannot tell.
"""

import json
import subprocess
import sys

import comfy_server
import comfyui
import pytest
import torch
import workflows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]
TTIS, BAM = "BaretTTISInversion", "BaretBAMEdit"
GB = 10**9


@pytest.fixture
def start(installed, checkpoint):
    """A server with further options, without the CPU."""

    def running(*options):
        return comfy_server.running(installed, [checkpoint], ["--cache-classic", *options])

    return running


def results(client, graph):
    """The latents of reconstruction and edit."""
    from safetensors.torch import load_file

    graph = graph.without_pictures()
    savers = [
        graph.add("SaveLatent", samples=[graph.id(node), slot], filename_prefix="latents/cuda")
        for node, slot in ((TTIS, 2), (BAM, 0))
    ]
    done = client.run(graph)
    latents = []
    for id in savers:
        (entry,) = done.outputs[id]["latents"]
        path = client.work / "output" / entry["subfolder"] / entry["filename"]
        latents.append(load_file(path)["latent_tensor"])
    return latents


def drawn(example, steps=25):
    graph = example("baret_paper")
    graph.inputs(TTIS).update(steps=steps)
    return graph


def error(a, b):
    return float((a - b).square().mean() / b.square().mean()) ** 0.5


def test_the_dynamic_patcher_and_the_classic_one_agree(start, example):
    """Weights streamed by the dynamic patcher, whose tuning runs on a whole copy, against weights loaded once."""
    found = {}
    for name, options in (("dynamic", ()), ("classic", ("--disable-dynamic-vram",))):
        with start(*options) as client:
            client.upload(workflows.PICTURE_FILE)
            photo, again = (results(client, example("baret_paper", photo=True)) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(photo, again)), "a second run is served from the cache"
            found[name] = [photo, results(client, drawn(example))]
    for dynamic, classic in zip(found["dynamic"], found["classic"]):
        assert all(error(a, b) < 1e-2 for a, b in zip(dynamic, classic))


@pytest.mark.parametrize("option", ["--bf16-unet", "--fp16-unet"])
def test_16_bit_does_what_32_bit_does(start, example, option):
    found = {}
    for choice in (option, "--fp32-unet"):
        with start(choice) as client:
            found[choice] = results(client, drawn(example))
    assert all(torch.isfinite(latent).all() for latent in found[option])
    assert all(error(a, b) < 0.1 for a, b in zip(found[option], found["--fp32-unet"]))


@pytest.mark.parametrize("options", [("--lowvram",), ("--novram",), ("--reserve-vram", "2")])
def test_short_vram_works_or_says_why_not(start, example, options):
    with start(*options) as client:
        client.upload(workflows.PICTURE_FILE)
        try:
            latents = results(client, example("baret_paper", photo=True))
            assert all(torch.isfinite(latent).all() for latent in latents)
        except comfy_server.ExecutionFailed as failure:
            assert "TTIS Inversion: " in failure.message and "GPU" in failure.message


def test_cancel_on_the_card_leaves_nothing_behind(start, example):
    with start() as client:
        before = results(client, drawn(example))
        cancelled, asked = drawn(example, steps=200), []

        def on_event(event):
            is_progress = isinstance(event, dict) and event["type"] == "progress"
            if is_progress and event["data"]["value"] >= 210 and not asked:
                asked.append(client.interrupt())

        with pytest.raises(comfy_server.Interrupted):
            client.run(cancelled, on_event)
        again = drawn(example)
        again.inputs(TTIS)["stop_threshold"] *= 1.0000001  # computed again, not remembered
        assert all(error(a, b) < 1e-3 for a, b in zip(results(client, again), before))


@pytest.mark.parametrize("side, limits", [(64, (4.5 * GB, 3 * GB)), (128, (None, 12 * GB))])
def test_memory_on_the_card(installed, tmp_path, side, limits):
    """Peak memory of tuning at SD1.5's true size in 16 bit: all activations kept, and blocks computed again."""
    bench = comfyui.__file__.replace("comfyui.py", "bench.py")
    size = ["--models", "sd15", "--latents", str(side), "--dtypes", "bfloat16", "--steps", "2", "--repeats", "1"]
    command = [sys.executable, bench, "--comfyui", str(installed.path), *size, "--out", str(tmp_path / "bench")]
    subprocess.run(command, check=True, cwd=tmp_path)
    rows = {row["run"]: row for row in json.loads((tmp_path / "bench.json").read_text())["memory"]}
    for run, limit in zip(("TTIS", "TTIS, blocks computed again"), limits):
        assert limit is None or rows[run]["peak in all, MB"] * 1e6 < limit
        measured, estimated = rows[run]["peak above rest, MB"], rows[run]["estimated for backward, MB"]
        assert measured < 1.3 * estimated, "the estimate that decides must not be far below the truth"
