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
WHAT_TO_WRITE = "Short text"  # no longer: on the classic canvas it widens the node
WORLD_INVERSION = {"steps": 25}
WORLD_ETAS = {"eta_start": 0.4, "eta_end": 0.0}  # what docs/evidence.md chose for poses on this world

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


def _world(w: Workflow, text: str, shared_text: bool = False) -> Source:
    """The first stage on the model that comes with the pack: it runs anywhere, in seconds.

    shared_text: whether other nodes take the target text as well, so that it has a node of its own.
    """
    w.stage("1 Write", 230)
    loader = w.add("BaretWorldLoader", folded=True)
    if shared_text:
        target = w.add("PrimitiveStringMultiline", "Target text", value=text)
        encoded = w.add("CLIPTextEncode", "Target", folded=True, clip=loader["clip"], text=target["STRING"])
    else:
        target = encoded = w.add("CLIPTextEncode", "Target text", clip=loader["clip"], text=text)
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=loader["clip"], text="")
    scene = w.add("BaretWorldScene", "Your picture", **SCENE)
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
    w.stage("1 Choose, write", 240)
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
        w.column(250)
    target = w.add("CLIPTextEncode", "Target text", clip=model["CLIP"], text=text)
    negative = w.add("CLIPTextEncode", "Negative text", folded=True, clip=model["CLIP"], text="")
    if not lora:
        w.column(250)
    image = w.add("LoadImage", "Your picture", image=PICTURE, room=200 if lora else 350)
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


def _side_by_side(w: Workflow, title: str, pictures: dict[str, Link], columns: int, room: int) -> Node:
    """Show pictures with their labels, large."""
    grid = w.add(
        "BaretLabelledGrid",
        folded=True,
        **{f"image_{number}": picture for number, picture in enumerate(pictures.values(), 1)},
        labels="\n".join(pictures),
        columns=columns,
    )
    return w.add("PreviewImage", title, images=grid["grid"], room=room)


# --- the workflows --------------------------------------------------------------------------------------------------


def _auto_edit(
    w: Workflow,
    source: Source,
    name: str,
    mask: Link | None = None,
    stages: tuple[str, str] = ("2 Run", "3 Look"),
    width: int = 450,
) -> App:
    """The stages of an edit with no dial."""
    w.stage(stages[0], 270)
    ttis = _invert(w, source, folded=True)
    auto = _edit(w, "BaretAutoEdit", source.model, ttis, **({"mask": mask} if mask else {}))
    w.stage(stages[1], width)
    edited = _decoded(w, source.vae, auto["edit"])
    both = _side_by_side(w, "Before and after", {"before": source.image, "after": edited}, 2, room=width // 2)
    saved = _saved(w, source, edited, name, folded=True)
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
    w.folded_columns = 0
    source = _world(w, SHORT_TEXT)
    app = _auto_edit(w, source, "edit")
    w.app = replace(app, inputs=[*app.inputs, (source.image.node, "seed", "Which picture")])
    return w


def baret_edit_photo() -> Workflow:
    w = Workflow(
        "baret_edit_photo",
        "BARET 02 Your photo - edit by words",
        """\
1 CHOOSE a checkpoint (SD1.x, SD2.x) and a photo, WRITE what is in it and what is new. 2 PRESS RUN. 3 LOOK.

To hold the edit to a place: right-click the photo, *Open in Mask Editor*, paint where it may change.""",
        "1 选择模型和照片，用英文写图里有什么、什么是新的。2 运行。3 看结果。",
    )
    source = _photo(w, "a dog jumping")
    picture = source.image.node.inputs["image"].node
    app = _auto_edit(w, source, "photo", picture["MASK"], width=360)
    loader = source.vae.node
    w.app = replace(app, inputs=[(loader, "ckpt_name", "Model"), (picture, "image", "Your photo"), *app.inputs])
    return w


def _with_dials(w: Workflow, source: Source, name: str, rigid: bool) -> None:
    """The paper's stages with their dials. rigid: without the one that lets shapes change."""
    w.stage("2 Invert" if rigid else "2 Invert, blend", 240)
    ttis = _invert(w, source)
    redrawn = _decoded(w, source.vae, ttis["reconstruction"])
    embeddings = None if rigid else _transition(w, source, ttis)
    w.stage("3 Edit", 240)
    bam = _edit(w, "BaretBAMEdit", source.model, ttis, embeddings)
    w.stage("4 Look", 430)
    edited = _decoded(w, source.vae, bam["edit"])
    _side_by_side(w, "Before and after", {"before": source.image, "after": edited}, 2, room=220)
    w.add("PreviewImage", "Reconstruction", images=redrawn, room=120, width=290)  # narrow: the minimap lies beside it
    _saved(w, source, edited, name, folded=True)


def baret_paper() -> Workflow:
    w = Workflow(
        "baret_paper",
        "BARET 03 The paper - three nodes with dials",
        """\
WRITE the whole scene as it should become. No new pose: lower *eta_start*. Too much is lost: *auto_mask* 0.01.""",
        "用英文写出整个画面。没有新姿势：降低 eta_start。丢失太多：自动遮罩 0.01。",
    )
    _with_dials(w, _world(w, SCENE_TEXT), "paper", rigid=False)
    return w


def baret_rigid_edit() -> Workflow:
    w = Workflow(
        "baret_rigid_edit",
        "BARET 04 Colour, style, kind - shapes stay",
        """\
Shapes stay: another colour, style, background or kind of thing. Too little changes: lower *tau_ca* to 0.4, then \
*tau_sa* to 0.2.""",
        "形状不变。改变太少：tau_ca 降到 0.4，再把 tau_sa 降到 0.2。",
    )
    _with_dials(w, _world(w, RIGID_TEXT), "rigid", rigid=True)
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
    source = _world(w, SHORT_TEXT)
    w.stage("2 Mask", 240)
    grown = w.add("GrowMask", mask=source.image.node["mask"], expand=24, tapered_corners=True)
    w.add("MaskPreview", "May change", mask=grown["MASK"])
    _auto_edit(w, source, "masked", grown["MASK"], ("3 Run", "4 Look"), 360)
    return w


def baret_sweep() -> Workflow:
    w = Workflow(
        "baret_sweep",
        "BARET 06 Sweep - pick from a grid",
        """\
Rows are *etas*, columns *tau_sa*. Write the best cell's number into *Pick Edit* and run again. Too much is lost: \
add higher taus. Too little changes: lower etas.""",
        "行是 eta，列是 tau_sa。把最好一格的编号写入“选取编辑”，再运行。丢失太多：加高 tau；改变太少：降低 eta。",
    )
    source = _world(w, SCENE_TEXT)
    w.folded_columns = 0
    w.stage("2 Sweep", 460)
    ttis = _invert(w, source, folded=True)
    sweep = _edit(
        w,
        "BaretEditSweep",
        source.model,
        ttis,
        vae=source.vae,
        eta_ranges="1, 0.8-0.1, 0.4-0",
        tau_sa="0.1, 0.2, 0.3, 0.4",
    )
    w.stage("3 Pick", 280)
    picked = w.add("BaretPickEdit", edits=sweep["edits"], number=12)
    _saved(w, source, picked["image"], "sweep", "The picked one", room=150)
    return w


def baret_invert_once() -> Workflow:
    w = Workflow(
        "baret_invert_once",
        "BARET 07 Invert once, edit often",
        """\
The inversion is the slow part. It is saved: *Load Inversion* reads it back on another day. Change the second text \
and run again: the inversion is not repeated.""",
        "改第二条文本再运行：不会重新反演。",
    )
    source = _world(w, SHORT_TEXT)
    w.stage("2 Edit twice", 270)
    ttis = _invert(w, source, folded=True)
    first = _edit(w, "BaretAutoEdit", source.model, ttis)
    words = w.add("CLIPTextEncode", "Another target text", clip=source.clip, text="a red dog")
    other = w.add(
        "BaretTransitionEmbedding",
        "Other text",
        folded=True,
        embeddings=ttis["embeddings"],
        positive=words["CONDITIONING"],
    )
    second = _edit(w, "BaretAutoEdit", source.model, ttis, other, title="Other Auto Edit", folded=True)
    w.stage("3 Look", 470)
    w.add("BaretSaveInversion", folded=True, trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
    one, two = (_decoded(w, source.vae, auto["edit"]) for auto in (first, second))
    pictures = {"before": source.image, "first text": one, "second text": two}
    _side_by_side(w, "Before and both edits", pictures, 3, room=170)
    _saved(w, source, one, "first", "First edit", folded=True)
    _saved(w, source, two, "second", "Second edit", folded=True)
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
    source = _world(w, SCENE_TEXT, shared_text=True)
    w.stage("2 Words, blend", 250)
    ttis = _invert(w, source, folded=True)
    words = w.add("PrimitiveString", "Words to look for", value="dog, lying, snow, tree")
    transition = _transition(w, source, ttis)
    w.stage("3 Look", 380)
    report = w.add("BaretInversionReport", folded=True, trajectory=ttis["trajectory"], embeddings=ttis["embeddings"])
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
    w.column(250)
    w.add("PreviewImage", "How the inversion went", images=report["report"], room=180)
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
    source = _world(w, SCENE_TEXT)
    w.stage("2 Invert, blend", 270)
    ttis = _invert(w, source, folded=True)
    transition = _transition(w, source, ttis)
    handed = w.add(
        "BaretToSampler", embeddings=transition["embeddings"], trajectory=ttis["trajectory"], process="reconstruction"
    )
    w.stage("3 Stock nodes", 270)
    guider = w.add(
        "CFGGuider",
        model=source.model,
        positive=handed["positive"],
        negative=handed["negative"],
        cfg=7.5,
    )
    noise = w.add("DisableNoise", folded=True)
    sampler = w.add("KSamplerSelect", sampler_name="euler")
    sampled = w.add(
        "SamplerCustomAdvanced",
        noise=noise["NOISE"],
        guider=guider["GUIDER"],
        sampler=sampler["SAMPLER"],
        sigmas=handed["sigmas"],
        latent_image=handed["latent"],
    )
    w.stage("4 Look", 360)
    stock = _decoded(w, source.vae, sampled["output"])
    _side_by_side(w, "Before and after", {"before": source.image, "stock nodes": stock}, 2, room=180)
    _saved(w, source, stock, "stock", "Stock edit", folded=True)
    return w


def baret_lora_controlnet() -> Workflow:
    w = Workflow(
        "baret_lora_controlnet",
        "BARET 11 LoRA and ControlNet on a photo",
        """\
A LoRA and a ControlNet count in inversion and edit. Without one: *Bypass*. Edges hold the shapes; for a new pose, \
give it a drawing.""",
        "LoRA 和 ControlNet 对反演和编辑都起作用。缺哪个就绕过哪个。",
    )
    source = _photo(w, "a watercolor painting of a dog on a meadow, mountains behind", lora="your_style.safetensors")
    w.stage("2 ControlNet", 230)
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
    ttis = _invert(w, source, folded=True)
    bam = _edit(w, "BaretBAMEdit", source.model, ttis, folded=True)
    w.stage("3 Look", 370)
    edited = _decoded(w, source.vae, bam["edit"])
    _side_by_side(w, "Before and after", {"before": source.image, "after": edited}, 2, room=190)
    _saved(w, source, edited, "lora_controlnet", folded=True)
    return w


def baret_compare() -> Workflow:
    """One picture and one text through BARET and the methods it is measured against, side by side."""
    w = Workflow(
        "baret_compare",
        "BARET 09 Compare - six methods",
        """\
One picture, one text, six methods. Another text or *seed*: run again.""",
        "一张图、一条文本，六种方法。",
    )
    source = _world(w, SCENE_TEXT, shared_text=True)
    scene, steps = source.image.node, WORLD_INVERSION["steps"]
    described = w.add("CLIPTextEncode", "Text as it is", folded=True, clip=source.clip, text=scene["caption"])
    as_it_is = {
        "folded": True,
        "model": source.model,
        "positive": described["CONDITIONING"],
        "negative": source.negative,
        "latent": source.latent,
        "steps": steps,
    }
    by_texts = {"folded": True, "clip": source.clip, "target_text": source.target["STRING"]}
    ttis = _invert(w, source, folded=True)
    auto = _edit(w, "BaretAutoEdit", source.model, ttis, folded=True)
    transition = _transition(w, source, ttis, title="Transition", folded=True)
    bam = _edit(w, "BaretBAMEdit", source.model, ttis, transition, folded=True)
    null = w.add("BaretNullTextInversion", "Null-Text", **as_it_is, iterations=1, step_rule="secant_memory")
    p2p = _edit(
        w,
        "BaretPromptToPromptEdit",
        source.model,
        null,
        **by_texts,
        title="Prompt-to-Prompt",
        source_text=scene["caption"],
        self_share=0.4,
        blend_words="dog",
    )
    direct = w.add("BaretInversion", **as_it_is)
    masactrl = _edit(w, "BaretMasaCtrlEdit", source.model, direct, **by_texts, start_step=2, first_block=5)
    stock = {
        "folded": True,
        "model": source.model,
        "positive": source.positive,
        "negative": source.negative,
        "seed": 0,
        "steps": steps,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "ddim_uniform",
    }
    sdedit = w.add("KSampler", "SDEdit", **stock, latent_image=source.latent, denoise=0.7)
    grown = w.add("GrowMask", folded=True, mask=scene["mask"], expand=24, tapered_corners=True)
    inside = w.add("SetLatentNoiseMask", "Noise Mask", folded=True, samples=source.latent, mask=grown["MASK"])
    blended = w.add("KSampler", "Blended Diffusion", **stock, latent_image=inside["LATENT"], denoise=1.0)
    edits = {
        "Auto Edit": auto["edit"],
        "BARET": bam["edit"],
        "null-text + prompt-to-prompt": p2p["edit"],
        "direct + MasaCtrl": masactrl["edit"],
        "SDEdit": sdedit["LATENT"],
        "Blended Diffusion": blended["LATENT"],
    }
    pictures = {"the picture": source.image}
    pictures |= {name: _decoded(w, source.vae, edit) for name, edit in edits.items()}
    w.folded_columns = 5
    w.stage("2 Look", 900)
    grid = _side_by_side(w, "All methods", pictures, 4, room=280)
    w.add("SaveImage", "Save all", folded=True, images=grid.inputs["images"], filename_prefix="baret/compare")
    return w


def baret_clip() -> Workflow:
    """What CLIP can do: a direction between two phrases as a slider, and a latent tuned until CLIP agrees."""
    w = Workflow(
        "baret_clip",
        "BARET 12 By CLIP - a slider, a tuned picture",
        """\
*Text Direction*: drag *strength*, run again. *CLIP Optimise*: no diffusion model, CLIP alone; for colours, not for \
poses.""",
        "文本方向：拖动强度，再运行。CLIP 优化：不用扩散模型，适合颜色，不适合姿势。",
    )
    w.stage("1 Picture", 230)
    source = _world(w, "a red dog sitting", shared_text=True)
    scene, steps = source.image.node, WORLD_INVERSION["steps"]
    described = w.add("CLIPTextEncode", "Text as it is", folded=True, clip=source.clip, text=scene["caption"])
    w.stage("2 Turn, tune", 270)
    direct = w.add(
        "BaretInversion",
        folded=True,
        model=source.model,
        positive=described["CONDITIONING"],
        negative=source.negative,
        latent=source.latent,
        steps=steps,
    )
    turned = w.add(
        "BaretTextDirection",
        clip=source.clip,
        embeddings=direct["embeddings"],
        phrase_from="dog sitting",
        phrase_to="dog lying",
        strength=1.0,
    )
    slid = _edit(w, "BaretAutoEdit", source.model, direct, turned, folded=True)
    loader = source.vae.node
    tuned = w.add(
        "BaretClipOptimise",
        folded=True,
        vae=source.vae,
        clip_vision=loader["clip_vision"],
        clip=source.clip,
        latent=source.latent,
        text=source.target["STRING"],
        steps=60,
        strength=0.5,
        views=8,
        mask=scene["mask"],
    )
    w.stage("3 Look", 400)
    by_direction, by_clip = (_decoded(w, source.vae, latent) for latent in (slid["edit"], tuned["latent"]))
    pictures = {"before": source.image, "direction": by_direction, "tuned by CLIP": by_clip}
    _side_by_side(w, "Before and both", pictures, 3, room=150)
    _saved(w, source, by_direction, "direction", "By direction", folded=True)
    _saved(w, source, by_clip, "by_clip", "By CLIP", folded=True)
    return w


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
    baret_clip,
)
TITLES = {build.__name__: build().title for build in WORKFLOWS}


# --- examples in the form for programs, on other models and pictures --------------------------------------------------


def _only(prompt: dict, class_type: str) -> str:
    """The id of the one node of a class."""
    (id,) = (id for id, node in prompt.items() if node["class_type"] == class_type)
    return id


def picture_of(prompt: dict) -> str:
    """The id of the node whose first output is the picture of an example on the drawn world."""
    return _only(prompt, "BaretWorldScene")


def show_picture(prompt: dict, title: str = "Before") -> None:
    """Show the picture that is edited as well."""
    inputs = {"images": [picture_of(prompt), 0]}
    prompt["before"] = {"class_type": "PreviewImage", "inputs": inputs, "_meta": {"title": title}}


def use_checkpoint(prompt: dict, name: str) -> None:
    """Put a checkpoint in place of the drawn world: both loaders give model, clip and vae in this order."""
    prompt[_only(prompt, "BaretWorldLoader")].update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": name})
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
