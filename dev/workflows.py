"""The example workflows, described once and written in both forms.

    python dev/workflows.py           # rewrites example_workflows/*.json (what a person opens) and api/*.json (what POST /prompt takes)

Input names, their order, defaults and output slots are read from a running server, so that the files hold what the
frontend itself would save. A test checks that the committed files are the ones this makes.
"""

from __future__ import annotations

import argparse
import json
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import comfyui

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
API_FOLDER = FOLDER / "api"

# The file ComfyUI's own SD1.5 templates name; `properties.models` makes the frontend offer the download.
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors?download=true",
    "directory": "checkpoints",
}
PICTURE = "dog.png"

# The scene and the edit that the drawn world opens with.
SCENE = {"seed": 14}
SCENE_TEXT = "a blue dog lying in the snow, in the middle, facing left, sun, tree"

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, GAP, TITLE = 380, 30, 70


@dataclass(frozen=True, eq=False)
class Node:
    id: int
    type: str
    inputs: dict
    title: str | None

    def __getitem__(self, output: str) -> Link:
        return Link(self, output)


@dataclass(frozen=True)
class Link:
    """An output of a node, by the name the server gives it."""

    node: Node
    output: str


@dataclass
class Stage:
    """A column of the canvas: a group with a note that explains it and its nodes from top to bottom."""

    title: str
    note: str
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Workflow:
    name: str
    stages: list[Stage] = field(default_factory=list)

    def stage(self, title: str, note: str) -> None:
        self.stages.append(Stage(title, note))

    def add(self, type: str, title: str | None = None, **inputs) -> Node:
        """A node in the newest stage. Inputs are Links or values; a value left out takes the server's default."""
        node = Node(len(self.nodes()) + 1, type, inputs, title)
        self.stages[-1].nodes.append(node)
        return node

    def nodes(self) -> list[Node]:
        return [node for stage in self.stages for node in stage.nodes]


# --- the workflows --------------------------------------------------------------------------------------------------

MODEL_NOTE = """\
Pick a **Stable Diffusion 1.x or 2.x checkpoint**, load a **picture**, and write what it **should become**: the whole
scene after the change, not an order. The picture itself needs no caption.

- The picture is brought to about 512 x 512 pixels, keeping its proportions. A bigger `megapixels` costs more time and memory.
- The negative text stays empty, as in the paper."""

INVERT_NOTE = """\
Finds the noise this picture comes from, then **tunes the embedding of your target text**, step by step, until the model
redraws the picture with it. This is the slow stage, and it runs only once: changes further right do not repeat it.

**The reconstruction should look like your picture.** If it does not, raise `iterations` (to 10) or `learning_rate` (to 0.002)."""

TRANSITION_NOTE = """\
Blends the tuned text back towards the plain target text over the steps: `eta` 1 is the picture as it was, 0 is the text alone.
It starts at `eta_start` (layout, kept) and ends at `eta_end` (detail, free).

- The shape or pose does not change: lower `eta_start` to 0.6.
- Only style, colour or background should change: open the workflow `baret_rigid_edit`."""

EDIT_NOTE = """\
Samples the edit, borrowing attention from the other two: where things are from the **reconstruction** (`tau_sa`), what is
where from the **transition** (`tau_ca`).

- Too little of the picture is left: raise `tau_sa` (to 0.4).
- Too little changed: lower `tau_sa` (to 0.2).
- Connect a `mask` (white may change) to keep the rest as it is."""


def _inputs(w: Workflow, text: str) -> tuple[Node, Node, Node, Node]:
    """The first stage of every workflow: checkpoint, target text, negative text, encoded picture."""
    w.stage("1. Model, picture, words", MODEL_NOTE)
    loader = w.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    image = w.add("LoadImage", "Your picture", image=PICTURE)
    scaled = w.add("ImageScaleToTotalPixels", image=image["IMAGE"], upscale_method="lanczos", megapixels=0.25, resolution_steps=64)
    latent = w.add("VAEEncode", pixels=scaled["IMAGE"], vae=loader["VAE"])
    target = w.add("CLIPTextEncode", "Target text", clip=loader["CLIP"], text=text)
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=loader["CLIP"], text="")
    return loader, target, negative, latent


def _invert(w: Workflow, loader: Node, target: Node, negative: Node, latent: Node) -> Node:
    """The second stage: TTIS Inversion with a preview of its reconstruction."""
    w.stage("2. Invert", INVERT_NOTE)
    ttis = w.add("BaretTTISInversion", model=loader["MODEL"], positive=target["CONDITIONING"],
                 negative=negative["CONDITIONING"], latent=latent["LATENT"])
    decoded = w.add("VAEDecode", samples=ttis["reconstruction"], vae=loader["VAE"])
    w.add("PreviewImage", "Reconstruction", images=decoded["IMAGE"])
    return ttis


def _edit(w: Workflow, loader: Node, ttis: Node, embeddings: Node, name: str, title: str = "Edit") -> None:
    bam = w.add("BaretBAMEdit", model=loader["MODEL"], trajectory=ttis["trajectory"], embeddings=embeddings["embeddings"])
    decoded = w.add("VAEDecode", samples=bam["edit"], vae=loader["VAE"])
    w.add("SaveImage", title, images=decoded["IMAGE"], filename_prefix=name)


def baret_edit() -> Workflow:
    w = Workflow("baret_edit")
    loader, target, negative, latent = _inputs(w, "a dog jumping over a meadow, mountains behind")
    ttis = _invert(w, loader, target, negative, latent)
    w.stage("3. Let the shape change", TRANSITION_NOTE)
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"])
    w.stage("4. Edit", EDIT_NOTE)
    _edit(w, loader, ttis, transition, "baret/edit")
    return w


def baret_rigid_edit() -> Workflow:
    w = Workflow("baret_rigid_edit")
    loader, target, negative, latent = _inputs(w, "a watercolor painting of a dog on a meadow, mountains behind")
    ttis = _invert(w, loader, target, negative, latent)
    w.stage("3. Edit", """\
For changes of **style, colour, background or kind of object**, where every shape stays. The embeddings go straight from the
inversion into the edit: that is `eta` 1 throughout, so attention comes from the picture as it was.

- Too little changed: lower `tau_ca` (to 0.4), then `tau_sa` (to 0.2).
- A pose or shape should change too: open the workflow `baret_edit`.""")
    _edit(w, loader, ttis, ttis, "baret/rigid")
    return w


def baret_stock_sampler() -> Workflow:
    w = Workflow("baret_stock_sampler")
    loader, target, negative, latent = _inputs(w, "a dog jumping over a meadow, mountains behind")
    ttis = _invert(w, loader, target, negative, latent)
    w.stage("3. Let the shape change", TRANSITION_NOTE)
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"])
    w.stage("4. Hand over to a stock sampler", """\
`Embeddings to Sampler` turns an inversion into what stock nodes take: a conditioning with one entry per step, the noise
levels, and the picture's own noise to start from. From here on any node for conditionings or sampling can be put in between.

`process` says what is sampled: `reconstruction` gives the picture of stage 2 again, `transition` the blend of stage 3, `target`
the plain text from the picture's noise. For the full edit with shared attention use `baret_edit`.

Keep the sampler at **euler**, the noise **disabled** and the cfg at that of the inversion.""")
    sampler_inputs = w.add("BaretToSampler", embeddings=transition["embeddings"], trajectory=ttis["trajectory"], process="reconstruction")
    guider = w.add("CFGGuider", model=loader["MODEL"], positive=sampler_inputs["positive"], negative=sampler_inputs["negative"], cfg=7.5)
    noise = w.add("DisableNoise")
    sampler = w.add("KSamplerSelect", sampler_name="euler")
    w.stage("5. Sample", "The picture should be the one of stage 2 while `process` is `reconstruction`.")
    sampled = w.add("SamplerCustomAdvanced", noise=noise["NOISE"], guider=guider["GUIDER"], sampler=sampler["SAMPLER"],
                    sigmas=sampler_inputs["sigmas"], latent_image=sampler_inputs["latent"])
    decoded = w.add("VAEDecode", samples=sampled["output"], vae=loader["VAE"])
    w.add("SaveImage", "Sampled by stock nodes", images=decoded["IMAGE"], filename_prefix="baret/stock")
    return w


def baret_invert_once() -> Workflow:
    w = Workflow("baret_invert_once")
    loader, target, negative, latent = _inputs(w, "a dog jumping over a meadow, mountains behind")
    ttis = _invert(w, loader, target, negative, latent)
    w.stage("3. Keep the inversion", """\
Writes the inversion to the output folder. `Load Inversion` reads it back in another workflow or on another day, in place of
stage 2, with the same checkpoint.""")
    w.add("BaretSaveInversion", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.stage("4. The edit it was inverted for", "As in `baret_edit`: blend, then sample with shared attention.")
    first = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"])
    _edit(w, loader, ttis, first, "baret/first", "First edit")
    w.stage("5. Another text, the same inversion", """\
Another target text goes into `positive` of Transition Embedding. **The inversion is not run again**: change this text and
queue as often as you like. It works best for texts close to the one that was inverted with.""")
    other = w.add("CLIPTextEncode", "Another target text", clip=loader["CLIP"], text="a dog sleeping on a meadow, mountains behind")
    second = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], positive=other["CONDITIONING"])
    _edit(w, loader, ttis, second, "baret/second", "Second edit")
    return w


def baret_drawn_world() -> Workflow:
    """The edit on the model that comes with the pack: it runs anywhere, in seconds."""
    w = Workflow("baret_drawn_world")
    w.stage("1. Model, picture, words", """\
Runs as it is, with **nothing to download**: a small model of the SD1.5 family that comes with this pack, and a scene to edit.

- Another `seed` is another scene; its caption says what is in it. Change a word of it, and that is your **target text**.
- The model knows dogs and cats that stand, sit, lie or jump, in six colours and five places. For photos open `baret_edit`.""")
    loader = w.add("BaretWorldLoader")
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
    latent = w.add("VAEEncode", pixels=scene["image"], vae=loader["vae"])
    target = w.add("CLIPTextEncode", "Target text", clip=loader["clip"], text=SCENE_TEXT)
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=loader["clip"], text="")
    w.add("PreviewImage", "Before", images=scene["image"])
    w.stage("2. Invert", INVERT_NOTE.split("\n\n")[0] + """

**The reconstruction should look like the picture.** A small model wants a higher `learning_rate` than SD1.5 (0.01) and fewer
`steps` (25: with more, poses change less).""")
    ttis = w.add("BaretTTISInversion", model=loader["model"], positive=target["CONDITIONING"], negative=negative["CONDITIONING"],
                 latent=latent["LATENT"], steps=25, learning_rate=0.01)
    decoded = w.add("VAEDecode", samples=ttis["reconstruction"], vae=loader["vae"])
    w.add("PreviewImage", "Reconstruction", images=decoded["IMAGE"])
    w.stage("3. Let the shape change", TRANSITION_NOTE)
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"])
    w.stage("4. Edit", EDIT_NOTE)
    bam = w.add("BaretBAMEdit", model=loader["model"], trajectory=ttis["trajectory"], embeddings=transition["embeddings"])
    decoded = w.add("VAEDecode", samples=bam["edit"], vae=loader["vae"])
    w.add("SaveImage", "Edit", images=decoded["IMAGE"], filename_prefix="baret/drawn")
    return w


WORKFLOWS = (baret_edit, baret_rigid_edit, baret_stock_sampler, baret_invert_once, baret_drawn_world)


# --- the two forms --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One input of a node as /object_info lists it."""

    name: str
    type: str
    options: dict
    optional: bool

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGETS

    def value(self, node: Node):
        """What the widget shows: the node's value, else the server's default (a combo's first entry if it names none)."""
        if self.name in node.inputs:
            return node.inputs[self.name]
        return self.options["default"] if "default" in self.options else self.options["options"][0]


def _schema(info: dict, node: Node) -> list[Input]:
    """The inputs of a node in the server's order. The older form of a combo is its list of options in the type's place."""
    found = []
    for section in ("required", "optional"):
        for name in info[node.type]["input_order"].get(section, []):
            type, *rest = info[node.type]["input"][section][name]
            options = dict(rest[0]) if rest else {}
            if isinstance(type, list):
                type, options = "COMBO", {**options, "options": type}
            found.append(Input(name, type, options, section == "optional"))
    unknown = set(node.inputs) - {i.name for i in found}
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return found


def _slot(info: dict, link: Link) -> int:
    return info[link.node.type]["output_name"].index(link.output)


def api_form(workflow: Workflow, info: dict) -> dict:
    """What POST /prompt takes, as the frontend's "Export (API)" writes it."""
    prompt = {}
    for node in workflow.nodes():
        inputs = {}
        for i in _schema(info, node):
            if i.is_widget:
                inputs[i.name] = i.value(node)
            elif link := node.inputs.get(i.name):
                inputs[i.name] = [str(link.node.id), _slot(info, link)]
        prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type,
                                "_meta": {"title": node.title or info[node.type]["display_name"]}}
    return prompt


def ui_form(workflow: Workflow, info: dict) -> dict:
    """What the frontend opens and saves: nodes with places, links, groups and notes."""
    nodes, links, groups = {}, [], []
    for node in workflow.nodes():
        entry = nodes[node.id] = _ui_node(node, info)
        for slot, i in enumerate(i for i in _schema(info, node) if not i.is_widget):
            link = node.inputs.get(i.name)
            number = None
            if link is not None:
                number, source = len(links) + 1, _slot(info, link)
                links.append([number, link.node.id, source, node.id, slot, i.type])
                nodes[link.node.id]["outputs"][source]["links"].append(number)
            entry["inputs"].append({"name": i.name, "type": i.type, "link": number, **({"shape": 7} if i.optional else {})})
    x = 0
    for stage in workflow.stages:
        note = _ui_note(len(nodes) + 1, stage)
        nodes[note["id"]] = note
        y = TITLE
        for entry in [note, *(nodes[node.id] for node in stage.nodes)]:
            entry["pos"] = [x + GAP // 2, y]
            y += entry["size"][1] + GAP + 30  # a node's title bar lies above its position
        groups.append({"id": len(groups) + 1, "title": stage.title, "bounding": [x, 0, COLUMN + GAP, y - GAP],
                       "color": "#3f789e", "font_size": 24, "flags": {}})
        x += COLUMN + 3 * GAP
    for order, entry in enumerate(nodes.values()):  # every node follows those it takes from
        entry["order"] = order
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-baret/{workflow.name}")), "revision": 0,
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": list(nodes.values()), "links": links,
        "groups": groups, "config": {}, "extra": {"ds": {"scale": 0.6, "offset": [140, 110]}}, "version": 0.4,
    }


def _ui_node(node: Node, info: dict) -> dict:
    schema = _schema(info, node)
    described = info[node.type]
    widgets, height = [], 0
    for i in (i for i in schema if i.is_widget):
        widgets.append(i.value(node))
        height += 120 if i.options.get("multiline") else 26
        if i.options.get("image_upload"):
            widgets.append("image")  # the upload button is a widget of its own
            height += 26
        if i.options.get("control_after_generate"):
            widgets.append("fixed")  # so is what happens to a seed after a run
            height += 26
    height += 24 * max(len(schema) - sum(i.is_widget for i in schema), len(described["output"])) + 16
    if node.type in ("LoadImage", "PreviewImage", "SaveImage"):
        height += 300  # room for the picture
    ours = described["python_module"].startswith("custom_nodes")
    properties = {"Node name for S&R": node.type, "cnr_id": "comfyui-baret" if ours else "comfy-core"}
    if node.type == "CheckpointLoaderSimple":
        properties["models"] = [CHECKPOINT]
    return {
        "id": node.id, "type": node.type, "pos": [], "size": [COLUMN, height], "flags": {}, "order": 0, "mode": 0, "inputs": [],
        "outputs": [{"name": name, "type": type, "links": []} for name, type in zip(described["output_name"], described["output"])],
        **({"title": node.title} if node.title else {}), "properties": properties, "widgets_values": widgets,
    }


def _ui_note(id: int, stage: Stage) -> dict:
    text = re.sub(r"(?<!\n)\n(?![\n-])", " ", stage.note)  # paragraphs and list items are wrapped only here in the source
    lines = sum(1 + len(line) // 50 for line in text.split("\n"))
    return {"id": id, "type": "MarkdownNote", "pos": [], "size": [COLUMN, 50 + 20 * lines], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [], "title": stage.title, "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#000"}


def files(info: dict) -> dict[Path, str]:
    """Path -> text of everything in `example_workflows/` that is made here."""
    made = {}
    for build in WORKFLOWS:
        workflow = build()
        for folder, form in ((FOLDER, ui_form), (API_FOLDER, api_form)):
            made[folder / f"{workflow.name}.json"] = json.dumps(form(workflow, info), indent=2, ensure_ascii=False) + "\n"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows.")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    import comfy_server  # needs the host's interpreter
    with comfy_server.running(host) as client:
        for path, text in files(client.object_info()).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
