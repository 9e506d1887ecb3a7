"""The example workflows, described once and written in both forms, and the subgraph blueprint.

    python dev/workflows.py     # rewrites example_workflows/*.json (what a person opens), api/*.json (what POST /prompt takes) and subgraphs/*.json

Input names, their order, defaults and output slots are read from a running server, so that the files hold what the
frontend itself would save. A test checks that the committed files are the ones this makes.
"""

from __future__ import annotations

import argparse
import json
import re
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfyui

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
API_FOLDER = FOLDER / "api"
BLUEPRINTS = FOLDER.parent / "subgraphs"

# The file ComfyUI's own SD1.5 templates name; `properties.models` makes the frontend offer the download.
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors?download=true",
    "directory": "checkpoints",
}
CONTROLNET = {
    "name": "control_v11p_sd15_canny_fp16.safetensors",
    "url": "https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_canny_fp16.safetensors?download=true",
    "directory": "controlnet",
}
PICTURE_FILE = Path(__file__).resolve().parent / "assets" / "dog.png"
PICTURE = PICTURE_FILE.name

# The scene and the edit that the workflows open with.
SCENE = {"seed": 14}
SCENE_TEXT = "a blue dog lying in the snow, in the middle, facing left, sun, tree"
RIGID_TEXT = "a blue cat sitting in the snow, in the middle, facing left, sun, tree"
WORLD_INVERSION = {"steps": 25}
WORLD_ETAS = {"eta_start": 0.4, "eta_end": 0.0}  # what docs/evidence.md chose for poses on this world

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
INPUTS, OUTPUTS = -10, -20  # ids that the frontend gives to a subgraph's two sides
COLUMN, GAP, TITLE = 300, 20, 70
PICTURE_NODES = {
    "LoadImage": 300,
    "PreviewImage": 210,
    "SaveImage": 210,
    "MaskPreview": 210,
    "BaretLabelledGrid": 210,
    "BaretInversionReport": 250,
    "BaretEditSweep": 300,
    "BaretAttentionMaps": 300,
}  # room for the picture they show
LIVE = (
    "BaretTTISInversion",
    "BaretNullTextInversion",
    "BaretInversion",
    "BaretBAMEdit",
    "BaretPromptToPromptEdit",
    "BaretMasaCtrlEdit",
    "KSampler",
)  # show what they work on while they run
LIVE_ROOM = 250


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


@dataclass(frozen=True)
class Face:
    """A socket or a dial on the outside of a subgraph, for one or several inputs within; `value` is where a dial stands if not at the server's default."""

    name: str
    value: object = None


@dataclass
class Stage:
    """A group on the canvas: a note that explains it and, under it, its nodes in columns."""

    title: str
    note: str
    columns: list[list[Node]] = field(default_factory=lambda: [[]])


@dataclass
class Workflow:
    name: str
    stages: list[Stage] = field(default_factory=list)

    def stage(self, title: str, note: str) -> None:
        self.stages.append(Stage(title, note))

    def column(self) -> None:
        """Go on in a new column of the newest stage."""
        self.stages[-1].columns.append([])

    def add(self, type: str, title: str | None = None, **inputs) -> Node:
        """A node in the newest column. Inputs are Links or values; a value left out takes the server's default."""
        node = Node(len(self.nodes()) + 1, type, inputs, title)
        self.stages[-1].columns[-1].append(node)
        return node

    def nodes(self) -> list[Node]:
        return [node for stage in self.stages for column in stage.columns for node in column]


# --- the workflows --------------------------------------------------------------------------------------------------

WORLD_NOTE = """\
**Press Run**: it works as it is, with nothing to download, on a small model that comes with this pack and a drawn scene.

- Write into **Target text** what the picture *should become*: the whole scene, not an order. Dogs and cats that stand, sit,
lie or jump, in six colours and five places, are what this model knows. Another `seed` is another scene.
- **Your own photo**: open the workflow `baret_edit_photo`. Its nodes can take the place of *Load Drawn World* and *Drawn Scene*
here too; then set `steps` to 50."""

PHOTO_NOTE = """\
Pick a **Stable Diffusion 1.x or 2.x checkpoint**, load a **photo**, and write what it **should become**: the whole
scene after the change, not an order. The photo itself needs no caption.

- It is brought to about 512 x 512 pixels, keeping its proportions. A bigger `megapixels` costs more time and memory.
- The negative text stays empty, as in the paper."""

INVERT_NOTE = """\
Finds the noise this picture comes from, then **tunes the embedding of your target text**, step by step, until the model
redraws the picture with it. This is the slow stage, and it runs only once: changes further right do not repeat it.

**The reconstruction should look like your picture.** If it does not, raise `iterations` (to 3)."""

TRANSITION_NOTE = """\
Blends the tuned text back towards the plain target text: `eta` 1 is the picture as it was, 0 is the text alone.

- The shape or pose does not change: lower `eta_start` (0.6, then 0.4), then `eta_end`.
- Only colour, style or background should change: set both to 1."""

EDIT_NOTE = """\
Samples the edit, borrowing attention from the other two: where things are from the **reconstruction** (`tau_sa`), what is
where from the **transition** (`tau_ca`).

- Too little of the picture is left: raise `tau_sa` (to 0.4).
- Too little changed: lower `tau_sa` (to 0.2)."""


RIGID_NOTE = """\
For changes of **style, colour, background or kind of object**, where every shape stays. The embeddings go straight from the
inversion into the edit: that is `eta` 1 throughout, so attention comes from the picture as it was.

- Too little changed: lower `tau_ca` (to 0.4), then `tau_sa` (to 0.2).
- A pose or shape should change too: open the workflow `baret_edit`."""


@dataclass(frozen=True)
class Source:
    """What the first stage hands on: a model with its text and picture sides, and what to edit."""

    model: Link
    clip: Link
    vae: Link
    image: Link
    target: Link
    negative: Link
    latent: Link
    settings: dict  # of TTIS Inversion
    etas: dict  # of Transition Embedding, for a change of pose


def _texts(w: Workflow, clip: Link, text: str) -> tuple[Link, Link]:
    target = w.add("CLIPTextEncode", "Target text", clip=clip, text=text)
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=clip, text="")
    return target["CONDITIONING"], negative["CONDITIONING"]


def _world(w: Workflow, text: str) -> Source:
    """The first stage on the model that comes with the pack: it runs anywhere, in seconds."""
    w.stage("1. Model, picture, words", WORLD_NOTE)
    loader = w.add("BaretWorldLoader")
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
    w.add("PreviewImage", "Before", images=scene["image"])
    w.column()
    target, negative = _texts(w, loader["clip"], text)
    latent = w.add("VAEEncode", pixels=scene["image"], vae=loader["vae"])
    return Source(
        loader["model"],
        loader["clip"],
        loader["vae"],
        scene["image"],
        target,
        negative,
        latent["LATENT"],
        WORLD_INVERSION,
        WORLD_ETAS,
    )


def _photo(w: Workflow, text: str, lora: str | None = None) -> Source:
    """The first stage on a checkpoint and a photo."""
    w.stage("1. Model, picture, words", PHOTO_NOTE)
    loader = model = w.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    if lora:
        model = w.add(
            "LoraLoader",
            model=loader["MODEL"],
            clip=loader["CLIP"],
            lora_name=lora,
            strength_model=0.8,
            strength_clip=0.8,
        )
    image = w.add("LoadImage", "Your picture", image=PICTURE)
    w.column()
    target, negative = _texts(w, model["CLIP"], text)
    scaled = w.add(
        "ImageScaleToTotalPixels", image=image["IMAGE"], upscale_method="lanczos", megapixels=0.25, resolution_steps=64
    )
    latent = w.add("VAEEncode", pixels=scaled["IMAGE"], vae=loader["VAE"])
    return Source(
        model["MODEL"], model["CLIP"], loader["VAE"], scaled["IMAGE"], target, negative, latent["LATENT"], {}, {}
    )


def _invert(w: Workflow, source: Source, title: str = "2. Invert") -> Node:
    """The stage of TTIS Inversion, with a preview of its reconstruction."""
    w.stage(title, INVERT_NOTE)
    ttis = w.add(
        "BaretTTISInversion",
        model=source.model,
        positive=source.target,
        negative=source.negative,
        latent=source.latent,
        **source.settings,
    )
    decoded = w.add("VAEDecode", samples=ttis["reconstruction"], vae=source.vae)
    w.add("PreviewImage", "Reconstruction", images=decoded["IMAGE"])
    return ttis


def _transition(w: Workflow, source: Source, ttis: Node) -> Node:
    w.stage("3. Let the shape change", TRANSITION_NOTE)
    return w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas)


def _edit(w: Workflow, source: Source, ttis: Node, embeddings: Node, name: str, title: str = "Edit", **dials) -> Link:
    bam = w.add(
        "BaretBAMEdit", model=source.model, trajectory=ttis["trajectory"], embeddings=embeddings["embeddings"], **dials
    )
    w.column()
    decoded = w.add("VAEDecode", samples=bam["edit"], vae=source.vae)
    w.add("SaveImage", title, images=decoded["IMAGE"], filename_prefix=f"baret/{name}")
    return decoded["IMAGE"]


def _full_edit(w: Workflow, source: Source) -> None:
    ttis = _invert(w, source)
    transition = _transition(w, source, ttis)
    w.stage(
        "4. Edit",
        EDIT_NOTE
        + """
- Connect a `mask` (white may change) to keep the rest as it is.""",
    )
    edited = _edit(w, source, ttis, transition, "edit")
    both = w.add("ImageStitch", image1=source.image, image2=edited, direction="right", spacing_width=8)
    w.add("PreviewImage", "Before and after", images=both["IMAGE"])


def baret_edit() -> Workflow:
    w = Workflow("baret_edit")
    _full_edit(w, _world(w, SCENE_TEXT))
    return w


def baret_edit_photo() -> Workflow:
    w = Workflow("baret_edit_photo")
    _full_edit(w, _photo(w, "a dog jumping over a meadow, mountains behind"))
    return w


def baret_rigid_edit() -> Workflow:
    w = Workflow("baret_rigid_edit")
    source = _world(w, RIGID_TEXT)
    ttis = _invert(w, source)
    w.stage("3. Edit", RIGID_NOTE)
    _edit(w, source, ttis, ttis, "rigid")
    return w


def baret_masked_edit() -> Workflow:
    w = Workflow("baret_masked_edit")
    source = _world(w, SCENE_TEXT)
    ttis = _invert(w, source)
    transition = _transition(w, source, ttis)
    w.stage(
        "4. Where it may change",
        """\
White may change; **everything else is kept as it was, at every step**. Here the scene's own mask of the animal, grown so that the
new pose has room. For a photo: right-click the picture, *Open in Mask Editor*, paint, and connect the mask of *Load Image*.""",
    )
    grown = w.add("GrowMask", mask=source.image.node["mask"], expand=24, tapered_corners=True)
    w.add("MaskPreview", "May change", mask=grown["MASK"])
    w.stage("5. Edit", EDIT_NOTE)
    _edit(w, source, ttis, transition, "masked", mask=grown["MASK"])
    return w


def baret_stock_sampler() -> Workflow:
    w = Workflow("baret_stock_sampler")
    source = _world(w, SCENE_TEXT)
    ttis = _invert(w, source)
    transition = _transition(w, source, ttis)
    w.stage(
        "4. Hand over to a stock sampler",
        """\
`Embeddings to Sampler` turns an inversion into what stock nodes take: a conditioning with one entry per step, the noise
levels, and the picture's own noise to start from. Any node for conditionings or sampling can be put in between.

`process` says what is sampled: `reconstruction` gives the picture of stage 2 again, `transition` the blend of stage 3, `target`
the plain text from the picture's noise. For the full edit with shared attention use `baret_edit`.

Keep the sampler at **euler**, the noise **disabled** and the cfg at that of the inversion.""",
    )
    sampler_inputs = w.add(
        "BaretToSampler", embeddings=transition["embeddings"], trajectory=ttis["trajectory"], process="reconstruction"
    )
    guider = w.add(
        "CFGGuider",
        model=source.model,
        positive=sampler_inputs["positive"],
        negative=sampler_inputs["negative"],
        cfg=7.5,
    )
    w.column()
    noise = w.add("DisableNoise")
    sampler = w.add("KSamplerSelect", sampler_name="euler")
    w.stage("5. Sample", "The picture should be the one of stage 2 while `process` is `reconstruction`.")
    sampled = w.add(
        "SamplerCustomAdvanced",
        noise=noise["NOISE"],
        guider=guider["GUIDER"],
        sampler=sampler["SAMPLER"],
        sigmas=sampler_inputs["sigmas"],
        latent_image=sampler_inputs["latent"],
    )
    decoded = w.add("VAEDecode", samples=sampled["output"], vae=source.vae)
    w.add("SaveImage", "Sampled by stock nodes", images=decoded["IMAGE"], filename_prefix="baret/stock")
    return w


def baret_sweep() -> Workflow:
    w = Workflow("baret_sweep")
    source = _world(w, SCENE_TEXT)
    ttis = _invert(w, source)
    w.stage(
        "3. All dials at once",
        """\
The best `eta` and `tau_sa` differ from picture to picture. Here each row is an eta, each column a tau, and your picture stands in the corner; rows appear as they are done.

- **Pick the best cell** and put its numbers into *Transition Embedding* and *BAM Edit* of `baret_edit`.
- Nothing keeps enough of the picture: add higher taus (0.5). Nothing changes enough: add lower etas (0.2-0).""",
    )
    sweep = w.add(
        "BaretEditSweep",
        model=source.model,
        trajectory=ttis["trajectory"],
        embeddings=ttis["embeddings"],
        vae=source.vae,
        eta_ranges="1, 0.8-0.1, 0.4-0",
        tau_sa="0.1, 0.2, 0.3, 0.4",
    )
    w.column()
    w.add("SaveImage", "All edits", images=sweep["grid"], filename_prefix="baret/sweep")
    return w


def baret_maps() -> Workflow:
    w = Workflow("baret_maps")
    source = _world(w, SCENE_TEXT)
    ttis = _invert(w, source)
    w.stage(
        "3. Look back, and blend",
        """\
*Inversion Report*: a line far above the dashed threshold, or one that climbs: raise `iterations` to 3. Bright spots are what an edit cannot keep.

*Transition Embedding* as in `baret_edit`.""",
    )
    w.add("BaretInversionReport", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas)
    w.stage(
        "4. Where does each word look?",
        """\
Heat over the picture, for each of `words` (empty: all): in the reconstruction, the transition and the edit. A word that is to change the pose should be hot
**where the new pose is**, in the transition already.

- It looks only at the old place: lower `eta_start`.
- A word that should stay (tree, snow) moves: raise `eta_start`, or `tau_sa`.""",
    )
    maps = w.add(
        "BaretAttentionMaps",
        model=source.model,
        trajectory=ttis["trajectory"],
        embeddings=transition["embeddings"],
        clip=source.clip,
        vae=source.vae,
        text=SCENE_TEXT,
        words="dog, lying, snow, tree",
    )
    w.column()
    w.add("SaveImage", "Maps", images=maps["maps"], filename_prefix="baret/maps")
    return w


def baret_lora_controlnet() -> Workflow:
    w = Workflow("baret_lora_controlnet")
    source = _photo(w, "a watercolor painting of a dog on a meadow, mountains behind", lora="your_style.safetensors")
    w.stage(
        "2. LoRA and ControlNet",
        """\
What is on the model and on the text counts in the inversion *and* in the edit, so both stay in step.

- **LoRA**: choose one for SD1.x in *Load LoRA* of stage 1.
- **ControlNet** hangs on the target text. With the picture's own edges it holds the shapes; with a drawing of the new pose as its image it asks for that.
- Without one of them: right-click it and choose *Bypass*.""",
    )
    net = w.add("ControlNetLoader", control_net_name=CONTROLNET["name"])
    edges = w.add("Canny", image=source.image)
    controlled = w.add(
        "ControlNetApplyAdvanced",
        positive=source.target,
        negative=source.negative,
        control_net=net["CONTROL_NET"],
        image=edges["IMAGE"],
        strength=0.6,
    )
    source = replace(source, target=controlled["positive"], negative=controlled["negative"])
    ttis = _invert(w, source, "3. Invert")
    w.stage("4. Edit", RIGID_NOTE)
    _edit(w, source, ttis, ttis, "lora_controlnet")
    return w


def baret_invert_once() -> Workflow:
    w = Workflow("baret_invert_once")
    source = _world(w, SCENE_TEXT)
    ttis = _invert(w, source)
    w.stage(
        "3. Keep the inversion",
        """\
Writes the inversion to the output folder. `Load Inversion` reads it back in another workflow or on another day, in place of
stage 2, with the same checkpoint.""",
    )
    w.add("BaretSaveInversion", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.stage("4. The edit it was inverted for", "As in `baret_edit`: blend, then sample with shared attention.")
    first = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas)
    _edit(w, source, ttis, first, "first", "First edit")
    w.stage(
        "5. Another text, the same inversion",
        """\
Another target text goes into `positive` of Transition Embedding. **The inversion is not run again**: change this text and
queue as often as you like. It works best for texts close to the one that was inverted with.""",
    )
    other = w.add("CLIPTextEncode", "Another target text", clip=source.clip, text=SCENE_TEXT.replace("blue", "red"))
    second = w.add(
        "BaretTransitionEmbedding", embeddings=ttis["embeddings"], positive=other["CONDITIONING"], **source.etas
    )
    _edit(w, source, ttis, second, "second", "Second edit")
    return w


def baret_compare() -> Workflow:
    """One picture and one text through BARET and the methods it is measured against, side by side."""
    w = Workflow("baret_compare")
    w.stage(
        "1. Model, picture, words",
        """\
**Press Run**: it works as it is, with nothing to download. The same picture and the same words go through five methods; the grid on the right shows all.

- **Target text** is what the picture should become. The three methods in the middle also need a text of the picture *as it is*: the caption of the
scene, for a photo your own description.
- **Your own photo**: put *Load Checkpoint*, *Load Image* and *VAE Encode* in place of *Load Drawn World* and *Drawn Scene*; then set `steps` to 50 and `first_block` to 10.""",
    )
    loader = w.add("BaretWorldLoader")
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
    w.add("PreviewImage", "Before", images=scene["image"])
    w.column()
    words = w.add("PrimitiveStringMultiline", "Target text", value=SCENE_TEXT)
    target = w.add("CLIPTextEncode", "Target", clip=loader["clip"], text=words["STRING"])
    described = w.add("CLIPTextEncode", "The picture as it is", clip=loader["clip"], text=scene["caption"])
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=loader["clip"], text="")
    latent = w.add("VAEEncode", pixels=scene["image"], vae=loader["vae"])
    steps = WORLD_INVERSION["steps"]
    inverted = {"model": loader["model"], "negative": negative["CONDITIONING"], "latent": latent["LATENT"]}
    texts = {"clip": loader["clip"], "target_text": words["STRING"]}

    w.stage("2. BARET", "Tunes the *target* text; needs no text of the picture. Stages as in `baret_edit`.")
    ttis = w.add(
        "BaretTTISInversion",
        positive=target["CONDITIONING"],
        **inverted,
        **WORLD_INVERSION,
        step_rule="adam",
        iterations=5,
        learning_rate=0.01,
    )
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"])
    bam = w.add(
        "BaretBAMEdit", model=loader["model"], trajectory=ttis["trajectory"], embeddings=transition["embeddings"]
    )

    w.stage(
        "3. Null-text inversion, prompt-to-prompt",
        """\
Tunes the *negative*; words that both texts have keep the attention they have in the picture. `step_rule` adam with 10 `iterations` is the published one: closer,
and four times as slow.""",
    )
    null = w.add(
        "BaretNullTextInversion",
        positive=described["CONDITIONING"],
        **inverted,
        steps=steps,
        iterations=1,
        step_rule="secant_memory",
    )
    p2p = w.add(
        "BaretPromptToPromptEdit",
        model=loader["model"],
        trajectory=null["trajectory"],
        embeddings=null["embeddings"],
        **texts,
        source_text=scene["caption"],
        self_share=0.4,
        blend_words="dog",
    )

    w.stage("4. Direct inversion, MasaCtrl", "Nothing is tuned; the new layout is filled with the picture's content.")
    direct = w.add("BaretInversion", positive=described["CONDITIONING"], **inverted, steps=steps)
    masactrl = w.add(
        "BaretMasaCtrlEdit",
        model=loader["model"],
        trajectory=direct["trajectory"],
        embeddings=direct["embeddings"],
        **texts,
        start_step=2,
        first_block=5,
    )

    w.stage(
        "5. Stock nodes: SDEdit, Blended Diffusion",
        """\
**SDEdit** adds noise (`denoise`) and samples the target text. **Blended Diffusion** samples it from noise inside a mask and keeps the picture around it, at every step.""",
    )
    stock = {
        "model": loader["model"],
        "positive": target["CONDITIONING"],
        "negative": negative["CONDITIONING"],
        "seed": 0,
        "steps": steps,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "ddim_uniform",
    }
    sdedit = w.add("KSampler", "SDEdit", **stock, latent_image=latent["LATENT"], denoise=0.7)
    w.column()
    grown = w.add("GrowMask", mask=scene["mask"], expand=24, tapered_corners=True)
    inside = w.add("SetLatentNoiseMask", samples=latent["LATENT"], mask=grown["MASK"])
    blended = w.add("KSampler", "Blended Diffusion", **stock, latent_image=inside["LATENT"], denoise=1.0)

    w.stage(
        "6. Side by side",
        "Which keeps the picture, and which obeys the text? Change the target text, or the scene's `seed` (then also the text), and run again.",
    )
    edits = [
        w.add("VAEDecode", samples=samples, vae=loader["vae"])["IMAGE"]
        for samples in (bam["edit"], p2p["edit"], masactrl["edit"], sdedit["LATENT"], blended["LATENT"])
    ]
    w.column()
    grid = w.add(
        "BaretLabelledGrid",
        labels="the picture\nBARET\nnull-text + prompt-to-prompt\ndirect + MasaCtrl\nSDEdit\nBlended Diffusion",
        **{f"image_{number}": image for number, image in enumerate([scene["image"], *edits], 1)},
    )
    w.add("SaveImage", "All methods", images=grid["grid"], filename_prefix="baret/compare")
    return w


def baret_blueprint() -> tuple[Workflow, str, dict[str, Link], str]:
    """The whole edit as one node: its inside, its face, its outputs and what it says of itself."""
    w = Workflow("BARET Edit")
    model, clip, vae = Face("model"), Face("clip"), Face("vae")
    w.stage(
        "1. Picture and words",
        "The picture is brought to `megapixels` with its proportions kept. The target text is the one on the node's face.",
    )
    scaled = w.add(
        "ImageScaleToTotalPixels",
        image=Face("image"),
        upscale_method="lanczos",
        megapixels=Face("megapixels", 0.25),
        resolution_steps=64,
    )
    latent = w.add("VAEEncode", pixels=scaled["IMAGE"], vae=vae)
    w.column()
    target = w.add("CLIPTextEncode", "Target text", clip=clip, text=Face("text", ""))
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=clip, text="")
    w.stage("2. Invert", INVERT_NOTE)
    cfg = Face("cfg")
    ttis = w.add(
        "BaretTTISInversion",
        model=model,
        positive=target["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent["LATENT"],
        steps=Face("steps"),
        iterations=Face("iterations"),
        cfg=cfg,
    )
    redrawn = w.add("VAEDecode", samples=ttis["reconstruction"], vae=vae)
    w.stage("3. Let the shape change", TRANSITION_NOTE)
    transition = w.add(
        "BaretTransitionEmbedding", embeddings=ttis["embeddings"], eta_start=Face("eta_start"), eta_end=Face("eta_end")
    )
    w.stage("4. Edit", EDIT_NOTE)
    bam = w.add(
        "BaretBAMEdit",
        model=model,
        trajectory=ttis["trajectory"],
        embeddings=transition["embeddings"],
        tau_sa=Face("tau_sa"),
        tau_ca=Face("tau_ca"),
        cfg=cfg,
    )
    edited = w.add("VAEDecode", samples=bam["edit"], vae=vae)
    return (
        w,
        "image model clip vae text eta_start eta_end tau_sa tau_ca cfg steps iterations megapixels",
        {"edit": edited["IMAGE"], "reconstruction": redrawn["IMAGE"]},
        (
            "Edits a picture by words alone: write what it should become. Set both etas to 1 where shapes should stay. SD1.x and SD2.x models."
        ),
    )


WORKFLOWS = (
    baret_edit,
    baret_edit_photo,
    baret_rigid_edit,
    baret_masked_edit,
    baret_invert_once,
    baret_sweep,
    baret_maps,
    baret_stock_sampler,
    baret_lora_controlnet,
    baret_compare,
)


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
        """What the widget shows: the node's value, else the server's default (a combo's first entry if it names none, no text where it has no entries)."""
        given = node.inputs.get(self.name)
        if isinstance(given, Face):
            given = given.value
        if given is not None and not isinstance(given, Link):
            return given
        return self.options["default"] if "default" in self.options else self.options.get("options", [""])[0]


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
            link = node.inputs.get(i.name)
            if isinstance(link, Link):
                inputs[i.name] = [str(link.node.id), _slot(info, link)]
            elif i.is_widget:
                inputs[i.name] = i.value(node)
        prompt[str(node.id)] = {
            "inputs": inputs,
            "class_type": node.type,
            "_meta": {"title": node.title or info[node.type]["display_name"]},
        }
    return prompt


def ui_form(workflow: Workflow, info: dict) -> dict:
    """What the frontend opens and saves: nodes with places, links, groups and notes."""
    nodes, links = {}, []
    for node in workflow.nodes():
        entry = nodes[node.id] = _ui_node(node, info)
        for slot, i in enumerate(
            i for i in _schema(info, node) if not i.is_widget or isinstance(node.inputs.get(i.name), Link)
        ):
            link = node.inputs.get(i.name)
            number = None
            if link is not None:
                number, source = len(links) + 1, _slot(info, link)
                links.append([number, link.node.id, source, node.id, slot, i.type])
                nodes[link.node.id]["outputs"][source]["links"].append(number)
            entry["inputs"].append(_socket(i, number))
    groups = _place(workflow, nodes)
    for order, entry in enumerate(nodes.values()):  # every node follows those it takes from
        entry["order"] = order
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-baret/{workflow.name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [140, 110]}},
        "version": 0.4,
    }


def _socket(i: Input, link: int | None) -> dict:
    return {
        "name": i.name,
        "type": i.type,
        "link": link,
        **({"widget": {"name": i.name}} if i.is_widget else {"shape": 7} if i.optional else {}),
    }


def _place(workflow: Workflow, nodes: dict[int, dict]) -> list[dict]:
    """Give every node its place, add the notes to `nodes` and return the groups."""
    groups = []
    x = 0
    for stage in workflow.stages:
        width = len(stage.columns) * (COLUMN + GAP) - GAP
        note = _ui_note(len(nodes) + 1, stage, width)
        nodes[note["id"]] = note
        note["pos"] = [x + GAP, TITLE]
        top = bottom = TITLE + note["size"][1] + 2 * GAP  # a node's title bar lies above its position
        for number, column in enumerate(stage.columns):
            y = top
            for entry in (nodes[node.id] for node in column):
                entry["pos"] = [x + GAP + number * (COLUMN + GAP), y]
                y += entry["size"][1] + 2 * GAP
            bottom = max(bottom, y)
        groups.append(
            {
                "id": len(groups) + 1,
                "title": stage.title,
                "bounding": [x, 0, width + 2 * GAP, bottom - GAP],
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
        x += width + 3 * GAP
    return groups


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
    height += PICTURE_NODES.get(node.type, 0) + LIVE_ROOM * (node.type in LIVE)
    ours = described["python_module"].startswith("custom_nodes")
    properties = {"Node name for S&R": node.type, "cnr_id": "comfyui-baret" if ours else "comfy-core"}
    if model := {"CheckpointLoaderSimple": CHECKPOINT, "ControlNetLoader": CONTROLNET}.get(node.type):
        properties["models"] = [model]
    return {
        "id": node.id,
        "type": node.type,
        "pos": [],
        "size": [COLUMN, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [
            {"name": name, "type": type, "links": []}
            for name, type in zip(described["output_name"], described["output"])
        ],
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        "widgets_values": widgets,
    }


def _ui_note(id: int, stage: Stage, width: int) -> dict:
    text = re.sub(
        r"(?<!\n)\n(?![\n-])", " ", stage.note
    )  # paragraphs and list items are wrapped only here in the source
    lines = sum(1 + len(line) * 5 // width for line in text.split("\n"))  # a letter is about 5 wide
    return {
        "id": id,
        "type": "MarkdownNote",
        "pos": [],
        "size": [width, max(110, 60 + 14 * lines)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": stage.title,
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#000",
    }


def blueprint_form(workflow: Workflow, order: str, results: dict[str, Link], description: str, info: dict) -> dict:
    """A subgraph as the frontend publishes it: one node whose inside is the workflow, with its Faces (in `order`) and `results` outside."""
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-baret/subgraph/{workflow.name}"))
    nodes, links, faces = {}, [], {name: {"name": name, "linkIds": []} for name in order.split()}

    def connect(origin: int, slot: int, target: int, target_slot: int, type: str) -> int:
        links.append(
            {
                "id": len(links) + 1,
                "origin_id": origin,
                "origin_slot": slot,
                "target_id": target,
                "target_slot": target_slot,
                "type": type,
            }
        )
        if origin != INPUTS:
            nodes[origin]["outputs"][slot]["links"].append(len(links))
        return len(links)

    for node in workflow.nodes():
        entry = nodes[node.id] = _ui_node(node, info)
        for slot, i in enumerate(
            sorted(_schema(info, node), key=lambda i: i.is_widget)
        ):  # the frontend lists sockets first
            given, number = node.inputs.get(i.name), None
            if isinstance(given, Face):
                face = faces[given.name]
                face.update(type=i.type, widget=i.is_widget)
                number = connect(INPUTS, list(faces).index(given.name), node.id, slot, i.type)
                face["linkIds"].append(number)
            elif isinstance(given, Link):
                number = connect(given.node.id, _slot(info, given), node.id, slot, i.type)
            entry["inputs"].append(_socket(i, number))
    outputs = []
    for slot, (name, link) in enumerate(results.items()):
        type = info[link.node.type]["output"][_slot(info, link)]
        outputs.append(
            {"name": name, "type": type, "linkIds": [connect(link.node.id, _slot(info, link), OUTPUTS, slot, type)]}
        )
    groups = _place(workflow, nodes)
    for order, entry in enumerate(nodes.values()):
        entry["order"] = order
    right = max(group["bounding"][0] + group["bounding"][2] for group in groups)
    for column, sockets in ((-180, list(faces.values())), (right + 60, outputs)):
        for row, socket in enumerate(sockets):
            socket["id"] = str(uuid.uuid5(uuid.UUID(key), socket["name"]))
            socket["pos"] = [column, 90 + 20 * row]
    inputs = [{name: value for name, value in face.items() if name != "widget"} for face in faces.values()]
    outside = {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [COLUMN, 60 + 26 * len(faces)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": workflow.name,
        "inputs": [
            {
                "name": face["name"],
                "type": face["type"],
                "link": None,
                **({"widget": {"name": face["name"]}} if face["widget"] else {}),
            }
            for face in faces.values()
        ],
        "outputs": [{"name": output["name"], "type": output["type"], "links": []} for output in outputs],
        "properties": {"cnr_id": "comfyui-baret"},
        "widgets_values": [],
    }
    inside = {
        "id": key,
        "version": 1,
        "revision": 0,
        "config": {},
        "name": workflow.name,
        "description": description,
        "category": "BARET",
        "state": {"lastGroupId": len(groups), "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INPUTS, "bounding": [-220, 70, 120, 40 + 20 * len(faces)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 40, 70, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": groups,
        "links": links,
        "extra": {},
    }
    extra = {
        "BlueprintDescription": description,
        "BlueprintSearchAliases": ["BARET", "edit", "inversion", "prompt to prompt", "DDIM", "real image"],
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inside]},
        "extra": extra,
    }


def files(info: dict) -> dict[Path, str]:
    """Path -> text of everything that is made here."""
    made = {
        BLUEPRINTS / "BARET Edit.json": json.dumps(
            blueprint_form(*baret_blueprint(), info), indent=2, ensure_ascii=False
        )
        + "\n"
    }
    for build in WORKFLOWS:
        workflow = build()
        for folder, form in ((FOLDER, ui_form), (API_FOLDER, api_form)):
            made[folder / f"{workflow.name}.json"] = (
                json.dumps(form(workflow, info), indent=2, ensure_ascii=False) + "\n"
            )
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
