from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..baret_ops.attention import EDIT, RECONSTRUCTION, TRANSITION
from ..baret_ops.edits.word_maps import watch_edit, watched_steps, word_shares
from ..baret_ops.prompts import Tokens
from ..drawing.pictures import grid, require_drawable, to_pil, to_tensor, with_heat
from ..host import models, run, wires
from ..host.text import find_word, read_tokens
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked, run_edit
from .texts import target_tokens
from .written import read_resolutions, read_words

_PROCESSES = (RECONSTRUCTION, TRANSITION, EDIT)


class BaretAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretAttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY,
            description="Shows where the model looks for each word, as heat over the picture: "
            "in the reconstruction, the transition and the edit, side by side.",
            search_aliases=[*SEARCH_ALIASES, "heat map", "cross-attention", "DAAM", "visualize"],
            is_output_node=True,
            inputs=[
                *inputs.edit_sockets(),
                inputs.clip(),
                inputs.vae("show the pictures under the maps"),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The target text, word for word as it was encoded, weights and embeddings included.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases of the text to look at, with commas between them, "
                    'such as "dog, lying". Empty: all words.',
                ),
                inputs.tau_sa(
                    "As in BAM Edit: share of the steps that take self-attention from the reconstruction. "
                    "Higher keeps more of the picture."
                ),
                inputs.tau_ca(
                    "As in BAM Edit: share of the steps that take cross-attention from the transition; "
                    "there the edit's maps are the transition's."
                ),
                inputs.cfg("Guidance of the edit, as in BAM Edit. Higher obeys the text more and keeps less."),
                inputs.share(
                    "start_percent",
                    0.0,
                    "Where in the steps to begin to look: 0 is the noisiest, where places are decided.",
                ),
                inputs.share(
                    "end_percent",
                    1.0,
                    "Where to stop: 1 is the last step, where details are. "
                    "The maps are the mean over the steps between.",
                ),
                io.String.Input(
                    "resolutions",
                    default="coarse",
                    advanced=True,
                    tooltip="Which of the model's grids to look at: "
                    '"coarse" (16 wide at 512x512, the clearest), "all", or widths with commas between them, '
                    'such as "16, 32".',
                ),
            ],
            outputs=[
                io.Image.Output(
                    "maps",
                    tooltip="A row of heat maps for each word under the three pictures; "
                    "one sheet per image of a batch.",
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="The reconstruction's heat of each word, 0 to 1, image by image; "
                    "one word's through a threshold can be the mask of an edit.",
                ),
                io.String.Output(
                    "report",
                    tooltip="For each word its tokens and how strongly it is looked at, on average and at most.",
                ),
            ],
        )

    @classmethod
    @checked
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
        models.require_fit(model, trajectory)
        steps = trajectory.schedule.steps
        span = watched_steps(start_percent, end_percent, steps)
        tokens = target_tokens(clip, embeddings, text)
        places = _places(clip, tokens, words)
        require_drawable(wires.picture_size(trajectory), len(_PROCESSES), trajectory.images * (len(places) + 1))
        shares, grids = (
            word_shares(len(tokens.ids), list(places.values())),
            read_resolutions(resolutions, "resolutions"),
        )
        progress = run.bare_progress(steps)

        def look(predict, trajectory, *, mask, on_step):
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

        seen = run_edit(model, trajectory, embeddings, None, len(_PROCESSES), look, on_step=progress)
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
    asked = read_words(words, "words")
    if not asked:
        asked = list(dict.fromkeys(word for word, _ in tokens.words if any(map(str.isalnum, word))))
    if not asked:
        raise ValueError("text has no words to look at; write the target text.")
    return {_plain(clip, word): find_word(clip, tokens, word, "text") for word in asked}


def _plain(clip, phrase: str) -> str:
    """A phrase without the weights written into it."""
    return " ".join(word for word, _ in read_tokens(clip, phrase).words)


def _sheets(source: Tensor, pictures: Tensor, words: list[str], shown: Tensor) -> Tensor:
    """A sheet for each image: the three pictures, and under them a row of heat for each word.

    source ``[B,H,W,3]``, pictures ``[3,B,H,W,3]``, shown ``[B,W,3,h,w]`` in 0..1.
    """
    sheets = []
    for image, heats in enumerate(shown):
        plain = [to_pil(process[image]) for process in pictures]
        rows: list[list[Image.Image]] = [[*plain]]
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
