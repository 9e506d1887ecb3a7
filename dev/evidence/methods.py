"""The methods under study: inversions and edits of a batch.

They go through the pack's nodes, through stock nodes, or, where a node takes one text and a batch needs one for each
image, through the pack's core in the run that the nodes share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import in_process
import torch
from lab import CFG, PACK, STEPS, Batch, World, encode, ksampler
from torch import Tensor

auto = PACK.module("baret_ops.edits.auto_edit")
masa = PACK.module("baret_ops.edits.masactrl")
p2p = PACK.module("baret_ops.edits.prompt_to_prompt")
common = PACK.module("nodes.common")
texts = PACK.module("host.text")
wires = PACK.module("host.wires")

NO_STOP = {"stop_threshold": 0.0, "stop_growth": 0.0}  # every step takes all its updates
RIGID = {"eta_start": 1.0, "eta_end": 1.0}
PLAIN = {**RIGID, "tau_sa": 0.0, "tau_ca": 0.0}  # guided sampling of the target text from the inverted noise

# --- inversions: (trajectory, embeddings, reconstruction) -------------------------------------------------------------


def ttis(world: World, batch: Batch, **inputs) -> tuple:
    """TTIS with the target text."""
    return _invert("BaretTTISInversion", world, batch, batch.texts, **inputs)


def null_text(world: World, batch: Batch, text: str = "caption", **inputs) -> tuple:
    """Null-text inversion with the source's caption or with the target text."""
    return _invert("BaretNullTextInversion", world, batch, _words(batch, text), **inputs)


def direct(world: World, batch: Batch, text: str = "caption", **inputs) -> tuple:
    """Direct inversion, in which what each step misses is added back."""
    return _invert("BaretInversion", world, batch, _words(batch, text), method="direct", **inputs)


def _words(batch: Batch, text: str) -> list[str]:
    return batch.captions if text == "caption" else batch.texts


def _invert(node_id: str, world: World, batch: Batch, words: list[str], **inputs) -> tuple:
    return PACK.call(
        node_id,
        model=world.model,
        positive=encode(world, words),
        negative=encode(world, [""]),
        latent=batch.latent,
        **{"steps": STEPS, "cfg": CFG, **inputs},
    )


# --- edits: a latent --------------------------------------------------------------------------------------------------


def baret(world: World, batch: Batch, inversion: tuple, eta_start=0.8, eta_end=0.1, **inputs) -> dict:
    """Transition Embedding and BAM Edit."""
    trajectory, embeddings, _ = inversion
    (blended,) = PACK.call("BaretTransitionEmbedding", embeddings=embeddings, eta_start=eta_start, eta_end=eta_end)
    given = {"cfg": CFG, **inputs}
    edited, _ = PACK.call("BaretBAMEdit", model=world.model, trajectory=trajectory, embeddings=blended, **given)
    return edited


def auto_edit(world: World, batch: Batch, inversion: tuple, seed: int):
    """Auto Edit's core at the node's defaults: all that it found, not the edit alone."""
    trajectory, embeddings, _ = inversion
    inputs = in_process.defaults(PACK.nodes["BaretAutoEdit"])

    def edit(predict, trajectory, **how):
        settings = {"effort": inputs["effort"], "keep": inputs["keep"], "guidance_scale": CFG, "seed": seed}
        return auto.auto_edit(predict, trajectory, embeddings, **settings, **how)

    return _run(world, trajectory, embeddings, edit)


def sdedit(world: World, batch: Batch, strength: float, cfg: float = CFG, seed: int = 1) -> dict:
    """SDEdit by the stock KSampler: noise to a strength, denoise with the target text."""
    return ksampler(
        world,
        encode(world, batch.texts),
        batch.latent,
        seed=seed,
        steps=round(STEPS * strength),
        cfg=cfg,
        sampler_name="ddim",
        scheduler="ddim_uniform",
        denoise=strength,
    )


def masactrl(world: World, batch: Batch, inversion: tuple, cfg: float = CFG, **settings) -> dict:
    """MasaCtrl's core, on a batch with a text per image (its node takes one)."""
    trajectory, embeddings, _ = inversion
    to_target = _with_target(world, batch, embeddings)

    def edit(predict, trajectory, **how):
        return masa.masactrl(predict, trajectory, to_target, guidance_scale=cfg, **settings, **how)

    edited, _ = _run(world, trajectory, to_target, edit)
    return wires.latent_out(trajectory.family, edited)


def prompt_to_prompt(
    world: World, batch: Batch, inversion: tuple, cross_share=0.4, self_share=0.6, cfg: float = CFG
) -> dict:
    """Prompt-to-prompt's core (refine), on groups of scenes whose texts are aligned alike."""
    trajectory, embeddings, _ = inversion
    to_target = _with_target(world, batch, embeddings)
    edited = torch.empty_like(trajectory.pivots[-1])
    for lent, rows in _aligned_alike(world, batch):
        tokens = lent.shape[1]
        cross = p2p.CrossEdit(lent, shares=torch.full([tokens], cross_share), weights=torch.ones(tokens))
        edited[rows] = _edit_words(
            world,
            trajectory.rows(rows),
            to_target.rows(rows),
            cross,
            guidance_scale=cfg,
            self_share=self_share,
        )
    return wires.latent_out(trajectory.family, edited)


def _edit_words(world: World, trajectory, embeddings, cross, **settings) -> Tensor:
    """Prompt-to-prompt of images with one alignment, ``[B,C,h,w]``."""

    def edit(predict, trajectory, **how):
        return p2p.prompt_to_prompt(predict, trajectory, embeddings, cross, **settings, **how)

    edited, _ = _run(world, trajectory, embeddings, edit)
    return edited


def _aligned_alike(world: World, batch: Batch) -> list[tuple[Tensor, list[int]]]:
    """The different alignments ``[Ts,Tt]`` of caption and text, each with the numbers of its scenes."""
    groups: dict[bytes, tuple[Tensor, list[int]]] = {}
    for number, (caption, text) in enumerate(zip(batch.captions, batch.texts)):
        source, target = texts.read_tokens(world.clip, caption), texts.read_tokens(world.clip, text)
        lent = p2p.refinement(source, target)
        _, numbers = groups.setdefault(lent.numpy().tobytes(), (lent, []))
        numbers.append(number)
    return list(groups.values())


def _with_target(world: World, batch: Batch, embeddings):
    """The embeddings with the batch's texts as target. The edits by two texts do not use their transition."""
    (to_target,) = PACK.call("BaretTransitionEmbedding", embeddings=embeddings, positive=encode(world, batch.texts))
    return to_target


def _run(world: World, trajectory, embeddings, edit: Callable) -> Any:
    """What ``edit(predict, trajectory, mask=.., on_step=..)`` returns, in the run that the nodes' edits share."""
    with torch.inference_mode():
        return common.run_edit(world.model, trajectory, embeddings, mask=None, processes=3, edit=edit)
