"""What the host's models need so that they can be differentiated.

Normal tensors in place of inference tensors, weights that stay where they are until backward has read them, an
attention kernel that has a backward, and activations that no other code changes in place.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.hooks
import comfy.model_management
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .attention import unet_of
from .memory import BLOCKS

WRAPPER_KEY = "baret"
"""The name of our own wrappers among those of a model."""


# --- weights that stay ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loadable_whole(model) -> Iterator[Any]:
    """A MODEL, or a clone of it, that loads its weights whole, with the patches and options that the model has now.

    The host's dynamic patcher streams weights through buffers, which are used again before backward reads them. The
    host keeps a second copy of such a model that loads whole, for hooks; that copy is taken here, so that the file is
    read once. Every clone of a model, with LoRAs or without, shares the copy of the model that was loaded first.
    Raises ValueError for a model whose loader makes no such copy.
    """
    if not _is_dynamic(model):
        yield model
        return
    if "bypass_lora" in model.injections:
        raise ValueError(
            "the model carries a LoRA in bypass mode, which would not reach the copy that is tuned on; load it with "
            "Load LoRA, or start ComfyUI with --disable-dynamic-vram."
        )
    try:
        with torch.inference_mode(False):
            whole = _whole_copy(model)
            _cast_as_built(whole.model)
    except RuntimeError as error:
        raise ValueError(
            f"the model's loader cannot load it whole for tuning ({error}); load it with Load Checkpoint or "
            "Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        ) from error
    try:
        yield whole
    finally:
        # The host loses sight of this clone when it is let go, and would never free what it holds on the GPU.
        _unload(whole)


def _is_dynamic(patcher) -> bool:
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def _whole_copy(model):
    """A clone of a dynamic MODEL that loads whole. Raises RuntimeError where the loader cannot be asked again."""
    first = model
    while _shares_loader(first, first.parent):
        first = first.parent
    if not hasattr(first, "get_non_dynamic_delegate"):
        return model.clone(disable_dynamic=True)
    whole = first.get_non_dynamic_delegate()
    if first is model:
        return whole
    return model.clone(disable_dynamic=True, model_override=whole.get_clone_model_override())


def _cast_as_built(module: nn.Module) -> None:
    """Give a model's weights the types that its layers were built for.

    With the host's dynamic memory its linear layers keep the type of the file, since streaming casts at each use. A
    copy that is loaded whole computes with them as they are.
    """
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and type(weight.data) is Tensor and weight.dtype != _kind(part, name, weight):
                part._parameters[name] = nn.Parameter(weight.to(_kind(part, name, weight)), requires_grad=False)


def _kind(part: nn.Module, name: str, weight: Tensor) -> torch.dtype:
    """The type that a layer was built to compute in with its weight of that name."""
    return getattr(part, f"{name}_comfy_model_dtype", None) or weight.dtype


def _shares_loader(patcher, parent) -> bool:
    """Whether two patchers are over one module, which one loader made."""
    return patcher.is_clone(parent) and parent.cached_patcher_init is patcher.cached_patcher_init


def _unload(model) -> None:
    """Take a model's weights off the device, and the model off the host's list of loaded ones."""
    loaded = comfy.model_management.current_loaded_models
    for entry in [entry for entry in loaded if entry.model is model]:
        entry.model_unload()
        loaded.remove(entry)


def load_whole(executor: Callable, model, *args, **kwargs):
    """A PREPARE_SAMPLING wrapper that has all weights of the model loaded, none of them streamed.

    Raises ValueError where only a part fits on the GPU.
    """
    result = executor(model, *args, **{**kwargs, "force_full_load": True})
    if model.model.model_lowvram and not comfy.model_management.is_device_cpu(model.load_device):
        size = model.model_size() / 1024**3
        raise ValueError(
            f"the tuning needs the whole model ({size:.1f} GB) on the GPU and only a part of it could be loaded; close "
            "other programs that hold GPU memory, use a smaller picture or 16-bit weights, and start ComfyUI without "
            "--novram or --lowvram."
        )
    return result


@contextlib.contextmanager
def weights_in_place(patchers: Iterable) -> Iterator[None]:
    """Within it, the weights of the dynamic ones among ``patchers`` lie whole on their device, as normal tensors.

    For what is loaded beside the UNet: a ControlNet has no loader that could be asked for a whole copy of it, and the
    code that calls it holds the module itself. Streamed weights may be gone before backward reads them, and those that
    an earlier sampler streamed are inference tensors.
    """
    replaced: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for patcher in _dynamic_ones(patchers):
                for prefix, part in patcher.model.named_modules():
                    for name, weight in part._parameters.items():
                        if weight is not None:
                            copy = nn.Parameter(_on_device(patcher, prefix, part, name, weight), requires_grad=False)
                            part._parameters[name] = copy
                            replaced.append((part, name, weight, copy))
        yield
    finally:
        for part, name, weight, copy in reversed(replaced):
            if part._parameters.get(name) is copy:
                part._parameters[name] = weight


def _dynamic_ones(patchers: Iterable) -> list:
    """The dynamic ones, one for each module: a ControlNet that is applied twice names its patcher twice."""
    return list({patcher.model: patcher for patcher in patchers if _is_dynamic(patcher)}.values())


def _on_device(patcher, prefix: str, part: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A copy of one weight of a dynamic patcher's model on its device, as the model computes with it."""
    key = f"{prefix}.{name}" if prefix else name
    if key in patcher.backup:  # a small weight, which the host has put on the device already, patches and all
        return weight.detach().clone()
    if key in patcher.patches:
        return patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
    kind = _kind(part, name, weight)
    if weight.is_meta:  # the file lacks it, and the host takes zeros
        return torch.zeros(weight.shape, dtype=kind, device=patcher.load_device)
    return weight.detach().to(patcher.load_device, kind, copy=True)


# --- a forward that backward can follow -------------------------------------------------------------------------------


@contextlib.contextmanager
def differentiable(model: nn.Module, beside: list[nn.Module], *, recompute: bool, patched: bool) -> Iterator[None]:
    """Within it, a model and what is loaded ``beside`` it can be differentiated; the caller enables gradients.

    Nodes run in inference mode, where nothing can be saved for backward. recompute: keep the inputs of blocks alone,
    and compute the blocks again on the way back (activation checkpointing; Chen et al. 2016). patched: whether code
    beside the UNet's own takes part (:func:`runs_other_code`).
    """
    modules = [model, *beside]
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        for module in modules:
            _leave_inference(module)
        stack.enter_context(_attending(beside))
        stack.enter_context(_adding_apart(modules))
        if recompute:
            stack.enter_context(_recomputing(modules, copies=patched))
        if patched:
            stack.enter_context(_saving_copies(modules))
        yield


def attention(_, *args, **kwargs):
    """An ``optimized_attention_override``: pytorch's kernel. Kernels such as SageAttention have no backward."""
    return attention_pytorch(*args, **kwargs)


def _leave_inference(module: nn.Module) -> None:
    """Replace the inference tensors among a module's weights by normal ones of the same values, one at a time."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = _normal(buffer)
        for adapter in _adapters(part):
            adapter.weights = type(adapter.weights)(map(_normal, adapter.weights))


def _normal(weight):
    """A normal copy of an inference tensor; anything else as it is."""
    return weight.clone() if torch.is_tensor(weight) and weight.is_inference() else weight


def _adapters(part: nn.Module) -> Iterator[Any]:
    """The LoRAs that run beside a layer, in the host's bypass mode: they hold their weights in no module."""
    forward = vars(part).get("forward")
    while isinstance(hook := getattr(forward, "__self__", None), BypassForwardHook):
        if isinstance(getattr(hook.adapter, "weights", None), (list, tuple)):
            yield hook.adapter
        forward = hook.original_forward


@contextlib.contextmanager
def _attending(modules: list[nn.Module]) -> Iterator[None]:
    """ControlNets attend by :func:`attention`: the host gives them no transformer options to say it in."""

    with _replaced(_parts(modules, SpatialTransformer), _attending_forward):
        yield


def _attending_forward(forward: Callable) -> Callable:
    def call(x, context=None, transformer_options=None):
        options = {**(transformer_options or {}), "optimized_attention_override": attention}
        return forward(x, context, options)

    return call


@contextlib.contextmanager
def _adding_apart(modules: list[nn.Module]) -> Iterator[None]:
    """CLIP's layers, which add to their input in place while backward still needs it, add to a new tensor."""

    def make(forward: Callable) -> Callable:
        def call(*args, **kwargs):
            with _NewSums():
                return forward(*args, **kwargs)

        return call

    with _replaced(_parts(modules, CLIPLayer), make):
        yield


class _NewSums(TorchFunctionMode):
    """Within it ``x += y`` makes a new tensor, and leaves the old one as it was."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.add_:
            func = torch.add
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _recomputing(modules: list[nn.Module], copies: bool) -> Iterator[None]:
    """Residual and transformer blocks (``BLOCKS``) keep their inputs alone.

    copies: keep copies of the inputs, where other code may change them in place.
    """
    with _replaced(_parts(modules, *BLOCKS), functools.partial(_recomputed, copies=copies)):
        yield


def _parts(modules: list[nn.Module], *kinds: type[nn.Module]) -> list[nn.Module]:
    """The parts of ``modules`` that are of these kinds, each once."""
    parts = [part for module in modules for part in module.modules()]
    return list(dict.fromkeys(part for part in parts if isinstance(part, kinds)))


@contextlib.contextmanager
def _replaced(blocks: list[nn.Module], make: Callable[[Callable], Callable]) -> Iterator[None]:
    """Within it, each block's forward is ``make(forward)``."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = make(block.forward)
        yield
    finally:
        for block, forward in before:
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _recomputed(forward: Callable, copies: bool) -> Callable:
    """A block's forward whose activations are computed again when backward needs them.

    copies: the input that is kept is a copy, which neither the block nor what comes after it can change.
    """

    def own(x):
        return x.clone() if copies else x

    def call(x, *args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(x, *args, **kwargs)
        # What transformer_options say is of the moment: the host writes the block's place into them as it goes.
        args_then = [_snapshot(value) for value in args]
        kwargs_then = {name: _snapshot(value) for name, value in kwargs.items()}
        first = True

        def run(x):
            nonlocal first
            x = own(x)
            if first:
                first = False
                return forward(x, *args, **kwargs)
            return forward(x, *args_then, **kwargs_then)

        return checkpoint(run, own(x), use_reentrant=False, preserve_rng_state=False)

    return call


def _snapshot(value):
    return dict(value) if isinstance(value, dict) else value


def _saving_copies(modules: list[nn.Module]) -> torch.autograd.graph.saved_tensors_hooks:
    """Save copies of activations for backward: ControlNets, FreeU and the like change in place what it still needs.

    Not ``torch.autograd.graph.allow_mutation_on_saved_tensors``: it knows a tensor by its address, and confuses a saved
    one that was let go with a new one in its place.
    """
    weights = {
        weight.untyped_storage().data_ptr()
        for module in modules
        for weight in module.parameters()
        if type(weight.data) is Tensor
    }

    def pack(saved: Tensor) -> Tensor:
        return saved if saved.untyped_storage().data_ptr() in weights else saved.clone()

    def unpack(kept: Tensor) -> Tensor:
        return kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


# --- other code -------------------------------------------------------------------------------------------------------


def runs_other_code(model, conds: dict[str, list[dict]], options: dict) -> bool:
    """Whether code beside the UNet's own may run in a forward, and so change in place what backward still needs.

    model: a MODEL. conds: the conditionings it is called with, by role. options: its model options for the run.
    """
    transformer = options.get("transformer_options", {})
    patches = transformer.get("patches") or transformer.get("patches_replace")
    entries = [entry for role in conds.values() for entry in role]
    return (
        bool(patches)
        or "model_function_wrapper" in options
        or _is_wrapped(transformer.get("wrappers", {}))
        or any(_brings_code(entry) for entry in entries)
        or _is_changed(model)
    )


def _is_wrapped(wrappers: dict[str, dict[str | None, list]]) -> bool:
    """Whether other packs' wrappers are there."""
    keys = [key for kind in wrappers.values() for key, wrapped in kind.items() if wrapped]
    return any(key != WRAPPER_KEY for key in keys)


def _brings_code(entry: dict) -> bool:
    """Whether a conditioning runs code in the forward. Hooks that only change weights (LoRA) do not."""
    hooks = entry.get("hooks")
    code = [] if hooks is None else [hook for hook in hooks.hooks if hook.hook_type != comfy.hooks.EnumHookType.Weight]
    return "control" in entry or "gligen" in entry or bool(code)


def _is_changed(model) -> bool:
    """Whether parts of the UNet are replaced, injected into, or watched by hooks of torch."""
    unet = unet_of(model)
    parts = [part for part in unet.modules() if part is not unet]
    replaced = any(name.startswith("diffusion_model") for name in model.object_patches)
    return replaced or bool(model.injections) or any(_is_tapped(part) for part in parts)


def _is_tapped(part: nn.Module) -> bool:
    return bool("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks)
