from __future__ import annotations

import re

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..baret_ops.attention import EDIT, RECONSTRUCTION, TRANSITION
from ..baret_ops.edits.word_maps import Grids, watch_edit, watched_steps, word_shares
from ..baret_ops.prompts import Tokens
from ..drawing.pictures import grid, to_pil, to_tensor, with_heat
from ..host import models, run, wires
from ..host.text import find_word, read_tokens
from .common import (
    CATEGORY,
    EDIT_MODEL_TOOLTIP,
    EMBEDDINGS_TOOLTIP,
    SEARCH_ALIASES,
    TRAJECTORY_TOOLTIP,
    EmbeddingsWire,
    TrajectoryWire,
    errors_of,
    sample_edit,
)
from .texts import CLIP_TOOLTIP, target_tokens

_PROCESSES = (RECONSTRUCTION, TRANSITION, EDIT)


class BaretAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretAttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY,
            description="Shows where the model looks for each word, as heat over the picture: in the reconstruction, the transition and the edit, side by side.",
            search_aliases=[*SEARCH_ALIASES, "heat map", "cross-attention", "DAAM", "visualize"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=EDIT_MODEL_TOOLTIP),
                TrajectoryWire.Input("trajectory", tooltip=TRAJECTORY_TOOLTIP),
                EmbeddingsWire.Input("embeddings", tooltip=EMBEDDINGS_TOOLTIP),
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint, to show the pictures under the maps."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The target text, word for word as it was encoded, weights and embeddings included.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip='Words or phrases of the text to look at, with commas between them, such as "dog, lying". Empty: all words.',
                ),
                io.Float.Input(
                    "tau_sa",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="As in BAM Edit: share of the steps that take self-attention from the reconstruction. Higher keeps more of the picture.",
                ),
                io.Float.Input(
                    "tau_ca",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="As in BAM Edit: share of the steps that take cross-attention from the transition; there the edit's maps are the transition's.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=1.0,
                    max=30.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Guidance of the edit, as in BAM Edit. Higher obeys the text more and keeps less. Useful: 3 to 8.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Where in the steps to begin to look: 0 is the noisiest, where places are decided.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Where to stop: 1 is the last step, where details are. The maps are the mean over the steps between.",
                ),
                io.String.Input(
                    "resolutions",
                    default="coarse",
                    advanced=True,
                    tooltip='Which of the model\'s grids to look at: "coarse" (16 wide at 512x512, the clearest), "all", or widths with commas between them, such as "16, 32".',
                ),
            ],
            outputs=[
                io.Image.Output(
                    "maps",
                    tooltip="A row of heat maps for each word under the three pictures; one sheet per image of a batch.",
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="The reconstruction's heat of each word, 0 to 1, image by image; one word's through a threshold can be the mask of an edit.",
                ),
                io.String.Output(
                    "report",
                    tooltip="For each word its tokens and how strongly it is looked at, on average and at most.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        embeddings,
        clip,
        vae,
        text,
        words,
        tau_sa,
        tau_ca,
        cfg,
        start_percent,
        end_percent,
        resolutions="coarse",
    ) -> io.NodeOutput:
        with errors_of(cls):
            models.require_fit(model, trajectory)
            steps = trajectory.schedule.steps
            span = watched_steps(start_percent, end_percent, steps)
            tokens = target_tokens(clip, embeddings, text)
            places = _places(clip, tokens, words)
            shares, grids = word_shares(len(tokens.ids), list(places.values())), _grids(resolutions)
            show = run.picture_progress(steps)

            def look(predict, trajectory, mask, on_step):
                return watch_edit(
                    predict,
                    trajectory,
                    embeddings,
                    shares,
                    span=span,
                    grids=grids,
                    tau_sa=tau_sa,
                    tau_ca=tau_ca,
                    guidance_scale=cfg,
                    on_step=on_step,
                )

            seen = sample_edit(model, trajectory, embeddings, None, len(_PROCESSES), look, on_step=lambda *_: show())
            heat = wires.to_wire(seen.heat)
            shown = heat / heat.amax((2, 3, 4), keepdim=True).clamp_min(1e-12)
            pictures = wires.decode(vae, wires.latent_out(trajectory.family, torch.cat(seen.latents)))
            source = wires.decode(vae, wires.latent_out(trajectory.family, trajectory.pivots[-1]))
            sheets = _sheets(source, pictures.unflatten(0, (len(_PROCESSES), trajectory.images)), list(places), shown)
            of_words = shown[:, :, 0].flatten(0, 1)[:, None]
            masks = torch.nn.functional.interpolate(of_words, pictures.shape[1:3], mode="bilinear")[:, 0]
            return io.NodeOutput(sheets, masks, _report(places, heat), ui=ui.PreviewImage(sheets, cls=cls))


def _places(clip, tokens: Tokens, words: str) -> dict[str, tuple[int, ...]]:
    """The words to look at with the positions of their tokens; all words of the text where none is named."""
    asked = [part.strip() for part in words.split(",") if part.strip()]
    if not asked:
        asked = list(dict.fromkeys(word for word, _ in tokens.words if any(map(str.isalnum, word))))
    if not asked:
        raise ValueError("text has no words to look at; write the target text.")
    return {_plain(clip, word): find_word(clip, tokens, word, "text") for word in asked}


def _plain(clip, phrase: str) -> str:
    """A phrase without the weights written into it."""
    return " ".join(word for word, _ in read_tokens(clip, phrase).words)


def _grids(resolutions: str) -> Grids:
    """Which grids the input means. Raises ValueError for what it does not understand."""
    parts = [part for part in re.split(r"[,\s]+", resolutions.strip()) if part]
    if parts == ["coarse"]:
        return Grids(coarse=True, written=resolutions)
    if parts == ["all"]:
        return Grids(written=resolutions)
    if not parts or not all(map(str.isdigit, parts)):
        raise ValueError(f"resolutions has {resolutions!r}; coarse, all, or widths such as 16, 32 fit.")
    return Grids(widths=frozenset(map(int, parts)), written=resolutions)


def _sheets(source: Tensor, pictures: Tensor, words: list[str], shown: Tensor) -> Tensor:
    """A sheet for each image: the three pictures, and under them a row of heat for each word.

    source ``[B,H,W,3]``, pictures ``[3,B,H,W,3]``, shown ``[B,W,3,h,w]`` in 0..1.
    """
    sheets = []
    for image, heats in enumerate(shown):
        plain = [to_pil(process[image]) for process in pictures]
        rows = [plain]
        for word in heats:
            rows.append([with_heat(picture, heat) for picture, heat in zip(plain, word)])
        sheets.append(to_tensor(grid(to_pil(source[image]), list(_PROCESSES), ["picture", *words], rows)))
    return torch.cat(sheets)


def _report(places: dict[str, tuple[int, ...]], heat: Tensor) -> str:
    """How strongly each word is looked at; heat is ``[B,W,3,h,w]``."""
    lines = []
    for image, words in enumerate(heat, 1):
        for (word, positions), maps in zip(places.items(), words):
            numbers = [
                f"{name} {float(each.mean()):.4f} (most {float(each.max()):.4f})"
                for name, each in zip(_PROCESSES, maps)
            ]
            where = ", ".join(map(str, positions))
            lines.append(f"picture {image}, {word} (token {where}): {', '.join(numbers)}")
    return "\n".join(lines)
