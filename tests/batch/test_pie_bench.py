"""The paper's benchmark by one command, on a miniature of its layout."""

import json
from pathlib import Path

import numpy
import pie_bench
import pytest
from PIL import Image


@pytest.fixture
def bench(inside):
    return lambda *arguments: inside(pie_bench.main, *arguments)


def test_masks_are_read_as_they_are_written():
    mask = numpy.zeros((512, 512), dtype=bool)
    mask[100:200, 50:300] = mask[300, :] = True
    runs = pie_bench.encoded(mask)
    read = pie_bench.decoded(runs)
    assert runs[:2] == [100 * 512 + 50, 250] and (read[1:-1, 1:-1] == mask[1:-1, 1:-1]).all()
    assert read[0].all() and read[-1].all() and read[:, 0].all() and read[:, -1].all(), "the edge counts as inside"
    assert pie_bench.decoded([512 * 512 - 2, 10]).sum() == pie_bench.decoded([]).sum(), "a run beyond the end is cut"


def test_each_method_takes_what_its_protocol_allows():
    for name, (_, protocol, _) in pie_bench.METHODS.items():
        prompt = pie_bench.workflow_of(name, None)
        titles = {node["_meta"]["title"] for node in prompt.values()}
        assert ("Source text" in titles) == (protocol == pie_bench.CAPTION), name
        classes = {node["class_type"] for node in prompt.values()}
        assert len(classes & {"BaretTTISInversion", "BaretNullTextInversion", "BaretInversion"}) == 1, name
    with_checkpoint = pie_bench.workflow_of("baret", Path("m.safetensors")).values()
    assert any(node["inputs"].get("ckpt_name") == "m.safetensors" for node in with_checkpoint)
    (ttis,) = (node for node in with_checkpoint if node["class_type"] == "BaretTTISInversion")
    assert ttis["inputs"]["steps"] == 50


def test_a_miniature_to_its_table(bench, here, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from pie_metrics import COLUMNS

    assert pie_bench.batch(["nowhere"]) == 2, "the command is found"
    monkeypatch.setattr(pie_bench, "batch", lambda arguments: here(*arguments).returncode)
    assert bench("--draw", "mini", "--count", "1").returncode == 0
    methods = ["--methods", "baret", "direct-p2p"]
    done = bench("--data", "mini", "--offline", *methods, "--out", "out")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out" / "results.md").read_text()
    ours, theirs = written.split("## Source caption allowed")
    assert ours.startswith("## Target text only") and "| TTIS, transition, BAM Edit | 1 of 1 |" in ours
    assert "| direct inversion, prompt-to-prompt | 1 of 1 |" in theirs and "as published" in theirs
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for name, (title, _) in COLUMNS.items():
        was_measured = all(name in measures for measures in found["baret"].values())
        assert was_measured != (f"Left out: {title}, because its weights are not there" in theirs), name
    entries = json.loads((tmp_path / "mini" / "mapping_file.json").read_text())
    for id, entry in entries.items():
        source = Image.open(tmp_path / "mini" / "annotation_images" / entry["image_path"])
        edit = Image.open(tmp_path / "out" / "baret" / "run" / "pictures" / f"{id}.png").convert("RGB")
        assert source.size == (512, 512) and edit.size == (128, 128)
        before, after = (numpy.asarray(p.resize((512, 512), Image.Resampling.LANCZOS)) / 255 for p in (source, edit))
        outside = ~pie_bench.decoded(entry["mask"])[..., None]
        error = numpy.square((before - after) * outside).mean()
        assert found["baret"][id]["mse"] == pytest.approx(error, rel=1e-3)
        assert found["baret"][id]["psnr"] == pytest.approx(-10 * numpy.log10(error), abs=0.01)
        assert 0 < found["baret"][id]["ssim"] <= 1
    assert "[" not in (tmp_path / "out" / "direct-p2p" / "rows.csv").read_text(), "brackets mark words, for people"


def test_a_table_of_pictures_and_texts_has_no_captions(bench, tmp_path):
    (tmp_path / "t.csv").write_text("image,text\na.png,a dog\n")
    done = bench("--data", "t.csv", "--methods", "direct-p2p")
    assert done.returncode == 1 and "direct-p2p need the source's caption, which t.csv does not give" in done.stderr
    done = bench("--data", str(tmp_path))
    assert done.returncode == 1 and "has no mapping_file.json" in done.stderr


def test_measures_of_equal_pictures(tmp_path):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from pie_metrics import Metrics

    metrics = Metrics(offline=True)
    picture = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    mask = numpy.zeros((32, 32), dtype=bool)
    mask[8:16, 8:16] = True
    changed = picture.copy()
    changed[mask] = 255 - changed[mask]
    found = metrics.measure(picture, changed, mask)
    assert found["mse"] == 0 and found["ssim"] == pytest.approx(1), "what changed inside the mask counts for nothing"
    assert set(metrics.measure(picture, changed)) <= {"structure", "clip_whole"}
    assert "mse" not in metrics.measure(picture, changed, numpy.ones((32, 32), dtype=bool))
