"""Make the README's strip, the templates' thumbnails and the help pages' pictures anew, by a real server.

    python dev/gallery.py                # writes docs/edits.png, example_workflows/*.jpg and web/docs/*.png
    python dev/gallery.py baret_layer    # these templates' thumbnails alone

Each is a true output of the drawn world's model.
"""

from __future__ import annotations

import argparse
import io

import comfyui
import workflows

OUT = workflows.ROOT / "docs" / "edits.png"
HELP = workflows.ROOT / "web" / "docs"
SIDE, GAP = 192, 12

# Scene and target text.
EDITS = (
    (workflows.SCENE, workflows.SHORT_TEXT),
    (workflows.SCENE, "a red dog"),
    ({"seed": 1}, "a dog on a beach"),
    ({"seed": 8}, "a cat"),
)
COMPARISONS = ("baret_maps", "baret_compare", "baret_invert_once", "baret_imagic", "baret_clip", "baret_layer")
"""What they end in shows the picture as well."""
IN_A_ROW = {"baret_clip": 3, "baret_layer": 4}
"""Columns of the grids that are made wide, as a thumbnail is."""


def edited(client, scene: dict, text: str) -> list[bytes]:
    """The pictures before and after of one run of `baret_edit`."""
    prompt = workflows.example("baret_edit")
    by_title = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    by_title["Your picture"].update(scene)
    by_title["Target text"]["text"] = text
    return _before_and_after(client, prompt)


def _before_and_after(client, prompt: dict) -> list[bytes]:
    """The picture of an example and what its last node saves."""
    workflows.show_picture(prompt)
    outputs = client.run(prompt).outputs
    saved = (id for id in outputs if prompt[id]["class_type"] == "SaveImage")
    return [client.view(outputs[id]["images"][0]) for id in ("before", max(saved, key=int))]


def thumbnail(client, name: str):
    """Before and after of an example. One that waits for a checkpoint shows its picture and its text, or its edges."""
    from PIL import Image, ImageFilter, ImageOps

    prompt = workflows.example(name)
    if any(node["class_type"] == "CheckpointLoaderSimple" for node in prompt.values()):
        picture = Image.open(workflows.PICTURE_FILE).convert("RGB")
        (text,) = (node["inputs"]["text"] for node in prompt.values() if node["_meta"]["title"] == "Target text")
        by_edges = name == "baret_lora_controlnet"
        other = ImageOps.grayscale(picture).filter(ImageFilter.FIND_EDGES) if by_edges else written(text, picture.size)
        return beside([picture, other.convert("RGB")])
    if name in IN_A_ROW:
        (grid,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "BaretLabelledGrid")
        grid["columns"] = IN_A_ROW[name]
    pictures = [opened(data) for data in _before_and_after(client, prompt)]
    return ImageOps.contain(pictures[-1], (2 * SIDE, SIDE)) if name in COMPARISONS else beside(pictures)


def beside(pictures: list):
    """Pictures side by side, squares of one size."""
    from PIL import Image, ImageOps

    sheet = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS), (number * (SIDE + GAP), 0))
    return sheet


def written(text: str, size: tuple[int, int]):
    """A text on a dark ground, as large as it fits."""
    from PIL import Image, ImageDraw, ImageFont

    panel = Image.new("RGB", size, "#1e1e1e")
    middle = (size[0] / 2, size[1] / 2)
    font = ImageFont.load_default(size[0] / 9)
    ImageDraw.Draw(panel).text(middle, f"\u201c{text}\u201d", fill="white", font=font, anchor="mm")
    return panel


def looks(client) -> dict[str, bytes]:
    """The pictures of the nodes to look with, behind one run of `baret_paper`, by the names of their files."""
    prompt = workflows.example("baret_paper")
    ids = {node["class_type"]: id for id, node in prompt.items()}
    scene, transition = ids["BaretWorldScene"], ids["BaretTransitionEmbedding"]
    (shown,) = (node for node in prompt.values() if node["_meta"]["title"] == "Edit")
    enlarged, _ = shown["inputs"]["images"]
    edit = prompt[enlarged]["inputs"]["image"]
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
    """The README's sheet: for each of EDITS the pictures before and after, and the text under them."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = 2 * SIDE + 3 * GAP, SIDE + 34
    sheet = Image.new("RGB", (2 * width - 2 * GAP, 2 * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (scene, text) in enumerate(EDITS):
        left, top = number % 2 * width, number // 2 * height
        sheet.paste(beside([opened(data) for data in edited(client, scene, text)]), (left, top))
        draw.text((left, top + SIDE + 6), f"\u201c{text}\u201d", fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's pictures anew.")
    parser.add_argument("names", nargs="*", metavar="TEMPLATE", help="these alone")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    if unknown := set(options.names) - set(workflows.TITLES):
        parser.error(f"{min(unknown)} is not one of {', '.join(workflows.TITLES)}")
    host = comfyui.enter(options)
    import comfy_server  # both need the host's interpreter

    OUT.parent.mkdir(exist_ok=True)
    with comfy_server.running(host, threads=1) as client:
        for name in options.names or workflows.TITLES:
            thumbnail(client, name).save(workflows.FOLDER / f"{workflows.TITLES[name]}.jpg", quality=88)
        if options.names:
            return
        strips(client).save(OUT)
        for name, data in looks(client).items():
            opened(data).save(HELP / f"{name}.png", optimize=True)
    print(OUT, *sorted([*workflows.FOLDER.glob("*.jpg"), *HELP.glob("*.png")]), sep="\n")


if __name__ == "__main__":
    main()
