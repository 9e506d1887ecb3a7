from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.inversions.methods import (
    DirectInversion,
    Inversion,
    NullTextInversion,
    Problem,
    SampledInversion,
    TargetTextInversion,
)
from ..baret_ops.inversions.step_rules import NULL_TEXT_RULES, STEP_RULES
from ..baret_ops.inversions.tuning import StopRule
from ..baret_ops.report import inversion_in_short
from ..host import conditioning, models, run, wires
from ..host.remarks import remark
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked

_UNTUNED: dict[str, Inversion] = {
    "direct": DirectInversion(),
    "negative-prompt": SampledInversion(text_as_negative=True),
    "DDIM": SampledInversion(),
}


def _read(model, positive, negative, latent, steps: int, cfg: float) -> Problem:
    """What an inversion starts from. Raises ValueError for what does not fit the model."""
    family, images = models.family_of(model), wires.latent_in(model, latent)
    text, text_options = conditioning.read_text(positive, "positive", len(images), family.context_dim)
    null, null_options = conditioning.read_text(negative, "negative", len(images), family.context_dim)
    return Problem(
        images=images,
        text=text,
        negative=null,
        schedule=models.schedule_of(model, steps),
        guidance_scale=cfg,
        family=family,
        text_options=text_options,
        negative_options=null_options,
    )


def _invert(model, problem: Problem, inversion: Inversion) -> io.NodeOutput:
    """Run an inversion on the model: trajectory, embeddings and the reconstruction."""
    steps = problem.schedule.steps
    report = run.progress(model, inversion.walks * steps)
    trajectory, embeddings = run.sample(
        model,
        lambda predict, device: inversion.invert(predict, problem.to(device), report),
        positive=(problem.text, problem.text_options),
        negative=(problem.negative, problem.negative_options),
        rows=len(problem.images),
        shape=tuple(problem.images.shape[1:]),
        schedule=problem.schedule,
        gradients=inversion.needs_gradients,
    )
    trajectory, embeddings = trajectory.to(wires.device()), embeddings.to(wires.device())
    remark(inversion_in_short(trajectory))
    return io.NodeOutput(trajectory, embeddings, wires.latent_out(problem.family, trajectory.latents[-1]))


class BaretTTISInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTTISInversion",
            display_name="TTIS Inversion",
            category=CATEGORY,
            description="Finds, step by step, the text embedding with which the model redraws your picture. "
            "First stage of an edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.inversion_sockets(
                    positive="The target text: what the picture should become. "
                    "One prompt, or one per image of the batch.",
                    negative="The negative text; an empty one is the paper's. It must also go into the edit unchanged.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance while tuning. Higher obeys the text more and is harder to reconstruct from. "
                    "Use the same in BAM Edit."
                ),
                inputs.iterations(
                    1,
                    "Most updates of the text per step. More reconstruct better and take longer; "
                    "0 does not tune at all. Useful: 1 to 3 with the secant rules, 5 to 10 with adam.",
                ),
                inputs.learning_rate(
                    1e-3,
                    step=1e-4,
                    tooltip="Size of an update, for the step rule adam alone. "
                    "Higher converges faster until it overshoots; it depends on the scale of the text embedding. "
                    "Useful: 0.001 to 0.01 on SD1.5, 0.01 on small models.",
                ),
                *inputs.stop_rule(),
                io.Combo.Input(
                    "inversion_text",
                    options=["target", "negative"],
                    default="target",
                    advanced=True,
                    tooltip="The text with which the picture is walked up to noise: "
                    "the target (as in the paper) or the negative.",
                ),
                inputs.step_rule(
                    "secant",
                    "How an update is found. secant measures the length of its steps. "
                    "secant_memory also remembers what earlier steps showed: closer, a third slower. "
                    "adam is the paper's, with 5 iterations.",
                ),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The tuned text of every step. As it is (eta 1) it makes a rigid edit; "
                "through Transition Embedding a non-rigid one.",
                reconstruction="What the tuned text redraws. "
                "If it does not look like your picture, the edit will not either.",
            ),
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        steps,
        cfg,
        iterations=1,
        learning_rate=1e-3,
        stop_threshold=1e-5,
        stop_growth=2e-5,
        inversion_text="target",
        step_rule="secant",
    ) -> io.NodeOutput:
        problem = _read(model, positive, negative, latent, steps, cfg)
        inversion = TargetTextInversion(
            STEP_RULES[step_rule](learning_rate),
            iterations,
            StopRule(stop_threshold, stop_growth),
            walk_with_negative=inversion_text == "negative",
            skip_finished=not conditioning.carries_rows(problem.text_options),
        )
        return _invert(model, problem, inversion)


class BaretNullTextInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretNullTextInversion",
            display_name="Null-Text Inversion",
            category=CATEGORY,
            description="Finds, step by step, the negative embedding with which the model redraws your picture "
            "from a text that describes it. For Prompt-to-Prompt Edit.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                *inputs.inversion_sockets(
                    positive=inputs.SOURCE_PROMPT,
                    negative="The negative text that tuning starts from; an empty one is the paper's.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance while tuning. Higher lets edits obey the text more and is harder to reconstruct from. "
                    "Use the same in the edit."
                ),
                inputs.iterations(
                    10,
                    "Most updates of the negative per step. More reconstruct better and take longer. "
                    "Useful: 10 with adam, 1 to 3 with the secant rules.",
                ),
                inputs.step_rule(
                    "adam",
                    "How an update is found. adam is the paper's. "
                    "secant and secant_memory measure the length of their steps: "
                    "with 1 iteration nearly as close in a sixth of the time.",
                ),
                inputs.learning_rate(
                    1e-2,
                    step=1e-3,
                    tooltip="Size of an update at the first step, for adam alone; it falls to half at the last. "
                    "Higher converges faster until it overshoots. Useful: 0.005 to 0.02.",
                ),
                *inputs.stop_rule(),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The picture's text, and the tuned negative of every step. "
                "Give an edit its target text, or BAM Edit through Transition Embedding.",
                reconstruction="What the text and the tuned negative redraw. "
                "If it does not look like your picture, the edit will not either.",
            ),
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        steps,
        cfg,
        iterations,
        step_rule,
        learning_rate=1e-2,
        stop_threshold=1e-5,
        stop_growth=2e-5,
    ) -> io.NodeOutput:
        problem = _read(model, positive, negative, latent, steps, cfg)
        inversion = NullTextInversion(
            NULL_TEXT_RULES[step_rule](learning_rate),
            iterations,
            StopRule(stop_threshold, stop_growth),
            skip_finished=not conditioning.carries_rows(problem.negative_options),
        )
        return _invert(model, problem, inversion)


class BaretInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretInversion",
            display_name="Inversion",
            category=CATEGORY,
            description="Inversion without tuning, in the time of one or two samplings: "
            "DDIM, negative-prompt or direct inversion.",
            search_aliases=[*SEARCH_ALIASES, "negative prompt inversion", "direct inversion", "PnP inversion"],
            inputs=[
                *inputs.inversion_sockets(
                    positive=inputs.SOURCE_PROMPT,
                    negative="The negative text, mostly empty. "
                    "Negative-prompt inversion puts the picture's own text in its place.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(_UNTUNED),
                    default="direct",
                    tooltip="direct: what each step misses is added back to the picture's path; it is redrawn exactly. "
                    "negative-prompt: the picture's text is the negative too; nearly exact, edits are weaker. "
                    "DDIM: plain guided sampling, which drifts away.",
                ),
                inputs.steps(),
                inputs.cfg(
                    "Guidance of the picture's path. "
                    "Higher drifts further away with DDIM; direct and negative-prompt do not mind. "
                    "Use the same in the edit."
                ),
            ],
            outputs=inputs.inversion_outputs(
                embeddings="The picture's text at every step, and the negative. "
                "Give an edit its target text, or BAM Edit through Transition Embedding.",
                reconstruction="The end of the picture's path: what an edit that changes nothing would give.",
            ),
        )

    @classmethod
    @checked
    def execute(cls, model, positive, negative, latent, method, steps, cfg) -> io.NodeOutput:
        return _invert(model, _read(model, positive, negative, latent, steps, cfg), _UNTUNED[method])
