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
TASKS = {"colour": "colour", "background": "place", "animal": "animal", "pose": "pose"}
"""The tasks, and the fact of a scene that each changes. The first three are rigid, the last is not."""
VALUES = {"colour": scenes.COLOURS, "place": scenes.PLACES, "animal": scenes.ANIMALS, "pose": scenes.POSES}
"""What each fact can be."""
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


def load_world() -> World:
    """The world by the pack's own loader; see :func:`unet_dtype`."""
    model, clip, vae = PACK.call("BaretWorldLoader")
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


# --- the tasks --------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Scenes of one task with all that scores need. Pictures are ``[n,128,128,3]`` in 0..1.

    picture: the source as the codec gives it back: no method can do better. ideal: the drawn target, as well.
    keep: ``[n,128,128]``, where nothing may change.
    """

    task: str
    source: list
    target: list
    picture: Tensor
    ideal: Tensor
    keep: Tensor
    latent: dict
    captions: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.source)


def make_batch(world: World, task: str, seed: int, start: int, stop: int) -> Batch:
    """Scenes ``start`` to ``stop`` of a seed's endless list for a task."""
    source = scenes.sample(seed, stop)[start:]
    target = [_changed(scene, task, f"{seed} {task} {number}") for number, scene in enumerate(source, start)]
    drawn, source_glyphs = scenes.render(source)
    ideal, target_glyphs = scenes.render(target)
    glyphs = torch.maximum(source_glyphs, target_glyphs)
    latent = encode_pictures(world, drawn)
    return Batch(
        task=task,
        source=source,
        target=target,
        picture=decode(world, latent),
        ideal=decode(world, encode_pictures(world, ideal)),
        keep=glyphs > 0.999 if task == "background" else glyphs < 0.001,
        latent=latent,
        captions=[scenes.plain_caption(scene) for scene in source],
        texts=[scenes.plain_caption(scene) for scene in target],
    )


def _changed(scene, task: str, seed: str):
    """The scene with another value of the task's fact."""
    fact = TASKS[task]
    others = [value for value in range(len(VALUES[fact])) if value != getattr(scene, fact)]
    return scenes.replace(scene, **{fact: random.Random(seed).choice(others)})


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

    text: whether the classifier sees the changed fact. psnr, ssim: where nothing may change.
    details: whether sun and tree are as in the source. identity: the same of animal, pose, colour and place, without
        the changed one. ideal: PSNR to the drawn target.
    """
    seen, source, target = judging.read(judge, edited), judging.truth(batch.source), judging.truth(batch.target)

    def same_as_source(facts: list[str]) -> Tensor:
        return torch.stack([seen[fact] == source[fact] for fact in facts]).all(0).float()

    changed = TASKS[batch.task]
    values = {
        "text": (seen[changed] == target[changed]).float(),
        "psnr": psnr(edited, batch.picture, batch.keep),
        "ssim": ssim(edited, batch.picture, batch.keep),
        "details": same_as_source(["sun", "tree"]),
        "identity": same_as_source([fact for fact in VALUES if fact != changed]),
        "ideal": psnr(edited, batch.ideal),
    }
    return {name: [round(float(each), 4) for each in value] for name, value in values.items()}
