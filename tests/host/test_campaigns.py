"""The campaigns of `dev/campaign.py` at a small size: what comes in gets a sentence, and nothing is left behind."""

import pytest
import torch
from campaigns import complaint, faults, files


@pytest.fixture
def attacked(pack, model, host, tmp_path, monkeypatch):
    monkeypatch.setattr(host.folders, "input_directory", str(tmp_path))
    return files.Campaign(pack, model, tmp_path)


def test_files_with_other_bytes(attacked):
    attacked.bytes(150, start=0)
    assert attacked.report.failures == []
    assert attacked.report.outcomes["refused at load"] > 100 and attacked.report.outcomes["loaded"] > 0


def test_files_of_another_structure(attacked):
    attacked.structure(150, start=0)
    assert attacked.report.failures == []
    assert attacked.report.outcomes["refused at load"] > 100 and attacked.report.outcomes["loaded"] > 0


def test_errors_at_unet_calls(pack):
    report = faults.attack(pack, every=5)
    assert report.failures == []
    assert all(report.outcomes[kind] > 0 for kind in (*faults.KINDS, faults.BACKWARD))


def test_cancel_at_random_moments(pack):
    report = faults.interrupt(pack, tries=12, seed=0)
    assert report.failures == []
    assert report.outcomes["cancelled"] > 0


@pytest.mark.parametrize(
    "leave, name",
    [
        (lambda model: setattr(model.model.diffusion_model.out, "forward", None), "forwards"),
        (lambda model: model.model.diffusion_model.out.register_forward_hook(print), "hooks"),
        (lambda model: next(model.model.parameters()).data.add_(1.0), "weights"),
        (lambda model: model.set_model_attn1_patch(print), "options"),
        (lambda model: model.add_wrapper("diffusion_model", print), "wrappers"),
        (lambda model: model.patches.update(a=1), "patches"),
    ],
)
def test_what_is_left_behind_is_seen(make_model, leave, name):
    """The measure itself."""
    model = make_model()
    before = faults.State(model)
    assert faults.State(model).differences(before) == []
    with torch.inference_mode():
        leave(model)
    assert faults.State(model).differences(before) == [name]


@pytest.mark.parametrize(
    "sentence, wrong",
    [
        ("Node: this came; that fits.", None),
        ("this came; that fits.", "does not say where"),
        ("Node: " + "x" * 1000, "characters long"),
        ("Node: 'NoneType' object is not iterable", "speaks of Python"),
    ],
)
def test_what_is_no_sentence_is_seen(sentence, wrong):
    found = complaint(sentence, ("Node: ",))
    assert found is None if wrong is None else wrong in found
