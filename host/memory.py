"""How much memory tuning takes, whether that much is free, and what is said where it is not.

The figures are for UNets built as SD1.5's. They grow with the channels, with the area, with the rows, and with the
bytes of the type that the model computes in. dev/benchmarks/README.md tells how they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import comfy.model_management
import torch
from comfy.cldm.cldm import ControlNet
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, ResnetBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from .attention import unet_of

BLOCKS = (ResBlock, SpatialTransformer, ResnetBlock, AttnBlock, CLIPLayer)
"""What can be computed again on the way back: the blocks of UNets and ControlNets, of VAEs, and of CLIP."""

OutOfMemory = torch.cuda.OutOfMemoryError
"""What the host, too, takes for an out-of-memory error."""

_CHANNELS = 320
"""Channels of SD1.5's UNet at full size, for which the figures below stand."""

_KEPT = 92_000
"""Bytes of activations that a differentiated row keeps for backward, by latent pixel and byte of the compute type."""

_KEPT_RECOMPUTING = 20_000
"""The same where blocks are computed again on the way back: their inputs, what lies between, and the largest block."""

_LORA = 1.1
"""What a row keeps where a LoRA is tuned, over what it keeps else: the inputs of its layers are needed as well."""

_ADAM = 16
"""Bytes that a number takes that is tuned: itself, its gradient and Adam's two moments in float32."""

_CONTROLNET = 0.35
"""What a ControlNet keeps, as a share of what the UNet keeps: it is the UNet's first half."""

_WORKING = 8_000
"""Bytes that a forward works with beside what it keeps, by latent pixel and byte of the compute type."""

_WORKING_ON_CPU = 52_000
"""The same on a CPU, in resident memory: the C library holds on to much of what was let go."""

_LARGEST_WEIGHT = 1.2
"""Copies of the largest weight that kernels make to work with it in another order."""


_DECODED, _DECODED_RECOMPUTING = 4.0, 2.5
"""What a VAE's decoder needs to be differentiated, in units of what the host reckons for it without gradients.

Of this 2.8 and 0.8 are kept for backward (counted over SD1.5's decoder), the rest is worked with.
"""

_LOOKED_AT, _LOOKED_AT_RECOMPUTING = 40, 4
"""Numbers that a CLIP vision model keeps for backward, by layer, token and channel: 36 and 2 counted over ViT-L's."""

PAINTED = 45
"""Numbers that the network of a layer keeps for backward, by pixel and channel: 17 counted.

Times 2.4 where an update sees the whole picture and an example of it, which is up to 1.2 times as wide and high.
"""

OF_A_NETWORK = 200
"""Its weights, by channel squared: 140 counted for five levels."""

_SMALLER = "use a smaller picture, fewer at a time or fewer views, or close other programs that hold memory"


def activations(
    model, rows: int, shape: Sequence[int], recompute: bool = False, beside: Iterable[nn.Module] = ()
) -> float:
    """Bytes that tuning takes beside the weights: an estimate.

    They are the activations that backward needs, what a forward works with, copies of weights that are cast, and what
    a LoRA that is tuned takes.
    rows: differentiated at once. shape: (C,h,w) of a latent. recompute: whether blocks are computed again on the way
    back. beside: modules that take part beside the UNet (ControlNets).
    """
    unet, beside = unet_of(model), list(beside)
    kind = model.model.get_dtype_inference()
    size = comfy.model_management.dtype_size(kind)
    controlnets = sum(isinstance(module, ControlNet) for module in beside)
    kept = (_KEPT_RECOMPUTING if recompute else _KEPT) * (1 + _CONTROLNET * controlnets)
    working = _WORKING_ON_CPU if comfy.model_management.is_device_cpu(model.load_device) else _WORKING
    pixels = rows * shape[-2] * shape[-1]
    channels = unet.model_channels / _CHANNELS
    largest = max(weight.numel() for weight in unet.parameters())
    casts = sum(_cast_copies(module, kind, recompute) for module in (unet, *beside))
    tuned = _tuned_numbers(unet)
    kept *= _LORA if tuned else 1.0
    held = (kept + working) * pixels * size * channels
    return held + _LARGEST_WEIGHT * largest * size + casts * size + _ADAM * tuned


def _tuned_numbers(module: nn.Module) -> int:
    """Numbers in the LoRAs on a module's layers that are being tuned."""
    functions = [each for part in module.modules() for each in getattr(part, "weight_function", ())]
    weights = [weight for each in functions if isinstance(each, nn.Module) for weight in each.parameters()]
    return sum(weight.numel() for weight in weights if weight.requires_grad)


def _cast_copies(module: nn.Module, kind: torch.dtype, recompute: bool) -> int:
    """Numbers in the copies of a module's weights that autograd keeps, because they are cast to ``kind`` at each use.

    recompute: blocks keep theirs only while they are on the way back, one block at a time.
    """
    every = _cast_numbers(module, kind)
    if not recompute:
        return every
    blocks = [part for part in module.modules() if isinstance(part, BLOCKS)]
    by_block = [_cast_numbers(block, kind) for block in blocks]
    return every - sum(by_block) + max(by_block, default=0)


def _cast_numbers(module: nn.Module, kind: torch.dtype) -> int:
    parts = [part for part in module.modules() if hasattr(part, "comfy_cast_weights")]
    return sum(weight.numel() for part in parts for weight in _cast_weights(part, kind))


def _cast_weights(part: nn.Module, kind: torch.dtype) -> list[Tensor]:
    """Those weights of a layer of the host's that are not computed with as they are stored."""
    weights: list[Tensor] = [weight for weight in part.parameters(recurse=False) if weight.is_floating_point()]
    if part.weight_function:
        return weights
    return [weight for weight in weights if weight.dtype != kind or type(weight.data) is not Tensor]


def rows_to_free(model, rows: int, shape: Sequence[int], beside: Iterable[nn.Module] = ()) -> int:
    """For how many latents the host has to free memory so that ``rows`` can be tuned with all activations kept.

    The host frees what two rows without gradients need, for each latent of the shape that it is shown.
    """
    extra = activations(model, rows, shape, beside=beside) / model.memory_required([2, *shape])
    return rows + math.ceil(extra)


def must_recompute(model, rows: int, shape: Sequence[int], beside: Iterable[nn.Module] = ()) -> bool:
    """Whether too little is free to keep all activations of ``rows`` rows: blocks are then computed again.

    The model is loaded. Raises ValueError where not even that fits.
    """
    free = cast(float, comfy.model_management.get_free_memory(model.load_device))
    least = activations(model, rows, shape, True, beside)
    if least > free:
        raise ValueError(
            f"tuning {rows} picture(s) of {8 * shape[-1]}x{8 * shape[-2]} needs about {_gigabytes(least)} beside the "
            f"model and {_gigabytes(free)} are free: use a smaller picture or fewer at a time, close other programs "
            "that hold memory, or run the model in 16 bit."
        )
    return activations(model, rows, shape, False, beside) > free


def of_pictures(vae, clip_vision, shape: Sequence[int], views: int, recompute: bool) -> float:
    """Bytes that tuning latents by CLIP takes beside the weights: an estimate.

    shape: (B,C,h,w) of the latents. views: pictures that CLIP looks at in one update, for each latent. recompute:
    whether blocks are computed again on the way back.
    """
    decoded = _DECODED_RECOMPUTING if recompute else _DECODED
    decoding = decoded * shape[0] * vae.memory_used_decode(shape, vae.vae_dtype)  # the host's figure is of one
    return decoding + _of_looking(clip_vision, shape[0] * views, recompute)


def of_layer(clip_vision, size: Sequence[int], views: int, channels: int, recompute: bool) -> float:
    """Bytes that painting a layer by CLIP takes beside CLIP's weights: an estimate.

    size: (H,W) of the picture. views: of each picture that is judged. channels: of the network that paints.
    """
    kept = PAINTED * channels * math.prod(size) * torch.float32.itemsize
    looked_at = 2 * (2 * views + 1)  # of the whole picture and of an example: both views and the structure
    return kept + _ADAM * OF_A_NETWORK * channels**2 + _of_looking(clip_vision, looked_at, recompute)


def _of_looking(clip_vision, pictures: int, recompute: bool) -> float:
    config = clip_vision.config
    tokens = (config["image_size"] // config["patch_size"]) ** 2 + 1
    kept = _LOOKED_AT_RECOMPUTING if recompute else _LOOKED_AT
    looking = pictures * kept * config["num_hidden_layers"] * tokens * config["hidden_size"]
    casts = _cast_copies(clip_vision.model, torch.float32, recompute)
    return (looking + casts) * torch.float32.itemsize


@dataclass(frozen=True)
class ByClip:
    """What tuning by CLIP takes: what is tuned, in words; bytes beside the models, with and without computing again."""

    what: str
    estimate: Callable[[bool], float]

    def must_recompute(self, device: torch.device) -> bool:
        """Whether too little is free to keep all activations; as :func:`must_recompute`."""
        free = cast(float, comfy.model_management.get_free_memory(device))
        least = self.estimate(True)
        if least > free:
            raise ValueError(
                f"tuning {self.what} needs about {_gigabytes(least)} beside the models and {_gigabytes(free)} are "
                f"free: {_SMALLER}."
            )
        return self.estimate(False) > free

    def out_of_memory(self) -> OutOfMemory:
        """As :func:`out_of_memory`."""
        return OutOfMemory(f"out of memory with {self.what}: {_SMALLER}.")


def is_out_of_memory(error: BaseException) -> bool:
    """By the host's own test, and by what torch says on CPUs and on Macs, which that test leaves out."""
    if _host_calls_it_out_of_memory(error):
        return True
    words = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _host_calls_it_out_of_memory(error: BaseException) -> bool:
    if hasattr(comfy.model_management, "is_oom"):
        return comfy.model_management.is_oom(error)
    return isinstance(error, comfy.model_management.OOM_EXCEPTION)  # ComfyUI 0.16


def out_of_memory(model, rows: int, shape: Sequence[int], gradients: bool) -> OutOfMemory:
    """The error to raise in place of torch's: it names the sizes and what lowers them."""
    need = comfy.model_management.module_size(model.model) + model.memory_required([2 * rows, *shape])
    if gradients:
        need += activations(model, rows, shape)
    return OutOfMemory(
        f"out of memory with {rows} latent(s) of {shape[-1]}x{shape[-2]} in one forward (about {_gigabytes(need)} with "
        "the model): use a smaller picture or fewer images at a time, close other programs that hold GPU memory, or "
        "run the model in 16 bit."
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1024**3:.1f} GB"
