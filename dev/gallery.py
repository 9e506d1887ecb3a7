"""Make the README's strip and the templates' thumbnails anew, each a true output of a real server on the drawn world.

python dev/gallery.py     # writes docs/edits.png, example_workflows/*.jpg and the pictures of the help pages, web/docs/*.png
"""

from __future__ import annotations

import argparse
import io
import json

import comfyui
import workflows

OUT = workflows.FOLDER.parent / "docs" / "edits.png"
HELP = workflows.FOLDER.parent / "web" / "docs"
SIDE, GAP = 192, 12

# Scene, target text, whether shapes may change.
EDITS = (
    (workflows.SCENE, workflows.SCENE_TEXT, True),
    ({"seed": 1}, "a blue dog sitting on a meadow, in the middle, facing right, sun, tree", True),
    ({"seed": 8}, "a pink dog lying on a beach, on the left, facing left", False),
    (workflows.SCENE, "a blue cat sitting in the snow, in the middle, facing left, sun, tree", False),
)


def edited(client, scene: dict, text: str, moves: bool) -> list[bytes]:
    """The pictures before, reconstructed and after of one run of `baret_edit`."""
    prompt = json.loads((workflows.API_FOLDER / "baret_edit.json").read_text(encoding="utf-8"))
    by_title = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    by_title["Your picture"].update({"animal": "any", "pose": "any", "colour": "any", "place": "any", **scene})
    by_title["Target text"]["text"] = text
    if not moves:
        by_title["Transition Embedding"].update(eta_start=1.0, eta_end=1.0)
    run = client.run(prompt)
    shown = {
        prompt[id]["_meta"]["title"]: output["images"][0] for id, output in run.outputs.items() if output.get("images")
    }
    return [client.view(shown[title]) for title in ("Before", "Reconstruction", "Edit")]


def result(client, name: str) -> bytes:
    """The picture that a workflow ends in; one that waits for a checkpoint shows the picture it opens with."""
    prompt = json.loads((workflows.API_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if any(node["class_type"] == "CheckpointLoaderSimple" for node in prompt.values()):
        return workflows.PICTURE_FILE.read_bytes()
    outputs = client.run(prompt).outputs
    last = max((id for id in outputs if prompt[id]["class_type"] == "SaveImage"), key=int)
    return client.view(outputs[last]["images"][0])


def looks(client) -> dict[str, bytes]:
    """The pictures of the nodes to look with, by the names of their help pages' files, behind one run of `baret_edit`."""
    prompt = json.loads((workflows.API_FOLDER / "baret_edit.json").read_text(encoding="utf-8"))
    ids = {node["class_type"]: id for id, node in prompt.items()} | {
        node["_meta"]["title"]: id for id, node in prompt.items()
    }
    world, scene, ttis, bam = (
        ids["BaretWorldLoader"],
        ids["BaretWorldScene"],
        ids["BaretTTISInversion"],
        ids["BaretBAMEdit"],
    )
    inversion = {"trajectory": [ttis, 0], "embeddings": [ttis, 1]}
    models = {"model": [world, 0], "vae": [world, 2]}
    dials = {name: value for name, value in prompt[bam]["inputs"].items() if not isinstance(value, list)}
    nodes = {
        "inversion_report": ("BaretInversionReport", inversion),
        "edit_sweep": (
            "BaretEditSweep",
            {
                **models,
                **inversion,
                **dials,
                "eta_ranges": "1, 0.9-0.1, 0.6-0.1",
                "tau_sa": "0.1, 0.2, 0.3, 0.4",
                "tau_ca": "0.6",
            },
        ),
        "attention_maps": (
            "BaretAttentionMaps",
            {
                **models,
                "trajectory": [ttis, 0],
                "embeddings": [ids["BaretTransitionEmbedding"], 0],
                "clip": [world, 1],
                "text": workflows.SCENE_TEXT,
                "words": "dog, lying, snow, tree",
                "start_percent": 0.0,
                "end_percent": 1.0,
                "resolutions": "coarse",
                **{name: dials[name] for name in ("tau_sa", "tau_ca", "cfg")},
            },
        ),
        "edit_metrics": (
            "BaretEditMetrics",
            {"source": [scene, 0], "edit": prompt[ids["Edit"]]["inputs"]["images"], "mask": [scene, 2], "text": ""},
        ),
    }
    outputs = client.run(
        prompt | {name: {"class_type": type, "inputs": inputs} for name, (type, inputs) in nodes.items()}
    ).outputs
    return {name: client.view(outputs[name]["images"][0]) for name in nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's pictures anew.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_server  # both need the host's interpreter
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (2 * (3 * SIDE + 3 * GAP), 2 * (SIDE + 34)), "white")
    draw = ImageDraw.Draw(sheet)
    with comfy_server.running(host, threads=1) as client:
        for number, (scene, text, moves) in enumerate(EDITS):
            pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in edited(client, scene, text, moves)]
            left, top = number % 2 * (3 * SIDE + 3 * GAP), number // 2 * (SIDE + 34)
            for column, picture in enumerate(pictures):
                sheet.paste(
                    picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left + column * (SIDE + GAP // 2), top)
                )
            draw.text((left, top + SIDE + 6), f"\u201c{text}\u201d", fill="black", font=font)
        for name in (build.__name__ for build in workflows.WORKFLOWS):
            picture = Image.open(io.BytesIO(result(client, name))).convert("RGB")
            ImageOps.contain(picture, (2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS).save(
                workflows.FOLDER / f"{name}.jpg", quality=88
            )
        for name, data in looks(client).items():
            Image.open(io.BytesIO(data)).convert("RGB").save(HELP / f"{name}.png", optimize=True)
    OUT.parent.mkdir(exist_ok=True)
    sheet.save(OUT)
    print(OUT, *sorted([*workflows.FOLDER.glob("*.jpg"), *HELP.glob("*.png")]), sep="\n")


if __name__ == "__main__":
    main()
