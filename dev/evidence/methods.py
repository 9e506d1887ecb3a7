"""The methods under study: inversions and edits of a batch, through the pack's nodes, its core inside the host's sampling, or stock nodes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from lab import CFG, STEPS, Batch, call, encode, inside, module, node
from torch import Tensor

# --- inversions: (trajectory, embeddings, reconstruction) -------------------------------------------------------------

NO_STOP = {"stop_threshold": 0.0, "stop_growth": 0.0}


def ttis(world, batch: Batch, **inputs) -> tuple:
    """TTIS with the target text."""
    return node(
        "BaretTTISInversion",
        **{
            "model": world.model,
            "positive": encode(world, batch.texts),
            "negative": encode(world, [""]),
            "latent": batch.latent,
            "steps": STEPS,
            "cfg": CFG,
            **inputs,
        },
    )


def null_text(world, batch: Batch, text: str = "caption", **inputs) -> tuple:
    """Null-text inversion with the source's caption or with the target text."""
    words = batch.captions if text == "caption" else batch.texts
    return node(
        "BaretNullTextInversion",
        **{
            "model": world.model,
            "positive": encode(world, words),
            "negative": encode(world, [""]),
            "latent": batch.latent,
            "steps": STEPS,
            "cfg": CFG,
            **inputs,
        },
    )


def direct(world, batch: Batch, text: str = "caption", **inputs) -> tuple:
    """Direct inversion, in which what each step misses is added back."""
    words = batch.captions if text == "caption" else batch.texts
    return node(
        "BaretInversion",
        **{
            "model": world.model,
            "positive": encode(world, words),
            "negative": encode(world, [""]),
            "latent": batch.latent,
            "method": "direct",
            "steps": STEPS,
            "cfg": CFG,
            **inputs,
        },
    )


@contextmanager
def ending_at_zero():
    """A schedule whose end level is sigma 0, as the host's, instead of the table's first."""
    models = module("host.models")
    plain = models.schedule_of

    def zero(model, steps):
        schedule = plain(model, steps)
        return type(schedule)(schedule.timesteps, torch.cat([schedule.sigmas[:-1], schedule.sigmas.new_zeros(1)]))

    models.schedule_of = zero
    try:
        yield
    finally:
        models.schedule_of = plain


def tested_after(learning_rate: float):
    """The default rule with the stop tested after the update, as null-text inversion has it: every step updates at least once."""
    plain = module("baret_ops.inversions.step_rules").Secant()

    def rule(step, embedding, memory):
        first = iter([True])

        class Late(type(step)):
            def unfinished(self, losses):
                return list(range(len(losses))) if next(first, False) else super().unfinished(losses)

        return plain(Late(**vars(step)), embedding, memory)

    return rule


# --- edits: a latent --------------------------------------------------------------------------------------------------


def baret(world, batch: Batch, inversion: tuple, eta_start=0.8, eta_end=0.1, **inputs) -> dict:
    """Transition Embedding and BAM Edit."""
    trajectory, embeddings, _ = inversion
    (embeddings,) = node("BaretTransitionEmbedding", embeddings=embeddings, eta_start=eta_start, eta_end=eta_end)
    return node(
        "BaretBAMEdit", model=world.model, trajectory=trajectory, embeddings=embeddings, **{"cfg": CFG, **inputs}
    )[0]


RIGID = {"eta_start": 1.0, "eta_end": 1.0}
PLAIN = {**RIGID, "tau_sa": 0.0, "tau_ca": 0.0}  # guided sampling of the target text from the inverted noise


def sdedit(world, batch: Batch, strength: float, cfg: float = CFG) -> dict:
    """SDEdit by the stock KSampler: noise to a strength, denoise with the target text."""
    return call(
        "KSampler", model=world.model, seed=1, steps=round(STEPS * strength), cfg=cfg, sampler_name="ddim", scheduler="ddim_uniform",
        positive=encode(world, batch.texts), negative=encode(world, [""]), latent_image=batch.latent, denoise=strength,
    )[0]  # fmt: skip


def _with_target(world, batch: Batch, embeddings):
    text, options = module("host.conditioning").read_text(
        encode(world, batch.texts), "positive", len(batch), embeddings.target.shape[-1]
    )
    return embeddings.with_target(text, options)


def masactrl(world, batch: Batch, inversion: tuple, cfg: float = CFG, **settings) -> dict:
    """MasaCtrl's core, on a batch with a text per image (its node takes one)."""
    trajectory, embeddings, _ = inversion
    embeddings = _with_target(world, batch, embeddings)
    edited = inside(
        world,
        trajectory,
        embeddings,
        lambda predict: module("baret_ops.edits.masactrl").masactrl(
            predict, trajectory, embeddings, guidance_scale=cfg, **settings
        ),
    )
    return module("host.wires").latent_out(trajectory.family, edited)


def prompt_to_prompt(world, batch: Batch, inversion: tuple, cross_share=0.4, self_share=0.6, cfg: float = CFG) -> dict:
    """Prompt-to-prompt's core (refine), scene by scene in groups of the same alignment."""
    core, tokens = module("baret_ops.edits.prompt_to_prompt"), module("host.text").read_tokens
    trajectory, embeddings, _ = inversion
    groups: list[tuple[Tensor, list[int]]] = []
    for index, (source, target) in enumerate(zip(batch.captions, batch.texts)):
        lent = core.refine(tokens(world.clip, source), tokens(world.clip, target))
        rows = next((rows for other, rows in groups if torch.equal(other, lent)), None)
        if rows is None:
            groups.append((lent, [index]))
        else:
            rows.append(index)
    embeddings = _with_target(world, batch, embeddings)
    edited = torch.empty_like(trajectory.pivots[-1])
    for lent, rows in groups:
        some, those = (
            rows_of(embeddings, rows),
            replace(trajectory, pivots=trajectory.pivots[:, rows], latents=trajectory.latents[:, rows]),
        )
        cross = core.CrossEdit(lent, torch.full(lent.shape[1:], cross_share), torch.ones(lent.shape[1]))
        edited[rows], _ = inside(
            world,
            those,
            some,
            lambda predict: core.prompt_to_prompt(
                predict, those, some, cross, guidance_scale=cfg, self_share=self_share
            ),
        )
    return module("host.wires").latent_out(trajectory.family, edited)


def rows_of(embeddings, rows: list[int]):
    """The embeddings of some images of a batch."""
    negative = embeddings.negative[:, rows] if embeddings.negative.ndim == 4 else embeddings.negative[rows]
    return replace(
        embeddings, tuned=embeddings.tuned[:, rows], target=embeddings.target[rows], negative=negative,
        losses=embeddings.losses[:, rows], updates=embeddings.updates[:, rows],
    )  # fmt: skip


# --- ideas beyond the paper, tried here and not part of the pack ------------------------------------------------------


def found_mask(world, inversion: tuple, threshold: float) -> Tensor:
    """BAM Edit's automatic mask, ``[B,h,w]``."""
    trajectory, embeddings, _ = inversion
    find = module("baret_ops.edits.auto_mask").auto_mask
    return inside(world, trajectory, embeddings, lambda predict: find(predict, trajectory, embeddings, threshold))[:, 0]


@contextmanager
def _bam_with(**changes):
    """BAM with names of its module replaced."""
    bam = module("baret_ops.edits.bam")
    before = {name: getattr(bam, name) for name in changes}
    for name, value in changes.items():
        setattr(bam, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(bam, name, value)


def falling_guidance(world, batch: Batch, inversion: tuple, end: float, **inputs) -> dict:
    """BAM with the edit's guidance going evenly from ``cfg`` to ``end``."""
    plain, images = module("baret_ops.edits.sampling").guided_step, len(batch)

    def guided_step(schedule, i, x, cond, uncond, guidance_scale):
        share = 1 + (end / guidance_scale - 1) * i / (schedule.steps - 1)
        return plain(
            schedule,
            i,
            x,
            torch.cat([torch.lerp(uncond[:images], cond[:images], share), cond[images:]]),
            uncond,
            guidance_scale,
        )

    with _bam_with(guided_step=guided_step):
        return baret(world, batch, inversion, **inputs)


def injection_outside(world, batch: Batch, inversion: tuple, threshold: float, **inputs) -> dict:
    """BAM whose queries and keys of self-attention are lent only where the automatic mask lets nothing change."""
    sharing = module("baret_ops.attention").Sharing
    free = found_mask(world, inversion, threshold)[:, None]

    class Outside(sharing):
        def share_self(self, n, context, value, passes):
            lent, _, value = super().share_self(n, context, value, passes)
            if lent is n:
                return n, context, value
            side = int(n.shape[1] ** 0.5)
            own = torch.zeros(n.shape[:2], dtype=n.dtype)
            chunk = n.shape[0] // len(passes)
            for index in range(len(passes)):
                own[index * chunk : index * chunk + len(free)] = (
                    F.adaptive_max_pool2d(free, side).flatten(1).to(n.dtype)
                )
            mixed = torch.lerp(lent, n, own[..., None])
            return mixed, mixed, value

    with _bam_with(Sharing=Outside):
        return baret(world, batch, inversion, **inputs)


def residual_back(world, batch: Batch, inversion: tuple, threshold: float, **inputs) -> dict:
    """BAM with what the target text's step misses of the pivots added back to the edit outside the automatic mask."""
    trajectory, embeddings, _ = inversion
    levels, plain, images = module("baret_ops.schedule"), module("baret_ops.edits.sampling").guided_step, len(batch)
    schedule, keep = trajectory.schedule, 1 - found_mask(world, inversion, threshold)[:, None]

    def residuals(predict):
        found = []
        for i in range(schedule.steps):
            sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
            x = trajectory.pivots[i] * schedule.scale(i)
            eps = levels.guide(
                *predict(x, sigma, cond=embeddings.target, uncond=embeddings.negative), inputs.get("cfg", CFG)
            )
            found.append(trajectory.pivots[i + 1] - levels.ddim_step(x, eps, sigma, sigma_next) / schedule.scale(i + 1))
        return found

    missed = inside(world, trajectory, embeddings, residuals)

    def guided_step(schedule, i, *given):
        z, denoised = plain(schedule, i, *given)
        return torch.cat([z[:images] + keep * missed[i], z[images:]]), denoised

    with _bam_with(guided_step=guided_step):
        return baret(world, batch, inversion, **inputs)


def hard_mask(world, batch: Batch, inversion: tuple, threshold: float, **inputs) -> dict:
    """BAM with the automatic mask's ramp cut at its middle."""
    return baret(world, batch, inversion, mask=(found_mask(world, inversion, threshold) > 0.5).float(), **inputs)
