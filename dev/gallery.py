"""Make the README's strip and the templates' thumbnails anew, each a true output of a real server on the drawn world.

    python dev/gallery.py     # writes docs/edits.png and example_workflows/*.jpg
"""

from __future__ import annotations

import argparse
import io
import json

import comfyui
import workflows

OUT = workflows.FOLDER.parent / "docs" / "edits.png"
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
    shown = {prompt[id]["_meta"]["title"]: output["images"][0] for id, output in run.outputs.items() if output.get("images")}
    return [client.view(shown[title]) for title in ("Before", "Reconstruction", "Edit")]


def result(client, name: str) -> bytes:
    """The picture that a workflow ends in; one that waits for a checkpoint shows the picture it opens with."""
    prompt = json.loads((workflows.API_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if any(node["class_type"] == "CheckpointLoaderSimple" for node in prompt.values()):
        return workflows.PICTURE_FILE.read_bytes()
    outputs = client.run(prompt).outputs
    last = max((id for id in outputs if prompt[id]["class_type"] == "SaveImage"), key=int)
    return client.view(outputs[last]["images"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's pictures anew.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_server  # both need the host's interpreter
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (2 * (3 * SIDE + 3 * GAP), 2 * (SIDE + 34)), "white")
    draw = ImageDraw.Draw(sheet)
    with comfy_server.running(host, threads=1) as client:
        for number, (scene, text, moves) in enumerate(EDITS):
            pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in edited(client, scene, text, moves)]
            left, top = number % 2 * (3 * SIDE + 3 * GAP), number // 2 * (SIDE + 34)
            for column, picture in enumerate(pictures):
                sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left + column * (SIDE + GAP // 2), top))
            draw.text((left, top + SIDE + 6), f"\u201c{text}\u201d", fill="black", font=font)
        for name in (build.__name__ for build in workflows.WORKFLOWS):
            picture = Image.open(io.BytesIO(result(client, name))).convert("RGB")
            picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS).save(workflows.FOLDER / f"{name}.jpg", quality=88)
    OUT.parent.mkdir(exist_ok=True)
    sheet.save(OUT)
    print(OUT, *sorted(workflows.FOLDER.glob("*.jpg")), sep="\n")


if __name__ == "__main__":
    main()
