"""What the host's models need to be differentiated: normal tensors, weights that stay, a kernel with a backward, memory for activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.model_management
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

_KEPT = 92_000
"""Bytes of activations that one differentiated row keeps for backward, by latent pixel and byte of the compute type, in a model of SD1.5's
memory factor. Counted at 32x32 in 16 bit: 187 MB, which makes 750 MB at 64x64; it grows with the area."""

_KEPT_RECOMPUTING = 20_000
"""The same where blocks are computed again on the way back. Counted: 37 MB, which are the blocks' inputs, what lies between them and the
largest block."""


def activations(model, rows: int, shape: tuple[int, ...], recompute: bool = False) -> float:
    """Bytes that ``rows`` differentiated rows of latents ``shape`` (C,h,w) keep for backward, beside the model: an estimate."""
    base = model.model
    size = comfy.model_management.dtype_size(base.get_dtype_inference())
    return (_KEPT_RECOMPUTING if recompute else _KEPT) * rows * shape[-1] * shape[-2] * size * base.memory_usage_factor


def fully_loadable(model):
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


def load_fully(executor, model, *args, **kwargs):
    """A PREPARE_SAMPLING wrapper: offloaded weights pass through buffers that are reused before backward reads them."""
    result = executor(model, *args, **{**kwargs, "force_full_load": True})
    if model.model.model_lowvram and not comfy.model_management.is_device_cpu(model.load_device):
        size = model.model_size() / 1024**3
        raise ValueError(
            f"the tuning needs the whole model ({size:.1f} GB) on the GPU and only a part of it could be loaded; close other programs "
            "that hold GPU memory, use a smaller picture or 16-bit weights, and start ComfyUI without --novram or --lowvram."
        )
    return result


def must_recompute(model, rows: int, shape: tuple[int, ...]) -> bool:
    """Whether free memory is too short to keep all activations of ``rows`` rows, so that blocks have to be computed again on the way back.

    The model is loaded. Raises ValueError where not even that fits.
    """
    free = comfy.model_management.get_free_memory(model.load_device)
    least = activations(model, rows, shape, recompute=True)
    if least > free:
        raise ValueError(
            f"tuning {rows} picture(s) of {8 * shape[-1]}x{8 * shape[-2]} needs about {least / 1024**3:.1f} GB beside the model and "
            f"{free / 1024**3:.1f} GB are free: use a smaller picture or fewer at a time, close other programs that hold memory, or run the model in 16 bit."
        )
    return activations(model, rows, shape) > free


@contextlib.contextmanager
def differentiable(modules: list[nn.Module], *, recompute: bool, patched: bool) -> Iterator[None]:
    """Within it, ``modules`` (a UNet and what is loaded beside it) can be differentiated; gradients are enabled by the caller.

    Nodes run in inference mode, where nothing can be saved for backward. recompute: keep the inputs of blocks alone, and compute the blocks
    again on the way back (activation checkpointing; Chen et al. 2016). patched: whether code beyond the UNet's own takes part.
    """
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        for module in modules:
            _leave_inference(module)
        if recompute:
            stack.enter_context(_recomputing(modules, copies=patched))
        if patched:
            stack.enter_context(_saving_copies(modules))
        yield


def attention(_, *args, **kwargs):
    """An ``optimized_attention_override``: pytorch's kernel. SageAttention and other inference kernels have no backward."""
    return attention_pytorch(*args, **kwargs)


@contextlib.contextmanager
def _recomputing(modules: list[nn.Module], copies: bool) -> Iterator[None]:
    """Residual and transformer blocks keep their inputs alone. copies: copies of these, where other code may change them in place."""

    def wrapped(forward):
        def call(x, *args, **kwargs):
            if not torch.is_grad_enabled():
                return forward(x, *args, **kwargs)
            # What transformer_options say is of the moment: the host writes the block's place into them as it goes.
            snapshot = (
                [dict(value) if isinstance(value, dict) else value for value in args],
                {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()},
            )
            first = True

            def run(x):
                nonlocal first
                now, first = (args, kwargs) if first else snapshot, False
                return forward(x, *now[0], **now[1])

            return checkpoint(run, x.clone() if copies else x, use_reentrant=False, preserve_rng_state=False)

        return call

    blocks = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, (ResBlock, SpatialTransformer)) and "forward" not in vars(part)
    ]
    try:
        for block in blocks:
            block.forward = wrapped(block.forward)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _saving_copies(modules: list[nn.Module]) -> torch.autograd.graph.saved_tensors_hooks:
    """Save copies of activations for backward: ControlNets and patches such as FreeU change in place what it still needs.

    Not ``torch.autograd.graph.allow_mutation_on_saved_tensors``: it knows a tensor by its address, and confuses a saved one
    that was let go with a new one in its place.
    """
    weights = {
        weight.untyped_storage().data_ptr()
        for module in modules
        for weight in module.parameters()
        if type(weight.data) is torch.Tensor
    }
    return torch.autograd.graph.saved_tensors_hooks(
        lambda saved: saved if saved.untyped_storage().data_ptr() in weights else saved.clone(), lambda saved: saved
    )


def _leave_inference(module: nn.Module) -> None:
    """Replace the inference tensors among a module's weights by normal ones of the same values, one at a time."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()
