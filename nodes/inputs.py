"""Inputs and outputs that several nodes have, made once each. What a node says of its own is an argument."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..baret_ops.inversions.step_rules import STEP_RULES

TrajectoryWire = io.Custom("BARET_TRAJECTORY")
EmbeddingsWire = io.Custom("BARET_EMBEDDINGS")

# --- sockets ----------------------------------------------------------------------------------------------------------


def model() -> io.Input:
    """The model that a picture is inverted with."""
    return io.Model.Input(
        "model",
        tooltip="An SD1.x or SD2.x checkpoint, with any LoRA or patches you want in the edit.",
    )


def edit_model() -> io.Input:
    """The model that an edit is sampled with."""
    return io.Model.Input(
        "model",
        tooltip="The model the picture was inverted with, with the same LoRA and patches.",
    )


def trajectory() -> io.Input:
    return TrajectoryWire.Input(
        "trajectory",
        tooltip="The picture's path through the noise levels, from an inversion node or Load Inversion.",
    )


def embeddings() -> io.Input:
    return EmbeddingsWire.Input(
        "embeddings",
        tooltip="The text of every step, from an inversion node, Transition Embedding or Load Inversion.",
    )


def clip() -> io.Input:
    return io.Clip.Input(
        "clip",
        tooltip="The CLIP of the same checkpoint, with which the texts are read and encoded.",
    )


def vae(purpose: str) -> io.Input:
    return io.Vae.Input("vae", tooltip=f"The VAE of the checkpoint, to {purpose}.")


def clip_halves() -> list[io.Input]:
    """The two halves of one CLIP, for what compares pictures with texts."""
    return [
        io.ClipVision.Input("clip_vision", tooltip="What looks at the picture: a CLIP vision model, such as ViT-L."),
        io.Clip.Input(
            "clip",
            tooltip="What reads the texts: the same CLIP with its text projection, from Load CLIP with "
            "clip_l.safetensors. That of an SD1.x checkpoint has none.",
        ),
    ]


def edit_sockets() -> list[io.Input]:
    """What an edit by embeddings needs."""
    return [edit_model(), trajectory(), embeddings()]


def text_edit_sockets() -> list[io.Input]:
    """What an edit by texts needs."""
    return [edit_model(), clip(), trajectory(), embeddings()]


def inversion_sockets(positive: str, negative: str) -> list[io.Input]:
    """What an inversion needs. positive, negative: the tooltips of its texts."""
    return [
        model(),
        io.Conditioning.Input("positive", tooltip=positive),
        io.Conditioning.Input("negative", tooltip=negative),
        io.Latent.Input(
            "latent",
            tooltip="Your picture, encoded with this checkpoint's VAE. Several pictures of one size make a batch.",
        ),
    ]


SOURCE_PROMPT = "A text that says what is in the picture as it is. One prompt, or one per image of the batch."

# --- texts ------------------------------------------------------------------------------------------------------------

_SOURCE_TEXT = "The text the picture was inverted with, word for word."


def source_text() -> io.Input:
    return io.String.Input("source_text", multiline=True, tooltip=_SOURCE_TEXT)


def optional_source_text(needed_for: str) -> io.Input:
    """The source's text where only one input needs it."""
    tooltip = f"{_SOURCE_TEXT} Needed for {needed_for} alone."
    return io.String.Input("source_text", default="", multiline=True, advanced=True, tooltip=tooltip)


def target_text() -> io.Input:
    return io.String.Input(
        "target_text",
        multiline=True,
        tooltip="What the picture should become: the same text with words changed, added or left out.",
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def share(name: str, default: float, tooltip: str, advanced: Any = None) -> io.Input:
    """A number from 0 to 1: a share of the steps, or of the greatest attention. advanced: True or None."""
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.05, round=0.001, advanced=advanced, tooltip=tooltip
    )


def tau_sa(tooltip: str) -> io.Input:
    return share("tau_sa", 0.3, tooltip)


def tau_ca(tooltip: str) -> io.Input:
    return share("tau_ca", 0.6, tooltip)


def steps() -> io.Input:
    return io.Int.Input(
        "steps",
        default=50,
        min=2,
        max=999,
        tooltip="Sampling steps. More follow the picture more closely and cost more time. Useful: 20 to 50.",
    )


def cfg(tooltip: str) -> io.Input:
    """The guidance. The tooltip's last sentence is added."""
    return io.Float.Input(
        "cfg", default=7.5, min=1.0, max=30.0, step=0.5, round=0.01, tooltip=f"{tooltip} Useful: 3 to 8."
    )


def edit_cfg(which: str) -> io.Input:
    """The guidance of an edit. which: the sentence that says which value to use."""
    return cfg(f"Guidance of the edit. Higher obeys the text more and keeps less. {which}")


# --- tuning -----------------------------------------------------------------------------------------------------------


def iterations(default: int, tooltip: str) -> io.Input:
    return io.Int.Input("iterations", default=default, min=0, max=100, tooltip=tooltip)


def step_rule(default: str, tooltip: str) -> io.Input:
    return io.Combo.Input("step_rule", options=list(STEP_RULES), default=default, tooltip=tooltip)


def learning_rate(default: float, step: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        "learning_rate", default=default, min=1e-6, max=1.0, step=step, round=False, advanced=True, tooltip=tooltip
    )


def stop_rule() -> list[io.Input]:
    """When a step's tuning ends early."""
    return [
        _stop(
            "stop_threshold",
            1e-5,
            "A step ends early once its error is below this. Higher is faster and reconstructs less exactly; "
            "0 never stops early. Useful: 0 to 0.0001.",
        ),
        _stop(
            "stop_growth",
            2e-5,
            "What the threshold grows by each step, so that early steps are held closer. Useful: 0 to 0.0001.",
        ),
    ]


def _stop(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=1e-6, round=False, advanced=True, tooltip=tooltip
    )


# --- fine-tuning on one picture ---------------------------------------------------------------------------------------


def one_latent() -> io.Input:
    return io.Latent.Input("latent", tooltip="Your picture, one, encoded with this checkpoint's VAE.")


def updates(name: str, default: int, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=default, min=0, max=10_000, step=10, tooltip=tooltip)


def rate(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        name, default=default, min=1e-7, max=1.0, step=default / 10, round=False, advanced=True, tooltip=tooltip
    )


def lora_settings() -> list[io.Input]:
    """How a LoRA is tuned, and the seed of it all."""
    return [
        rate(
            "learning_rate",
            1e-4,
            "Size of an update of the LoRA. Higher keeps more of the picture in fewer updates, until it breaks. "
            "Useful: 0.0001 on SD1.5, 0.0005 on small models.",
        ),
        io.Int.Input(
            "rank",
            default=8,
            min=1,
            max=128,
            advanced=True,
            tooltip="Size of the LoRA. Higher can hold more of the picture and takes more memory. Useful: 4 to 16.",
        ),
        seed("Which times and noise are drawn. The same seed gives the same result."),
    ]


# --- sharing and masks ------------------------------------------------------------------------------------------------


def max_resolution(default: int, what: str, effect: str) -> io.Input:
    """The widest grid on which attention is shared. what: what happens there. effect: of a lower or higher number."""
    return io.Int.Input(
        "max_resolution",
        default=default,
        min=0,
        max=1024,
        step=8,
        advanced=True,
        tooltip=f"{what} only where its grid has at most this many tokens squared; 0 is no limit. "
        f"At 512x512 the grids are 64, 32, 16 and 8. {effect}",
    )


def mask() -> io.Input:
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip="Where the picture may change (white). Everywhere else it is kept at every step. "
        "Left open, it may change everywhere.",
    )


def auto_mask() -> io.Input:
    return io.Float.Input(
        "auto_mask",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.005,
        round=0.0001,
        advanced=True,
        tooltip="Above 0, keeps the picture wherever the text asks for nothing else than is there: "
        "how much the two predictions must differ. Higher keeps more of it. "
        "A text that asks for more than half of the picture anew, as for another background, is not held back. "
        "Useful: 0.01 to 0.02.",
    )


def change_mask() -> io.Input:
    return io.Float.Input(
        "change_mask",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.05,
        round=0.001,
        advanced=True,
        tooltip="Above 0, keeps the picture wherever the edit changes it by less than this, in units of the latent. "
        "Costs no time. Higher keeps more of it. Useful: 0.3 to 0.8.",
    )


def appearance() -> io.Input:
    return share(
        "appearance",
        0.0,
        "Share of the steps, counted from the last, that take from the picture what things look like, "
        "by keys and values of its self-attention. Higher keeps colours and textures while shapes may change. "
        "0 is the paper's. Useful: 0.6 to 0.8 for another pose.",
        advanced=True,
    )


def seed(tooltip: str, advanced: Any = None) -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**32 - 1,
        control_after_generate=io.ControlAfterGenerate.fixed,
        advanced=advanced,
        tooltip=tooltip,
    )


def renoise() -> list[io.Input]:
    """Fresh noise, and its seed."""
    return [
        share(
            "renoise",
            0.0,
            "How much fresh noise takes the place of the picture's own where it may change, so that an old pose lets "
            "go. Higher changes more. Useful: 0.5 to 0.9, with appearance.",
            advanced=True,
        ),
        seed("Which fresh noise; it does nothing where renoise is 0.", advanced=True),
    ]


def bam_settings() -> list[io.Input]:
    """The settings of BAM beside its taus."""
    return [
        edit_cfg("Use the value of TTIS Inversion."),
        io.Combo.Input(
            "passes",
            options=["conditional", "both"],
            default="conditional",
            advanced=True,
            tooltip="Share attention in the pass with the text alone, or in the negative pass as well: "
            "both keeps more of the picture and costs a little more.",
        ),
        max_resolution(0, "Share attention", "Lower keeps fewer fine details. Useful: 0, 32 or 16."),
        mask(),
        auto_mask(),
    ]


# --- outputs ----------------------------------------------------------------------------------------------------------


def trajectory_output() -> io.Output:
    return TrajectoryWire.Output("trajectory", tooltip="The picture's path through the noise levels.")


def inversion_outputs(embeddings: str, reconstruction: str) -> list[io.Output]:
    """What an inversion gives. embeddings, reconstruction: their tooltips."""
    return [
        trajectory_output(),
        EmbeddingsWire.Output("embeddings", tooltip=embeddings),
        io.Latent.Output("reconstruction", tooltip=reconstruction),
    ]


def mask_output(tooltip: str) -> io.Output:
    return io.Mask.Output("mask", tooltip=tooltip)


def edit_outputs() -> list[io.Output]:
    """An edit, and where it was let differ."""
    return [edit_output(), mask_output("Where the picture was let change (white), at the last step.")]


def edit_output() -> io.Output:
    return io.Latent.Output("edit", tooltip="The edited picture; decode it with the VAE.")
