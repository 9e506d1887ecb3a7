"""Where a row's picture, text and settings go in a workflow."""

import json
from pathlib import Path

import pytest
import workflows


@pytest.fixture
def module():
    import workflow

    return workflow


def row(**fields):
    from rows import Row

    return Row(**{"number": 1, "id": "x", "image": Path("a.png"), "text": None, **fields})


def test_the_packs_own_workflows_take_pictures_and_texts(module):
    for checkpoint, loader in ((None, "BaretWorldLoader"), (Path("m.safetensors"), "CheckpointLoaderSimple")):
        found = module.load(None, checkpoint)
        prompt = found.filled(row(text="a red dog", settings={"Auto Edit.seed": "7"}), "b.png")
        by_title = {node["_meta"]["title"]: node for node in prompt.values()}
        assert by_title["Your picture"]["class_type"] == "LoadImage"
        assert by_title["Your picture"]["inputs"]["image"] == "b.png"
        assert by_title["Target text"]["inputs"]["text"] == "a red dog"
        assert by_title["Auto Edit"]["inputs"]["seed"] == 7 and found.seed(prompt) == 7
        (model,) = (node for node in prompt.values() if node["class_type"] == loader)
        assert checkpoint is None or model["inputs"]["ckpt_name"] == "m.safetensors"


@pytest.mark.parametrize("name", ["baret_paper", "baret_rigid_edit", "baret_sweep", "baret_maps"])
def test_every_example_on_the_drawn_world_takes_pictures(module, name):
    found = module.load(workflows.API_FOLDER / f"{name}.json")
    found.require([], picture=True, text=True)
    assert "b.png" in json.dumps(found.filled(row(text="a dog"), "b.png"))


@pytest.mark.parametrize("name", ["baret_masked_edit", "baret_compare"])
def test_a_mask_or_a_caption_of_the_scene_cannot_come_from_a_picture(module, name):
    with pytest.raises(ValueError, match="takes more than the picture from Drawn Scene"):
        module.load(workflows.API_FOLDER / f"{name}.json")


def test_a_setting_takes_the_type_of_its_input(module, plain):
    found = module.Workflow(plain)
    filled = found.filled(row(settings={"Size.scale_by": "2", "Size.upscale_method": "area"}), "b.png")
    assert filled["3"]["inputs"]["scale_by"] == 2.0 and filled["3"]["inputs"]["upscale_method"] == "area"
    with pytest.raises(ValueError, match=r"Size\.scale_by is 'big'; a number fits"):
        found.filled(row(settings={"Size.scale_by": "big"}), "b.png")
    auto = module.load(None)
    for value in ("1.5", "many", "1e400", ""):
        with pytest.raises(ValueError, match=r"Auto Edit\.seed is .*; a whole number fits"):
            auto.filled(row(settings={"Auto Edit.seed": value}), "b.png")
    assert auto.filled(row(settings={"Auto Edit.seed": 3.0}), "b.png")["7"]["inputs"]["seed"] == 3
    large = str(2**32 - 1)
    assert auto.filled(row(settings={"Auto Edit.seed": large}), "b.png")["7"]["inputs"]["seed"] == 2**32 - 1


@pytest.mark.parametrize(
    "columns, sentence",
    [
        (
            ["image", "Sise.scale_by"],
            "Sise.scale_by: no node is titled so; there are Invert, Result, Size, Your picture",
        ),
        (["image", "Size.scale"], "Size has no such input to set; upscale_method, scale_by can be set"),
        (["image", "Size.image"], "Size has no such input to set"),
    ],
)
def test_a_column_without_a_place(module, plain, columns, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        module.Workflow(plain).require(columns, picture=True, text=False)


def test_what_cannot_be_told_is_asked_for(module, plain):
    two = json.loads(json.dumps(plain))
    two["1"]["_meta"]["title"] = "Left"
    two["5"] = {**two["1"], "_meta": {"title": "Right"}}
    with pytest.raises(ValueError, match="--picture-node"):
        module.Workflow(two).require([], picture=True, text=False)
    assert module.Workflow(two, picture="Right").picture == ("5", "image")
    two["5"]["_meta"]["title"] = "Left"
    with pytest.raises(ValueError, match="2 nodes are titled Left"):
        module.Workflow(two, picture="Left")
    with pytest.raises(ValueError, match="--text-node"):
        module.Workflow(plain).require([], picture=True, text=True)
    assert module.Workflow(plain).require(["image", "note"], True, False) == ["note"]


def test_a_key_is_of_all_that_a_result_depends_on(module):
    found = module.load(None)
    plain = found.key(row(text="a dog"), "hash")
    renamed = json.loads(json.dumps(found.prompt))
    for node in renamed.values():
        node["_meta"]["title"] += " "
    assert module.Workflow(renamed, "Your picture .image", "Target text .text").key(row(text="a dog"), "hash") == plain
    assert len({plain, found.key(row(text="a cat"), "hash"), found.key(row(text="a dog"), "other")}) == 3
    other = found.key(row(text="a dog", settings={"Auto Edit.effort": 2}), "hash")
    assert other != plain
    changed = json.loads(json.dumps(found.prompt))
    changed["7"]["inputs"]["keep"] = 0.4
    assert module.Workflow(changed).key(row(text="a dog"), "hash") != plain
    assert module.Workflow(changed).key(row(text="a dog", settings={"Auto Edit.keep": "0.5"}), "hash") == found.key(
        row(text="a dog", settings={"Auto Edit.keep": 0.5}), "hash"
    ), "what a row sets itself may stand otherwise in the workflow"


@pytest.mark.parametrize(
    "content, sentence",
    [
        ('{"nodes": [], "links": []}', "a workflow for the canvas; save it with File > Export"),
        ('{"1": {"class_type": "X"}}', "is no workflow"),
        ("[]", "is no workflow"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_is_no_workflow(module, tmp_path, content, sentence):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        module.load(tmp_path / "w.json")


def test_several_pictures_in_one_batch(module, plain):
    found = module.Workflow(plain)
    prompt = found.for_several(row(), ["a.png", "b.png", "c.png"])
    assert prompt["2"]["inputs"]["image"] == ["pictures to 3", 0]
    assert prompt["pictures to 3"]["inputs"] == {"image1": ["pictures to 2", 0], "image2": ["picture 3", 0]}
    assert prompt["pictures to 2"]["inputs"] == {"image1": ["1", 0], "image2": ["picture 2", 0]}
    assert [prompt[id]["inputs"]["image"] for id in ("1", "picture 2", "picture 3")] == ["a.png", "b.png", "c.png"]


def test_a_report_of_auto_edit_is_taken_apart():
    import torch
    from worker import choice_and_scores

    from baret_ops.edits import auto_edit

    names = [candidate.name for candidate in auto_edit.CANDIDATES]
    scores = torch.tensor([[0.25], [-1.5], [float("nan")], [1.04]])
    unused = dict.fromkeys(("edit", "mask", "candidates"))
    chosen, obeys = torch.tensor([1]), torch.zeros(4, 1, dtype=torch.bool)
    found = auto_edit.AutoEdit(**unused, scores=scores, obeys=obeys, chosen=chosen, names=tuple(names))
    choice, told = choice_and_scores(found.report())
    assert choice == names[1] and told == {names[0]: 0.25, names[1]: -1.5, names[3]: 1.04}
    assert choice_and_scores("picture 1: PSNR 20.0 dB") == (None, None)
