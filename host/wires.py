"""Latents, masks and pictures: from the host's wires to the core and back."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import torch
from torch import Tensor

from ..baret_ops.values import ModelFamily, Trajectory


def latent_in(model, latent: dict) -> Tensor:
    """The images of a LATENT in the model's scale, ``[B,C,h,w]`` float32.

    Raises ValueError for another shape, NaN or infinity, and for a mask that no inversion heeds.
    """
    if "noise_mask" in latent:
        raise ValueError(
            "the latent carries a noise mask, which an inversion does not heed; take Set Latent Noise Mask out, and "
            "connect the mask to the mask input of the edit."
        )
    samples = latent["samples"]
    channels = model.get_model_object("latent_format").latent_channels
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != channels or 0 in samples.shape:
        shape = "nested" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise ValueError(
            f"the latent is {shape}; [images,{channels},height/8,width/8] fits: encode a picture with the VAE of this "
            "checkpoint."
        )
    if not torch.isfinite(samples).all():
        raise ValueError("the latent holds NaN or infinity; run the VAE in float32 (for example --fp32-vae).")
    return model.model.process_latent_in(samples.float())


def latent_out(family: ModelFamily, z: Tensor) -> dict:
    """A LATENT of ``z [B,C,h,w]``, which is in the model's scale."""
    return {"samples": to_wire(z / family.latent_scale)}


def mask_in(mask: Tensor, images: int, shape: Sequence[int]) -> Tensor:
    """A MASK ``[1 or images,H,W]`` at the size of what it masks, ``[1 or images,1,h,w]`` in 0..1; shape ends in (h,w).

    Raises ValueError for another number of masks, for one without a pixel, NaN or infinity.
    """
    if 0 in mask.shape or not torch.isfinite(mask).all():
        came = f"of shape {list(mask.shape)}" if 0 in mask.shape else "not finite"
        raise ValueError(f"the mask is {came}; numbers from 0 (keep) to 1 (change) for each pixel fit.")
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if mask.shape[0] not in (1, images):
        raise ValueError(f"{mask.shape[0]} masks came for {images} image(s); one, or one per image, fits.")
    size = tuple(shape[-2:])
    return torch.nn.functional.interpolate(mask, size=size, mode="bilinear", antialias=True).clamp(0.0, 1.0)


def mask_out(mask: Tensor) -> Tensor:
    """A MASK ``[B,8h,8w]`` of ``mask [B,1,h,w]`` at the latents' size."""
    return to_wire(mask[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2))


def pictures_in(images: Tensor, name: str) -> Tensor:
    """The pictures of an IMAGE as ``[B,H,W,3]``: grey ones in all three channels, others without what lies beyond.

    name: the input's, for messages. Raises ValueError where there is no picture.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name} is of shape {list(images.shape)}; pictures [images,height,width,3] fit.")
    is_grey = images.shape[-1] < 3  # by itself, or with alpha
    return images[..., :1].expand(-1, -1, -1, 3) if is_grey else images[..., :3]


def picture_size(trajectory: Trajectory) -> tuple[int, int]:
    """Width and height of a trajectory's pictures, in pixels."""
    height, width = trajectory.size
    return 8 * width, 8 * height


def device() -> torch.device:
    """Where the host keeps what travels on wires."""
    return comfy.model_management.intermediate_device()


def to_wire(value: Tensor) -> Tensor:
    """A result on the device where the host keeps what travels on wires."""
    return value.detach().to(device())


def decode(vae, latent: dict) -> Tensor:
    """Pictures ``[B,H,W,3]`` of a LATENT through a VAE, as the host's VAE Decode gives them."""
    pictures = vae.decode(latent["samples"])
    return pictures.reshape(-1, *pictures.shape[-3:])
