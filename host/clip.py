"""Pictures and texts in CLIP's common space, through the host's CLIP_VISION and CLIP."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_PROJECTION = "text_projection"
_FITS = "a CLIP with its text projection fits: Load CLIP with clip_l.safetensors, for CLIP Vision ViT-L"


def image_features(clip_vision, images: Tensor) -> Tensor:
    """Projected image embeddings ``[B,D]`` of pictures ``[B,H,W,3]``.

    The pictures are cropped to their middle square, as CLIP was trained.
    Raises ValueError for a vision model that is no CLIP.
    """
    require_clip_vision(clip_vision)
    return clip_vision.encode_image(images)["image_embeds"].float()


def require_clip_vision(clip_vision) -> None:
    """Raise ValueError for a vision model that is no CLIP, which has no space in common with texts."""
    kind = getattr(clip_vision, "model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ValueError(
            f"clip_vision is a {kind}; texts are compared with pictures by a CLIP vision model, such as ViT-L or ViT-H."
        )


def width_of(clip_vision) -> int:
    """D of a CLIP_VISION's image embeddings. Raises ValueError for a vision model that is no CLIP."""
    require_clip_vision(clip_vision)
    return clip_vision.config["projection_dim"]


def text_features(clip, text: str, width: int) -> Tensor:
    """The projected text embedding ``[1,D]`` of the first 77 tokens; D must be ``width``, the image embeddings'.

    Raises ValueError for a CLIP of another width, or for one without a text projection, as in SD1.x checkpoints.
    """
    if not _holds_projection(clip):
        raise ValueError(
            "the CLIP's file holds no text projection (SD1.x checkpoints leave it out), so text and pictures cannot be "
            f"compared; {_FITS}."
        )
    pooled = _projected(clip, text)
    if pooled is None or pooled.shape[-1] != width:
        came = "no pooled text" if pooled is None else f"text {pooled.shape[-1]} wide"
        raise ValueError(
            f"the CLIP gives {came} and the vision model's embeddings are {width} wide; connect the two halves of one "
            f"CLIP. {_FITS[0].upper() + _FITS[1:]}."
        )
    if not torch.isfinite(pooled).all() or not pooled.any():
        raise ValueError(f"the CLIP's text projection is empty, so text and pictures cannot be compared; {_FITS}.")
    return pooled.float()


def _projected(clip, text: str) -> Tensor | None:
    """The pooled text behind the projection, which the host's own encoding leaves out for the CLIP of SD1.x."""
    tokens, encoder = clip.tokenize(text), clip.cond_stage_model
    encoder.reset_clip_options()
    try:
        encoder.set_clip_options({"projected_pooled": True})
        clip.load_model(tokens)
        encoder.set_clip_options({"execution_device": clip.patcher.load_device})
        return encoder.encode_token_weights(tokens)[1]
    finally:
        encoder.reset_clip_options()


def _holds_projection(clip) -> bool:
    """Whether the file a CLIP was loaded from holds a text projection, True where that cannot be told.

    The host leaves a projection that the file lacks as whatever was in memory, so that its numbers do not tell.
    """
    arguments = (getattr(clip.patcher, "cached_patcher_init", None) or (None, ()))[1]
    files = arguments[0] if arguments else None
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, (list, tuple)):
        return True
    try:
        return any(_PROJECTION in key for path in files for key in _keys(path))
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, TypeError):
        return True


def _keys(path: str) -> Iterable[str]:
    """The names of the weights in a file of either kind that the host loads, without reading the weights."""
    if not path.lower().endswith((".safetensors", ".sft")):
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return weights.get("state_dict", weights)
    with safe_open(path, framework="pt") as file:
        return file.keys()  # noqa: SIM118 - the file is no dict
