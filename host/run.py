"""Run one of the core's loops inside the host's sampling: loading, hooks, ControlNet, previews, cancel and clean-up are the host's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..baret_ops.attention import Hooks, Sharing
from ..baret_ops.predict import OnStep, Predict
from ..baret_ops.schedule import Schedule
from . import attention
from . import gradients as backward
from .conditioning import Options

Result = TypeVar("Result")
Loop = Callable[[Predict, torch.device], Result]

_PICTURE_SIDE = 2048
"""Longest side, in pixels, at which the host sends a picture of a node's own; left to itself it enlarges smaller ones."""


def sample(
    model,
    loop: Loop,
    *,
    positive: tuple[Tensor, Options],
    negative: tuple[Tensor, Options],
    rows: int,
    shape: tuple[int, ...],
    schedule: Schedule,
    gradients: bool = False,
) -> Any:
    """Call ``loop(predict, device)`` with a model that is loaded and ready; return what it returns.

    positive, negative: an embedding ``[B,T,D]`` and the options of its conditioning; predict replaces the embedding.
    rows: most latents in one forward, for the host's memory estimate. shape: (C,h,w) of a latent.
    gradients: whether the loop differentiates; it then runs outside inference mode, on a fully loaded model.
    Raises what the loop raises; an out-of-memory error names the sizes and what lowers them.
    """
    latents = torch.zeros([rows, *shape])
    if gradients:
        model = backward.fully_loadable(model)
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "baret", backward.load_fully)
        # The host frees memory for two rows a latent of what it is shown.
        latents = torch.zeros(
            [rows + math.ceil(backward.activations(model, rows, shape) / model.memory_required([2, *shape])), *shape]
        )
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(
        {"positive": [[positive[0], dict(positive[1])]], "negative": [[negative[0], dict(negative[1])]]}
    )
    run = _Run(loop, rows if gradients else 0)
    try:
        guider.sample(latents, latents, run, schedule.sigmas.float(), disable_pbar=True)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        need = comfy.model_management.module_size(model.model) + model.memory_required([2 * len(latents), *shape])
        raise type(error)(
            f"out of memory with {rows} latent(s) of {shape[-1]}x{shape[-2]} in one forward (about {need / 1024**3:.1f} GB with the model): "
            "use a smaller picture or fewer images at a time, close other programs that hold GPU memory, or run the model in 16 bit."
        ) from error
    finally:
        # The host cleans ControlNets only after a run that succeeds.
        comfy.sampler_helpers.cleanup_models(getattr(guider, "conds", {}), [])
    return run.result


def progress(model, total: int) -> Callable[[int], OnStep]:
    """The host's progress bar with latent previews over ``total`` steps: call with the number of the first step."""
    callback = latent_preview.prepare_callback(model, total)

    def starting_at(first: int) -> OnStep:
        return lambda step, denoised, z: callback(first + step, denoised, z, total)

    return starting_at


def picture_progress(total: int) -> Callable[..., None]:
    """The host's progress bar over ``total`` steps with pictures of the caller's: ``advance(picture=None, steps=1)``.

    The frontend goes on showing a node's last preview in place of its result, so a picture is sent large enough to be looked at, and
    a node whose result is another picture sends none.
    """
    bar = comfy.utils.ProgressBar(total)

    def advance(picture=None, steps: int = 1) -> None:
        bar.update_absolute(
            bar.current + steps, total, picture and ("JPEG", picture, min(_PICTURE_SIDE, max(picture.size)))
        )

    return advance


class _Run(comfy.samplers.Sampler):
    """The host's Sampler interface around a loop; the loop's own result replaces the sampled latent."""

    def __init__(self, loop: Loop, tuned: int):
        self.loop, self.tuned, self.result = (
            loop,
            tuned,
            None,
        )  # tuned: rows that will be differentiated at once, if any

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        options = extra_args["model_options"]
        if not self.tuned:
            self.result = self.loop(_Predictor(guider, options), noise.device)
            return noise
        options = _with_transformer_options(options, {"optimized_attention_override": backward.attention})
        model = guider.model_patcher
        modules = [
            part
            for patcher in (model, *guider.loaded_models)
            if isinstance(part := getattr(patcher, "model", patcher), torch.nn.Module)
        ]
        recompute = backward.must_recompute(model, self.tuned, noise.shape[1:])
        with backward.differentiable(modules, recompute=recompute, patched=_patched(guider, options)):
            self.result = self.loop(_Predictor(guider, options), noise.device)
        return noise


class _Predictor:
    """The core's Predict over the host's ``calc_cond_batch``."""

    def __init__(self, guider: comfy.samplers.CFGGuider, options: dict):
        self._guider, self._options = guider, options
        self._blocks = attention.blocks_of(guider.model_patcher)

    def __call__(self, x, sigma, *, cond=None, uncond=None, sharing: Sharing | None = None, hooks: Hooks | None = None):
        comfy.model_management.throw_exception_if_processing_interrupted()
        # The list's order labels the passes, 0 conditional and 1 unconditional, for every patch on the model: a pass
        # that is left out keeps its place.
        passes = [self._conds("positive", cond), self._conds("negative", uncond)]
        options = self._options if sharing is None else _with_sharing(self._options, sharing)
        if hooks is not None:
            transformer = options.get("transformer_options", {})
            options = _with_transformer_options(
                options, {"patches_replace": attention.replacements(transformer, hooks, self._blocks)}
            )
        denoised = comfy.samplers.calc_cond_batch(
            self._guider.inner_model, passes, x, x.new_full([x.shape[0]], sigma), options
        )
        return tuple(None if conds is None else (x - out) / sigma for conds, out in zip(passes, denoised))

    def _conds(self, role: str, embedding: Tensor | None) -> list[dict] | None:
        if embedding is None:
            return None
        (entry,) = self._guider.conds[role]
        text = comfy.conds.CONDCrossAttn(embedding.to(self._guider.model_patcher.load_device))
        return [{**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text}}]


def _patched(guider: comfy.samplers.CFGGuider, options: dict) -> bool:
    """Whether code beyond the UNet's own takes part, which may change activations in place."""
    transformer = options.get("transformer_options", {})
    controlled = any("control" in entry for conds in guider.conds.values() for entry in conds)
    return controlled or bool(transformer.get("patches")) or bool(transformer.get("patches_replace"))


def _with_transformer_options(options: dict, changes: Mapping[str, Any]) -> dict:
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **changes}}


def _with_sharing(options: dict, sharing: Sharing) -> dict:
    """Model options of one call whose attention patches end with the sharing: patches of other nodes run before it."""

    def patch(share):
        return lambda n, context, value, extra: share(
            n, context, value, [label == 0 for label in extra["cond_or_uncond"]]
        )

    patches = options.get("transformer_options", {}).get("patches", {})
    return _with_transformer_options(
        options,
        {
            "patches": {
                **patches,
                "attn1_patch": [*patches.get("attn1_patch", []), patch(sharing.share_self)],
                "attn2_patch": [*patches.get("attn2_patch", []), patch(sharing.share_cross)],
            }
        },
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
