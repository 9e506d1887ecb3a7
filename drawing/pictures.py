"""Labelled grids and captions, and the way between tensors and PIL pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND, TEXT = "#1e1e1e", "#e6e6e6"
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_CAPTION_WIDTH = 384  # a caption under a narrower picture could not be read


def to_pil(image: Tensor) -> Image.Image:
    """A picture ``[H,W,C]`` in 0..1 as RGB; channels beyond three are left out."""
    return Image.fromarray((image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as ``[1,H,W,3]`` float32 in 0..1, the host's IMAGE."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255


def with_heat(picture: Image.Image, heat: Tensor) -> Image.Image:
    """The picture in grey under a heat map ``[h,w]`` in 0..1, from dark over red to pale yellow."""
    smooth = (
        torch.nn.functional.interpolate(heat[None, None].float().cpu(), (picture.height, picture.width), mode="bicubic")
        .clamp(0, 1)[0, 0]
        .numpy()
    )
    levels = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(smooth, levels, channel) for channel in np.array(_HEAT).T], -1)
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None]
    return Image.fromarray((0.35 * grey + 0.65 * colours).round().astype(np.uint8))


def _font(lines: list[str], width: float, most: float) -> ImageFont.FreeTypeFont:
    """The default font at ``most`` pixels, or smaller where the longest of the lines would be wider than ``width``."""
    longest = max(ImageFont.load_default(100).getlength(line) for line in lines)
    return ImageFont.load_default(max(6, min(most, 100 * width / max(longest, 1))))


def with_caption(picture: Image.Image, lines: list[str]) -> Image.Image:
    """The picture with lines of text under it, enlarged where it is too narrow for them to be read."""
    factor = -(-_CAPTION_WIDTH // picture.width)
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BICUBIC)
    font = _font(lines, 0.94 * picture.width, 0.055 * picture.width)
    pitch = round(1.4 * font.size)
    sheet = Image.new("RGB", (picture.width, picture.height + pitch * len(lines) + pitch // 2), BACKGROUND)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text(
            (picture.width / 2, picture.height + pitch * (number + 0.75)), line, fill=TEXT, font=font, anchor="mm"
        )
    return sheet


def grid(
    corner: Image.Image,
    columns: list[str],
    rows: list[str],
    cells: list[list[Image.Image | None]],
    corner_label: str = "source",
    side: int = 512,
) -> Image.Image:
    """A grid of pictures of one size with its corner picture at the top left, a label over each column and one beside each row.

    cells: ``[rows][columns]``, None where there is no picture yet. Labels may hold line breaks. side: longest side of a cell.
    """
    shrink = min(1.0, side / max(corner.size))
    width, height = (max(1, round(shrink * length)) for length in corner.size)
    gap = max(2, width // 64)
    sheet = Image.new(
        "RGB", ((len(columns) + 1) * (width + gap) - gap, (len(rows) + 1) * (height + gap) - gap), BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    font = _font(
        [line for label in [*columns, *rows] for line in label.split("\n")], 0.92 * width, 0.2 * min(width, height)
    )

    def place(column: int, row: int, content: Image.Image | str | None) -> None:
        left, top = column * (width + gap), row * (height + gap)
        if isinstance(content, str):
            draw.multiline_text(
                (left + width / 2, top + height / 2), content, fill=TEXT, font=font, anchor="mm", align="center"
            )
        elif content is None:
            draw.rectangle((left, top, left + width - 1, top + height - 1), fill="#2b2b2b")
        else:
            sheet.paste(content.resize((width, height), Image.Resampling.LANCZOS), (left, top))

    small = _font([corner_label], 0.96 * width, 0.12 * min(width, height))
    strip = round(1.3 * small.size)
    draw.text((width / 2, strip / 2), corner_label, fill=TEXT, font=small, anchor="mm")
    room = corner.resize((round(width * (height - strip) / height), height - strip), Image.Resampling.LANCZOS)
    sheet.paste(room, ((width - room.width) // 2, strip))
    for number, label in enumerate(columns, 1):
        place(number, 0, label)
    for number, (label, line) in enumerate(zip(rows, cells), 1):
        place(0, number, label)
        for column, content in enumerate(line, 1):
            place(column, number, content)
    return sheet


def labelled(pictures: list[Image.Image], labels: list[str], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, all at the first one's size, each with its label under it."""
    cells = [
        with_caption(picture.resize(pictures[0].size, Image.Resampling.LANCZOS), [label])
        for picture, label in zip(pictures, labels)
    ]
    width, gap = cells[0].width, max(2, cells[0].width // 64)
    height = max(cell.height for cell in cells)
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (min(columns, len(cells)) * (width + gap) - gap, rows * (height + gap) - gap), BACKGROUND)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (column * (width + gap), row * (height + gap)))
    return sheet
