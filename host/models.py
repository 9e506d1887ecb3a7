"""Which model objects the method fits, and what it needs to know of them."""

from __future__ import annotations

from typing import cast

import comfy.model_sampling
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
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
    if model.get_wrappers(WrappersMP.DIFFUSION_MODEL, "easycache"):
        raise ValueError("the model leaves steps out (EasyCache), and each is needed here; remove EasyCache.")
    if unet.num_classes is not None:
        raise ValueError(f"the model is a {kind}, which needs a pooled or image embedding beside the text; {_FITS}.")
    latent_format = model.get_model_object("latent_format")
    if unet.in_channels != latent_format.latent_channels or base.concat_keys:
        raise ValueError(
            f"the model takes {unet.in_channels} input channels where a latent has {latent_format.latent_channels}: "
            f"it is an inpainting or image-conditioned model; {_FITS}."
        )
    widths = {
        block.attn2.to_k.in_features
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock) and block.attn2 is not None
    }
    if len(widths) != 1 or any(isinstance(module, SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(f"the model is a {kind} without cross-attention to one text in spatial transformers; {_FITS}.")
    prediction = _PREDICTIONS.get(getattr(type(sampling), "calculate_denoised", None))
    if prediction is None or not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        kinds = " with ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(
            f"the model samples by {kinds}; a discrete schedule with epsilon or v prediction fits: remove the sampling "
            f"patch from the model, or see to it that {_FITS}."
        )
    return ModelFamily(
        prediction=prediction,
        latent_channels=latent_format.latent_channels,
        context_dim=widths.pop(),
        sigma_max=float(cast(Tensor, sampling.sigmas)[-1]),
        latent_scale=float(latent_format.scale_factor),
    )


def schedule_of(model, steps: int) -> Schedule:
    """The run's schedule on this model's own sigma table. Raises ValueError for a step count it cannot give."""
    return make_schedule(model.get_model_object("model_sampling").sigmas, steps)


def all_times(model) -> Schedule:
    """The schedule whose levels are all the times that this model knows. For what draws times at random."""
    table = model.get_model_object("model_sampling").sigmas
    return make_schedule(table, len(table) - 1)


def require_fit(model, trajectory: Trajectory) -> None:
    """Raise ValueError unless the trajectory was made on a model of this one's family and noise schedule."""
    family = family_of(model)
    if family != trajectory.family:
        raise ValueError(
            f"the trajectory was made on an {trajectory.family} and the model is an {family}; use a model of the same "
            "family, or invert again on this one."
        )
    if not schedule_of(model, trajectory.schedule.steps).same_levels(trajectory.schedule):
        raise ValueError(
            "the trajectory's noise levels are not those of this model's schedule; remove the sampling patch from the "
            "model, or invert again with it."
        )


def require_block(model, first_block: int) -> None:
    """Raise ValueError for a model without a transformer block of that number, or of no fitting family."""
    family_of(model)
    blocks = list(blocks_of(model))
    if first_block >= len(blocks):
        decoder = next(number for number, (place, _) in enumerate(blocks) if place == "output")
        raise ValueError(
            f"first_block is {first_block} and this model has {len(blocks)} transformer blocks, 0 to "
            f"{len(blocks) - 1}; its decoder begins at {decoder}."
        )
