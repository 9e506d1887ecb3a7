from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.values import Embeddings, Trajectory, require_match
from ..host import conditioning, wires
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked


class BaretToSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretToSampler",
            display_name="Embeddings to Sampler",
            category=CATEGORY,
            description="Hands an inversion to stock samplers: "
            "a conditioning with one entry per step, the noise levels and the noisy start.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                inputs.embeddings(),
                inputs.trajectory(),
                io.Combo.Input(
                    "process",
                    options=["reconstruction", "transition", "target"],
                    default="reconstruction",
                    tooltip="What to sample: the picture redrawn, the transition that lends its cross-attention, "
                    "or the plain target text from the picture's noise.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The text of each step, each active at its own step alone."),
                io.Conditioning.Output(
                    "negative",
                    tooltip="The negative text of the inversion; "
                    "where each step has its own, each active at its own step alone.",
                ),
                io.Sigmas.Output(
                    "sigmas", tooltip="The noise levels, for SamplerCustomAdvanced with the euler sampler."
                ),
                io.Latent.Output(
                    "latent", tooltip="The picture's own noise at the first level; sample it with Disable Noise."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, embeddings, trajectory, process) -> io.NodeOutput:
        require_match(trajectory, embeddings)
        conditioning.require_options(embeddings)
        _require_samplable(trajectory, embeddings, process)
        schedule = trajectory.schedule
        texts = [_text_of(embeddings, process, step) for step in range(schedule.steps)]
        positive = conditioning.per_step(texts, embeddings.positive_options, schedule)
        negative = [[embeddings.negative, dict(embeddings.negative_options)]]
        if embeddings.negative.ndim == 4:
            negative = conditioning.per_step(list(embeddings.negative), embeddings.negative_options, schedule)
        noisy = schedule.to_sampler(trajectory.pivots[0], 0)
        latent = wires.latent_out(trajectory.family, noisy)
        return io.NodeOutput(positive, negative, schedule.sigmas.float(), latent)


def _require_samplable(trajectory: Trajectory, embeddings: Embeddings, process: str) -> None:
    """Raise ValueError where the process is the reconstruction of a direct inversion."""
    is_reconstruction = process == "reconstruction" or (process == "transition" and embeddings.is_rigid)
    if is_reconstruction and trajectory.is_direct:
        raise ValueError(
            "the trajectory is of direct inversion, which adds back at every step what the step misses, and a stock "
            "sampler cannot; choose process target, or invert with TTIS Inversion or Null-Text Inversion."
        )


def _text_of(embeddings: Embeddings, process: str, step: int) -> Tensor:
    """The text embedding ``[B,T,D]`` of a process at a step."""
    if process == "reconstruction":
        return embeddings.tuned[step]
    if process == "transition":
        return embeddings.transition(step)
    return embeddings.target
