"""The example workflows and the subgraph blueprint, described once and written in all their forms.

    python dev/workflows.py    # writes example_workflows/*.json, example_workflows/api/*.json and subgraphs/*.json anew

`example_workflows/*.json` is what a person opens, `api/*.json` what POST /prompt takes. `graph.py` has what a workflow
is made of, `canvas.py` the forms. A test checks that the committed files are the ones this makes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import canvas
import comfyui
from graph import Blueprint, Face, Link, Node, Workflow

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"
API_FOLDER = FOLDER / "api"
BLUEPRINTS = ROOT / "subgraphs"

HUB = "https://huggingface.co"


def _download(repository: str, name: str, directory: str) -> dict:
    """A file of a repository, as the frontend offers it to whom has it not."""
    return {"name": name, "url": f"{HUB}/{repository}/resolve/main/{name}?download=true", "directory": directory}


CHECKPOINT = _download(  # the file that ComfyUI's own SD1.5 templates name
    "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors", "checkpoints"
)
CONTROLNET = _download(
    "comfyanonymous/ControlNet-v1-1_fp16_safetensors", "control_v11p_sd15_canny_fp16.safetensors", "controlnet"
)
PICTURE_FILE = Path(__file__).resolve().parent / "assets" / "dog.png"
PICTURE = PICTURE_FILE.name

# The scene and the edit that the workflows open with.
SCENE = {"seed": 14}
SCENE_TEXT = "a blue dog lying in the snow, in the middle, facing left, sun, tree"
RIGID_TEXT = "a blue cat sitting in the snow, in the middle, facing left, sun, tree"
SHORT_TEXT = "a dog lying"  # what is in the picture, and what is new
WORLD_INVERSION = {"steps": 25}
WORLD_ETAS = {"eta_start": 0.4, "eta_end": 0.0}  # what docs/evidence.md chose for poses on this world

# --- the workflows --------------------------------------------------------------------------------------------------

WORLD_NOTE = """\
**Press Run**: it works as it is, with nothing to download, on a small model that comes with this pack and a
drawn scene.

- Write into **Target text** what the picture *should become*: the whole scene, not an order. Dogs and cats that
stand, sit, lie or jump, in six colours and five places, are what this model knows. Another `seed` is another
scene.
- **Your own photo**: open the workflow `baret_edit_photo`. Its nodes can take the place of *Load Drawn World*
and *Drawn Scene* here too; then set `steps` to 50."""

PHOTO_NOTE = """\
Pick a **Stable Diffusion 1.x or 2.x checkpoint**, load a **photo**, and write what it **should become**: the
whole scene after the change, not an order. The photo itself needs no caption.

- It is brought to about 512 x 512 pixels, keeping its proportions. A bigger `megapixels` costs more time and
memory.
- The negative text stays empty, as in the paper."""

INVERT_NOTE = """\
Finds the noise this picture comes from, then **tunes the embedding of your target text**, step by step, until
the model redraws the picture with it. This is the slow stage, and it runs only once: changes further right do
not repeat it.

**The reconstruction should look like your picture.** If it does not, raise `iterations` (to 3)."""

TRANSITION_NOTE = """\
Blends the tuned text back towards the plain target text: `eta` 1 is the picture as it was, 0 is the text alone.

- The shape or pose does not change: lower `eta_start` (0.6, then 0.4), then `eta_end`.
- Only colour, style or background should change: set both to 1."""

EDIT_NOTE = """\
Samples the edit, borrowing attention from the other two: where things are from the **reconstruction**
(`tau_sa`), what is where from the **transition** (`tau_ca`).

- Too little of the picture is left: raise `tau_sa` (to 0.4).
- Too little changed: lower `tau_sa` (to 0.2)."""


AUTO_NOTE = """\
Tries a few edits side by side. As soon as they can be told apart, **the model itself says which of them obey your
text**, and the one that changes least goes on. Nothing is to be set.

- *What was chosen* says how sure the model is, and when none obeys. Then try another `seed`, more `effort`, or
other words.
- A `mask` (white may change) holds the edit to a place."""

SHORT_NOTE = """\
**Press Run**: it works as it is, with nothing to download, on a small model that comes with this pack and a
drawn scene.

- Write into **Target text** what is in the picture, and what is new: *a dog lying*, *a yellow dog*, *a dog on a
beach*. Nothing else is needed.
- Dogs and cats that stand, sit, lie or jump, in six colours and five places, are what this model knows. Another
`seed` of the scene is another scene."""

RIGID_NOTE = """\
For changes of **style, colour, background or kind of object**, where every shape stays. The embeddings go
straight from the inversion into the edit: that is `eta` 1 throughout, so attention comes from the picture as it
was.

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
    settings: dict = field(default_factory=dict)  # of TTIS Inversion
    etas: dict = field(default_factory=dict)  # of Transition Embedding, for a change of pose


def _texts(w: Workflow, clip: Link, text: str) -> tuple[Link, Link]:
    target = w.add("CLIPTextEncode", "Target text", clip=clip, text=text)
    negative = w.add("CLIPTextEncode", "Negative text (leave empty)", clip=clip, text="")
    return target["CONDITIONING"], negative["CONDITIONING"]


def _world(w: Workflow, text: str, note: str = WORLD_NOTE) -> Source:
    """The first stage on the model that comes with the pack: it runs anywhere, in seconds."""
    w.stage("1. Model, picture, words", note)
    loader = w.add("BaretWorldLoader")
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
    w.add("PreviewImage", "Before", images=scene["image"])
    w.column()
    target, negative = _texts(w, loader["clip"], text)
    latent = w.add("VAEEncode", pixels=scene["image"], vae=loader["vae"])
    return Source(
        model=loader["model"],
        clip=loader["clip"],
        vae=loader["vae"],
        image=scene["image"],
        target=target,
        negative=negative,
        latent=latent["LATENT"],
        settings=WORLD_INVERSION,
        etas=WORLD_ETAS,
    )


def _photo(w: Workflow, text: str, lora: str | None = None) -> Source:
    """The first stage on a checkpoint and a photo."""
    w.stage("1. Model, picture, words", PHOTO_NOTE)
    loader = model = w.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"], download=CHECKPOINT)
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
        model=model["MODEL"],
        clip=model["CLIP"],
        vae=loader["VAE"],
        image=scaled["IMAGE"],
        target=target,
        negative=negative,
        latent=latent["LATENT"],
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
    w.stage("4. Edit", f"{EDIT_NOTE}\n- Connect a `mask` (white may change) to keep the rest as it is.")
    edited = _edit(w, source, ttis, transition, "edit")
    both = w.add("ImageStitch", image1=source.image, image2=edited, direction="right", spacing_width=8)
    w.add("PreviewImage", "Before and after", images=both["IMAGE"])


def baret_edit() -> Workflow:
    w = Workflow("baret_edit")
    _full_edit(w, _world(w, SCENE_TEXT))
    return w


def baret_auto_edit() -> Workflow:
    w = Workflow("baret_auto_edit")
    source = _world(w, SHORT_TEXT, SHORT_NOTE)
    ttis = _invert(w, source)
    w.stage("3. Edit, with no dial", AUTO_NOTE)
    auto = w.add("BaretAutoEdit", model=source.model, trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.add("PreviewAny", "What was chosen", source=auto["report"])
    w.column()
    decoded = w.add("VAEDecode", samples=auto["edit"], vae=source.vae)
    w.add("SaveImage", "Edit", images=decoded["IMAGE"], filename_prefix="baret/auto")
    both = w.add("ImageStitch", image1=source.image, image2=decoded["IMAGE"], direction="right", spacing_width=8)
    w.add("PreviewImage", "Before and after", images=both["IMAGE"])
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
White may change; **everything else is kept as it was, at every step**. Here the scene's own mask of the animal,
grown so that the new pose has room. For a photo: right-click the picture, *Open in Mask Editor*, paint, and
connect the mask of *Load Image*.""",
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
`Embeddings to Sampler` turns an inversion into what stock nodes take: a conditioning with one entry per step,
the noise levels, and the picture's own noise to start from. Any node for conditionings or sampling can be put
in between.

`process` says what is sampled: `reconstruction` gives the picture of stage 2 again, `transition` the blend of
stage 3, `target` the plain text from the picture's noise. For the full edit with shared attention use
`baret_edit`.

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
The best `eta` and `tau_sa` differ from picture to picture. Here each row is an eta, each column a tau, and your
picture stands in the corner; rows appear as they are done.

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
*Inversion Report*: a line far above the dashed threshold, or one that climbs: raise `iterations` to 3. Bright
spots are what an edit cannot keep.

*Transition Embedding* as in `baret_edit`.""",
    )
    w.add("BaretInversionReport", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    transition = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas)
    w.stage(
        "4. Where does each word look?",
        """\
Heat over the picture, for each of `words` (empty: all): in the reconstruction, the transition and the edit. A
word that is to change the pose should be hot **where the new pose is**, in the transition already.

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
- **ControlNet** hangs on the target text. With the picture's own edges it holds the shapes; with a drawing of
the new pose as its image it asks for that.
- Without one of them: right-click it and choose *Bypass*.""",
    )
    net = w.add("ControlNetLoader", control_net_name=CONTROLNET["name"], download=CONTROLNET)
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
Writes the inversion to the output folder. `Load Inversion` reads it back in another workflow or on another day,
in place of stage 2, with the same checkpoint.""",
    )
    w.add("BaretSaveInversion", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.stage("4. The edit it was inverted for", "As in `baret_edit`: blend, then sample with shared attention.")
    first = w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas)
    _edit(w, source, ttis, first, "first", "First edit")
    w.stage(
        "5. Another text, the same inversion",
        """\
Another target text goes into `positive` of Transition Embedding. **The inversion is not run again**: change
this text and queue as often as you like. It works best for texts close to the one that was inverted with.""",
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
**Press Run**: it works as it is, with nothing to download. The same picture and the same words go through five
methods; the grid on the right shows all.

- **Target text** is what the picture should become. The three methods in the middle also need a text of the
picture *as it is*: the caption of the scene, for a photo your own description.
- **Your own photo**: put *Load Checkpoint*, *Load Image* and *VAE Encode* in place of *Load Drawn World* and
*Drawn Scene*; then set `steps` to 50 and `first_block` to 10.""",
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
Tunes the *negative*; words that both texts have keep the attention they have in the picture. `step_rule` adam
with 10 `iterations` is the published one: closer, and four times as slow.""",
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
**SDEdit** adds noise (`denoise`) and samples the target text. **Blended Diffusion** samples it from noise
inside a mask and keeps the picture around it, at every step.""",
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
        """\
Which keeps the picture, and which obeys the text? Change the target text, or the scene's `seed` (then also the
text), and run again.""",
    )
    pictures = [scene["image"]]
    for edit in (bam["edit"], p2p["edit"], masactrl["edit"], sdedit["LATENT"], blended["LATENT"]):
        pictures.append(w.add("VAEDecode", samples=edit, vae=loader["vae"])["IMAGE"])
    w.column()
    grid = w.add(
        "BaretLabelledGrid",
        labels="the picture\nBARET\nnull-text + prompt-to-prompt\ndirect + MasaCtrl\nSDEdit\nBlended Diffusion",
        **{f"image_{number}": picture for number, picture in enumerate(pictures, 1)},
    )
    w.add("SaveImage", "All methods", images=grid["grid"], filename_prefix="baret/compare")
    return w


def baret_blueprint() -> Blueprint:
    """The whole edit as one node."""
    w = Workflow("BARET Edit")
    model, clip, vae = Face("model"), Face("clip"), Face("vae")
    w.stage(
        "1. Picture and words",
        """\
The picture is brought to `megapixels` with its proportions kept. The target text is the one on the node's face.""",
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
    faces = "image model clip vae text eta_start eta_end tau_sa tau_ca cfg steps iterations megapixels"
    return Blueprint(
        workflow=w,
        faces=tuple(faces.split()),
        outputs={"edit": edited["IMAGE"], "reconstruction": redrawn["IMAGE"]},
        description=(
            "Edits a picture by words alone: write what it should become. "
            "Set both etas to 1 where shapes should stay. SD1.x and SD2.x models."
        ),
        aliases=("BARET", "edit", "inversion", "prompt to prompt", "DDIM", "real image"),
    )


WORKFLOWS = (
    baret_auto_edit,
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


def files(info: dict) -> dict[Path, str]:
    """Path -> text of everything that is made here. info: the answer of a server's /object_info."""
    made = {BLUEPRINTS / "BARET Edit.json": _text(canvas.blueprint_form(baret_blueprint(), info))}
    for build in WORKFLOWS:
        workflow = build()
        made[FOLDER / f"{workflow.name}.json"] = _text(canvas.ui_form(workflow, info))
        made[API_FOLDER / f"{workflow.name}.json"] = _text(canvas.api_form(workflow, info))
    return made


def _text(form: dict) -> str:
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows.")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    import comfy_server  # needs the host's interpreter

    with comfy_server.running(host) as client:
        made = files(client.object_info())
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
