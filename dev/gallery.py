"""Make the README's strip, the templates' thumbnails and the help pages' pictures anew, by a real server.

    python dev/gallery.py     # writes docs/edits.png, example_workflows/*.jpg and web/docs/*.png

Each is a true output of the drawn world's model.
"""

from __future__ import annotations

import argparse
import io
import json

import comfyui
import workflows

OUT = workflows.ROOT / "docs" / "edits.png"
HELP = workflows.ROOT / "web" / "docs"
SIDE, GAP = 192, 12

# Scene, target text, whether shapes may change.
EDITS = (
    (workflows.SCENE, workflows.SCENE_TEXT, True),
    ({"seed": 1}, "a blue dog sitting on a meadow, in the middle, facing right, sun, tree", True),
    ({"seed": 8}, "a pink dog lying on a beach, on the left, facing left", False),
    (workflows.SCENE, workflows.RIGID_TEXT, False),
)


def edited(client, scene: dict, text: str, moves: bool) -> list[bytes]:
    """The pictures before, reconstructed and after of one run of `baret_edit`."""
    prompt = json.loads((workflows.API_FOLDER / "baret_edit.json").read_text(encoding="utf-8"))
    by_title = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    by_title["Your picture"].update({"animal": "any", "pose": "any", "colour": "any", "place": "any", **scene})
    by_title["Target text"]["text"] = text
    if not moves:
        by_title["Transition Embedding"].update(eta_start=1.0, eta_end=1.0)
    shown = client.pictures(client.run(prompt), prompt)
    return [shown[title] for title in ("Before", "Reconstruction", "Edit")]


def result(client, name: str) -> bytes:
    """The picture that a workflow ends in; one that waits for a checkpoint shows the picture it opens with."""
    prompt = json.loads((workflows.API_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if any(node["class_type"] == "CheckpointLoaderSimple" for node in prompt.values()):
        return workflows.PICTURE_FILE.read_bytes()
    outputs = client.run(prompt).outputs
    last = max((id for id in outputs if prompt[id]["class_type"] == "SaveImage"), key=int)
    return client.view(outputs[last]["images"][0])


def looks(client) -> dict[str, bytes]:
    """The pictures of the nodes to look with, behind one run of `baret_edit`, by the names of their files."""
    prompt = json.loads((workflows.API_FOLDER / "baret_edit.json").read_text(encoding="utf-8"))
    ids = {node["class_type"]: id for id, node in prompt.items()}
    scene, transition = ids["BaretWorldScene"], ids["BaretTransitionEmbedding"]
    (shown,) = (node for node in prompt.values() if node["_meta"]["title"] == "Edit")
    edit = shown["inputs"]["images"]
    dials = prompt[ids["BaretBAMEdit"]]["inputs"]
    dials = {name: dials[name] for name in ("cfg", "passes", "max_resolution", "auto_mask", "tau_sa", "tau_ca")}
    world, ttis = ids["BaretWorldLoader"], ids["BaretTTISInversion"]
    models, clip = {"model": [world, 0], "vae": [world, 2]}, {"clip": [world, 1]}
    trajectory, embeddings = {"trajectory": [ttis, 0]}, {"embeddings": [ttis, 1]}
    grid = {"eta_ranges": "1, 0.9-0.1, 0.6-0.1", "tau_sa": "0.1, 0.2, 0.3, 0.4", "tau_ca": "0.6"}
    words = {"text": workflows.SCENE_TEXT, "words": "dog, lying, snow, tree"}
    whole = {"start_percent": 0.0, "end_percent": 1.0, "resolutions": "coarse"}
    shares = {name: dials[name] for name in ("tau_sa", "tau_ca", "cfg")}
    nodes = {
        "inversion_report": ("BaretInversionReport", {**trajectory, **embeddings}),
        "edit_sweep": ("BaretEditSweep", {**models, **trajectory, **embeddings, **dials, **grid}),
        "attention_maps": (
            "BaretAttentionMaps",
            {**models, **clip, **trajectory, "embeddings": [transition, 0], **words, **whole, **shares},
        ),
        "edit_metrics": ("BaretEditMetrics", {"source": [scene, 0], "edit": edit, "mask": [scene, 2], "text": ""}),
    }
    added = {name: {"class_type": type, "inputs": inputs} for name, (type, inputs) in nodes.items()}
    outputs = client.run(prompt | added).outputs
    return {name: client.view(outputs[name]["images"][0]) for name in nodes}


def opened(data: bytes):
    """A picture's file as a PIL image in RGB."""
    from PIL import Image  # the host's

    return Image.open(io.BytesIO(data)).convert("RGB")


def strips(client):
    """The README's sheet: for each of EDITS the pictures before, reconstructed and after, and the text under them."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = 3 * SIDE + 3 * GAP, SIDE + 34
    sheet = Image.new("RGB", (2 * width, 2 * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (scene, text, moves) in enumerate(EDITS):
        left, top = number % 2 * width, number // 2 * height
        for column, data in enumerate(edited(client, scene, text, moves)):
            picture = opened(data).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + column * (SIDE + GAP // 2), top))
        draw.text((left, top + SIDE + 6), f"\u201c{text}\u201d", fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's pictures anew.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_server  # both need the host's interpreter
    from PIL import Image, ImageOps

    OUT.parent.mkdir(exist_ok=True)
    with comfy_server.running(host, threads=1) as client:
        strips(client).save(OUT)
        for build in workflows.WORKFLOWS:
            picture = opened(result(client, build.__name__))
            small = ImageOps.contain(picture, (2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
            small.save(workflows.FOLDER / f"{build.__name__}.jpg", quality=88)
        for name, data in looks(client).items():
            opened(data).save(HELP / f"{name}.png", optimize=True)
    print(OUT, *sorted([*workflows.FOLDER.glob("*.jpg"), *HELP.glob("*.png")]), sep="\n")


if __name__ == "__main__":
    main()
