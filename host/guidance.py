"""Guidance by two models, as a GUIDER of the host's."""

from __future__ import annotations

import uuid
from typing import Any

import comfy.hooks
import comfy.samplers

from ..baret_ops.transition import blend
from .attention import uncompiled


class ModelGuidance(comfy.samplers.CFGGuider):
    """SINE's guidance (Zhang et al. 2022, eq. 6): the text's direction is blended from two models' predictions.

    ``eps = eps_u + w * (beta * eps(positive) + (1 - beta) * eps_tuned(caption) - eps_u)`` within a range of times,
    where eps_u is the model's for the negative, and plain guidance by the positive outside it, or where beta is 1.
    A denoised latent is linear in its noise and the weights sum to 1, so that what the host denoised is blended alike.

    tuned: a MODEL made of ``model`` by more LoRAs, or one of another module; wrappers and attention patches that it
    carries are not heeded, the model's serve both (but for its compiler's). start, end: percents of the run, as the
    host's own.
    Raises ValueError for a tuned model of the same module that is not made of ``model``, or has nothing beyond it.
    """

    def __init__(self, model, tuned, *, positive: list, caption: list, negative: list, cfg: float, beta: float):
        super().__init__(model)
        self.beta = beta
        self.set_range(0.0, 1.0)
        self.set_cfg(cfg)
        if tuned.model is model.model:  # its weights can only be one model's at a time: the host changes them by hooks
            self.beside = None
            added = _added_patches(model, tuned)
            if not added:
                raise ValueError(
                    "tuned is the same model as model; connect what One-Image LoRA gives, or Load LoRA (not in bypass "
                    "mode)."
                )
            caption = comfy.hooks.set_hooks_for_conditioning(caption, _hooks(added))
        else:
            self.beside = tuned
            caption = [[text, {**options, "additional_models": [tuned]}] for text, options in caption]
        self.inner_set_conds({"positive": positive, "caption": caption, "negative": negative})

    def set_range(self, start: float, end: float) -> None:
        """Blend within this part of the run alone, in shares of it from 0 (noisiest) to 1."""
        sampling: Any = self.model_patcher.get_model_object("model_sampling")
        self.most, self.least = (float(sampling.percent_to_sigma(share)) for share in (start, end))

    def outer_sample(self, *args, **kwargs):
        if self.beside is None:
            return super().outer_sample(*args, **kwargs)
        self.beside.pre_run()
        try:
            return super().outer_sample(*args, **kwargs)
        finally:
            self.beside.cleanup()

    def predict_noise(self, x, timestep, model_options: dict[str, Any] | None = None, seed=None):
        options = model_options or {}
        if self.beta == 1.0 or not self.least <= float(timestep[0]) <= self.most:
            return super().predict_noise(x, timestep, options, seed)
        positive, negative = self.conds["positive"], self.conds["negative"]
        edit, null = comfy.samplers.calc_cond_batch(self.inner_model, [positive, negative], x, timestep, options)
        tuned, its_options = self.inner_model, options
        if self.beside is not None:
            tuned, its_options = self.beside.model, uncompiled(options)  # the compiled UNet is the model's
        (kept,) = comfy.samplers.calc_cond_batch(tuned, [self.conds["caption"]], x, timestep, its_options)
        cond = blend(edit, kept, self.beta)
        shown = {"model_options": options, "cond": positive, "uncond": negative}  # to nodes that replace guidance
        return comfy.samplers.cfg_function(self.inner_model, cond, null, self.cfg, x, timestep, **shown)


class _Patches(comfy.hooks.WeightHook):
    """A hook that brings a MODEL's patches as they stand in it."""

    def __init__(self, patches: dict[str, list] | None = None):
        super().__init__()
        self.patches = patches

    def add_hook_patches(self, model, model_options, target_dict, registered) -> bool:
        model.hook_patches[self.hook_ref] = self.patches
        model.patches_uuid = uuid.uuid4()
        registered.add(self)
        return True

    def clone(self):
        copy = super().clone()
        copy.patches = self.patches
        return copy


def _hooks(patches: dict[str, list]) -> comfy.hooks.HookGroup:
    group = comfy.hooks.HookGroup()
    group.add(_Patches(patches))
    return group


def _added_patches(model, tuned) -> dict[str, list]:
    """The patches of weights that a clone has beyond its model's. Raises ValueError where it lacks some of those."""
    added = {}
    for key in {*model.patches, *tuned.patches}:
        before, after = model.patches.get(key, []), tuned.patches.get(key, [])
        if [id(each) for each in before] != [id(each) for each in after[: len(before)]]:
            raise ValueError(
                "tuned does not carry the LoRAs that model carries; make tuned of what goes into model: "
                "One-Image LoRA or Load LoRA after the others."
            )
        if len(after) > len(before):
            added[key] = after[len(before) :]
    return added
