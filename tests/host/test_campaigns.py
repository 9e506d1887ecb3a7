"""The campaigns of `dev/campaign.py` at a small size: what comes in gets a sentence, and nothing is left behind."""

from collections import Counter

import campaign
import pytest
import torch
from campaigns import Report, complaint, faults, files


@pytest.fixture
def attacked(pack, model, host, tmp_path, monkeypatch):
    monkeypatch.setattr(host.folders, "input_directory", str(tmp_path))
    return files.Campaign(pack, model, tmp_path)


def test_files_with_other_bytes(attacked):
    attacked.bytes(150, start=0)
    assert attacked.report.failures == []
    assert attacked.report.outcomes["refused at load"] > 100 and attacked.report.outcomes["loaded"] > 0


def test_files_of_another_structure(attacked):
    attacked.path.write_bytes(b"")  # what other mutations left
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


def test_nodes_with_faults_are_those_that_run(pack):
    assert tuple(faults.runs(pack)[1]) == faults.NODES


def test_what_is_done_stays_done(tmp_path, monkeypatch, installed):
    """Slices add up, across starts, and the row says what the report does."""
    monkeypatch.setattr(campaign.comfyui, "cache_root", lambda: tmp_path)
    first, second = Report(Counter(loaded=2), [], {"s": 0.5}), Report(Counter(loaded=1, refused=4), ["a"], {"s": 0.2})
    campaign.Done("files", installed, 1).put(0, first, 10.0)
    done = campaign.Done("files", installed, 1)
    assert 0 in done and 1000 not in done
    done.put(1000, second, 5.0)
    whole, seconds = done.whole()
    assert seconds == 15.0 and whole == Report(Counter(loaded=3, refused=4), ["a"], {"s": 0.5})
    assert whole.row("files") == "| `files` | 7 | 4 refused, 3 loaded, s 0.5 | 1 |"


def test_memory_of_a_load_is_seen(attacked, monkeypatch):
    """The measure itself: a load that takes 300 MB for a moment."""
    whole = attacked._call

    def hungry(*args, **inputs):
        torch.ones(75_000_000).sum()
        return whole(*args, **inputs)

    monkeypatch.setattr(attacked, "_call", hungry)
    attacked.attempt("hungry")
    assert [failure.split()[-4:] for failure in attacked.report.failures] == [["MB", "beyond", "the", "file"]]
