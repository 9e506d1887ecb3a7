from __future__ import annotations

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Tensor

from ..baret_ops.edits.layer_generator import LEAST_SIDE
from ..baret_ops.edits.text_layer import SCREEN_TEMPLATES, TEMPLATES, Layer, LayerTexts, Painting, paint_layer
from ..drawing.pictures import to_pil
from ..host import by_clip, run, wires
from ..host import clip as host_clip
from ..host.remarks import remark
from ..host.text import require_length, say_unknown_words
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked

_PREVIEWS = 40  # pictures shown for each picture at most


class BaretTextLayer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        published = Painting()
        return io.Schema(
            node_id="BaretTextLayer",
            display_name="Text Layer",
            category=CATEGORY,
            description="Paints a layer with alpha over a picture until CLIP finds that it fits a text, without a "
            "diffusion model. The picture under it stays as it is. Text2LIVE.",
            search_aliases=[*SEARCH_ALIASES, "Text2LIVE", "layer", "alpha", "texture", "CLIP guidance"],
            inputs=[
                *inputs.clip_halves(),
                io.Image.Input("image", tooltip="The picture to paint over. Each one of a batch gets its own layer."),
                io.String.Input(
                    "text", tooltip="What the picture is to show where it changes, without an article: red dog."
                ),
                io.String.Input(
                    "text_before",
                    default="",
                    tooltip="What it shows there now, such as dog: then the change itself is judged as well. "
                    "Left empty, only the result is.",
                ),
                io.String.Input(
                    "layer_text",
                    default="",
                    tooltip="What the layer shows by itself, such as smoke; left empty, the text.",
                ),
                io.Int.Input(
                    "steps",
                    default=published.steps,
                    min=0,
                    max=10_000,
                    tooltip="How many updates of the network that paints. More fits the text better, and costs more "
                    "time; 0 changes nothing. Useful: 100 to 1000.",
                ),
                io.Float.Input(
                    "structure",
                    default=published.structure,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How firmly shapes are held. Higher keeps more of them.",
                ),
                io.Float.Input(
                    "sparsity",
                    default=published.sparsity,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How firmly the layer is kept small. Higher covers less of the picture.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=published.rate,
                    min=published.least_rate,
                    max=1.0,
                    step=0.0005,
                    round=0.000001,
                    advanced=True,
                    tooltip="How far an update goes at first; it falls by 1 % with each. Higher is faster and rougher.",
                ),
                io.Int.Input(
                    "views",
                    default=published.views,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="How many changed views of the picture are judged in each step. More is steadier, and "
                    "costs time and memory.",
                ),
                io.Int.Input(
                    "channels",
                    default=published.channels,
                    min=4,
                    max=512,
                    step=4,
                    advanced=True,
                    tooltip="How large the network that paints is. More paints finer, and costs time and memory; 32 "
                    "suffices for small pictures.",
                ),
                inputs.seed("Which first weights, examples and views."),
                io.Mask.Input(
                    "start_mask",
                    optional=True,
                    tooltip="Where the layer is to be at first (white): a word's mask from Attention Maps, or a drawn "
                    "one. Its weight falls to 0. Left open, CLIP alone finds the place.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture with the layer over it."),
                io.Image.Output("layer", tooltip="The colours of the layer, for ImageCompositeMasked with alpha."),
                io.Mask.Output("alpha", tooltip="How much of the layer is seen at each pixel; black is the picture."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip_vision,
        clip,
        image,
        text,
        text_before="",
        layer_text="",
        steps=1000,
        structure=2.0,
        sparsity=0.06,
        learning_rate=0.0025,
        views=16,
        channels=128,
        seed=0,
        start_mask=None,
    ) -> io.NodeOutput:
        pictures = _pictures(image)
        size = pictures.shape[-2:]
        if start_mask is not None:
            start_mask = wires.mask_in(start_mask, len(pictures), size).expand(len(pictures), -1, -1, -1)
        texts = _texts(clip, clip_vision, text, text_before, layer_text)
        how = Painting(
            steps=steps,
            rate=learning_rate,
            views=views,
            channels=channels,
            structure=structure,
            sparsity=sparsity,
        )
        show = run.picture_progress(steps * len(pictures))
        every = max(1, steps // _PREVIEWS)

        def on_step(step: int, painted: Callable[[], Tensor]) -> None:
            show(to_pil(painted()[0].movedim(0, -1)) if step % every == 0 else None)

        layers = []
        with by_clip.paintable(clip_vision, size, views, channels) as (encode, place):
            texts = texts.to(place)
            for number, picture in enumerate(pictures.split(1)):
                mask = None if start_mask is None else place(start_mask[number : number + 1])
                layers.append(paint_layer(encode, place(picture), texts, how, mask=mask, seed=seed, on_step=on_step))
        remark(_told(layers))
        colours = torch.cat([wires.to_wire(layer.colours) for layer in layers])
        alpha = torch.cat([wires.to_wire(layer.alpha) for layer in layers])
        edited = Layer(colours, alpha).over(pictures.to(colours))
        return io.NodeOutput(edited.movedim(1, -1), colours.movedim(1, -1), alpha[:, 0])


def _pictures(image: Tensor) -> Tensor:
    """The pictures ``[B,3,H,W]`` of an IMAGE. Raises ValueError for what cannot be painted on."""
    pictures = wires.pictures_in(image, "image").movedim(-1, 1).float()
    height, width = pictures.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"the picture is {width}x{height}; {LEAST_SIDE}x{LEAST_SIDE} pixels are the least.")
    if not torch.isfinite(pictures).all():
        raise ValueError("image holds NaN or infinity; run what made it in float32 (for a VAE --fp32-vae).")
    return pictures


def _texts(clip, clip_vision, text: str, text_before: str, layer_text: str) -> LayerTexts:
    """What the texts of the node are in CLIP's space. Raises ValueError where there is none."""
    written = {"text": text.strip(), "text_before": text_before.strip(), "layer_text": layer_text.strip()}
    for name, phrase in written.items():
        require_length(phrase, name)
    if not written["text"]:
        raise ValueError("text is empty; write what the picture is to show.")
    width = host_clip.width_of(clip_vision)

    def embedded(phrase: str, templates: tuple[str, ...]) -> Tensor:
        texts = [template.replace("{}", phrase) for template in templates]
        return torch.cat([host_clip.text_features(clip, each, width) for each in texts])

    found = LayerTexts(
        asked=embedded(written["text"], TEMPLATES),
        layer=embedded(written["layer_text"] or written["text"], SCREEN_TEMPLATES),
        before=embedded(written["text_before"], TEMPLATES) if written["text_before"] else None,
    )
    say_unknown_words(clip, " ".join(written.values()))  # last: of these, not of the templates' own
    return found


def _told(layers: list[Layer]) -> str:
    """How the loss went and how much is covered, on the mean of the pictures."""
    losses = torch.stack([layer.losses for layer in layers]).mean(0)
    if not len(losses):
        return "no update: the picture as it is"
    covered = torch.stack([layer.alpha.mean() for layer in layers]).mean()
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}; the layer covers {covered:.0%}"
