"""What travels on wires: immutable values that say what they are, how they were made and what they fit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .schedule import Schedule
from .schema import EMBEDDINGS, FAMILY, GUIDANCE, MOST_TOKENS, PREDICTIONS, TRAJECTORY, require_shapes
from .transition import blend, eta_schedule
from .wording import listed, told

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ModelFamily:
    """What two models must have in common for an inversion made on one to fit the other.

    prediction: "epsilon" or "v_prediction". latent_channels: C. context_dim: width D of the text embedding.
    sigma_max: of the model's sigma table, which tells its noise schedule. latent_scale: the model's latent is the VAE's
    times this.

    Raises ValueError for a number outside of what :data:`.schema.FAMILY` says.
    """

    prediction: str
    latent_channels: int
    context_dim: int
    sigma_max: float
    latent_scale: float

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {told(self.prediction)}; {' or '.join(PREDICTIONS)} fits.")
        for name, number in FAMILY.items():
            number.require(name, getattr(self, name))

    def __str__(self) -> str:
        return (
            f"{self.prediction} model with {self.latent_channels} latent channels, {self.context_dim}-wide text "
            f"and sigma_max {self.sigma_max:.4g}"
        )


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The path of B images through the noise levels of a schedule of N steps.

    pivots: ``[N+1,B,C,h,w]`` float32, VP form: DDIM inversion, noisiest first, the last the images' latents.
    latents: ``[N+1,B,C,h,w]`` float32, VP form: the guided sampling with the tuned embeddings from pivots[0]; in direct
        inversion the pivots themselves, as what a step misses is added back.
    schedule: the levels. guidance_scale: w at which the latents were tuned. family: the model's.

    Raises ValueError for shapes that do not fit each other.
    """

    pivots: Tensor
    latents: Tensor
    schedule: Schedule
    guidance_scale: float
    family: ModelFamily

    def __post_init__(self):
        GUIDANCE.require("guidance_scale", self.guidance_scale)
        steps = self.schedule.steps
        sizes = {"N": steps, "M": steps + 1, "C": self.family.latent_channels}
        require_shapes(TRAJECTORY, _shapes(self, TRAJECTORY), sizes)

    @property
    def images(self) -> int:
        return self.pivots.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """``(h, w)`` of a latent."""
        height, width = self.pivots.shape[-2:]
        return height, width

    @property
    def is_direct(self) -> bool:
        """Whether the latents are the pivots themselves (direct inversion), which sampling alone does not give."""
        return torch.equal(self.latents, self.pivots)

    def rows(self, images: list[int]) -> Trajectory:
        """The trajectory of some of the images."""
        return replace(self, pivots=self.pivots[:, images], latents=self.latents[:, images])

    def to(self, device: torch.device) -> Trajectory:
        """This trajectory with its latents on a device."""
        return replace(self, pivots=self.pivots.to(device), latents=self.latents.to(device))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The text embeddings of an inversion of B images in N steps, and how strongly each step keeps the tuned one.

    tuned: ``[N,B,T,D]`` float32, ``e_i``.
    target: ``[B,T,D]`` float32, ``e_g``.
    negative: ``e_null``, ``[B,T,D]`` float32, or ``[N,B,T,D]`` where each step has its own, as null-text inversion
        finds them. T may differ from the text's.
    eta: ``[N]`` float32, share of the tuned embedding in the transition.
    losses: ``[N,B]``, mean squared error to the next pivot.
    updates: ``[N,B]`` int64, updates spent.
    thresholds: ``[N]`` float32, the loss at which a step was done; None where it is not known.
    pictures: the :func:`fingerprints` of the B images they were made for; None where that is not known.
    positive_options, negative_options: what the host's conditioning carried beside the text (ControlNet, hooks);
        opaque to the core.
    missing_positive, missing_negative: names of such options that a file could not hold.

    Raises ValueError for shapes and numbers of images that do not fit each other, and for an eta outside 0..1.
    """

    tuned: Tensor
    target: Tensor
    negative: Tensor
    eta: Tensor
    losses: Tensor
    updates: Tensor
    positive_options: Mapping[str, Any] = field(default_factory=lambda: NO_OPTIONS)
    negative_options: Mapping[str, Any] = field(default_factory=lambda: NO_OPTIONS)
    missing_positive: tuple[str, ...] = ()
    missing_negative: tuple[str, ...] = ()
    thresholds: Tensor | None = None
    pictures: tuple[str, ...] | None = None

    def __post_init__(self):
        require_shapes(EMBEDDINGS, _shapes(self, EMBEDDINGS), {})
        EMBEDDINGS["eta"].require_numbers("eta", self.eta)
        if self.pictures is not None and len(self.pictures) != self.images:
            raise ValueError(f"{len(self.pictures)} pictures came for embeddings of {self.images} image(s).")

    @property
    def steps(self) -> int:
        return self.tuned.shape[0]

    @property
    def images(self) -> int:
        return self.tuned.shape[1]

    @property
    def is_rigid(self) -> bool:
        """Whether the transition is the reconstruction throughout (eta 1)."""
        return bool((self.eta == 1.0).all())

    def rows(self, images: list[int]) -> Embeddings:
        """The embeddings of some of the images."""
        each_step = self.negative.ndim == 4
        return replace(
            self,
            tuned=self.tuned[:, images],
            target=self.target[images],
            negative=self.negative[:, images] if each_step else self.negative[images],
            losses=self.losses[:, images],
            updates=self.updates[:, images],
            pictures=None if self.pictures is None else tuple(self.pictures[image] for image in images),
        )

    def to(self, device: torch.device) -> Embeddings:
        """These embeddings with their texts and losses on a device."""
        return replace(
            self,
            tuned=self.tuned.to(device),
            target=self.target.to(device),
            negative=self.negative.to(device),
            losses=self.losses.to(device),
        )

    def negative_at(self, step: int) -> Tensor:
        """``e_null`` of a step, ``[B,T,D]``."""
        return self.negative[step] if self.negative.ndim == 4 else self.negative

    def transition(self, step: int) -> Tensor:
        """``e_tra_i`` ``[B,T,D]``: the tuned embedding blended towards the target text by this step's eta."""
        return blend(self.tuned[step], self.target, float(self.eta[step]))

    def with_transition(self, eta_start: float, eta_end: float) -> Embeddings:
        """These embeddings with eta going linearly from ``eta_start`` to ``eta_end`` (both 0..1)."""
        return replace(self, eta=eta_schedule(eta_start, eta_end, self.steps))

    def with_target(self, target: Tensor, options: Mapping[str, Any]) -> Embeddings:
        """These embeddings with another target text ``[B,T,D]`` and the options of its conditioning.

        A text of another length is brought to the shortest common one by repeating both, which changes no attention.
        Options that a file lost on the negative side come back from the target's: the host puts the same ControlNet on
        both.
        """
        tuned, target = unrepeated(self.tuned), unrepeated(target)
        length = common_length(tuned.shape[-2], target.shape[-2])
        restored = {name: options[name] for name in self.missing_negative if name in options}
        return replace(
            self,
            tuned=repeat_tokens(tuned, length),
            target=repeat_tokens(target, length),
            positive_options=MappingProxyType(dict(options)),
            negative_options=MappingProxyType({**self.negative_options, **restored}),
            missing_positive=(),
            missing_negative=(),
        )


def _shapes(value: Any, names: Iterable[str]) -> dict[str, torch.Size | None]:
    """The shapes of a value's tensors by their names, None for one that it does not hold."""
    tensors = {name: getattr(value, name) for name in names}
    return {name: None if tensor is None else tensor.shape for name, tensor in tensors.items()}


def common_length(*lengths: int) -> int:
    """The least number of tokens to which texts of these lengths can be repeated.

    Raises ValueError where that is longer than :data:`.schema.MOST_TOKENS`.
    """
    length = math.lcm(*lengths)
    if max(lengths) > MOST_TOKENS:
        raise ValueError(f"a text of {max(lengths)} tokens came; at most {MOST_TOKENS} fit: write a shorter one.")
    if length > MOST_TOKENS:
        came = listed(str(each) for each in dict.fromkeys(lengths))
        raise ValueError(
            f"texts of {came} tokens came, whose common length is {length}; at most {MOST_TOKENS} fit: write texts of "
            "more alike lengths."
        )
    return length


def unrepeated(embedding: Tensor) -> Tensor:
    """``[..,T,D]`` without its repetitions: its shortest beginning ``[..,T',D]`` that, repeated, is the whole."""
    tokens = embedding.shape[-2]
    for length in range(1, tokens // 2 + 1):
        if tokens % length == 0 and torch.equal(embedding[..., length:, :], embedding[..., :-length, :]):
            return embedding[..., :length, :]
    return embedding


def repeat_tokens(embedding: Tensor, length: int) -> Tensor:
    """``[..,T,D]`` to ``[..,length,D]``, length a multiple of T: attention to a repeated context is attention to it."""
    times = length // embedding.shape[-2]
    return embedding if times == 1 else embedding.repeat(*[1] * (embedding.ndim - 2), times, 1)


def require_match(trajectory: Trajectory, embeddings: Embeddings) -> None:
    """Raise ValueError with one sentence unless both values are of one inversion: same steps, images and text width."""
    if trajectory.schedule.steps != embeddings.steps:
        raise ValueError(
            f"the trajectory has {trajectory.schedule.steps} steps and the embeddings have {embeddings.steps}; "
            "connect both from the same TTIS Inversion (or the same file)."
        )
    if trajectory.images != embeddings.images:
        raise ValueError(
            f"the trajectory holds {trajectory.images} image(s) and the embeddings are for {embeddings.images}; "
            "connect both from the same TTIS Inversion (or the same file)."
        )
    if trajectory.family.context_dim != embeddings.tuned.shape[-1]:
        raise ValueError(
            f"the trajectory is of a model with {trajectory.family.context_dim}-wide text and the embeddings are "
            f"{embeddings.tuned.shape[-1]} wide; connect both from the same TTIS Inversion (or the same file)."
        )


def fingerprints(pictures: Tensor) -> tuple[str, ...]:
    """For each latent of ``pictures [B,C,h,w]`` a text that no other latent has: a digest of its numbers."""
    arrays = pictures.detach().float().cpu().contiguous().numpy()
    return tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)


def of_other_pictures(trajectory: Trajectory, embeddings: Embeddings) -> list[int]:
    """Numbers, from 1, of the images whose embeddings were made for another picture; none where that is not known."""
    if embeddings.pictures is None:
        return []
    pairs = zip(fingerprints(trajectory.pivots[-1]), embeddings.pictures)
    return [number for number, (given, made_for) in enumerate(pairs, 1) if given != made_for]
