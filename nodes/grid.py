from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..drawing.pictures import labelled, to_pil, to_tensor
from ..host import wires
from .common import CATEGORY, SEARCH_ALIASES, checked

_MOST = 9
_LONGEST_LABEL = 200


def _image(number: int) -> io.Input:
    return io.Image.Input(
        f"image_{number}",
        optional=True,
        tooltip="A picture of the grid; open ones are left out. All are shown at the first one's size. "
        "A batch makes a grid for each of its pictures.",
    )


class BaretLabelledGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretLabelledGrid",
            display_name="Labelled Grid",
            category=CATEGORY,
            description="Puts up to nine pictures side by side, each with a label under it: "
            "to compare edits at a glance.",
            search_aliases=[*SEARCH_ALIASES, "compare", "contact sheet", "caption"],
            is_output_node=True,
            inputs=[
                *(_image(number) for number in range(1, _MOST + 1)),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    tooltip="One line for each input, in their order. Empty lines leave a picture without a label.",
                ),
                io.Int.Input(
                    "columns",
                    default=3,
                    min=1,
                    max=_MOST,
                    tooltip="Pictures in a row. Higher makes the grid wider.",
                ),
            ],
            outputs=[io.Image.Output("grid", tooltip="The pictures in rows, with their labels.")],
        )

    @classmethod
    @checked
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
        images = (image_1, image_2, image_3, image_4, image_5, image_6, image_7, image_8, image_9)
        batches, lines = _connected(images, labels)
        sheets = [_sheet(batches, lines, columns, number) for number in range(_batch_size(batches))]
        grid = torch.cat(sheets)
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


def _connected(images: tuple[Tensor | None, ...], labels: str) -> tuple[list[Tensor], list[str]]:
    """The batches ``[B,H,W,3]`` of the inputs that are connected, and the label of each.

    Raises ValueError for none, and for a label that no picture is wide enough for.
    """
    lines = [line.strip() for line in labels.splitlines()]
    lines += [""] * len(images)
    given = {number: image for number, image in enumerate(images) if image is not None}
    if not given:
        raise ValueError("no picture is connected; connect at least image_1.")
    shown = [lines[number] for number in given]
    longest = max(map(len, shown))
    if longest > _LONGEST_LABEL:
        raise ValueError(f"labels has a line of {longest} characters; at most {_LONGEST_LABEL} fit.")
    return [wires.pictures_in(image, f"image_{number + 1}") for number, image in given.items()], shown


def _batch_size(batches: list[Tensor]) -> int:
    """How many grids the batches make. Raises ValueError for batches of different sizes."""
    sizes = [len(batch) for batch in batches]
    if not set(sizes) <= {1, max(sizes)}:
        came = ", ".join(str(size) for size in sizes)
        raise ValueError(f"batches of {came} pictures came; batches of one size, or single pictures, fit.")
    return max(sizes)


def _sheet(batches: list[Tensor], lines: list[str], columns: int, number: int) -> Tensor:
    """The grid ``[1,H,W,3]`` of one picture of each batch; a single picture stands in every grid."""
    pictures = [to_pil(batch[number % len(batch)]) for batch in batches]
    return to_tensor(labelled(pictures, lines, columns))
