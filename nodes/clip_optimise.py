from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.edits.clip_optimise import RECIPES, Recipe, optimise
from ..drawing.pictures import to_pil
from ..host import by_clip, run, wires
from ..host import clip as host_clip
from ..host.remarks import remark
from ..host.text import require_length
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked
from .written import read_prompts

_PREVIEWS = 40  # pictures shown in a run at most


class BaretClipOptimise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretClipOptimise",
            display_name="CLIP Optimise",
            category=CATEGORY,
            description="Changes a picture's latent step by step until CLIP finds that it fits a text, without a "
            "diffusion model. Settings of StyleCLIP, VQGAN-CLIP and TediGAN.",
            search_aliases=[*SEARCH_ALIASES, "StyleCLIP", "VQGAN-CLIP", "TediGAN", "CLIP guidance"],
            inputs=[
                inputs.vae("turn the latent into the picture that CLIP looks at"),
                *inputs.clip_halves(),
                io.Latent.Input("latent", tooltip="The picture to change, encoded with this VAE."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="What the picture is to show. Several texts have bars between them, and weights behind "
                    "colons: a red dog | snow: 0.5.",
                ),
                io.String.Input(
                    "negative_text",
                    default="",
                    multiline=True,
                    tooltip="What it is not to show, in the same form. Left empty, nothing.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(RECIPES),
                    default="VQGAN-CLIP",
                    tooltip="Whose settings: VQGAN-CLIP judges 32 changed views of the picture in each step and holds "
                    "nothing, StyleCLIP judges the whole and holds the latent, TediGAN holds the picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="How many updates; 0 takes the preset's (StyleCLIP 300, VQGAN-CLIP 500, TediGAN 200). "
                    "More fits the text better, and costs more time.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How far one update goes, times the preset's. Higher changes more; 0 changes nothing.",
                ),
                io.Float.Input(
                    "keep",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    advanced=True,
                    tooltip="How firmly the picture is held, times the preset's. Higher keeps more; VQGAN-CLIP holds "
                    "nothing, whatever stands here.",
                ),
                io.Int.Input(
                    "views",
                    default=-1,
                    min=-1,
                    max=256,
                    advanced=True,
                    tooltip="How many changed views of the picture are judged in each step; 0 judges the picture "
                    "itself, -1 takes the preset's. More is steadier, and costs time and memory.",
                ),
                inputs.seed("Which random views; it does nothing where views are 0."),
                inputs.mask(),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The changed picture; decode it with the VAE.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        vae,
        clip_vision,
        clip,
        latent,
        text,
        negative_text="",
        preset="VQGAN-CLIP",
        steps=0,
        strength=1.0,
        keep=1.0,
        views=-1,
        seed=0,
        mask=None,
    ) -> io.NodeOutput:
        start = by_clip.require_latent(vae, latent)
        recipe = _recipe(preset, steps, strength, views)
        texts, weights = _texts(clip, clip_vision, text, negative_text)
        if mask is not None:
            mask = wires.mask_in(mask, len(start), start.shape[1:])
        show = run.picture_progress(recipe.steps)
        every = max(1, recipe.steps // _PREVIEWS)

        def on_step(step: int, pictures: Tensor) -> None:
            show(to_pil(pictures[0].movedim(0, -1)) if step % every == 0 else None)

        looks = max(recipe.views, 1) + bool(recipe.perceptual)
        with by_clip.tunable(vae, clip_vision, start.shape, looks) as (decode, encode, place):
            found = optimise(
                decode,
                encode,
                place(start),
                place(texts),
                place(weights),
                recipe,
                keep=keep,
                mask=None if mask is None else place(mask),
                seed=seed,
                on_step=on_step,
            )
        first, last = found.losses[0].mean(), found.losses[-1].mean()
        remark(f"loss {first:.3f} to {last:.3f}")
        return io.NodeOutput({**latent, "samples": wires.to_wire(found.latent)})


def _recipe(preset: str, steps: int, strength: float, views: int) -> Recipe:
    """A preset with what the node's inputs change of it."""
    recipe = RECIPES[preset]
    return replace(
        recipe,
        steps=steps or recipe.steps,
        rate=strength * recipe.rate,
        views=recipe.views if views < 0 else views,
    )


def _texts(clip, clip_vision, text: str, negative_text: str) -> tuple[Tensor, Tensor]:
    """Embeddings ``[P,D]`` of all texts and their weights ``[P]``. Raises ValueError where there is none."""
    require_length(text, "text")
    require_length(negative_text, "negative_text")
    prompts = read_prompts(text, "text")
    if not prompts:
        raise ValueError("text is empty; write what the picture is to show.")
    prompts += [(written, -weight) for written, weight in read_prompts(negative_text, "negative_text")]
    width = host_clip.width_of(clip_vision)
    texts = torch.cat([host_clip.text_features(clip, written, width) for written, _ in prompts])
    return texts, torch.tensor([weight for _, weight in prompts])
