"""An inversion on disk: whole or not at all, and everything else refused with a sentence."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from baret_ops.schedule import make_schedule
from baret_ops.storage import load_inversion, save_inversion
from baret_ops.values import Embeddings, ModelFamily, Trajectory, fingerprints

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
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["baret"])
    tensors = load_file(path)
    if change_tensors is not None:
        change_tensors(tensors)
    if change_about is not None:
        change_about(about)
    save_file(tensors, path, {"baret": json.dumps(about)})


def test_a_file_of_the_first_version_still_loads():
    """Saved by version 0.1.0, before the pack's modules were moved: five steps on a drawn scene."""
    trajectory, embeddings = load_inversion(Path(__file__).with_name("inversion-of-0.1.0.safetensors"))
    assert trajectory.pivots.shape == trajectory.latents.shape == (6, 1, 4, 16, 16)
    assert embeddings.tuned.shape == (5, 1, 32, 128) and trajectory.guidance_scale == 7.5
    assert trajectory.schedule.timesteps == (801, 601, 401, 201, 1) and embeddings.updates.sum() == 5
    missed = (trajectory.latents[-1] - trajectory.pivots[-1]).square().mean()
    assert float(missed) < 0.1 * float(trajectory.pivots[-1].square().mean()), "it reconstructs its picture"


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


def test_fingerprints_come_back_and_files_without_them_still_load(inversion, saved, tmp_path):
    assert load_inversion(saved)[1].pictures is None
    marks = fingerprints(inversion[0].pivots[-1])
    save_inversion(tmp_path / "new.safetensors", inversion[0], replace(inversion[1], pictures=marks))
    trajectory, embeddings = load_inversion(tmp_path / "new.safetensors")
    assert embeddings.pictures == marks == fingerprints(trajectory.pivots[-1])


def test_a_negative_of_each_step_comes_back(inversion, tmp_path):
    trajectory, embeddings = inversion
    negative = torch.rand(STEPS, IMAGES, 3, 8)
    path = tmp_path / "steps.safetensors"
    save_inversion(path, trajectory, replace(embeddings, negative=negative))
    assert torch.equal(load_inversion(path)[1].negative, negative)
    with pytest.raises(ValueError, match=r"negative of shape \[3, 2, 3, 8\] came; \[2,U,8\] or \[4,2,U,8\] fits"):
        replace(embeddings, negative=negative[1:])


def test_names_what_a_file_cannot_hold(inversion, tmp_path):
    first, second = tmp_path / "controlled.safetensors", tmp_path / "again.safetensors"
    trajectory, embeddings = inversion
    controlled = replace(
        embeddings,
        positive_options={"control": object(), "hooks": 1, "pooled_output": None},
        negative_options={"control": object()},
    )
    save_inversion(first, trajectory, controlled)
    save_inversion(second, *load_inversion(first))
    for path in (first, second):  # saved again it still says so
        _, embeddings = load_inversion(path)
        assert (embeddings.missing_positive, embeddings.missing_negative) == (("control", "hooks"), ("control",))
    control = object()
    again = embeddings.with_target(embeddings.target, {"control": control, "hooks": 2})
    assert again.positive_options == {"control": control, "hooks": 2} and again.negative_options == {"control": control}
    assert again.missing_positive == again.missing_negative == ()


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(28, "No space left on device", "/some/where/inversion.safetensors"), "No space left on device"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28) at path /a/b"),
            "No space left on device",
        ),
        (SafetensorError("something new"), "the system refused"),
    ],
)
def test_a_failed_save_leaves_nothing_and_says_why(inversion, tmp_path, monkeypatch, error, reason):
    import baret_ops.storage

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(baret_ops.storage, "save_file", fails)
    with pytest.raises(ValueError, match="'inversion.safetensors' cannot be written") as caught:
        save_inversion(tmp_path / "inversion.safetensors", *inversion)
    assert f"({reason})" in str(caught.value) and "/" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_disk_refuses(inversion, tmp_path):
    with pytest.raises(ValueError, match="cannot be written .*name too long.*use a short plain name") as caught:
        save_inversion(tmp_path / f"{'x' * 250}.safetensors", *inversion)
    assert len(str(caught.value)) < 250
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_never_replaced(inversion, saved):
    before = saved.read_bytes()
    with pytest.raises(FileExistsError):
        save_inversion(saved, inversion[0], inversion[1].with_transition(0.5, 0.5))
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_what_could_not_be_loaded_again_is_not_saved(inversion, tmp_path):
    trajectory, embeddings = inversion
    broken = replace(trajectory, latents=trajectory.latents * float("nan"))
    with pytest.raises(ValueError, match="latents holds NaN or infinity"):
        save_inversion(tmp_path / "inversion.safetensors", broken, embeddings)
    assert list(tmp_path.iterdir()) == []


# --- files from anyone ------------------------------------------------------------------------------------------------

MOST_CHARACTERS = 300


def refused(path, sentence=""):
    """Load a file that must be refused: one short sentence that names it and speaks of nothing of Python's."""
    with pytest.raises(ValueError, match=sentence) as caught:
        load_inversion(path)
    assert type(caught.value) is ValueError
    said = str(caught.value)
    assert said.startswith(path.name) and said.endswith(".") and "\n" not in said and len(said) < MOST_CHARACTERS
    for word in ("__init__", "argument", "NoneType", "object", "Traceback", "unhashable", str(path.parent)):
        assert word not in said, said
    return said


def remove(key):
    return lambda values: values.pop(key)


def put(key, value):
    return lambda values: values.__setitem__(key, value)


FAMILY = {"prediction": "epsilon", "latent_channels": 4, "context_dim": 8, "sigma_max": 14.6, "latent_scale": 0.18215}


def family(**changes):
    return put("family", {**FAMILY, **changes})


@pytest.mark.parametrize(
    "change, sentence",
    [
        (remove("tuned"), "tuned is missing"),
        (put("pivots", torch.zeros(4, 2, 4, 3, 5)), r"pivots of shape \[4, 2, 4, 3, 5\] came; \[5,B,4,h,w\] fits"),
        (put("latents", torch.zeros(5, 2, 4, 3, 6)), r"latents of shape \[5, 2, 4, 3, 6\] came; \[5,2,4,3,5\] fits"),
        (put("target", torch.zeros(2, 6, 9)), r"target of shape \[2, 6, 9\] came; \[2,6,8\] fits"),
        (put("negative", torch.zeros(2, 6, 9)), r"negative of shape .* \[2,U,8\] or \[4,2,U,8\] fits"),
        (put("eta", torch.zeros(5)), r"eta of shape \[5\] came; \[4\] fits"),
        (put("losses", torch.zeros(4, 1)), "losses of shape"),
        (put("updates", torch.zeros(4, 2, 1, dtype=torch.int64)), "updates of shape"),
        (put("thresholds", torch.zeros(3)), "thresholds of shape"),
        (put("sigmas", torch.ones(4, dtype=torch.float64)), "sigmas of shape"),
        (put("eta", torch.full((4,), float("nan"))), "eta holds NaN or infinity"),
        (put("eta", torch.full((4,), 5.0)), "eta holds 5; numbers from 0 to 1 fit"),
        (put("eta", torch.full((4,), -0.5)), "eta holds -0.5"),
        (put("pivots", torch.full((5, 2, 4, 3, 5), 1e30)), "pivots holds 1e.30"),
        (put("losses", torch.full((4, 2), -1.0)), "losses holds -1"),
        (put("updates", torch.full((4, 2), -1)), "updates holds -1"),
        (put("tuned", torch.zeros(4, 2, 6, 8, dtype=torch.float16)), "tuned is of type F16; F32 fits"),
        (put("updates", torch.zeros(4, 2)), "updates is of type F32; I64 fits"),
        (put("sigmas", torch.zeros(5, dtype=torch.float64)), "sigmas holds 0"),
        (put("sigmas", torch.ones(5, dtype=torch.float64)), "sigmas do not fall"),
        (put("sigmas", torch.tensor([9.0, 5.0, 2.0, 1.0, float("nan")]).double()), "sigmas holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, sentence):
    rewrite(saved, change_tensors=change)
    refused(saved, sentence)


def no_images(tensors):
    """The same inversion of no image at all."""
    for name, axis in (("pivots", 1), ("latents", 1), ("tuned", 1), ("target", 0), ("losses", 1), ("updates", 1)):
        tensors[name] = tensors[name].narrow(axis, 0, 0).clone()
    tensors["negative"] = tensors["negative"][:0].clone()


def no_tokens(tensors):
    tensors["tuned"], tensors["target"] = tensors["tuned"][:, :, :0].clone(), tensors["target"][:, :0].clone()


def nine_channels(tensors):
    for name in ("pivots", "latents"):
        tensors[name] = torch.zeros(STEPS + 1, IMAGES, 9, 3, 5)


def a_text_without_end(tensors):
    tensors["tuned"], tensors["target"] = torch.zeros(STEPS, IMAGES, 5000, 8), torch.zeros(IMAGES, 5000, 8)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (no_images, r"pivots of shape \[5, 0, 4, 3, 5\] came"),
        (no_tokens, r"tuned of shape \[4, 2, 0, 8\] came"),
        (nine_channels, r"pivots of shape \[5, 2, 9, 3, 5\] came; \[5,B,4,h,w\] fits"),
        (a_text_without_end, r"tuned of shape \[4, 2, 5000, 8\] came"),
    ],
)
def test_tensors_that_agree_on_what_no_model_has_are_refused(saved, change, sentence):
    rewrite(saved, change_tensors=change)
    refused(saved, sentence)


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (put("version", 99), "format version 99 and this pack reads version 1"),
        (put("version", True), "format version True"),
        (put("version", "1" * 10_000), "format version '1111.*10000 characters"),
        (put("version", nested(900)), "format version a list"),
        (put("format", "lora"), "was not written by Save Inversion"),
        (put("format", nested(900)), "was not written by Save Inversion"),
        (remove("family"), "family is None"),
        (put("family", "SD1.5"), "family is 'SD1.5'"),
        (put("family", {"prediction": "epsilon"}), "latent_channels is None; a whole number"),
        (family(prediction=["epsilon"]), "prediction is a list; epsilon or v_prediction fits"),
        (family(prediction="x" * 10_000), "prediction is 'x"),
        (family(latent_channels=4.0), "latent_channels is 4.0; a whole number"),
        (family(latent_channels=True), "latent_channels is True"),
        (family(context_dim="8"), "context_dim is '8'"),
        (family(context_dim=9), r"tuned of shape .* \[4,2,T,9\] fits"),
        (family(context_dim=10**400), "context_dim is a number of many digits"),
        (family(sigma_max=float("nan")), "sigma_max is nan"),
        (family(latent_scale=0), "latent_scale is 0; a number from 0.0001"),
        (family(latent_scale=float("inf")), "latent_scale is inf"),
        (remove("guidance_scale"), "guidance_scale is None"),
        (put("guidance_scale", float("nan")), "guidance_scale is nan"),
        (put("guidance_scale", 10**400), "guidance_scale is a number of many digits"),
        (put("guidance_scale", "7.5"), "guidance_scale is '7.5'"),
        (put("timesteps", [1]), r"sigmas of shape \[5\] came; \[2\] fits"),
        (put("timesteps", "x" * 9), "timesteps is 'xxxxxxxxx'; a list fits"),
        (put("timesteps", {"1": 2}), "timesteps is a dict"),
        (put("timesteps", [float("inf"), 3, 2, 1]), "a time of the schedule is inf"),
        (put("timesteps", [4.0, 3, 2, 1]), "a time of the schedule is 4.0"),
        (put("timesteps", [4, 3, 3, 1]), "two or more that fall"),
        (put("timesteps", [4, 3, 2, -1]), "a time of the schedule is -1"),
        (put("timesteps", [1, 2, 3, 4]), "two or more that fall"),
        (put("timesteps", list(range(9000, 0, -1))), "came; .* fits"),
        (put("positive_options", None), "positive_options is None; a list fits"),
        (put("pictures", None), "pictures is None; a list fits"),
        (put("pictures", [7, 8]), "pictures has 7; names"),
        (put("pictures", ["alone"]), r"1 pictures came for embeddings of 2 image\(s\)"),
        (put("positive_options", [nested(900)]), "positive_options has a list"),
        (put("negative_options", ["x" * 10_000]), "negative_options has 'x"),
        (put("negative_options", ["control\nFatal error"]), "plain characters"),
        (put("negative_options", [str(number) for number in range(1000)]), "negative_options has 1000 names"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved, change, sentence):
    rewrite(saved, change_about=change)
    refused(saved, sentence)


@pytest.mark.parametrize("written", ["[" * 200_000, "{" * 10, "1" * 5000, "null", "[]", '"', "NaN"])
def test_a_description_that_is_none_is_refused(saved, written):
    save_file(load_file(saved), saved, {"baret": written})
    refused(saved, "was not written by Save Inversion")


def test_a_long_header_is_refused_before_it_is_read(saved, tmp_path):
    metadata = {"baret": "x", "ballast": "y" * 2_000_000}
    save_file(load_file(saved), tmp_path / "long.safetensors", metadata)
    refused(tmp_path / "long.safetensors", "its header has 200.* bytes")


@pytest.fixture
def read(monkeypatch):
    """The names of the tensors that are read from files, in order."""
    import baret_ops.storage

    names, read = [], baret_ops.storage._tensor

    def noting(file, name):
        names.append(name)
        return read(file, name)

    monkeypatch.setattr(baret_ops.storage, "_tensor", noting)
    return names


def test_what_the_header_tells_is_refused_before_a_tensor_is_read(saved, read):
    rewrite(saved, put("updates", torch.zeros(STEPS, IMAGES, 1, dtype=torch.int64)))
    refused(saved, "updates of shape")
    assert read == []


def test_gigabytes_of_nothing_are_refused_by_what_is_small(saved, read):
    """A file system keeps zeros as a hole that takes no room, so that a large file costs its sender nothing."""
    rewrite(saved, lambda tensors: tensors.update({name: 0 * value for name, value in tensors.items()}))
    refused(saved, "sigmas holds 0")
    assert read == ["sigmas"]


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
        refused(foreign, "cannot be read as a safetensors file")
    save_file({"weight": torch.zeros(3)}, foreign)
    refused(foreign, "was not written by Save Inversion")


def test_what_the_disk_refuses_is_said_without_its_place(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", r"cannot be read \(Is a directory\)")
    refused(tmp_path / "gone.safetensors", r"cannot be read \(No such file or directory\)")


def test_an_inversion_of_the_first_format_still_loads(tmp_path):
    """As 0.1.0 wrote it, without thresholds, with a word that a later pack may add."""
    about = {
        "format": "baret-inversion",
        "version": 1,
        "timesteps": [501, 1],
        "guidance_scale": 7.5,
        "family": {**FAMILY, "added_later": None},
        "positive_options": ["control"],
        "negative_options": [],
        "added_later": 1,
    }
    tensors = {
        **{"sigmas": torch.tensor([1.6, 0.04, 0.03]).double(), "pivots": torch.rand(3, 1, 4, 2, 2)},
        **{"latents": torch.rand(3, 1, 4, 2, 2), "tuned": torch.rand(2, 1, 77, 8), "target": torch.rand(1, 77, 8)},
        **{"negative": torch.rand(1, 77, 8), "eta": torch.ones(2), "losses": torch.rand(2, 1)},
        **{"updates": torch.ones(2, 1, dtype=torch.int64), "added_later": torch.zeros(3)},
    }
    save_file(tensors, tmp_path / "first.safetensors", {"baret": json.dumps(about)})
    trajectory, embeddings = load_inversion(tmp_path / "first.safetensors")
    assert torch.equal(trajectory.latents, tensors["latents"]) and trajectory.schedule.timesteps == (501, 1)
    assert torch.equal(embeddings.tuned, tensors["tuned"]) and embeddings.thresholds is None
    assert embeddings.missing_positive == ("control",)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda t, e: replace(t, guidance_scale=float("nan")), "guidance_scale is nan"),
        (lambda t, e: replace(t.family, latent_scale=0.0), "latent_scale is 0.0"),
        (lambda t, e: replace(t, family=replace(t.family, latent_channels=9)), r"\[5,B,9,h,w\] fits"),
        (lambda t, e: replace(t, pivots=t.pivots[:, :0], latents=t.latents[:, :0]), "pivots of shape"),
        (lambda t, e: replace(t.schedule, timesteps=t.schedule.timesteps[::-1]), "that fall"),
        (lambda t, e: replace(t.schedule, sigmas=t.schedule.sigmas.flip(0)), "sigmas do not fall"),
        (lambda t, e: replace(e, eta=e.eta + 5), "eta holds 5.8"),
    ],
)
def test_no_value_can_be_made_that_does_not_hold(inversion, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(*inversion)
