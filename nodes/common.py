"""What the nodes share: the wires, and errors that name the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy_api.latest import io

from ..baret_ops.inversions.tuning import NotFinite, OnStep
from ..baret_ops.values import Embeddings, Trajectory, require_match
from ..host import conditioning, memory, models, run, wires

CATEGORY = "BARET"
SEARCH_ALIASES = ["BARET", "edit", "image editing", "inversion", "DDIM", "prompt to prompt", "real image", "null text"]

TrajectoryWire = io.Custom("BARET_TRAJECTORY")
EmbeddingsWire = io.Custom("BARET_EMBEDDINGS")

TRAJECTORY_TOOLTIP = "The picture's path through the noise levels, from an inversion node or Load Inversion."
EMBEDDINGS_TOOLTIP = "The text of every step, from an inversion node, Transition Embedding or Load Inversion."
MODEL_TOOLTIP = "An SD1.x or SD2.x checkpoint, with any LoRA or patches you want in the edit."
EDIT_MODEL_TOOLTIP = "The model the picture was inverted with, with the same LoRA and patches."
MASK_TOOLTIP = "Where the picture may change (white). Everywhere else it is kept at every step. Left open, it may change everywhere."


def bam_dials() -> list[io.Input]:
    """The dials of BAM beside its taus."""
    return [
        io.Float.Input(
            "cfg",
            default=7.5,
            min=1.0,
            max=30.0,
            step=0.5,
            round=0.01,
            tooltip="Guidance of the edit. Higher obeys the text more and keeps less. Use the value of TTIS Inversion. Useful: 3 to 8.",
        ),
        io.Combo.Input(
            "passes",
            options=["conditional", "both"],
            default="conditional",
            advanced=True,
            tooltip="Share attention in the pass with the text alone, or in the negative pass as well: both keeps more of the picture and costs a little more.",
        ),
        io.Int.Input(
            "max_resolution",
            default=0,
            min=0,
            max=1024,
            step=8,
            advanced=True,
            tooltip="Share attention only where its grid has at most this many tokens squared; 0 is no limit. At 512x512 the grids are 64, 32, 16 and 8. Lower keeps fewer fine details. Useful: 0, 32 or 16.",
        ),
        io.Mask.Input("mask", optional=True, tooltip=MASK_TOOLTIP),
        io.Float.Input(
            "auto_mask",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.005,
            round=0.0001,
            advanced=True,
            tooltip="Above 0, keeps the picture wherever the text asks for nothing else than is there: how much the two predictions must differ. Higher keeps more of it. A text that asks for more than half of the picture anew, as for another background, is not held back. Useful: 0.01 to 0.02.",
        ),
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


def sample_edit(
    model,
    trajectory: Trajectory,
    embeddings: Embeddings,
    mask,
    rows: int,
    edit: Callable,
    on_step: OnStep | None = None,
):
    """Check what goes into an edit and run ``edit(predict, trajectory, mask, on_step)`` on the model.

    mask: a MASK or None. rows: processes in one forward, for the host's memory estimate. on_step: in place of the
    progress bar with latent previews. Returns what ``edit`` returns. Raises ValueError for what does not fit.
    """
    models.require_fit(model, trajectory)
    require_match(trajectory, embeddings)
    conditioning.require_options(embeddings)
    levels, images, *shape = trajectory.pivots.shape
    mask = None if mask is None else wires.latent_mask(mask, images, shape)
    on_step = on_step or run.progress(model, levels - 1)(0)

    def loop(predict, device):
        here = None if mask is None else mask.to(device)
        return edit(predict, trajectory.to(device), here, on_step)

    return run.sample(
        model,
        loop,
        positive=(embeddings.target, embeddings.positive_options),
        negative=(embeddings.negative_at(0), embeddings.negative_options),
        rows=rows * images,
        shape=tuple(shape),
        schedule=trajectory.schedule,
    )
