"""What the nodes share: the wires, and errors that name the node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.latest import io

from ..baret_ops.inversion import NotFinite

CATEGORY = "BARET"
SEARCH_ALIASES = ["BARET", "edit", "image editing", "inversion", "DDIM", "prompt to prompt", "real image", "null text"]

TrajectoryWire = io.Custom("BARET_TRAJECTORY")
EmbeddingsWire = io.Custom("BARET_EMBEDDINGS")

TRAJECTORY_TOOLTIP = "The picture's path through the noise levels, from TTIS Inversion or Load Inversion."
EMBEDDINGS_TOOLTIP = "The tuned text of every step, from TTIS Inversion, Transition Embedding or Load Inversion."


@contextmanager
def errors_of(node: type[io.ComfyNode]) -> Iterator[None]:
    """Put the node's name before the sentence of an error that a user can mend."""
    try:
        yield
    except (ValueError, NotFinite) as error:
        raise type(error)(f"{node.define_schema().display_name}: {error}") from error
