from __future__ import annotations

from comfy_api.latest import io

from ..host import conditioning
from .common import CATEGORY, EMBEDDINGS_TOOLTIP, SEARCH_ALIASES, EmbeddingsWire, errors_of


class BaretTransitionEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTransitionEmbedding",
            display_name="Transition Embedding",
            category=CATEGORY,
            description="Blends the tuned text back towards the target text over the steps, so that shape and pose may change. Second stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                EmbeddingsWire.Input("embeddings", tooltip=EMBEDDINGS_TOOLTIP),
                io.Float.Input(
                    "eta_start",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the tuned text the first, noisiest step keeps. Higher keeps more of the picture's layout, lower lets the text change more. Useful: 0.6 to 0.9; 1 for a rigid edit.",
                ),
                io.Float.Input(
                    "eta_end",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The same for the last step; between them it goes evenly. Useful: 0.1; 1 for a rigid edit.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Another target text for the same inversion: invert once, edit many times. Left open, the text that was inverted with stays.",
                ),
            ],
            outputs=[
                EmbeddingsWire.Output("embeddings", tooltip="The same embeddings with this transition, for BAM Edit.")
            ],
        )

    @classmethod
    def execute(cls, embeddings, eta_start, eta_end, positive=None) -> io.NodeOutput:
        with errors_of(cls):
            if positive is not None:
                embeddings = embeddings.with_target(
                    *conditioning.read_text(positive, "positive", embeddings.images, embeddings.target.shape[-1])
                )
            return io.NodeOutput(embeddings.with_transition(eta_start, eta_end))
