"""What every study of the evidence shares: the host with the pack, the drawn world, the tasks and the scores.

All edits go through the pack's nodes inside the host's own sampling. A batch holds many scenes: its images are
independent problems.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "world"))

import in_process
import judge as judging

torch.set_num_threads(1)
in_process.load_host()
PACK = in_process.load_pack()

metrics = PACK.module("baret_ops.metrics")
scenes = PACK.module("world.scenes")

STEPS = 20
CFG = 7.5
TASKS = {
    "pose": ("pose",),
    "colour": ("colour",),
    "animal": ("animal",),
    "background": ("place",),
    "adding": (),  # a sun or a tree, whichever the scene has not
    "two": ("colour", "pose"),
}
"""The tasks, and the facts of a scene that each changes."""
FORMS = ("short", "full")
"""How much texts say: the animal and what is new, or everything."""
VALUES = {"animal": scenes.ANIMALS, "pose": scenes.POSES, "colour": scenes.COLOURS, "place": scenes.PLACES}
"""What each fact can be."""
THINGS = ("sun", "tree")
MOST_DECIBELS = 60.0


# --- the world --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The drawn world's model as the host's MODEL, CLIP and VAE, and a counter of what goes through its UNet."""

    model: object
    clip: object
    vae: object
    passes: in_process.Passes


def unet_dtype() -> torch.dtype:
    """What the UNet computes in: bfloat16 where the processor has units for it, else float32.

    On a processor without them bfloat16 is emulated, which is 26 to 60 times slower than float32.
    """
    has_units = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_units else torch.float32


def load_world(weights: Path | None = None) -> World:
    """The world that comes with the pack, or that of another weights file; see :func:`unet_dtype`."""
    loader = PACK.module("host.world")
    with torch.inference_mode():  # as the host runs nodes
        model, clip, vae, _ = loader.load() if weights is None else loader.load(weights)
    if unet_dtype() != torch.float32:
        model = model.clone()
        model.set_model_compute_dtype(unet_dtype())
    return World(model, clip, vae, in_process.Passes(model.model.diffusion_model))


def decode(world: World, latent: dict) -> Tensor:
    """The pictures ``[n,128,128,3]`` of a LATENT."""
    (pictures,) = in_process.call_stock("VAEDecode", vae=world.vae, samples=latent)
    return pictures.clone()


def encode_pictures(world: World, pictures: Tensor) -> dict:
    """The LATENT of pictures ``[n,128,128,3]``."""
    (latent,) = in_process.call_stock("VAEEncode", vae=world.vae, pixels=pictures)
    return latent


def encode(world: World, texts: list[str]) -> list:
    """A CONDITIONING with one prompt per image, as a batch of embeddings."""
    embeddings = []
    for text in texts:
        (conditioning,) = in_process.call_stock("CLIPTextEncode", clip=world.clip, text=text)
        embedding, _ = conditioning[0]
        embeddings.append(embedding)
    return [[torch.cat(embeddings).clone(), {}]]


def ksampler(world: World, text: list, latent: dict, model: object = None, **settings) -> dict:
    """The LATENT of the stock KSampler with an empty negative text, on the world's model where no other is given."""
    (sampled,) = in_process.call_stock(
        "KSampler",
        model=model or world.model,
        positive=text,
        negative=encode(world, [""]),
        latent_image=latent,
        **settings,
    )
    return sampled


# --- the tasks --------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Scenes of one task with all that scores need. Pictures are ``[n,128,128,3]`` in 0..1.

    changed: the facts that each scene is to change. captions, texts: of what is and of what is wanted.
    picture: the source as the codec gives it back: no method can do better. ideal: the drawn target, as well.
    keep: ``[n,128,128]``, where nothing may change.
    """

    task: str
    source: list
    target: list
    changed: list[tuple[str, ...]]
    captions: list[str]
    texts: list[str]
    picture: Tensor
    ideal: Tensor
    keep: Tensor
    latent: dict

    def __len__(self) -> int:
        return len(self.source)


def make_batch(world: World, task: str, form: str, seed: int, count: int) -> Batch:
    """The first ``count`` scenes of a seed's endless list that a task can change; the same for both forms."""
    source, changes = [], []
    for number, scene in enumerate(scenes.sample(seed, 6 * count)):
        facts = _facts_to_change(scene, task, f"{seed} {task} {number}")
        if facts and len(source) < count:
            source.append(scene)
            changes.append(facts)
    return batch_of(world, task, form, source, changes)


def batch_of(world: World, task: str, form: str, source: list, changes: list[dict[str, int]]) -> Batch:
    """Scenes with the facts that each is to change, and their new values."""
    target = [scenes.replace(scene, **facts) for scene, facts in zip(source, changes)]
    changed = [tuple(facts) for facts in changes]
    drawn, _ = scenes.render(source)
    ideal, _ = scenes.render(target)
    latent = encode_pictures(world, drawn)
    return Batch(
        task=task,
        source=source,
        target=target,
        changed=changed,
        captions=[caption_of(scene, facts, form) for scene, facts in zip(source, changed)],
        texts=[caption_of(scene, facts, form) for scene, facts in zip(target, changed)],
        picture=decode(world, latent),
        ideal=decode(world, encode_pictures(world, ideal)),
        keep=_kept_where(task, source, target, changed),
        latent=latent,
    )


def _facts_to_change(scene, task: str, seed: str) -> dict[str, int]:
    """New values of the facts that a task changes; none where the scene offers nothing to it."""
    rng = random.Random(seed)
    if task == "adding":
        missing = [thing for thing in THINGS if getattr(scene, thing) == scenes.NO_SIDE]
        return {rng.choice(missing): rng.choice((0, 1))} if missing else {}
    values = {}
    for fact in TASKS[task]:
        others = [value for value in range(len(VALUES[fact])) if value != getattr(scene, fact)]
        values[fact] = rng.choice(others)
    return values


def caption_of(scene, facts: tuple[str, ...], form: str) -> str:
    """A scene in the model's words: everything, or the animal and what of ``facts`` can be said of it."""
    if form == "full":
        return scenes.plain_caption(scene)
    word = {fact: groups[getattr(scene, fact)][0] for fact, groups in scenes.WORDS.items()}
    colour = [word["colour"]] if "colour" in facts else []
    after = [word[fact] for fact in ("pose", "place") if fact in facts]
    added = [f"with a {thing}" for thing in THINGS if thing in facts and getattr(scene, thing) != scenes.NO_SIDE]
    return " ".join(["a", *colour, word["animal"], *after, *added])


def _kept_where(task: str, source: list, target: list, changed: list[tuple[str, ...]]) -> Tensor:
    """``[n,128,128]`` true where nothing may change: outside both animals, or inside the one whose place changes, or
    where a thing that is added cannot be."""
    drawn, here = scenes.render(source)
    _, there = scenes.render(target)
    glyphs = torch.maximum(here, there)
    if task == "background":
        return glyphs > 0.999
    if task != "adding":
        return glyphs < 0.001
    keep = torch.ones_like(here, dtype=torch.bool)
    for side in (0, 1):  # no text says on which side it is to be
        with_it = [scenes.replace(scene, **{thing: side}) for scene, (thing,) in zip(source, changed)]
        keep &= (scenes.render(with_it)[0] - drawn).abs().amax(-1) < 0.02
    return keep


# --- the scores -------------------------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """PSNR of each picture in dB, over ``where``; at most MOST_DECIBELS, so that no mean is one picture's."""
    return metrics.psnr(a, b, where).clamp(max=MOST_DECIBELS)


def ssim(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """SSIM of each picture's grey values, the mean over ``where``, which may reach to the border.

    The core's SSIM looks only where a whole window fits; beyond the border stands the mirrored picture here.
    """
    return metrics.ssim(_grey_with_border(a), _grey_with_border(b), F.pad(where, (5, 5, 5, 5)))


def _grey_with_border(pictures: Tensor) -> Tensor:
    """``[n,h,w,3]`` to ``[n,h+10,w+10,1]``: grey values, with half of SSIM's window mirrored around them."""
    grey = pictures.mean(-1)[:, None]
    return F.pad(grey, (5, 5, 5, 5), mode="reflect").movedim(1, -1)


def score(batch: Batch, edited: Tensor, judge) -> dict[str, list[float]]:
    """Each picture's scores, of ``edited [n,128,128,3]``.

    text: whether the classifiers see what the text asks for. identity: whether of animal, pose, colour and place all
    that was not to change is as in the source. details: the same of sun and tree. all: whether all of these hold.
    psnr, ssim: where nothing may change. ideal: PSNR to the drawn target.
    """
    seen, source, target = judging.read(judge, edited), judging.truth(batch.source), judging.truth(batch.target)
    scores: dict[str, list[float]] = {
        "text": [],
        "identity": [],
        "details": [],
        "all": [],
        "psnr": psnr(edited, batch.picture, batch.keep).tolist(),
        "ssim": ssim(edited, batch.picture, batch.keep).tolist(),
        "ideal": psnr(edited, batch.ideal).tolist(),
    }
    for number, facts in enumerate(batch.changed):

        def agrees(names, truth, number=number) -> bool:
            return all(int(seen[name][number]) == int(truth[name][number]) for name in names)

        found = {
            "text": agrees(facts, target),
            "identity": agrees([name for name in VALUES if name not in facts], source),
            "details": agrees([name for name in THINGS if name not in facts], source),
        }
        found["all"] = all(found.values())
        for name, holds in found.items():
            scores[name].append(float(holds))
    return {name: [round(value, 4) for value in values] for name, values in scores.items()}
