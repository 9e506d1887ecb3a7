from __future__ import annotations

from comfy_api.latest import io

from ..host import conditioning
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked


class BaretTransitionEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTransitionEmbedding",
            display_name="Transition Embedding",
            category=CATEGORY,
            description="Blends the tuned text back towards the target text over the steps, "
            "so that shape and pose may change. Second stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                inputs.embeddings(),
                inputs.share(
                    "eta_start",
                    0.8,
                    "How much of the tuned text the first, noisiest step keeps. "
                    "Higher keeps more of the picture's layout, lower lets the text change more. "
                    "Useful: 0 to 0.9; 1 for a rigid edit.",
                ),
                inputs.share(
                    "eta_end",
                    0.1,
                    "The same for the last step; between them it goes evenly. Useful: 0.1; 1 for a rigid edit.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Another target text for the same inversion: invert once, edit many times. "
                    "Left open, the text that was inverted with stays.",
                ),
            ],
            outputs=[
                inputs.EmbeddingsWire.Output(
                    "embeddings", tooltip="The same embeddings with this transition, for BAM Edit."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, embeddings, eta_start, eta_end, positive=None) -> io.NodeOutput:
        if positive is not None:
            width = embeddings.target.shape[-1]
            target, options = conditioning.read_text(positive, "positive", embeddings.images, width)
            embeddings = embeddings.with_target(target, options)
        return io.NodeOutput(embeddings.with_transition(eta_start, eta_end))
