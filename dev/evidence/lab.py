"""What every study of the evidence shares: the host with the pack in this process, the drawn world, the tasks and the scores.

All edits go through the pack's nodes inside the host's own sampling. A batch holds many scenes: its images are independent problems.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.path.append(str(ROOT / "dev" / "world"))  # judge.py

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_num_threads(1)

import judge as judging  # noqa: E402

import nodes as stock  # noqa: E402

assert asyncio.run(stock.load_custom_node(str(ROOT))), "the host's loader refused the pack"
_package = next(node.__module__ for id, node in stock.NODE_CLASS_MAPPINGS.items() if id == "BaretBAMEdit").split(
    ".nodes."
)[0]
NODES = {id: node for id, node in stock.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(_package)}

from comfy_api.internal import make_locked_method_func  # noqa: E402


def module(name: str):
    """A module of the pack as the host loaded it, by its path from the pack's root."""
    return sys.modules[f"{_package}.{name}"]


scenes = module("world.scenes")
STEPS = 20
CFG = 7.5
TASKS = {"colour": "colour", "background": "place", "animal": "animal", "pose": "pose"}
"""The tasks, and the fact of a scene that each changes. The first three are rigid, the last is not."""
_KEPT = ("animal", "pose", "colour", "place")


def node(id: str, **inputs):
    """Call a node of the pack as the host does, with its defaults for what is not given; a tuple of its outputs."""
    kind = NODES[id]
    schema = kind.define_schema()
    defaults = {entry.id: entry.default for entry in schema.inputs if getattr(entry, "default", None) is not None}
    with torch.inference_mode():
        return make_locked_method_func(kind, kind.FUNCTION, kind.PREPARE_CLASS_CLONE(None))(
            **{**defaults, **inputs}
        ).args


def call(kind: str, **inputs):
    """Call a stock node of the host; a tuple of its outputs."""
    stock_node = stock.NODE_CLASS_MAPPINGS[kind]
    with torch.inference_mode():
        return getattr(stock_node(), stock_node.FUNCTION)(**inputs)


class Passes:
    """Counts what goes through a model's UNet: 1 for a row forward, 1.1 more for a row backward."""

    def __init__(self, model):
        self.count = 0.0
        model.model.diffusion_model.register_forward_hook(self._forward)

    def _forward(self, unet, inputs, output):
        self._add(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: self._add(1.1 * len(gradient)))

    def _add(self, rows: float) -> None:
        self.count += rows

    def taken(self) -> float:
        """The count since the last call."""
        count, self.count = self.count, 0.0
        return count


def load_world():
    """``model, clip, vae`` and a counter of the model's passes. The UNet computes in bfloat16, by the host's own means."""
    model, clip, vae = node("BaretWorldLoader")
    exact = model
    model = model.clone()
    model.set_model_compute_dtype(torch.bfloat16)
    return SimpleNamespace(model=model, exact=exact, clip=clip, vae=vae, passes=Passes(model))


@dataclass
class Batch:
    """Scenes of one task with all that scores need. Pictures are ``[n,128,128,3]`` in 0..1, masks ``[n,128,128]``."""

    task: str
    source: list
    target: list
    picture: Tensor  # as the codec gives it back: no method can do better
    ideal: Tensor
    keep: Tensor  # where nothing may change
    latent: dict
    captions: list[str]
    texts: list[str]
    mask: Tensor  # of the source's animal

    def __len__(self) -> int:
        return len(self.source)


def make_batch(world, task: str, seed: int, start: int, stop: int) -> Batch:
    """Scenes ``start`` to ``stop`` of a seed's endless list for a task."""
    fact = TASKS[task]
    values = {"colour": scenes.COLOURS, "place": scenes.PLACES, "animal": scenes.ANIMALS, "pose": scenes.POSES}[fact]
    source = scenes.sample(seed, stop)[start:]
    rng = [random.Random(f"{seed} {task} {i}") for i in range(start, stop)]
    target = [
        scenes.replace(s, **{fact: r.choice([v for v in range(len(values)) if v != getattr(s, fact)])})
        for s, r in zip(source, rng)
    ]
    drawn, mask = scenes.render(source)
    ideal, other = scenes.render(target)
    latent = call("VAEEncode", vae=world.vae, pixels=drawn)[0]
    glyphs = torch.maximum(mask, other)
    return Batch(
        task, source, target,
        picture=decode(world, latent),
        ideal=decode(world, call("VAEEncode", vae=world.vae, pixels=ideal)[0]),
        keep=(glyphs > 0.999) if task == "background" else (glyphs < 0.001),
        latent=latent, captions=[scenes.plain_caption(s) for s in source], texts=[scenes.plain_caption(s) for s in target], mask=mask,
    )  # fmt: skip


def decode(world, latent: dict) -> Tensor:
    return call("VAEDecode", vae=world.vae, samples=latent)[0].clone()


def encode(world, texts: list[str]) -> list:
    """A CONDITIONING with one prompt per image, as a batch of embeddings."""
    return [[torch.cat([call("CLIPTextEncode", clip=world.clip, text=text)[0][0][0] for text in texts]).clone(), {}]]


def inside(world, trajectory, embeddings, loop: Callable[[Callable], Tensor]):
    """What ``loop(predict)`` returns, run inside the host's sampling on the core's Predict, as the nodes' loops are."""
    with torch.inference_mode():
        return module("host.run").sample(
            world.model, lambda predict, device: loop(predict),
            positive=(embeddings.target, {}), negative=(embeddings.negative_at(0), {}),
            rows=4 * trajectory.images, shape=tuple(trajectory.pivots.shape[2:]), schedule=trajectory.schedule,
        )  # fmt: skip


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """PSNR of each picture in dB, over the pixels ``where`` is true; at most 60, so that no mean is one picture's."""
    error = (a - b).square().mean(-1)
    where = torch.ones_like(error) if where is None else where.float()
    error = (error * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)
    return -10 * error.clamp(min=1e-6).log10()


def ssim(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, deviation 1.5) of each picture's grey values, mean over ``where``."""
    x = torch.arange(11.0) - 5
    window = torch.exp(-x.square() / 4.5)
    window = (window / window.sum())[:, None] * (window / window.sum())[None]
    blur = lambda v: F.conv2d(F.pad(v, (5, 5, 5, 5), mode="reflect"), window[None, None])  # noqa: E731
    a, b = a.mean(-1)[:, None], b.mean(-1)[:, None]
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    map_ = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))
    return (map_[:, 0] * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)


def score(batch: Batch, edited: Tensor, judge) -> dict[str, list[float]]:
    """Each picture's scores: ``text`` (the classifier sees the changed fact), ``psnr`` and ``ssim`` where nothing may change,
    ``details`` (sun and tree as in the source), ``identity`` (of animal, pose, colour and place all but the changed one), ``ideal`` (PSNR to the drawn target)."""
    seen, source, target = judging.read(judge, edited), judging.truth(batch.source), judging.truth(batch.target)
    fact = TASKS[batch.task]
    same = lambda names: torch.stack([seen[name] == source[name] for name in names]).all(0).float()  # noqa: E731
    values = {
        "text": (seen[fact] == target[fact]).float(),
        "psnr": psnr(edited, batch.picture, batch.keep),
        "ssim": ssim(edited, batch.picture, batch.keep),
        "details": same(("sun", "tree")),
        "identity": same([name for name in _KEPT if name != fact]),
        "ideal": psnr(edited, batch.ideal),
    }
    return {name: [round(float(v), 4) for v in value] for name, value in values.items()}
