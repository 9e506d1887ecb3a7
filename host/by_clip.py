"""A picture's latent tuned by CLIP: the host's VAE and CLIP_VISION, made differentiable for the core's loop."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import comfy.model_management
import torch
from torch import Tensor

from . import gradients, memory
from .clip import require_clip_vision

Decode = Callable[[Tensor], Tensor]
Place = Callable[[Tensor], Tensor]


class Encoder:
    """The core's Encoder over a CLIP_VISION that is loaded: its preprocessing without the rounding to 256 levels."""

    def __init__(self, clip_vision):
        self._vision, self.side = clip_vision, clip_vision.image_size
        device = clip_vision.load_device
        self._mean = torch.tensor(clip_vision.image_mean, device=device).view(3, 1, 1)
        self._deviation = torch.tensor(clip_vision.image_std, device=device).view(3, 1, 1)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = self._middle(pictures.to(self._mean.device)).clamp(0.0, 1.0)
        pixels = (seen - self._mean) / self._deviation
        _, tokens, embeddings, _ = self._vision.model(pixel_values=pixels, intermediate_output=-2)
        # The host may keep CLIP on the CPU and the VAE on a card.
        return embeddings.float().to(pictures.device), tokens.float().to(pictures.device)

    def _middle(self, pictures: Tensor) -> Tensor:
        """The middle square of pictures, at the encoder's size."""
        height, width = pictures.shape[-2:]
        if (height, width) == (self.side, self.side):
            return pictures
        scale = self.side / min(height, width)
        size = [round(scale * height), round(scale * width)]
        pictures = torch.nn.functional.interpolate(pictures, size=size, mode="bicubic", antialias=True)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        return pictures[..., top : top + self.side, left : left + self.side]


def require_latent(vae, latent: dict) -> Tensor:
    """The images ``[B,C,h,w]`` float32 of a LATENT for a VAE of pictures.

    Raises ValueError for another shape, NaN or infinity, an empty one, a noise mask, and for a VAE of something else.
    """
    vae.throw_exception_if_invalid()
    if vae.latent_dim != 2 or vae.output_channels != 3:
        raise ValueError("the VAE is not one of pictures; connect the VAE of an SD1.x or SD2.x checkpoint.")
    if "noise_mask" in latent:
        raise ValueError(
            "the latent carries a noise mask, which is not heeded here; take Set Latent Noise Mask out, and connect "
            "the mask to the mask input."
        )
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != vae.latent_channels or 0 in samples.shape:
        shape = "nested" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise ValueError(
            f"the latent is {shape}; [images,{vae.latent_channels},height/8,width/8] fits: encode a picture with this "
            "VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError("the latent holds NaN or infinity; run the VAE in float32 (for example --fp32-vae).")
    if (samples == samples.flatten(1)[:, :1, None, None]).flatten(1).all(1).any():
        raise ValueError("the latent is empty, with nothing to begin at; encode a picture, or fill it with noise.")
    return samples.float()


@contextlib.contextmanager
def tunable(vae, clip_vision, shape: Sequence[int], views: int) -> Iterator[tuple[Decode, Encoder, Place]]:
    """Within it: ``(decode, encode, place)`` to tune latents with.

    place: a copy of a tensor on the device, which backward may keep whatever mode the tensor was made in. decode:
    placed latents ``[B,C,h,w]`` on the wire's scale to pictures ``[B,3,H,W]`` in 0..1. shape: of the latents. views:
    pictures that CLIP looks at in one update, for each latent. Raises ValueError for a vision model that is no CLIP,
    and where memory is too short.
    """
    what = f"{shape[0]} latent(s) of {shape[-1]}x{shape[-2]} with {views} view(s) each"
    need = memory.ByClip(what, functools.partial(memory.of_pictures, vae, clip_vision, shape, views))

    def decode(latents: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        pictures = vae.first_stage_model.decode(latents.to(vae.device, vae.vae_dtype))
        return vae.process_output(pictures.float())

    with _differentiable(clip_vision, [vae.patcher], [vae.first_stage_model], vae.device, need) as place:
        yield decode, Encoder(clip_vision), place


@contextlib.contextmanager
def paintable(clip_vision, size: Sequence[int], views: int, channels: int) -> Iterator[tuple[Encoder, Place]]:
    """Within it: ``(encode, place)`` to paint a layer over a picture with; as :func:`tunable`.

    size: (H,W) of the picture. channels: of the network that paints.
    """
    what = f"a layer of {size[1]}x{size[0]} with {views} view(s)"
    need = memory.ByClip(what, functools.partial(memory.of_layer, clip_vision, size, views, channels))
    with _differentiable(clip_vision, [], [], clip_vision.load_device, need) as place:
        yield Encoder(clip_vision), place


@contextlib.contextmanager
def _differentiable(clip_vision, patchers: list, modules: list, device, need: memory.ByClip) -> Iterator[Place]:
    """Load models beside a CLIP_VISION and make all of them differentiable; how to place tensors with them."""
    require_clip_vision(clip_vision)
    patchers, modules = [*patchers, clip_vision.patcher], [*modules, clip_vision.model]
    kept = math.ceil(need.estimate(False))
    comfy.model_management.load_models_gpu(patchers, memory_required=kept, force_full_load=True)

    def place(value: Tensor) -> Tensor:
        return value.to(device).clone()

    try:
        with gradients.weights_in_place(patchers):
            recompute = need.must_recompute(device)  # asked here, where the weights have taken their part
            with gradients.differentiable(modules[0], modules[1:], recompute=recompute, patched=False):
                yield place
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        raise need.out_of_memory() from error
