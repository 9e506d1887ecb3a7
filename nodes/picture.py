from __future__ import annotations

import torch
from comfy_api.latest import io

from ..drawing.pictures import fitted, to_pil, to_tensor
from ..host import wires
from .common import CATEGORY, SEARCH_ALIASES, checked

_PIXELS = 1024 * 1024  # of a megapixel, as the host counts
_STEP = 64  # pixels, so that every grid of the UNet is whole


class BaretFitPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretFitPicture",
            display_name="Fit Picture",
            category=CATEGORY,
            description="Brings a photo to the size that the model knows best, keeping its proportions. "
            "A smaller picture stays as it is: nothing is enlarged.",
            search_aliases=[*SEARCH_ALIASES, "resize", "scale"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to edit, of any size and proportions."),
                io.Float.Input(
                    "megapixels",
                    default=0.25,
                    min=0.001,
                    max=16.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The most that its area may be: 0.25 is 512x512, which SD1.x knows best; 0.56 is 768x768, "
                    "for SD2.x. Higher shows more detail and costs more time and memory.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The picture; its sides are multiples of 64.")],
        )

    @classmethod
    @checked
    def execute(cls, image, megapixels=0.25) -> io.NodeOutput:
        pictures = [
            to_tensor(fitted(to_pil(picture), megapixels * _PIXELS, _STEP))
            for picture in wires.pictures_in(image, "image")
        ]
        return io.NodeOutput(torch.cat(pictures))


class BaretPickEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretPickEdit",
            display_name="Pick Edit",
            category=CATEGORY,
            description="Hands on one edit of Edit Sweep, by the number that stands in the corner of its cell. "
            "Another number does not run the sweep again.",
            search_aliases=[*SEARCH_ALIASES, "grid", "choose", "select"],
            inputs=[
                io.Image.Input("edits", tooltip="The output edits of Edit Sweep."),
                io.Int.Input(
                    "number", default=1, min=1, max=4096, tooltip="Which one: the number in the corner of its cell."
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The edit with that number.")],
        )

    @classmethod
    @checked
    def execute(cls, edits, number=1) -> io.NodeOutput:
        if not 1 <= number <= len(edits):
            raise ValueError(f"number is {number}; there are {len(edits)} edits, and one of their numbers fits.")
        return io.NodeOutput(edits[number - 1 : number])
