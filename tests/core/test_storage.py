"""An inversion on disk: whole or not at all, and everything else refused with a sentence."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from baret_ops.schedule import make_schedule
from baret_ops.storage import load_inversion, save_inversion
from baret_ops.values import Embeddings, ModelFamily, Trajectory

STEPS, IMAGES = 4, 2


@pytest.fixture
def inversion():
    generator = torch.Generator().manual_seed(0)
    schedule = make_schedule(torch.linspace(0.03, 14.6, 1000, dtype=torch.float64), STEPS)
    latents = torch.randn(2, STEPS + 1, IMAGES, 4, 3, 5, generator=generator)
    tuned = torch.randn(STEPS, IMAGES, 6, 8, generator=generator)
    trajectory = Trajectory(latents[0], latents[1], schedule, 7.5, ModelFamily("epsilon", 4, 8, 14.6, 0.18215))
    embeddings = Embeddings(
        tuned,
        tuned[0],
        tuned[1, :, :3],
        torch.linspace(0.8, 0.1, STEPS),
        torch.rand(STEPS, IMAGES),
        torch.ones(STEPS, IMAGES, dtype=torch.int64),
    )
    return trajectory, embeddings


@pytest.fixture
def saved(inversion, tmp_path):
    path = tmp_path / "inversion.safetensors"
    save_inversion(path, *inversion)
    return path


def test_what_was_loaded_lets_the_file_go(saved, inversion):
    """A file that stays mapped cannot be replaced on Windows, and changes under a workflow that holds it."""
    trajectory, embeddings = load_inversion(saved)
    with open(saved, "r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert torch.equal(trajectory.pivots, inversion[0].pivots) and torch.equal(embeddings.tuned, inversion[1].tuned)


def rewrite(path, change_tensors=None, change_about=None):
    """Write the file again with its tensors or description changed."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["baret"])
    tensors = load_file(path)
    if change_tensors is not None:
        change_tensors(tensors)
    if change_about is not None:
        change_about(about)
    save_file(tensors, path, {"baret": json.dumps(about)})


def test_comes_back_to_the_bit(inversion, saved):
    trajectory, embeddings = load_inversion(saved)
    for name in ("pivots", "latents"):
        assert torch.equal(getattr(trajectory, name), getattr(inversion[0], name))
    assert trajectory.schedule.timesteps == inversion[0].schedule.timesteps
    assert torch.equal(trajectory.schedule.sigmas, inversion[0].schedule.sigmas)
    assert (trajectory.family, trajectory.guidance_scale) == (inversion[0].family, 7.5)
    for name in ("tuned", "target", "negative", "eta", "losses", "updates"):
        assert torch.equal(getattr(embeddings, name), getattr(inversion[1], name))
    assert embeddings.missing_positive == embeddings.missing_negative == ()


def test_thresholds_come_back_and_files_without_them_still_load(inversion, saved, tmp_path):
    assert load_inversion(saved)[1].thresholds is None
    levels = torch.linspace(1e-5, 1e-3, STEPS)
    save_inversion(tmp_path / "new.safetensors", inversion[0], replace(inversion[1], thresholds=levels))
    assert torch.equal(load_inversion(tmp_path / "new.safetensors")[1].thresholds, levels)


def test_a_negative_of_each_step_comes_back(inversion, tmp_path):
    trajectory, embeddings = inversion
    negative = torch.rand(STEPS, IMAGES, 3, 8)
    path = tmp_path / "steps.safetensors"
    save_inversion(path, trajectory, replace(embeddings, negative=negative))
    assert torch.equal(load_inversion(path)[1].negative, negative)
    with pytest.raises(ValueError, match="the negative embedding .* does not fit"):
        replace(embeddings, negative=negative[1:])


def test_names_what_a_file_cannot_hold(inversion, tmp_path):
    path = tmp_path / "controlled.safetensors"
    trajectory, embeddings = inversion
    controlled = replace(
        embeddings,
        positive_options={"control": object(), "hooks": 1, "pooled_output": None},
        negative_options={"control": object()},
    )
    save_inversion(path, trajectory, controlled)
    for _ in range(2):  # saved again it still says so
        trajectory, embeddings = load_inversion(path)
        assert (embeddings.missing_positive, embeddings.missing_negative) == (("control", "hooks"), ("control",))
        save_inversion(path, trajectory, embeddings)
    control = object()
    again = embeddings.with_target(embeddings.target, {"control": control, "hooks": 2})
    assert again.positive_options == {"control": control, "hooks": 2} and again.negative_options == {"control": control}
    assert again.missing_positive == again.missing_negative == ()


def test_a_failed_save_leaves_nothing(inversion, tmp_path, monkeypatch):
    import baret_ops.storage

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(baret_ops.storage, "save_file", fails)
    with pytest.raises(OSError, match="No space left"):
        save_inversion(tmp_path / "inversion.safetensors", *inversion)
    assert list(tmp_path.iterdir()) == []


def remove(key):
    return lambda values: values.pop(key)


def put(key, value):
    return lambda values: values.__setitem__(key, value)


OTHER_FAMILY = {
    "prediction": "epsilon",
    "latent_channels": 4,
    "context_dim": 9,
    "sigma_max": 14.6,
    "latent_scale": 1.0,
}


@pytest.mark.parametrize(
    "tensors, about, sentence",
    [
        (remove("tuned"), None, "lacks tuned"),
        (put("pivots", torch.zeros(STEPS, IMAGES, 4, 3, 5)), None, r"pivots of shape \[4, 2, 4, 3, 5\] came"),
        (put("latents", torch.zeros(STEPS + 1, IMAGES, 4, 3, 6)), None, "differ in shape"),
        (put("target", torch.zeros(IMAGES, 6, 9)), None, "the target embedding .* does not fit"),
        (put("negative", torch.zeros(IMAGES, 6, 9)), None, "the negative embedding"),
        (put("eta", torch.zeros(STEPS + 1)), None, "eta of shape"),
        (put("eta", torch.full((STEPS,), float("nan"))), None, "holds NaN or infinity in eta"),
        (put("tuned", torch.zeros(STEPS, IMAGES, 6, 8, dtype=torch.float16)), None, "holds tuned as torch.float16"),
        (put("sigmas", torch.zeros(STEPS + 1, dtype=torch.float64)), None, "its schedule has"),
        (None, put("version", 99), "format version 99 and this pack reads version 1"),
        (None, put("format", "lora"), "not an inversion of this pack"),
        (None, put("family", {"prediction": "epsilon"}), "not a whole inversion"),
        (None, put("family", OTHER_FAMILY), "9-wide text"),
        (None, put("timesteps", [1]), "not a whole inversion"),
        (None, put("timesteps", "x" * 9), "not a whole inversion"),
        (None, remove("guidance_scale"), "not a whole inversion"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(saved, tensors, about, sentence):
    rewrite(saved, tensors, about)
    with pytest.raises(ValueError, match=sentence) as error:
        load_inversion(saved)
    assert saved.name in str(error.value) and "\n" not in str(error.value)


def test_foreign_and_hostile_files_are_refused(saved, tmp_path):
    whole = saved.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    for content in (
        whole[: len(whole) // 2],
        whole[:4],
        b"",
        b"PK\x03\x04 no safetensors at all",
        struct.pack("<Q", 2**62) + whole[8:],
        struct.pack("<Q", 99_000_000) + b"{" * 64,
        struct.pack("<Q", 64) + b'{"tuned":{"dtype":"F32","shape":[99999999],"data_offsets":[0,4]}'.ljust(64),
    ):
        foreign.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
            load_inversion(foreign)
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="not an inversion of this pack"):
        load_inversion(foreign)
