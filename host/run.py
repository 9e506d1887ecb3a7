"""Run one of the core's loops inside the host's sampling.

Loading, hooks, ControlNet, previews, cancel and clean-up are the host's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..baret_ops.attention import Hooks, Sharing, require_rows
from ..baret_ops.predict import OnStep, Predict
from ..baret_ops.schedule import Schedule
from . import attention, memory
from . import gradients as backward
from .conditioning import Options, controlnets
from .lora import Lora

Result = TypeVar("Result")
Loop = Callable[[Predict, torch.device], Result]

_PICTURE_SIDE = 2048
"""Longest side, in pixels, of a picture that a node shows; the host, left to itself, enlarges smaller ones."""


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
    lora: Lora | None = None,
) -> Any:
    """Call ``loop(predict, device)`` with a model that is loaded and ready; return what it returns.

    positive, negative: an embedding ``[B,T,D]`` and the options of its conditioning; predict replaces the embedding.
    rows: most latents in one forward, for the host's memory estimate. shape: (C,h,w) of a latent.
    gradients: whether the loop differentiates; it then runs outside inference mode, on a model that is loaded whole.
    lora: what the model carries meanwhile, for a loop that tunes it.
    Raises what the loop raises; an out-of-memory error names the sizes and what lowers them.
    """
    loading = backward.loadable_whole(model) if gradients else contextlib.nullcontext(model)
    with loading as model:
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": _conditioning(positive), "negative": _conditioning(negative)})
        preparation = _Preparation(rows, tuple(shape), gradients, lora)
        guider.model_options = _with_wrapper(guider.model_options, WrappersMP.PREPARE_SAMPLING, preparation)
        run = _Run(loop, rows if gradients else 0, lora)
        latents = torch.zeros([len(positive[0]), *shape])
        try:
            guider.sample(latents, latents, run, schedule.sigmas.float(), disable_pbar=True)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            raise memory.out_of_memory(model, rows, shape, gradients) from error
        finally:
            # The host cleans ControlNets only after a run that succeeds.
            comfy.sampler_helpers.cleanup_models(getattr(guider, "conds", {}), [])
        return run.result


def _conditioning(text: tuple[Tensor, Options]) -> list:
    embedding, options = text
    return [[embedding, dict(options)]]


def progress(model, total: int) -> OnStep:
    """The host's progress bar with latent previews over ``total`` steps."""
    callback = latent_preview.prepare_callback(model, total)
    return lambda step, denoised, z: callback(step, denoised, z, total)


def bare_progress(total: int) -> OnStep:
    """The host's progress bar over ``total`` steps without previews, for a node that shows a picture as its result.

    The frontend would go on showing the last preview beside the result (Nodes 2.0), or in place of it.
    """
    bar = comfy.utils.ProgressBar(total)
    return lambda *_: bar.update(1)


def picture_progress(total: int) -> Callable[..., None]:
    """The host's progress bar over ``total`` steps with pictures, for a node that shows none as its result.

    Each call of what it returns is a step, with a PIL image to show or without.
    """
    bar = comfy.utils.ProgressBar(total)

    def advance(picture=None) -> None:
        preview = picture and ("JPEG", picture, min(_PICTURE_SIDE, max(picture.size)))
        bar.update_absolute(bar.current + 1, total, preview)

    return advance


# --- before the first step --------------------------------------------------------------------------------------------


class _Preparation:
    """A PREPARE_SAMPLING wrapper: the host frees memory for as many rows as a forward of the loop has.

    The shape alone tells it so; the latents that samplers and their wrappers see are the pictures'.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], gradients: bool, lora: Lora | None):
        self.rows, self.shape, self.gradients, self.lora = rows, shape, gradients, lora

    def __call__(self, executor, model, noise_shape, conds, *args, **kwargs):
        if not self.gradients:
            return executor(model, [self.rows, *self.shape], conds, *args, **kwargs)
        beside = _modules(conds, [])
        with _carrying(model, self.lora):
            rows = memory.rows_to_free(model, self.rows, self.shape, beside)
        return backward.load_whole(executor, model, [rows, *self.shape], conds, *args, **kwargs)


def _with_wrapper(options: dict, kind: str, wrapper: Callable) -> dict:
    """Model options with one more wrapper of ours; kind: of the host's WrappersMP."""
    options = comfy.model_patcher.create_model_options_clone(options)
    comfy.patcher_extension.add_wrapper_with_key(kind, backward.WRAPPER_KEY, wrapper, options, is_model_options=True)
    return options


def _beside(model, loaded: list) -> list:
    """The patchers of what is loaded beside a MODEL: ControlNets, the models of hooks and patches, and the like."""
    patches = [patch for patcher in (model, *loaded) for patch in _models_of_patches(patcher)]
    return [*loaded, *patches]


def _models_of_patches(patcher) -> list:
    return patcher.model_patches_models() if hasattr(patcher, "model_patches_models") else []


def _modules(conds: Mapping[str, list[dict]], patchers: list) -> list[torch.nn.Module]:
    """The modules behind ``patchers`` and ControlNets, each once. Some ControlNets have modules without a patcher."""
    found = [getattr(patcher, "model", patcher) for patcher in patchers]
    for role in conds.values():
        for entry in role:
            for control in controlnets(entry):
                found += vars(control).values()
    modules = [each for each in found if isinstance(each, torch.nn.Module)]
    return list(dict.fromkeys(modules))


def _carrying(model, lora: Lora | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if lora is None else lora.on(model)


class _Run(comfy.samplers.Sampler):
    """The host's Sampler interface around a loop; the loop's own result replaces the sampled latent.

    tuned: rows that will be differentiated at once, 0 for none. lora: see :func:`sample`.
    """

    def __init__(self, loop: Loop, tuned: int, lora: Lora | None):
        self.loop, self.tuned, self.lora, self.result = loop, tuned, lora, None

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]: the host declares it without arguments
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        options = attention.uncompiled(extra_args["model_options"])
        tunable = self._tunable(guider, options, noise.shape[1:]) if self.tuned else contextlib.nullcontext(options)
        with tunable as options:
            self.result = self.loop(_Predictor(guider, options), noise.device)
        return noise

    @contextlib.contextmanager
    def _tunable(self, guider, options: dict, shape: tuple[int, ...]) -> Iterator[dict]:
        """Within it the model can be differentiated, with the options that it yields.

        Raises ValueError where memory is too short.
        """
        options = _with_transformer_options(options, {"optimized_attention_override": backward.attention})
        model = guider.model_patcher
        patchers = _beside(model, guider.loaded_models)
        with backward.weights_in_place(patchers), _carrying(model, self.lora):
            beside = _modules(guider.conds, patchers)
            recompute = memory.must_recompute(model, self.tuned, shape, beside)
            patched = backward.runs_other_code(model, guider.conds, options)
            with backward.differentiable(model.model, beside, recompute=recompute, patched=patched):
                yield options


# --- predictions ------------------------------------------------------------------------------------------------------


class _Predictor:
    """The core's Predict over the host's ``calc_cond_batch``."""

    def __init__(self, guider: comfy.samplers.CFGGuider, options: dict):
        self._guider, self._options = guider, options
        self._blocks = attention.blocks_of(guider.model_patcher)

    def __call__(
        self,
        x: Tensor,
        sigma: float,
        *,
        cond: Tensor | None = None,
        uncond: Tensor | None = None,
        sharing: Sharing | None = None,
        hooks: Hooks | None = None,
    ) -> tuple[Tensor, Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        # The list's order labels the passes, 0 conditional and 1 unconditional, for every patch on the model: a pass
        # that is left out keeps its place.
        passes: list[Any] = [self._conds("positive", cond), self._conds("negative", uncond)]
        options = self._options if sharing is None else _with_sharing(self._options, sharing, len(x))
        if hooks is not None:
            transformer = options.get("transformer_options", {})
            replaced = attention.replacements(transformer, hooks, self._blocks, len(x))
            options = _with_transformer_options(options, {"patches_replace": replaced})
        sigmas = x.new_full([x.shape[0]], sigma)
        denoised = comfy.samplers.calc_cond_batch(self._guider.inner_model, passes, x, sigmas, options)
        eps = [None if conds is None else (x - out) / sigma for conds, out in zip(passes, denoised)]
        return cast(tuple[Tensor, Tensor], tuple(eps))

    def _conds(self, role: str, embedding: Tensor | None) -> list[dict] | None:
        if embedding is None:
            return None
        (entry,) = self._guider.conds[role]
        text = comfy.conds.CONDCrossAttn(embedding.to(self._guider.model_patcher.load_device))
        return [{**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text}}]


def _with_transformer_options(options: dict, changes: Mapping[str, Any]) -> dict:
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **changes}}


def _with_sharing(options: dict, sharing: Sharing, rows: int) -> dict:
    """Model options of one call in whose attentions the sharing comes first; rows: of a pass.

    Patches of other nodes may merge tokens, cut pictures into tiles or add regions. What is lent is lent before, so the
    sharing is put in front of them once all are there: those that hooks bring come after the model options.
    """

    def first(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        require_rows(len(x), transformer_options["cond_or_uncond"], rows)
        patches = dict(transformer_options.get("patches", {}))
        for kind, share in (("attn1_patch", sharing.share_self), ("attn2_patch", sharing.share_cross)):
            patches[kind] = [_sharing_patch(share), *patches.get(kind, [])]
        shared = {**transformer_options, "patches": patches}
        return executor(x, timesteps, context, y, control, shared, **kwargs)

    return _with_wrapper(options, WrappersMP.DIFFUSION_MODEL, first)


def _sharing_patch(share: Callable) -> Callable:
    def patch(n, context, value, extra):
        passes = [label == 0 for label in extra["cond_or_uncond"]]
        return share(n, context, value, passes)

    return patch
