"""Which model objects the method fits, and what it needs to know of them."""

from __future__ import annotations

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..baret_ops.schedule import Schedule, make_schedule
from ..baret_ops.values import ModelFamily, Trajectory
from .attention import blocks_of, unet_of

_FITS = "an SD1.x or SD2.x text-to-image checkpoint (or a small relative of them) fits"

_PREDICTIONS = {
    comfy.model_sampling.EPS.calculate_denoised: "epsilon",
    comfy.model_sampling.V_PREDICTION.calculate_denoised: "v_prediction",
}


def family_of(model) -> ModelFamily:
    """What the method needs of a MODEL. Raises ValueError with one sentence for a model that does not fit.

    A model is recognised by what the method needs, not by its size: the host's UNetModel with spatial transformers, a
    discrete sigma table with epsilon or v prediction, no pooled input and no concatenated channels.
    """
    base = model.model
    kind = type(base).__name__
    unet = unet_of(model)
    sampling = model.get_model_object("model_sampling")
    if not isinstance(unet, UNetModel):
        raise ValueError(f"the model is a {kind}, which is no UNet; {_FITS}.")
    if unet.num_classes is not None:
        raise ValueError(f"the model is a {kind}, which needs a pooled or image embedding beside the text; {_FITS}.")
    latent_format = model.get_model_object("latent_format")
    if unet.in_channels != latent_format.latent_channels or base.concat_keys:
        raise ValueError(
            f"the model takes {unet.in_channels} input channels where a latent has {latent_format.latent_channels}: "
            f"it is an inpainting or image-conditioned model; {_FITS}."
        )
    widths = {block.attn2.to_k.in_features for block in unet.modules() if isinstance(block, BasicTransformerBlock) and block.attn2 is not None}
    if len(widths) != 1 or any(isinstance(module, SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(f"the model is a {kind} without cross-attention to one text in spatial transformers; {_FITS}.")
    prediction = _PREDICTIONS.get(getattr(type(sampling), "calculate_denoised", None))
    if prediction is None or not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        kinds = " with ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(f"the model samples by {kinds}; a discrete schedule with epsilon or v prediction fits: remove the sampling patch from the model, or see to it that {_FITS}.")
    return ModelFamily(
        prediction=prediction,
        latent_channels=latent_format.latent_channels,
        context_dim=widths.pop(),
        sigma_max=float(sampling.sigmas[-1]),
        latent_scale=float(latent_format.scale_factor),
    )


def schedule_of(model, steps: int) -> Schedule:
    """The run's schedule on this model's own sigma table. Raises ValueError for a step count it cannot give."""
    return make_schedule(model.get_model_object("model_sampling").sigmas, steps)


def require_fit(model, trajectory: Trajectory) -> None:
    """Raise ValueError unless the trajectory was made on a model of this one's family and noise schedule."""
    family = family_of(model)
    if family != trajectory.family:
        raise ValueError(f"the trajectory was made on an {trajectory.family} and the model is an {family}; use a model of the same family, or invert again on this one.")
    if not schedule_of(model, trajectory.schedule.steps).same_levels(trajectory.schedule):
        raise ValueError("the trajectory's noise levels are not those of this model's schedule; remove the sampling patch from the model, or invert again with it.")


def require_block(model, first_block: int) -> None:
    """Raise ValueError unless the model has a transformer block of that number, or is of no fitting family."""
    family_of(model)
    blocks = list(blocks_of(model))
    if first_block >= len(blocks):
        decoder = next(number for number, (place, _) in enumerate(blocks) if place == "output")
        raise ValueError(f"first_block is {first_block} and this model has {len(blocks)} transformer blocks, 0 to {len(blocks) - 1}; its decoder begins at {decoder}.")


def latent_in(model, latent: dict) -> Tensor:
    """The images of a LATENT in the model's scale, ``[B,C,h,w]`` float32. Raises ValueError for another shape or NaN."""
    samples = latent["samples"]
    channels = model.get_model_object("latent_format").latent_channels
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != channels:
        shape = "nested" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise ValueError(f"the latent is {shape}; [images,{channels},height/8,width/8] fits: encode a picture with the VAE of this checkpoint.")
    if not torch.isfinite(samples).all():
        raise ValueError("the latent holds NaN or infinity; run the VAE in float32 (for example --fp32-vae).")
    return model.model.process_latent_in(samples.float())


def latent_out(family: ModelFamily, z: Tensor) -> dict:
    """A LATENT of ``z [B,C,h,w]``, which is in the model's scale."""
    return {"samples": keep(z / family.latent_scale)}


def latent_mask(mask: Tensor, images: int, shape: list[int]) -> Tensor:
    """A MASK ``[1 or images,H,W]`` at the latents' size, ``[1 or images,1,h,w]`` in 0..1; shape is (C,h,w).

    Raises ValueError for another number of masks.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if mask.shape[0] not in (1, images):
        raise ValueError(f"{mask.shape[0]} masks came for {images} image(s); one, or one per image, fits.")
    return torch.nn.functional.interpolate(mask, size=tuple(shape[-2:]), mode="bilinear", antialias=True).clamp(0.0, 1.0)


def mask_out(mask: Tensor) -> Tensor:
    """A MASK ``[B,8h,8w]`` of ``mask [B,1,h,w]`` at the latents' size."""
    return keep(mask[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2))


def keep(value: Tensor) -> Tensor:
    """A result on the device where the host keeps what travels on wires."""
    return value.detach().to(comfy.model_management.intermediate_device())


def alike(source: Tensor, edit: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures ``[B,H,W,3]`` to be compared, and their mask ``[B,H,W]``, at the edit's size and number, on the CPU.

    A source that is up to 7 pixels bigger loses what the VAE cut off its edges. Raises ValueError for other sizes or numbers.
    """
    images, height, width = edit.shape[:3]
    extra = [have - need for have, need in zip(source.shape[1:3], (height, width))]
    if not all(0 <= pixels < 8 for pixels in extra):
        raise ValueError(
            f"the source is {source.shape[2]}x{source.shape[1]} and the edit {width}x{height} pixels; connect the picture as it went into VAE Encode, scaled like the edit."
        )
    for name, count in (("source pictures", source.shape[0]), ("masks", 1 if mask is None else mask.reshape(-1, *mask.shape[-2:]).shape[0])):
        if count not in (1, images):
            raise ValueError(f"{count} {name} came for {images} edit(s); one, or one per edit, fits.")
    source, edit, mask = source.cpu(), edit.cpu(), None if mask is None else mask.cpu()
    top, left = (pixels // 2 for pixels in extra)
    if mask is not None:
        mask = latent_mask(mask, images, source.shape[:3])[:, 0, top : top + height, left : left + width].expand(images, -1, -1)
    return source[:, top : top + height, left : left + width, :3].expand(images, -1, -1, -1), edit[..., :3], mask


def decode(vae, latent: dict) -> Tensor:
    """Pictures ``[B,H,W,3]`` of a LATENT through a VAE, as the host's VAE Decode gives them."""
    pictures = vae.decode(latent["samples"])
    return pictures.reshape(-1, *pictures.shape[-3:])
