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
from canvas import FOLDED_WIDTH
from graph import App, Blueprint, Face, Link, Node, Workflow

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

# The scene and the edits that the workflows open with.
SCENE = {"seed": 14}
SCENE_TEXT = "a blue dog lying in the snow, in the middle, facing left, sun, tree"
RIGID_TEXT = "a blue cat sitting in the snow, in the middle, facing left, sun, tree"
SHORT_TEXT = "a dog lying"
LEAST_ROOM = 200  # height for a picture above another node: Nodes 2.0 makes it no lower
REMARK = 24  # height for what a node says under a text: which words the model does not know
WHAT_TO_WRITE = "Short text"  # no longer: on the classic canvas it widens the node
WORLD_INVERSION = {"steps": 25}
WORLD_ETAS = {"eta_start": 0.4, "eta_end": 0.0}  # what docs/evidence.md chose for poses on this world

# What fine-tunes on one picture, on this world (docs/fine-tuning.md).
IMAGIC = {"text_updates": 100, "text_rate": 0.03, "updates": 150, "learning_rate": 0.0005, "rank": 8}
IMAGIC_CFG = 3.0
SINE = {"updates": 150, "learning_rate": 0.0005, "rank": 8}
LAYER = {"steps": 100, "views": 8, "channels": 32}  # docs/clip.md
SUBJECT = {
    "steps": 300,
    "batch_size": 1,
    "learning_rate": 0.001,
    "rank": 8,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "gradient_checkpointing": False,
}
SINE_GUIDANCE = {"cfg": 7.5, "beta": 0.7, "end_percent": 0.8}

# --- the parts that workflows share ---------------------------------------------------------------------------------

WORLD_WORDS = """\
Words: dog, cat, standing, sitting, lying, jumping, red, yellow, blue, purple, black, pink, meadow, beach, snow, \
wall, sea."""


@dataclass(frozen=True)
class Source:
    """What the first stage hands on: a model with its text and picture sides, and what to edit.

    target: the node that the target text is written into.
    """

    model: Link
    clip: Link
    vae: Link
    image: Link
    target: Node
    positive: Link
    negative: Link
    latent: Link
    enlarged: float = 1  # how much a result is enlarged to be looked at
    settings: dict = field(default_factory=dict)  # of TTIS Inversion
    etas: dict = field(default_factory=dict)  # of Transition Embedding, for a change of pose


def _write(w: Workflow, text: str) -> tuple[Node, Node, Node]:
    """The first stage where other nodes read the target text: the pack's model, the text, and the picture."""
    w.stage("1 Write", 210)
    loader = w.add("BaretWorldLoader", folded=True)
    target = w.add("PrimitiveStringMultiline", "Target text", value=text)
    return loader, target, w.add("BaretWorldScene", "Your picture", **SCENE)


def _world(
    w: Workflow,
    text: str,
    then: tuple[str, int],
    shared_text: bool = False,
    both_texts: bool = False,
    as_it_is: bool = False,
) -> Source:
    """The first stage on the model that comes with the pack: it runs anywhere, in seconds.

    then: title and width of the second stage, which begins with the negative text and the picture's latent.
    shared_text: whether other nodes take the target text as well, so that it has a node of its own. both_texts: whether
    the negative text stands in the first stage, where the second is full. as_it_is: the text says what is there.
    """

    def add_negative() -> Node:
        return w.add("CLIPTextEncode", "Negative text", folded=True, clip=loader["clip"], text="")

    w.stage("1 Write", 210)
    loader = w.add("BaretWorldLoader", folded=True)
    if shared_text:
        target = w.add("PrimitiveStringMultiline", "Target text", value=text)
    else:
        title = "Text as it is" if as_it_is else "Target text"
        target = encoded = w.add("CLIPTextEncode", title, room=REMARK, clip=loader["clip"], text=text)
    if both_texts:
        negative = add_negative()
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
    w.stage(*then)
    if shared_text:
        encoded = w.add("CLIPTextEncode", "Target", folded=True, clip=loader["clip"], text=target["STRING"])
    if not both_texts:
        negative = add_negative()
    latent = w.add("VAEEncode", folded=True, pixels=scene["image"], vae=loader["vae"])
    return Source(
        model=loader["model"],
        clip=loader["clip"],
        vae=loader["vae"],
        image=scene["image"],
        target=target,
        positive=encoded["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent["LATENT"],
        enlarged=4,
        settings=WORLD_INVERSION,
        etas=WORLD_ETAS,
    )


def _photo(w: Workflow, text: str, lora: str | None = None) -> Source:
    """The first stage on a checkpoint and a photo."""
    w.stage("1 Choose, write", 220)
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
    target = w.add("CLIPTextEncode", "Target text", clip=model["CLIP"], text=text)
    if lora:
        w.column(220)
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=model["CLIP"], text="")
    if not lora:
        w.column(220)
    image = w.add("LoadImage", "Your picture", image=PICTURE, room=200 if lora else 250)
    fitted = w.add("BaretFitPicture", folded=True, image=image["IMAGE"])
    latent = w.add("VAEEncode", folded=True, pixels=fitted["image"], vae=loader["VAE"])
    return Source(
        model=model["MODEL"],
        clip=model["CLIP"],
        vae=loader["VAE"],
        image=fitted["image"],
        target=target,
        positive=target["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent["LATENT"],
    )


def _invert(w: Workflow, source: Source, folded: bool = False) -> Node:
    return w.add(
        "BaretTTISInversion",
        folded=folded,
        model=source.model,
        positive=source.positive,
        negative=source.negative,
        latent=source.latent,
        **source.settings,
    )


def _transition(w: Workflow, source: Source, ttis: Node, **look) -> Node:
    return w.add("BaretTransitionEmbedding", embeddings=ttis["embeddings"], **source.etas, **look)


def _edit(w: Workflow, type: str, model: Link, inverted: Node, embeddings: Node | None = None, **more) -> Node:
    """An edit node on an inversion. embeddings: what gives them, if not the inversion."""
    given = {"trajectory": inverted["trajectory"], "embeddings": (embeddings or inverted)["embeddings"]}
    return w.add(type, model=model, **given, **more)


def _decoded(w: Workflow, vae: Link, latent: Link) -> Link:
    return w.add("VAEDecode", folded=True, samples=latent, vae=vae)["IMAGE"]


def _saved(w: Workflow, source: Source, picture: Link, name: str, title: str = "Edit", **look) -> Node:
    """Save a picture, enlarged where it is too small to be looked at."""
    if source.enlarged != 1:
        scale = {"upscale_method": "lanczos", "scale_by": source.enlarged}
        picture = w.add("ImageScaleBy", folded=True, image=picture, **scale)["IMAGE"]
    return w.add("SaveImage", title, images=picture, filename_prefix=f"baret/{name}", **look)


def _side_by_side(w: Workflow, title: str, pictures: dict[str, Link], columns: int, **look) -> Node:
    """Show pictures with their labels."""
    return w.add("PreviewImage", title, images=_grid(w, pictures, columns), **look)


def _looked_at(w: Workflow, source: Source, edit: Link, name: str, room: int) -> tuple[Node, Node]:
    """Show an edit: beside the picture, or alone where the picture stands in the workflow already.

    Returns what shows both, and what saves the edit.
    """
    edited = _decoded(w, source.vae, edit)
    pictures = {"before": source.image, "after": edited}
    if source.enlarged == 1:
        both = _side_by_side(w, "Before and after", pictures, 2, folded=True)
        return both, _saved(w, source, edited, name, room=room - 15)  # less than would fit: it ends beside the minimap
    both = _side_by_side(w, "Before and after", pictures, 2, room=max(room, LEAST_ROOM))
    return both, _saved(w, source, edited, name, folded=True)


def _grid(w: Workflow, pictures: dict[str, Link], columns: int) -> Link:
    """Pictures with their labels."""
    given = {f"image_{number}": picture for number, picture in enumerate(pictures.values(), 1)}
    return w.add("BaretLabelledGrid", folded=True, **given, labels="\n".join(pictures), columns=columns)["grid"]


# --- the workflows --------------------------------------------------------------------------------------------------


def _auto_edit(
    w: Workflow, source: Source, name: str, look: str = "3 Look", width: int = 440, mask: Link | None = None
) -> App:
    """An edit with no dial, and the stage that shows it, of that title and width."""
    ttis = _invert(w, source, folded=True)
    auto = _edit(w, "BaretAutoEdit", source.model, ttis, **({"mask": mask} if mask else {}))
    w.stage(look, width)
    both, saved = _looked_at(w, source, auto["edit"], name, room=width // 2 + 15)
    return App([(source.target, "text", WHAT_TO_WRITE)], [both, saved])


def baret_edit() -> Workflow:
    w = Workflow(
        "baret_edit",
        "BARET 01 Start here - edit by words",
        f"""\
1 WRITE what is in the picture and what is new: *a dog lying*, *a red dog*. 2 PRESS RUN. 3 LOOK.

{WORLD_WORDS}""",
        "1 用英文写：图里有什么、什么是新的（只认识上面的词）。2 按“运行”。3 看结果。",
    )
    source = _world(w, SHORT_TEXT, then=("2 Run", 260))
    app = _auto_edit(w, source, "edit")
    w.app = replace(app, inputs=[*app.inputs, (source.image.node, "seed", "Which picture")])
    return w


def baret_edit_photo() -> Workflow:
    w = Workflow(
        "baret_edit_photo",
        "BARET 02 Your photo - edit by words",
        """\
1 CHOOSE a checkpoint (SD1.x, SD2.x) and a photo, WRITE what is in it and what is new. 2 RUN. 3 LOOK.

To hold the edit to a place: right-click the photo, *Open in Mask Editor*, paint where it may change.""",
        "1 选择模型和照片，用英文写图里有什么、什么是新的。2 运行。3 看结果。",
    )
    source = _photo(w, "a dog jumping")
    picture = source.image.node.inputs["image"].node
    w.stage("2 Run", 220)
    app = _auto_edit(w, source, "photo", width=270, mask=picture["MASK"])
    loader = source.vae.node
    w.app = replace(app, inputs=[(loader, "ckpt_name", "Model"), (picture, "image", "Your photo"), *app.inputs])
    return w


def _with_dials(w: Workflow, source: Source, name: str, rigid: bool) -> None:
    """The paper's stages with their dials. rigid: without the one that lets shapes change.

    That one stands above the inversion, which live previews make longer.
    """
    embeddings = None if rigid else w.add("BaretTransitionEmbedding", **source.etas)
    ttis = _invert(w, source)
    if embeddings:
        embeddings.inputs["embeddings"] = ttis["embeddings"]
    w.stage("3 Edit", 210)
    bam = _edit(w, "BaretBAMEdit", source.model, ttis, embeddings)
    redrawn = _decoded(w, source.vae, ttis["reconstruction"])
    edited = _decoded(w, source.vae, bam["edit"])
    w.stage("4 Look", 290)
    _saved(w, source, edited, name, folded=True)
    pictures = {"before": source.image, "after": edited, "reconstruction": redrawn}
    _side_by_side(w, "Before, after, reconstruction", pictures, 2, room=325)


def baret_paper() -> Workflow:
    w = Workflow(
        "baret_paper",
        "BARET 03 The paper - three nodes with dials",
        """\
WRITE the whole scene as it should be. No new pose: lower *eta_start*. Too much is lost: *auto_mask* 0.01.""",
        "用英文写出整个画面。没有新姿势：降低 eta_start。丢失太多：自动遮罩 0.01。",
    )
    _with_dials(w, _world(w, SCENE_TEXT, then=("2 Invert, blend", 210), both_texts=True), "paper", rigid=False)
    return w


def baret_rigid_edit() -> Workflow:
    w = Workflow(
        "baret_rigid_edit",
        "BARET 04 Colour, style, kind - shapes stay",
        """\
Shapes stay: another colour, style, background or kind. Too little changes: *tau_ca* 0.4, then *tau_sa* 0.2.""",
        "形状不变。改变太少：tau_ca 降到 0.4，再把 tau_sa 降到 0.2。",
    )
    _with_dials(w, _world(w, RIGID_TEXT, then=("2 Invert", 210)), "rigid", rigid=True)
    return w


def baret_masked_edit() -> Workflow:
    w = Workflow(
        "baret_masked_edit",
        "BARET 05 With a mask",
        """\
Only white may change: here the animal, grown for the new pose. A photo: right-click it, *Open in Mask Editor*, \
paint.""",
        "只有白色处可以改变。照片：右键，用遮罩编辑器打开，涂抹，接上遮罩。",
    )
    source = _world(w, SHORT_TEXT, then=("2 Mask", 210))
    grown = w.add("GrowMask", mask=source.image.node["mask"], expand=24, tapered_corners=True)
    w.add("MaskPreview", "May change", mask=grown["MASK"])
    w.stage("3 Run", 220)
    _auto_edit(w, source, "masked", "4 Look", 270, grown["MASK"])
    return w


def baret_sweep() -> Workflow:
    w = Workflow(
        "baret_sweep",
        "BARET 06 Sweep - pick from a grid",
        """\
Rows are *etas*, columns *tau_sa*. Write the best cell's number into *Pick Edit* and run again. Too much is lost: \
add higher taus. Too little changes: lower etas.""",
        "行是 eta，列是 tau_sa。把最好一格的编号写入“选取编辑”。丢失太多：加高 tau；改变太少：降低 eta。",
    )
    source = _world(w, SCENE_TEXT, then=("2 Sweep", 210))
    ttis = _invert(w, source, folded=True)
    w.column(280)
    sweep = _edit(
        w,
        "BaretEditSweep",
        source.model,
        ttis,
        vae=source.vae,
        eta_ranges="1, 0.8-0.1, 0.4-0",
        tau_sa="0.1, 0.2, 0.3, 0.4",
    )
    w.stage("3 Pick", 210)
    picked = w.add("BaretPickEdit", edits=sweep["edits"], number=12)
    _saved(w, source, picked["image"], "sweep", "The picked one", room=176)
    return w


def baret_invert_once() -> Workflow:
    w = Workflow(
        "baret_invert_once",
        "BARET 07 Invert once, edit often",
        """\
The inversion is the slow part. Change *Another target text* and run again: it is not repeated. It is saved too: on \
another day press Ctrl+M on *Load Inversion*, and draw its two wires to *Other text* and *Auto Edit*.""",
        "改“Another target text”再运行：不会重新反演。改天：用“加载反演”（Ctrl+M）代替。",
    )
    source = _world(w, SHORT_TEXT, then=("2 Invert once", FOLDED_WIDTH))
    ttis = _invert(w, source, folded=True)
    first = _edit(w, "BaretAutoEdit", source.model, ttis, title="First Auto Edit", folded=True)
    w.add("BaretSaveInversion", trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.add("BaretLoadInversion", muted=True, file="baret/inversion_00001_.safetensors [output]")
    w.stage("3 Edit often", 230)
    words = w.add("CLIPTextEncode", "Another target text", clip=source.clip, text="a red dog")
    other = w.add(
        "BaretTransitionEmbedding",
        "Other text",
        folded=True,
        embeddings=ttis["embeddings"],
        positive=words["CONDITIONING"],
    )
    second = _edit(w, "BaretAutoEdit", source.model, ttis, other)
    w.stage("4 Look", 270)
    one, two = (_decoded(w, source.vae, auto["edit"]) for auto in (first, second))
    grid = _grid(w, {"before": source.image, "first text": one, "second text": two}, 2)
    w.add("SaveImage", "Before and both edits", images=grid, filename_prefix="baret/often", room=260)
    return w


def baret_maps() -> Workflow:
    w = Workflow(
        "baret_maps",
        "BARET 08 Maps - where each word looks",
        """\
Heat over the picture for each word. The word of a new pose should be hot where the pose comes. It is hot at the old \
place alone: lower *eta_start*. What should stay moves: raise it.""",
        "新姿势的词应当热在新位置；若只热在旧位置，降低 eta_start。",
    )
    source = _world(w, SCENE_TEXT, then=("2 Words, blend", 230), shared_text=True)
    ttis = _invert(w, source, folded=True)
    words = w.add("PrimitiveString", "Words to look for", value="dog, lying, snow, tree")
    transition = _transition(w, source, ttis)
    w.stage("3 Look", 340)
    maps = _edit(
        w,
        "BaretAttentionMaps",
        source.model,
        ttis,
        transition,
        clip=source.clip,
        vae=source.vae,
        text=source.target["STRING"],
        words=words["STRING"],
        folded=True,
    )
    w.add("SaveImage", "Maps", images=maps["maps"], filename_prefix="baret/maps", room=330)
    w.column(230)
    report = w.add("BaretInversionReport", folded=True, trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    w.add("PreviewImage", "How the inversion went", images=report["report"], room=165)
    return w


def baret_stock_sampler() -> Workflow:
    w = Workflow(
        "baret_stock_sampler",
        "BARET 10 In a stock sampler",
        """\
*Embeddings to Sampler* hands an inversion to stock nodes. Keep *euler*, no noise, the inversion's cfg. *process* \
reconstruction gives the picture again, transition the blend, target the plain text.""",
        "保持 euler、无噪波和反演时的 cfg。reconstruction 重建原图。",
    )
    source = _world(w, SCENE_TEXT, then=("2 Invert, blend", 215))
    ttis = _invert(w, source, folded=True)
    transition = _transition(w, source, ttis)
    handed = w.add(
        "BaretToSampler", embeddings=transition["embeddings"], trajectory=ttis["trajectory"], process="reconstruction"
    )
    w.stage("3 Stock nodes", 215)
    noise = w.add("DisableNoise", folded=True)
    guider = w.add(
        "CFGGuider",
        model=source.model,
        positive=handed["positive"],
        negative=handed["negative"],
        cfg=7.5,
    )
    sampler = w.add("KSamplerSelect", sampler_name="euler")
    sampled = w.add(
        "SamplerCustomAdvanced",
        noise=noise["NOISE"],
        guider=guider["GUIDER"],
        sampler=sampler["SAMPLER"],
        sigmas=handed["sigmas"],
        latent_image=handed["latent"],
    )
    w.stage("4 Look", 270)
    stock = _decoded(w, source.vae, sampled["output"])
    _side_by_side(w, "Before and after", {"before": source.image, "stock nodes": stock}, 2, room=LEAST_ROOM)
    _saved(w, source, stock, "stock", "Stock edit", folded=True)
    return w


def baret_lora_controlnet() -> Workflow:
    w = Workflow(
        "baret_lora_controlnet",
        "BARET 11 LoRA and ControlNet on a photo",
        """\
A LoRA and a ControlNet count throughout. Without one: *Bypass*. For a new pose, give the net a drawing.""",
        "LoRA 和 ControlNet 对反演和编辑都起作用。缺哪个就绕过哪个。",
    )
    source = _photo(w, "a watercolor painting of a dog on a meadow, mountains behind", lora="your_style.safetensors")
    w.stage("2 ControlNet", 220)
    net = w.add("ControlNetLoader", control_net_name=CONTROLNET["name"], download=CONTROLNET)
    edges = w.add("Canny", "Edges", folded=True, image=source.image)
    controlled = w.add(
        "ControlNetApplyAdvanced",
        positive=source.positive,
        negative=source.negative,
        control_net=net["CONTROL_NET"],
        image=edges["IMAGE"],
        strength=0.6,
    )
    source = replace(source, positive=controlled["positive"], negative=controlled["negative"])
    w.stage("3 Look", 300)
    ttis = _invert(w, source, folded=True)
    bam = _edit(w, "BaretBAMEdit", source.model, ttis, folded=True)
    _looked_at(w, source, bam["edit"], "lora_controlnet", room=180)
    return w


def baret_compare() -> Workflow:
    """One picture and one text through BARET and the methods it is measured against, side by side."""
    w = Workflow(
        "baret_compare",
        "BARET 09 Compare - six methods",
        """\
One picture, one text, six methods, and how close each stays to the picture inside and outside the animal's place. \
Another text or *seed*: run again. Double-click *Six methods* to look inside.""",
        "一张图、一条文本，六种方法；双击 Six methods 看里面。",
    )
    loader, target, scene = _write(w, SCENE_TEXT)
    w.stage("2 Compare", 210)
    methods = w.put_subgraph(
        _six_methods(),
        model=loader["model"],
        clip=loader["clip"],
        vae=loader["vae"],
        image=scene["image"],
        mask=scene["mask"],
        text=target["STRING"],
        caption=scene["caption"],
    )
    w.stage("3 Look", 560)
    w.add("SaveImage", "All methods", images=methods["grid"], filename_prefix="baret/compare", room=330)
    return w


def _six_methods() -> Blueprint:
    """What the comparison runs, as one node: the six methods, and the measures of each edit under it."""
    w = Workflow(
        "baret_six_methods", "Six methods", "Six methods on one picture and one text.", "六种方法。", first=101
    )
    model, clip, vae, image, mask = Face("model"), Face("clip"), Face("vae"), Face("image"), Face("mask")
    text, caption, steps = Face("text"), Face("caption"), WORLD_INVERSION["steps"]
    w.stage("1 Texts, picture", FOLDED_WIDTH)
    target = w.add("CLIPTextEncode", "Target", folded=True, clip=clip, text=text)
    described = w.add("CLIPTextEncode", "Text as it is", folded=True, clip=clip, text=caption)
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=clip, text="")
    latent = w.add("VAEEncode", folded=True, pixels=image, vae=vae)["LATENT"]
    grown = w.add("GrowMask", folded=True, mask=mask, expand=24, tapered_corners=True)
    inside = w.add("SetLatentNoiseMask", "Noise Mask", folded=True, samples=latent, mask=grown["MASK"])
    source = Source(
        model=model,
        clip=clip,
        vae=vae,
        image=image,
        target=target,
        positive=target["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent,
        settings=WORLD_INVERSION,
        etas=WORLD_ETAS,
    )
    as_it_is = {
        "folded": True,
        "model": model,
        "positive": described["CONDITIONING"],
        "negative": source.negative,
        "latent": latent,
        "steps": steps,
    }
    w.stage("2 Invert", FOLDED_WIDTH)
    ttis = _invert(w, source, folded=True)
    transition = _transition(w, source, ttis, title="Transition", folded=True)
    null = w.add("BaretNullTextInversion", "Null-Text", **as_it_is, iterations=1, step_rule="secant_memory")
    direct = w.add("BaretInversion", **as_it_is)
    w.stage("3 Edit", FOLDED_WIDTH)
    bam = _edit(w, "BaretBAMEdit", model, ttis, transition, folded=True)
    auto = _edit(w, "BaretAutoEdit", model, ttis, folded=True)
    by_texts = {"folded": True, "clip": clip, "target_text": text}
    p2p = _edit(
        w,
        "BaretPromptToPromptEdit",
        model,
        null,
        **by_texts,
        title="Prompt-to-Prompt",
        source_text=caption,
        self_share=0.4,
        blend_words="dog",
    )
    masactrl = _edit(w, "BaretMasaCtrlEdit", model, direct, **by_texts, start_step=2, first_block=5)
    stock = {
        "folded": True,
        "model": model,
        "positive": source.positive,
        "negative": source.negative,
        "seed": 0,
        "steps": steps,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "ddim_uniform",
    }
    sdedit = w.add("KSampler", "SDEdit", **stock, latent_image=latent, denoise=0.7)
    blended = w.add("KSampler", "Blended Diffusion", **stock, latent_image=inside["LATENT"], denoise=1.0)
    edits = {
        "Auto Edit": auto["edit"],
        "BARET": bam["edit"],
        "null-text + prompt-to-prompt": p2p["edit"],
        "direct + MasaCtrl": masactrl["edit"],
        "SDEdit": sdedit["LATENT"],
        "Blended Diffusion": blended["LATENT"],
    }
    w.stage("4 Measure", FOLDED_WIDTH)
    pictures = {name: _decoded(w, vae, edit) for name, edit in edits.items()}
    w.column(FOLDED_WIDTH)
    for name, edited in pictures.items():
        pictures[name] = w.add("BaretEditMetrics", folded=True, source=image, edit=edited, mask=mask)["captioned"]
    w.stage("5 Label", FOLDED_WIDTH)
    grid = _grid(w, {"the picture": image, **pictures}, 4)
    return Blueprint(
        workflow=w,
        faces=tuple(["model", "clip", "vae", "image", "mask", "text", "caption"]),
        outputs={"grid": grid},
        description="Six methods on one picture and one text, in a labelled grid with the measures of each edit.",
    )


def baret_imagic() -> Workflow:
    """The eta sweep of the article, on the drawn world."""
    w = Workflow(
        "baret_imagic",
        "BARET 12 Imagic - a model for one edit",
        """\
Tunes the text, then a LoRA, until the model draws the picture. *eta* 0 is the picture, 1 your text; \
the edit lies between. It takes a minute.""",
        "先调优文本，再调优 LoRA，直到模型画出原图。eta 0 是原图，1 是您的文本。",
    )
    source = _world(w, SHORT_TEXT, then=("2 Tune", 250))
    imagic = w.add("BaretImagic", model=source.model, target=source.positive, latent=source.latent, **IMAGIC)
    w.stage("3 Sample", 210)
    etas = w.put_subgraph(
        _etas(),
        model=imagic["model"],
        target=imagic["target"],
        tuned=imagic["tuned"],
        negative=source.negative,
        latent=_empty(w, source),
        vae=source.vae,
        image=source.image,
    )
    w.stage("4 Look", 480)
    # Narrower than its stage, which ends under the minimap.
    look = {"room": 330, "width": 345}
    w.add("SaveImage", "From the picture to the text", images=etas["grid"], filename_prefix="baret/imagic", **look)
    return w


def _etas() -> Blueprint:
    """The way from the tuned text to the target, sampled by stock nodes, as one node."""
    w = Workflow("baret_etas", "Five etas", "From the tuned text to yours.", "从调优文本到您的文本。", first=101)
    model, target, tuned, negative = Face("model"), Face("target"), Face("tuned"), Face("negative")
    latent, vae, image = Face("latent"), Face("vae"), Face("image")
    etas = (0.0, 0.6, 0.8, 0.9, 1.0)
    w.stage("1 Blend", FOLDED_WIDTH)
    texts = {}
    for eta in etas:
        texts[f"eta {eta:g}"] = w.add(
            "ConditioningAverage",
            f"eta {eta:g}",
            folded=True,
            conditioning_to=target,
            conditioning_from=tuned,
            conditioning_to_strength=eta,
        )
    w.stage("2 Sample", FOLDED_WIDTH)
    sampled = {}
    for name, text in texts.items():
        sampled[name] = w.add(
            "KSampler",
            folded=True,
            model=model,
            positive=text["CONDITIONING"],
            negative=negative,
            latent_image=latent,
            seed=0,
            steps=20,
            cfg=IMAGIC_CFG,
            sampler_name="euler",
            scheduler="ddim_uniform",
        )
    w.stage("3 Look", FOLDED_WIDTH)
    pictures = {name: _decoded(w, vae, node["LATENT"]) for name, node in sampled.items()}
    grid = _grid(w, {"the picture": image, **pictures}, 3)
    return Blueprint(
        workflow=w,
        faces=("model", "target", "tuned", "negative", "latent", "vae", "image"),
        outputs={"grid": grid},
        description="The way from the tuned text to the target in five steps, in a labelled grid.",
    )


def _empty(w: Workflow, source: Source) -> Link:
    """A latent of the picture's size that holds nothing of it: sampling starts from noise alone."""
    return w.add("LatentMultiply", "From noise", folded=True, samples=source.latent, multiplier=0.0)["LATENT"]


def baret_sine() -> Workflow:
    w = Workflow(
        "baret_sine",
        "BARET 13 SINE - one LoRA, many edits",
        """\
Tunes a LoRA on the picture with its caption; then both models guide: the plain one by your text, the tuned one by \
the caption. Too little changes: raise *beta*. Too much: raise *end_percent*.""",
        "在图片上用其描述调优 LoRA，再用两个模型共同引导。变化太少：提高 beta；太多：提高 end_percent。",
    )
    source = _world(w, SHORT_TEXT, then=("2 Tune", 220))
    caption = w.add("CLIPTextEncode", "Text as it is", clip=source.clip, text="a dog sitting")
    tuned = w.add(
        "BaretOneImageLoRA", model=source.model, caption=caption["CONDITIONING"], latent=source.latent, **SINE
    )
    w.stage("3 Edit", 220)
    guider = w.add(
        "BaretModelGuidance",
        model=source.model,
        tuned=tuned["model"],
        positive=source.positive,
        caption=caption["CONDITIONING"],
        negative=source.negative,
        **SINE_GUIDANCE,
    )
    noise = w.add("RandomNoise", folded=True, noise_seed=0)
    sampler = w.add("KSamplerSelect", folded=True, sampler_name="euler")
    w.column(FOLDED_WIDTH)
    sigmas = w.add("BasicScheduler", folded=True, model=source.model, scheduler="ddim_uniform", steps=20, denoise=1.0)
    sampled = w.add(
        "SamplerCustomAdvanced",
        "Sampler",
        folded=True,
        noise=noise["NOISE"],
        guider=guider["guider"],
        sampler=sampler["SAMPLER"],
        sigmas=sigmas["SIGMAS"],
        latent_image=_empty(w, source),
    )
    edited = _decoded(w, source.vae, sampled["output"])
    grid = _grid(w, {"before": source.image, "after": edited}, 2)
    w.stage("4 Look", 320)
    w.add("PreviewImage", "Before and after", images=grid, room=LEAST_ROOM)
    _saved(w, source, edited, "sine", folded=True)
    return w


def baret_clip() -> Workflow:
    """What CLIP can do: a direction between two phrases as a slider, and a latent tuned until CLIP agrees."""
    w = Workflow(
        "baret_clip",
        "BARET 14 By CLIP - a slider, a tuned picture",
        """\
*Text Direction*: drag *strength*, run again. *CLIP Optimise*: no diffusion model, CLIP alone; for colours, not for \
poses.""",
        "文本方向：拖动强度，再运行。CLIP 优化：不用扩散模型，适合颜色，不适合姿势。",
    )
    loader, target, scene = _write(w, "a red dog sitting")
    model, clip, vae = loader["model"], loader["clip"], loader["vae"]
    w.stage("2 Turn, tune", 460)
    described = w.add("CLIPTextEncode", "Text as it is", folded=True, clip=clip, text=scene["caption"])
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=clip, text="")
    latent = w.add("VAEEncode", folded=True, pixels=scene["image"], vae=vae)["LATENT"]
    direct = w.add(
        "BaretInversion",
        folded=True,
        model=model,
        positive=described["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent,
        steps=WORLD_INVERSION["steps"],
    )
    tuned = w.add(
        "BaretClipOptimise",
        folded=True,
        vae=vae,
        clip_vision=loader["clip_vision"],
        clip=clip,
        latent=latent,
        text=target["STRING"],
        steps=60,
        strength=0.5,
        views=8,
        mask=scene["mask"],
    )
    turned = w.add(
        "BaretTextDirection",
        clip=clip,
        embeddings=direct["embeddings"],
        phrase_from="dog sitting",
        phrase_to="dog lying",
        strength=1.0,
    )
    w.stage("3 Look", 470)
    slid = _edit(w, "BaretAutoEdit", model, direct, turned, folded=True)
    by_direction, by_clip = (_decoded(w, vae, each) for each in (slid["edit"], tuned["latent"]))
    pictures = {"before": scene["image"], "direction": by_direction, "tuned by CLIP": by_clip}
    # Narrower than its stage, which ends under the minimap.
    look = {"room": 325, "width": 345}
    w.add("SaveImage", "Before and both", images=_grid(w, pictures, 2), filename_prefix="baret/by_clip", **look)
    return w


def baret_layer() -> Workflow:
    """A layer that CLIP paints over the picture, begun where the model looks for a word."""
    w = Workflow(
        "baret_layer",
        "BARET 15 Text layer - paint over it",
        """\
*Text Layer*: CLIP paints over the picture, which stays as it is below. Write a colour or a texture, no pose.""",
        "文本图层：CLIP 在图片上作画，下面的图片不变。写颜色或纹理，不写姿势。",
    )
    before = "a dog sitting"
    source = _world(w, before, then=("2 Where it looks", FOLDED_WIDTH), both_texts=True, as_it_is=True)
    loader = source.model.node
    ttis = _invert(w, source, folded=True)
    looks = {"clip": source.clip, "vae": source.vae, "text": before, "words": "dog"}
    maps = _edit(w, "BaretAttentionMaps", source.model, ttis, folded=True, **looks)
    w.stage("3 Paint", 230)
    layer = w.add(
        "BaretTextLayer",
        clip_vision=loader["clip_vision"],
        clip=source.clip,
        image=source.image,
        text="red dog",
        text_before="dog",
        start_mask=maps["masks"],
        **LAYER,
    )
    w.stage("4 Look", 400)
    alpha = w.add("MaskToImage", folded=True, mask=layer["alpha"])
    pictures = {"before": source.image, "after": layer["image"], "layer": layer["layer"], "alpha": alpha["IMAGE"]}
    grid = _grid(w, pictures, 2)
    w.add("SaveImage", "Before, after, layer, alpha", images=grid, filename_prefix="baret/layer", room=345, width=345)
    return w


def baret_subject() -> Workflow:
    """A LoRA of a subject by the host's trainer, and an edit of a photo of it (DreamBooth's use with BARET)."""
    w = Workflow(
        "baret_subject",
        "BARET 16 Your subject - teach it, edit it",
        """\
Learns a dog of a colour that has no word, so that the edit keeps it. Your own pictures: in place of *Subject*.""",
        "先用几张图片训练 LoRA，让模型认识您的主体；编辑时它保持原样。",
    )
    w.stage("1 Teach", FOLDED_WIDTH)
    loader = w.add("BaretWorldLoader", folded=True)
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=loader["clip"], text="")
    subject = w.put_subgraph(_subject())
    w.column(230)
    learnt = w.put_subgraph(
        _learning(),
        model=loader["model"],
        clip=loader["clip"],
        vae=loader["vae"],
        pictures=subject["pictures"],
    )
    w.add("SaveLoRA", folded=True, lora=learnt["lora"], steps=learnt["steps"], prefix="loras/subject")
    latent = w.add("VAEEncode", folded=True, pixels=subject["photo"], vae=loader["vae"])
    w.stage("2 Write, run", 230)
    target = w.add("CLIPTextEncode", "Target text", room=REMARK, clip=loader["clip"], text="a dog jumping")
    source = Source(
        model=learnt["model"],
        clip=loader["clip"],
        vae=loader["vae"],
        image=subject["photo"],
        target=target,
        positive=target["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=latent["LATENT"],
        enlarged=4,
        settings=WORLD_INVERSION,
    )
    ttis = _invert(w, source, folded=True)
    auto = _edit(w, "BaretAutoEdit", source.model, ttis)
    w.stage("3 Look", 440)
    _looked_at(w, source, auto["edit"], "subject", room=205)
    return w


def _learning() -> Blueprint:
    """A LoRA by the host's trainer, on pictures that share one text, and the model with it."""
    w = Workflow("baret_learning", "Learn the subject", "A LoRA of the pictures.", "图片的 LoRA。", first=151)
    model, clip, vae = Face("model"), Face("clip"), Face("vae")
    w.stage("1 Learn", FOLDED_WIDTH)
    text = w.add("CLIPTextEncode", "Text of the subject", folded=True, clip=clip, text=Face("text", "a dog"))
    latents = w.add("VAEEncode", folded=True, pixels=Face("pictures"), vae=vae)["LATENT"]
    w.column(FOLDED_WIDTH)
    given = {"model": model, "latents": latents, "positive": text["CONDITIONING"]}
    settings = {**SUBJECT, "steps": Face("steps", SUBJECT["steps"])}
    trained = w.add("TrainLoraNode", folded=True, **given, **settings)
    w.column(FOLDED_WIDTH)
    tuned = w.add("LoraModelLoader", folded=True, model=model, lora=trained["lora"])["model"]
    return Blueprint(
        workflow=w,
        faces=("model", "clip", "vae", "pictures", "text", "steps"),
        outputs={"model": tuned, "lora": trained["lora"], "steps": trained["steps"]},
        description="A LoRA learnt by ComfyUI's trainer from pictures that share one text, and the model with it.",
    )


def _subject() -> Blueprint:
    """Pictures of an orange dog, which the drawn world has no word for: red and yellow ones, blended."""
    w = Workflow("baret_orange_dog", "Subject", "An orange dog.", "橙色的狗。", first=101)
    w.stage("1 Draw", 210)
    drawn = {}
    for place, pose, seed in (
        ("meadow", "standing", 1),
        ("beach", "sitting", 2),
        ("wall", "lying", 3),
        ("snow", "sitting", 14),
    ):
        what = {"animal": "dog", "pose": pose, "place": place, "seed": seed}
        red, yellow = (w.add("BaretWorldScene", folded=True, colour=colour, **what) for colour in ("red", "yellow"))
        blend = {"image1": red["image"], "image2": yellow["image"], "blend_factor": 0.5, "blend_mode": "normal"}
        drawn[place] = w.add("ImageBlend", folded=True, **blend)["IMAGE"]
        w.column(210)
    *shown, photo = drawn.values()
    grown = {f"images.image{number}": picture for number, picture in enumerate(shown)}
    pictures = w.add("BatchImagesNode", folded=True, **grown)["IMAGE"]
    return Blueprint(
        workflow=w,
        faces=(),
        outputs={"pictures": pictures, "photo": photo},
        description="Three pictures of an orange dog to learn from, and a fourth to edit.",
    )


def baret_blueprint() -> Blueprint:
    """The whole edit as one node."""
    w = Workflow("baret_blueprint", "BARET Edit", "The target text is the one on the node's face.")
    model, clip, vae, image = Face("model"), Face("clip"), Face("vae"), Face("image")
    w.stage("1 Picture and words")
    target = w.add("CLIPTextEncode", "Target text", clip=clip, text=Face("text", ""))
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=clip, text="")
    fitted = w.add("BaretFitPicture", image=image, megapixels=Face("megapixels"))
    latent = w.add("VAEEncode", pixels=fitted["image"], vae=vae)
    cfg = Face("cfg")
    w.stage("2 Invert")
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
    redrawn = _decoded(w, vae, ttis["reconstruction"])
    w.stage("3 Edit")
    auto = _edit(
        w,
        "BaretAutoEdit",
        model,
        ttis,
        seed=Face("seed"),
        effort=Face("effort"),
        keep=Face("keep"),
        cfg=cfg,
        mask=Face("mask"),
    )
    edited = _decoded(w, vae, auto["edit"])
    faces = "image model clip vae mask text seed effort keep cfg steps iterations megapixels"
    return Blueprint(
        workflow=w,
        faces=tuple(faces.split()),
        outputs={"edit": edited, "reconstruction": redrawn, "mask": auto["mask"], "report": auto["report"]},
        description=(
            "Edits a picture by words alone: write what is in it and what is new (a dog lying). SD1.x and SD2.x models."
        ),
        aliases=("BARET", "edit", "image editing", "photo", "pose", "change", "inversion", "real image"),
    )


WORKFLOWS = (
    baret_edit,
    baret_edit_photo,
    baret_paper,
    baret_rigid_edit,
    baret_masked_edit,
    baret_sweep,
    baret_invert_once,
    baret_maps,
    baret_compare,
    baret_stock_sampler,
    baret_lora_controlnet,
    baret_imagic,
    baret_sine,
    baret_clip,
    baret_layer,
    baret_subject,
)
TITLES = {build.__name__: build().title for build in WORKFLOWS}


# --- examples in the form for programs, on other models and pictures --------------------------------------------------


def only(prompt: dict, class_type: str) -> str:
    """The id of the one node of a class."""
    (id,) = (id for id, node in prompt.items() if node["class_type"] == class_type)
    return id


def picture_of(prompt: dict) -> str:
    """The id of the node whose first output is the picture that an example on the drawn world edits."""
    edited = [node for node in prompt.values() if node["class_type"].startswith("Baret") and "latent" in node["inputs"]]
    encoded, _ = edited[0]["inputs"]["latent"]
    picture, _ = prompt[encoded]["inputs"]["pixels"]
    return picture


def show_picture(prompt: dict) -> None:
    """Show the picture that is edited as well."""
    _show(prompt, "Before", picture_of(prompt))


def show_reconstruction(prompt: dict) -> None:
    """Show the reconstruction alone as well, where it is decoded."""
    reconstruction = [only(prompt, "BaretTTISInversion"), 2]
    (decode,) = (id for id, node in prompt.items() if node["inputs"].get("samples") == reconstruction)
    _show(prompt, "Reconstruction", decode)


def _show(prompt: dict, title: str, picture: str) -> None:
    """Add a node that shows what the first output of a node is."""
    inputs = {"images": [picture, 0]}
    prompt[title.lower()] = {"class_type": "PreviewImage", "inputs": inputs, "_meta": {"title": title}}


def use_checkpoint(prompt: dict, name: str) -> None:
    """Put a checkpoint in place of the drawn world: both loaders give model, clip and vae in this order."""
    prompt[only(prompt, "BaretWorldLoader")].update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": name})
    for node in prompt.values():
        if node["class_type"] == "ImageScaleBy":
            node["inputs"]["scale_by"] = 1.0  # a photo is large enough to be looked at


def example(name: str) -> dict:
    """A committed workflow as programs queue it, by its name."""
    return json.loads((API_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def use_picture(prompt: dict, name: str, side: int) -> None:
    """Put an uploaded picture in place of the drawn scene, at most of the area of a square of ``side`` pixels."""
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": {"title": "Your picture"}}
    inputs = {"image": ["picture", 0], "megapixels": side**2 / 1024**2}
    prompt[picture_of(prompt)].update(class_type="BaretFitPicture", inputs=inputs, _meta={"title": "Fit Picture"})


def files(info: dict) -> dict[Path, str]:
    """Path -> text of everything that is made here. info: the answer of a server's /object_info."""
    made = {BLUEPRINTS / "BARET Edit.json": _text(canvas.blueprint_form(baret_blueprint(), info))}
    for build in WORKFLOWS:
        workflow = build()
        made[FOLDER / f"{workflow.title}.json"] = _text(canvas.ui_form(workflow, info))
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
