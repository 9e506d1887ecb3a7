from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..drawing.pictures import labelled, to_pil, to_tensor
from .common import CATEGORY, SEARCH_ALIASES, errors_of

_IMAGES = [f"image_{number}" for number in range(1, 10)]


class BaretLabelledGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretLabelledGrid",
            display_name="Labelled Grid",
            category=CATEGORY,
            description="Puts up to nine pictures side by side, each with a label under it: to compare edits at a glance.",
            search_aliases=[*SEARCH_ALIASES, "compare", "contact sheet", "caption"],
            is_output_node=True,
            inputs=[
                *(
                    io.Image.Input(
                        name,
                        optional=True,
                        tooltip="A picture of the grid; open ones are left out. All are shown at the first one's size. A batch makes a grid for each of its pictures.",
                    )
                    for name in _IMAGES
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    tooltip="One line for each input, in their order. Empty lines leave a picture without a label.",
                ),
                io.Int.Input(
                    "columns", default=3, min=1, max=9, tooltip="Pictures in a row. Higher makes the grid wider."
                ),
            ],
            outputs=[io.Image.Output("grid", tooltip="The pictures in rows, with their labels.")],
        )

    @classmethod
    def execute(
        cls,
        image_1=None,
        image_2=None,
        image_3=None,
        image_4=None,
        image_5=None,
        image_6=None,
        image_7=None,
        image_8=None,
        image_9=None,
        labels="",
        columns=3,
    ) -> io.NodeOutput:
        with errors_of(cls):
            images = (image_1, image_2, image_3, image_4, image_5, image_6, image_7, image_8, image_9)
            lines = [line.strip() for line in labels.splitlines()] + [""] * len(images)
            given = [(image, label) for image, label in zip(images, lines) if image is not None]
            if not given:
                raise ValueError("no picture is connected; connect at least image_1.")
            count = max(len(image) for image, _ in given)
            if any(len(image) not in (1, count) for image, _ in given):
                raise ValueError(
                    f"batches of {', '.join(str(len(image)) for image, _ in given)} pictures came; batches of one size, or single pictures, fit."
                )
            sheets = torch.cat(
                [
                    to_tensor(
                        labelled(
                            [to_pil(image[b % len(image)]) for image, _ in given],
                            [label for _, label in given],
                            columns,
                        )
                    )
                    for b in range(count)
                ]
            )
            return io.NodeOutput(sheets, ui=ui.PreviewImage(sheets, cls=cls))
