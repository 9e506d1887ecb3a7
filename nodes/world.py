from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..host.remarks import remark
from ..world import scenes
from .common import CATEGORY, SEARCH_ALIASES, checked

_ANY = "any"
_CHOICES = {"animal": scenes.ANIMALS, "pose": scenes.POSES, "colour": scenes.COLOURS, "place": scenes.PLACES}


def _choice(name: str) -> io.Input:
    return io.Combo.Input(
        name,
        options=[_ANY, *_CHOICES[name]],
        default=_ANY,
        tooltip=f"Fix the {name}, or leave it to the seed. All else in the scene stays as it is.",
    )


class BaretWorldLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretWorldLoader",
            display_name="Load Drawn World",
            category=CATEGORY,
            description="The small model that comes with this pack, of the SD1.5 family and trained on drawn scenes of "
            "128x128 pixels: to try every node in seconds, with nothing to download.",
            search_aliases=[*SEARCH_ALIASES, "toy model", "demo"],
            outputs=[
                io.Model.Output("model", tooltip="A MODEL of the SD1.5 family with 4.3 million parameters."),
                io.Clip.Output("clip", tooltip="Its text side: it knows the words of the scenes, others do no harm."),
                io.Vae.Output("vae", tooltip="Its codec, 8 pixels a latent cell as in SD1.5."),
                io.ClipVision.Output(
                    "clip_vision",
                    tooltip="Its picture side: with clip it tells how well a drawn picture fits a text, for Edit "
                    "Metrics and CLIP Optimise.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls) -> io.NodeOutput:
        from ..host.world import load

        return io.NodeOutput(*load())


class BaretWorldScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretWorldScene",
            display_name="Drawn Scene",
            category=CATEGORY,
            description="Draws a scene of the drawn world to edit, with its caption and the animal's mask. "
            "The same seed with another pose or colour is the ideal result of that edit.",
            search_aliases=[*SEARCH_ALIASES, "toy model", "demo"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which scene: every number is another one, and always the same.",
                ),
                *(_choice(name) for name in _CHOICES),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture, 128x128."),
                io.String.Output(
                    "caption",
                    tooltip="What is in it, in the words that the drawn world's model knows best. "
                    "Change a word and you have a target text.",
                ),
                io.Mask.Output("mask", tooltip="Where the animal is."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, seed, animal=_ANY, pose=_ANY, colour=_ANY, place=_ANY) -> io.NodeOutput:
        chosen = {"animal": animal, "pose": pose, "colour": colour, "place": place}
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; a whole number from 0 to {2**32 - 1} fits.")
        (scene,) = scenes.sample(seed, 1)
        fixed = {name: _CHOICES[name].index(value) for name, value in chosen.items() if value != _ANY}
        scene = replace(scene, **fixed)
        picture, mask = scenes.render([scene])[:2]
        caption = scenes.plain_caption(scene)
        remark(caption)
        return io.NodeOutput(picture, caption, mask)
