"""What the nodes share: their place in the menu, errors that name the node, and the run of an edit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.predict import NotFinite, OnStep
from ..baret_ops.values import Embeddings, Trajectory, of_other_pictures, require_match
from ..baret_ops.wording import listed, told
from ..host import conditioning, memory, models, run, wires
from ..host.remarks import warned

CATEGORY = "BARET"
SEARCH_ALIASES = [
    "BARET",
    "edit",
    "image editing",
    "photo",
    "pose",
    "change",
    "inversion",
    "DDIM",
    "prompt to prompt",
    "real image",
    "null text",
]


@contextmanager
def errors_of(node: type[io.ComfyNode]) -> Iterator[None]:
    """Put the node's name before the sentence of an error that a user can mend.

    What comes out is a ValueError, a NotFinite or the host's out-of-memory error, whichever of their relatives went in:
    not every exception can be made from a sentence alone.
    """
    try:
        yield
    except Exception as error:
        if memory.is_out_of_memory(error):
            kind = memory.OutOfMemory
        elif isinstance(error, NotFinite):
            kind = NotFinite
        elif isinstance(error, ValueError):
            kind = ValueError
        else:
            raise
        raise kind(f"{node.define_schema().display_name}: {error}") from error


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's ``execute`` whose numbers and wires are looked at first, and whose errors name the node.

    The host gives all inputs by name. It compares numbers with their ranges, which NaN passes, and lets anything be
    written in a wire's place.
    """

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], *args, **given) -> io.NodeOutput:
        with errors_of(cls):
            for name, value in given.items():
                _require_usable(name, value)
            mixed = _mixed(given)
            with warned(f"{cls.define_schema().display_name}: {mixed}") if mixed else nullcontext():
                return execute(cls, *args, **given)

    return run


_WIRES = {"trajectory": Trajectory, "embeddings": Embeddings}


def _require_usable(name: str, value: object) -> None:
    """Raise ValueError for a number that is not finite, and for what is no value of ours in one of our inputs."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a finite number fits.")
    kind = _WIRES.get(name)
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"{name} is {told(value)}; connect an inversion node or Load Inversion.")


def _mixed(given: dict) -> str:
    """The sentence for a trajectory and embeddings of different pictures; nothing where they are of one."""
    if not {"trajectory", "embeddings"} <= given.keys():
        return ""
    others = of_other_pictures(given["trajectory"], given["embeddings"])
    if not others:
        return ""
    which = f" (image {listed(str(number) for number in others)})" if given["trajectory"].images > 1 else ""
    return (
        f"the trajectory is of another picture than the embeddings{which}, and what comes out is of the trajectory's; "
        "connect both from the same inversion (or the same file), unless the mixture is meant."
    )


def most_tokens(max_resolution: int) -> int | None:
    """Tokens of the widest grid that max_resolution allows; None where it is 0, no limit."""
    return max_resolution**2 or None


def run_edit(
    model,
    trajectory: Trajectory,
    embeddings: Embeddings,
    mask: Tensor | None,
    processes: int,
    edit: Callable,
    on_step: OnStep | None = None,
):
    """Check what goes into an edit and run ``edit(predict, trajectory, mask=.., on_step=..)`` on the model.

    Returns what the edit returns. mask: a MASK or None; the edit gets it as ``[1 or B,1,h,w]``. processes: in one
    forward, for the host's memory estimate. on_step: in place of the progress bar with latent previews.
    Raises ValueError for what does not fit.
    """
    models.require_fit(model, trajectory)
    require_match(trajectory, embeddings)
    conditioning.require_options(embeddings)
    levels, images, *shape = trajectory.pivots.shape
    if mask is not None:
        mask = wires.mask_in(mask, images, shape)
    if on_step is None:
        on_step = run.progress(model, levels - 1)

    def loop(predict, device):
        placed_mask = None if mask is None else mask.to(device)
        return edit(predict, trajectory.to(device), mask=placed_mask, on_step=on_step)

    return run.sample(
        model,
        loop,
        positive=(embeddings.target, embeddings.positive_options),
        negative=(embeddings.negative_at(0), embeddings.negative_options),
        rows=processes * images,
        shape=tuple(shape),
        schedule=trajectory.schedule,
    )
