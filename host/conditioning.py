"""Between the host's CONDITIONING and the core's embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..baret_ops.schedule import Schedule
from ..baret_ops.values import Embeddings, common_length, repeat_tokens
from ..baret_ops.wording import listed

Options = Mapping[str, Any]

_RANGE = "a timestep range"
_REGIONAL = {
    "area": "an area",
    "mask": "a mask",
    "timestep_start": _RANGE,
    "timestep_end": _RANGE,
    "default": "a default region",
}


def read_text(conditioning: list, role: str, images: int, width: int) -> tuple[Tensor, Options]:
    """The embedding ``[images,T,D]`` float32 of a CONDITIONING and the options it carries (ControlNet, hooks).

    conditioning: one entry, or one per image. role: the input's name, for messages. width: D of the model's text.
    Entries of different lengths are brought to a common one by repeating, which changes no attention.
    Raises ValueError for what is not one whole-picture prompt per image.
    """
    if len(conditioning) == 0:
        raise ValueError(f"{role} is an empty conditioning; connect a CLIP Text Encode.")
    for _, options in conditioning:
        _require_whole(options, role)
        _require_constant(options, role)
    if len(conditioning) not in (1, images):
        raise ValueError(
            f"{role} carries {len(conditioning)} prompts for {images} image(s); one prompt, or one per image, fits: "
            "remove Conditioning (Combine) or give the latent batch as many images."
        )
    require_width(conditioning, role, width)
    texts = []
    for text, _ in conditioning:
        if not torch.isfinite(text).all():
            raise ValueError(
                f"{role} holds NaN or infinity; encode the text again, with the CLIP in float32 (--fp32-text-enc)."
            )
        texts.append(text)
    length = common_length(*(text.shape[1] for text in texts))
    text = torch.cat([repeat_tokens(text, length) for text in texts]).float()
    if text.shape[0] not in (1, images):
        raise ValueError(f"{role} holds {text.shape[0]} embeddings for {images} image(s); one, or one per image, fits.")
    options = conditioning[0][1]
    if any(_identities(other) != _identities(options) for _, other in conditioning[1:]):
        raise ValueError(
            f"the prompts of {role} carry different ControlNets or hooks; apply the same one to all images, or run "
            "them apart."
        )
    return text.expand(images, -1, -1).clone(), dict(options)


def require_width(conditioning: list, role: str, width: int) -> None:
    """Raise ValueError unless all entries of a CONDITIONING hold text of the model's width D."""
    for text, _ in conditioning:
        if not torch.is_tensor(text) or text.ndim != 3:
            raise ValueError(f"{role} carries no text embedding; connect a CLIP Text Encode.")
        if text.shape[-1] != width:
            raise ValueError(
                f"{role} is {text.shape[-1]} wide and the model's text is {width} wide; encode it with the CLIP of the "
                "same checkpoint."
            )


def _identities(options: Options) -> dict[str, int]:
    """Which objects a conditioning carries. A pooled output, which SD1.x and SD2.x do not read, is left out."""
    return {key: id(value) for key, value in options.items() if key != "pooled_output"}


def _limit(options: Options) -> str | None:
    """To what part of the picture or of the steps a prompt is limited, None for none."""
    found = next((words for key, words in _REGIONAL.items() if key in options), None)
    if found is not None:
        return found
    start = max(options.get("start_percent", 0.0), options.get("clip_start_percent", 0.0))
    end = min(options.get("end_percent", 1.0), options.get("clip_end_percent", 1.0))
    return _RANGE if start > 0.0 or end < 1.0 else None


def _require_whole(options: Options, role: str) -> None:
    """Raise ValueError for a prompt that is limited to a part of the picture or of the steps."""
    found = _limit(options)
    if found == _RANGE:
        raise ValueError(
            f"{role} is limited to a timestep range, and one text serves all steps; write a prompt without a schedule "
            "and without Set Timestep Range."
        )
    if found is not None:
        raise ValueError(
            f"{role} is limited to {found}; a prompt for the whole picture and all steps fits: connect the "
            "CLIP Text Encode directly."
        )


def _require_constant(options: Options, role: str) -> None:
    """Raise ValueError for hooks and ControlNets whose strength goes by keyframes.

    Keyframes only move forward, and a walk up to noise passes the steps the other way: they would be used up by it.
    """
    hooks = getattr(options.get("hooks"), "hooks", ())
    strengths = [{keyframe.strength for keyframe in hook.hook_keyframe.keyframes} for hook in hooks]
    keyframes = [_timestep_keyframes(control) for control in controlnets(options)]
    carrier = "a LoRA hook" if any(len(each) > 1 for each in strengths) else None
    carrier = "a ControlNet" if any(len(each) > 1 for each in keyframes) else carrier
    if carrier is not None:
        raise ValueError(
            f"{role} carries {carrier} with keyframes, which only move forward, and an inversion passes the steps both "
            "ways; give it one strength for all steps."
        )


def _timestep_keyframes(control) -> list:
    """The keyframes of a ControlNet of Advanced-ControlNet, where one for all steps is always there."""
    return getattr(getattr(control, "timestep_keyframes", None), "keyframes", [])


def carries_rows(options: Options) -> bool:
    """Whether the options belong to image positions of a batch (a ControlNet with a hint per image)."""
    hints = [getattr(control, "cond_hint_original", None) for control in controlnets(options)]
    return "gligen" in options or any(hint is not None and hint.shape[0] > 1 for hint in hints)


def controlnets(options: Options) -> Iterator:
    """The ControlNets of a conditioning, which the host chains one before the other."""
    control = options.get("control")
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def require_options(embeddings: Embeddings) -> None:
    """Raise ValueError when a loaded inversion lacks what its conditioning carried."""
    missing = sorted({*embeddings.missing_positive, *embeddings.missing_negative})
    if missing:
        raise ValueError(
            f"the embeddings were made with {listed(missing)} on the conditioning, which a file cannot hold; "
            "connect a conditioning that carries it to the positive input of Transition Embedding."
        )


def per_step(embeddings: list[Tensor], options: Options, schedule: Schedule) -> list:
    """A CONDITIONING with one entry per step of the schedule, each active at that step's time alone.

    The host turns a start or end percent p into the sigma at time ``999 * (1 - p)``; the borders lie half-way between
    the times of two steps, so that no step stands on a border.
    """
    times = schedule.timesteps
    borders = [0.0] + [1.0 - (a + b) / 2.0 / 999.0 for a, b in zip(times, times[1:])] + [1.0]
    return [
        [text, {**options, "start_percent": start, "end_percent": end}]
        for text, start, end in zip(embeddings, borders, borders[1:])
    ]
