from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.inversion import StopRule, ddim_inversion, ttis
from ..baret_ops.step_rules import STEP_RULES
from ..baret_ops.transition import eta_schedule
from ..baret_ops.values import Embeddings, Trajectory
from ..host import conditioning, models, run
from .common import CATEGORY, SEARCH_ALIASES, EmbeddingsWire, TrajectoryWire, errors_of


class BaretTTISInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTTISInversion",
            display_name="TTIS Inversion",
            category=CATEGORY,
            description="Finds, step by step, the text embedding with which the model redraws your picture. First stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x or SD2.x checkpoint, with any LoRA or patches you want in the edit."),
                io.Conditioning.Input("positive", tooltip="The target text: what the picture should become. One prompt, or one per image of the batch."),
                io.Conditioning.Input("negative", tooltip="The negative text; an empty one is the paper's. It must also go into the edit unchanged."),
                io.Latent.Input("latent", tooltip="Your picture, encoded with this checkpoint's VAE. Several pictures of one size make a batch."),
                io.Int.Input("steps", default=50, min=2, max=999, tooltip="Sampling steps. More follow the picture more closely and cost more time. Useful: 20 to 50."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.5, round=0.01, tooltip="Guidance while tuning. Higher obeys the text more and is harder to reconstruct from. Use the same in BAM Edit. Useful: 3 to 8."),
                io.Int.Input("iterations", default=1, min=0, max=100, tooltip="Most updates of the text per step. More reconstruct better and take longer; 0 does not tune at all. Useful: 1 to 3 with the secant rules, 5 to 10 with adam."),
                io.Float.Input("learning_rate", default=1e-3, min=1e-6, max=1.0, step=1e-4, round=False, advanced=True, tooltip="Size of an update, for the step rule adam alone. Higher converges faster until it overshoots; it depends on the scale of the text embedding. Useful: 0.001 to 0.01 on SD1.5, 0.01 on small models."),
                io.Float.Input("stop_threshold", default=1e-5, min=0.0, max=1.0, step=1e-6, round=False, advanced=True, tooltip="A step ends early once its error is below this. Higher is faster and reconstructs less exactly; 0 never stops early. Useful: 0 to 0.0001."),
                io.Float.Input("stop_growth", default=2e-5, min=0.0, max=1.0, step=1e-6, round=False, advanced=True, tooltip="What the threshold grows by each step, so that early steps are held closer. Useful: 0 to 0.0001."),
                io.Combo.Input("inversion_text", options=["target", "negative"], default="target", advanced=True, tooltip="The text with which the picture is walked up to noise: the target (as in the paper) or the negative."),
                io.Combo.Input("step_rule", options=list(STEP_RULES), default="secant", tooltip="How an update is found. secant measures the length of its steps. secant_memory also remembers what earlier steps showed: closer, a third slower. adam is the paper's, with 5 iterations."),
            ],
            outputs=[
                TrajectoryWire.Output("trajectory", tooltip="The picture's path through the noise levels."),
                EmbeddingsWire.Output("embeddings", tooltip="The tuned text of every step. As it is (eta 1) it makes a rigid edit; through Transition Embedding a non-rigid one."),
                io.Latent.Output("reconstruction", tooltip="What the tuned text redraws. If it does not look like your picture, the edit will not either."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, steps, cfg, iterations=1, learning_rate=1e-3,
        stop_threshold=1e-5, stop_growth=2e-5, inversion_text="target", step_rule="secant",
    ) -> io.NodeOutput:
        with errors_of(cls):
            family = models.family_of(model)
            schedule = models.schedule_of(model, steps)
            images = models.latent_in(model, latent)
            count = images.shape[0]
            target, positive_options = conditioning.read_text(positive, "positive", count, family.context_dim)
            null, negative_options = conditioning.read_text(negative, "negative", count, family.context_dim)
            report = run.progress(model, 2 * steps)
            stop = StopRule(stop_threshold, stop_growth)

            def invert(predict, device):
                uncond = inversion_text == "negative"
                pivots = ddim_inversion(predict, images.to(device), null if uncond else target, schedule, uncond=uncond, on_step=report(0))
                return pivots, ttis(
                    predict, pivots, target, null, schedule,
                    guidance_scale=cfg,
                    rule=STEP_RULES[step_rule](learning_rate),
                    iterations=iterations,
                    stop=stop,
                    skip_finished=not conditioning.carries_rows(positive_options),
                    on_step=report(steps),
                )

            pivots, tuning = run.sample(
                model, invert, positive=(target, positive_options), negative=(null, negative_options),
                rows=count, shape=images.shape[1:], schedule=schedule, gradients=True,
            )
            keep = models.keep
            trajectory = Trajectory(keep(pivots), keep(tuning.latents), schedule, cfg, family)
            embeddings = Embeddings(
                tuned=keep(tuning.embeddings), target=keep(target), negative=keep(null), eta=eta_schedule(1.0, 1.0, steps),
                losses=keep(tuning.losses), updates=keep(tuning.updates), thresholds=stop.levels(steps),
                positive_options=positive_options, negative_options=negative_options,
            )
            return io.NodeOutput(trajectory, embeddings, models.latent_out(family, tuning.latents[-1]))
