"""Run one of the core's loops inside the host's sampling: loading, hooks, ControlNet, previews, cancel and clean-up are the host's."""

from __future__ import annotations

import contextlib
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
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ..baret_ops.attention import Hooks, Sharing
from ..baret_ops.inversion import OnStep
from ..baret_ops.predict import Predict
from ..baret_ops.schedule import Schedule
from . import attention
from .conditioning import Options

Result = TypeVar("Result")
Loop = Callable[[Predict, torch.device], Result]

_GRADIENT_ROWS = 6
"""Latents whose sampling the host takes to need the memory of tuning one. It reckons with two rows a latent; what one
differentiated row of SD1.5's UNet keeps for backward was measured at 8.7 of the host's rows (397 MB at 384x384 in 16 bit, which makes 706 MB at 512x512)."""


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
    if gradients:
        model = _fully_loadable(model)
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "baret", _load_fully)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": [[positive[0], dict(positive[1])]], "negative": [[negative[0], dict(negative[1])]]})
    latents = torch.zeros([rows * (_GRADIENT_ROWS if gradients else 1), *shape])
    run = _Run(loop, gradients)
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
    """The host's progress bar over ``total`` steps with pictures of the caller's: ``advance(picture=None, steps=1)``."""
    bar = comfy.utils.ProgressBar(total)

    def advance(picture=None, steps: int = 1) -> None:
        bar.update_absolute(bar.current + steps, total, picture and ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION))

    return advance


class _Run(comfy.samplers.Sampler):
    """The host's Sampler interface around a loop; the loop's own result replaces the sampled latent."""

    def __init__(self, loop: Loop, gradients: bool):
        self.loop, self.gradients, self.result = loop, gradients, None

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        options = extra_args["model_options"]
        if not self.gradients:
            self.result = self.loop(_Predictor(guider, options), noise.device)
            return noise
        options = _with_transformer_options(options, {"optimized_attention_override": _differentiable_attention})
        # Nodes run in inference mode, where nothing can be saved for backward.
        with torch.inference_mode(False), torch.no_grad():
            modules = [model for patcher in (guider.model_patcher, *guider.loaded_models) if isinstance(model := getattr(patcher, "model", patcher), torch.nn.Module)]
            for module in modules:
                _leave_inference(module)
            with _saving_copies(modules) if _patched(guider, options) else contextlib.nullcontext():
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
            options = _with_transformer_options(options, {"patches_replace": attention.replacements(transformer, hooks, self._blocks)})
        denoised = comfy.samplers.calc_cond_batch(self._guider.inner_model, passes, x, x.new_full([x.shape[0]], sigma), options)
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
        return lambda n, context, value, extra: share(n, context, value, [label == 0 for label in extra["cond_or_uncond"]])

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


def _differentiable_attention(attention, *args, **kwargs):
    """Attention through pytorch's kernel: SageAttention and other inference kernels have no backward."""
    return attention_pytorch(*args, **kwargs)


def _fully_loadable(model):
    """A clone that loads its weights whole: a dynamic patcher streams them through buffers reused before backward reads them."""
    if not (hasattr(model, "is_dynamic") and model.is_dynamic()):
        return model.clone()
    try:
        with torch.inference_mode(False):
            return model.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            f"the model's loader cannot load it whole for tuning ({error}); load it with Load Checkpoint or Load Diffusion Model, "
            "or start ComfyUI with --disable-dynamic-vram."
        ) from error


def _load_fully(executor, model, *args, **kwargs):
    """A PREPARE_SAMPLING wrapper: offloaded weights pass through buffers that are reused before backward reads them."""
    result = executor(model, *args, **{**kwargs, "force_full_load": True})
    if model.model.model_lowvram and not comfy.model_management.is_device_cpu(model.load_device):
        size = model.model_size() / 1024**3
        raise ValueError(
            f"the tuning needs the whole model ({size:.1f} GB) on the GPU and only a part of it could be loaded; close other programs "
            "that hold GPU memory, use a smaller picture or 16-bit weights, and start ComfyUI without --novram or --lowvram."
        )
    return result


def _saving_copies(modules: list[torch.nn.Module]) -> torch.autograd.graph.saved_tensors_hooks:
    """Save copies of activations for backward: ControlNets and patches such as FreeU change in place what it still needs.

    Not ``torch.autograd.graph.allow_mutation_on_saved_tensors``: it knows a tensor by its address, and confuses a saved one
    that was let go with a new one in its place.
    """
    weights = {weight.untyped_storage().data_ptr() for module in modules for weight in module.parameters() if type(weight.data) is torch.Tensor}
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved if saved.untyped_storage().data_ptr() in weights else saved.clone(), lambda saved: saved)


def _leave_inference(module: torch.nn.Module) -> None:
    """Replace the inference tensors among a module's weights by normal ones of the same values, one at a time."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
