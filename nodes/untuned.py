from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..baret_ops.inversion import ddim_inversion
from ..baret_ops.transition import eta_schedule
from ..baret_ops.untuned import sample_source
from ..baret_ops.values import Embeddings, Trajectory
from ..host import conditioning, models, run
from .common import CATEGORY, MODEL_TOOLTIP, SEARCH_ALIASES, EmbeddingsWire, TrajectoryWire, errors_of

_DDIM, _NEGATIVE, _DIRECT = "DDIM", "negative-prompt", "direct"


class BaretInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretInversion",
            display_name="Inversion",
            category=CATEGORY,
            description="Inversion without tuning, in the time of one or two samplings: DDIM, negative-prompt or direct inversion.",
            search_aliases=[*SEARCH_ALIASES, "negative prompt inversion", "direct inversion", "PnP inversion"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Conditioning.Input("positive", tooltip="A text that says what is in the picture as it is. One prompt, or one per image of the batch."),
                io.Conditioning.Input("negative", tooltip="The negative text, mostly empty. Negative-prompt inversion puts the picture's own text in its place."),
                io.Latent.Input("latent", tooltip="Your picture, encoded with this checkpoint's VAE. Several pictures of one size make a batch."),
                io.Combo.Input("method", options=[_DIRECT, _NEGATIVE, _DDIM], default=_DIRECT, tooltip="direct: what each step misses is added back to the picture's path; it is redrawn exactly. negative-prompt: the picture's text is the negative too; nearly exact, edits are weaker. DDIM: plain guided sampling, which drifts away."),
                io.Int.Input("steps", default=50, min=2, max=999, tooltip="Sampling steps. More follow the picture more closely and cost more time. Useful: 20 to 50."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.5, round=0.01, tooltip="Guidance of the picture's path. Higher drifts further away with DDIM; direct and negative-prompt do not mind. Use the same in the edit. Useful: 3 to 8."),
            ],
            outputs=[
                TrajectoryWire.Output("trajectory", tooltip="The picture's path through the noise levels."),
                EmbeddingsWire.Output("embeddings", tooltip="The picture's text at every step, and the negative. Give an edit its target text, or BAM Edit through Transition Embedding."),
                io.Latent.Output("reconstruction", tooltip="The end of the picture's path: what an edit that changes nothing would give."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, method, steps, cfg) -> io.NodeOutput:
        with errors_of(cls):
            family = models.family_of(model)
            schedule = models.schedule_of(model, steps)
            images = models.latent_in(model, latent)
            count = images.shape[0]
            source, positive_options = conditioning.read_text(positive, "positive", count, family.context_dim)
            null, negative_options = (
                (source, positive_options) if method == _NEGATIVE else conditioning.read_text(negative, "negative", count, family.context_dim)
            )
            report = run.progress(model, steps if method == _DIRECT else 2 * steps)

            def invert(predict, device):
                pivots = ddim_inversion(predict, images.to(device), source, schedule, on_step=report(0))
                trajectory = Trajectory(pivots, pivots, schedule, cfg, family)
                if method == _DIRECT:
                    return trajectory
                return replace(trajectory, latents=sample_source(predict, trajectory, source, None if method == _NEGATIVE else null, on_step=report(steps)))

            trajectory = run.sample(
                model, invert, positive=(source, positive_options), negative=(null, negative_options), rows=count, shape=images.shape[1:], schedule=schedule
            )
            keep = models.keep
            trajectory = replace(trajectory, pivots=keep(trajectory.pivots), latents=keep(trajectory.latents))
            misses = (trajectory.latents[1:] - trajectory.pivots[1:]).square().flatten(2).mean(2)
            embeddings = Embeddings(
                tuned=keep(source).expand(steps, -1, -1, -1), target=keep(source), negative=keep(null), eta=eta_schedule(1.0, 1.0, steps),
                losses=misses, updates=torch.zeros(steps, count, dtype=torch.int64),
                positive_options=positive_options, negative_options=negative_options,
            )
            return io.NodeOutput(trajectory, embeddings, models.latent_out(family, trajectory.latents[-1]))
