"""Labelled grids and captions, and the way between tensors and PIL pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND, TEXT = "#1e1e1e", "#e6e6e6"
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_CAPTION_WIDTH = 384  # a caption under a narrower picture could not be read
_LEAST_SIDE = 64  # the labels beside a smaller cell could not be read
_MOST_PIXELS = 1 << 28  # of a sheet: 3 GB as the host's IMAGE


def to_pil(image: Tensor) -> Image.Image:
    """A picture ``[H,W,C]`` in 0..1 as RGB; channels beyond three are left out."""
    return Image.fromarray((image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as ``[1,H,W,3]`` float32 in 0..1, the host's IMAGE."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255


def with_heat(picture: Image.Image, heat: Tensor) -> Image.Image:
    """The picture in grey under a heat map ``[h,w]`` in 0..1, from dark over red to pale yellow."""
    size = (picture.height, picture.width)
    smooth = torch.nn.functional.interpolate(heat[None, None].float().cpu(), size, mode="bicubic")
    smooth = smooth.clamp(0, 1)[0, 0].numpy()
    levels = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(smooth, levels, channel) for channel in np.array(_HEAT).T], -1)
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None]
    return Image.fromarray((0.35 * grey + 0.65 * colours).round().astype(np.uint8))


def fitted(picture: Image.Image, pixels: float, step: int) -> Image.Image:
    """The picture with about ``pixels`` pixels in all, its proportions kept to multiples of ``step``; never enlarged.

    A side below ``step`` becomes ``step``, since no smaller multiple is left.
    """
    scale = min(1.0, (pixels / (picture.width * picture.height)) ** 0.5)
    width, height = (_multiple(scale * side, side, step) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _multiple(length: float, most: int, step: int) -> int:
    """The multiple of ``step`` nearest to a length, at most ``most``, at least ``step``."""
    return max(step, min(round(length / step), most // step) * step)


# --- text -------------------------------------------------------------------------------------------------------------


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
        middle = (picture.width / 2, picture.height + pitch * (number + 0.75))
        draw.text(middle, line, fill=TEXT, font=font, anchor="mm")
    return sheet


# --- grids ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Cells of one size, in pixels, with a gap between them."""

    width: int
    height: int
    gap: int

    def sheet(self, columns: int, rows: int) -> Image.Image:
        width = columns * (self.width + self.gap) - self.gap
        height = rows * (self.height + self.gap) - self.gap
        return Image.new("RGB", (width, height), BACKGROUND)

    def at(self, column: int, row: int) -> tuple[int, int]:
        """The left and the top of a cell."""
        return column * (self.width + self.gap), row * (self.height + self.gap)


def _cell_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a cell for pictures of a size."""
    longest = max(size)
    scale = side / longest if longest > side else -(-_LEAST_SIDE // longest)
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height


def require_drawable(size: tuple[int, int], columns: int, rows: int, side: int = 512) -> None:
    """Raise ValueError where :func:`grid` of pictures of a size, in pixels, would be too large to be made."""
    width, height = _cell_size(size, side)
    pixels = (columns + 1) * width * (rows + 1) * height
    if pixels > _MOST_PIXELS:
        raise ValueError(
            f"{columns} x {rows} pictures of {width}x{height} come to {pixels / 1e6:.0f} million pixels; at most "
            f"{_MOST_PIXELS / 1e6:.0f} million fit: ask for fewer at a time."
        )


def grid(
    corner: Image.Image,
    columns: list[str],
    rows: list[str],
    cells: list[list[Image.Image]],
    corner_label: str = "source",
    side: int = 512,
    first: int | None = None,
) -> Image.Image:
    """A grid of pictures of one size, a label over each column and beside each row, one more picture at the top left.

    cells: ``[rows][columns]``. Labels may hold line breaks. corner: the picture at
    the top left. side: longest side of a cell. Small pictures are enlarged, so that labels find room.
    first: the number of the first cell, if they are to be numbered.
    Raises ValueError for a sheet that is too large to be made.
    """
    width, height = _cell_size(corner.size, side)
    require_drawable(corner.size, len(columns), len(rows), side)
    places = _Cells(width, height, gap=max(2, width // 64))
    sheet = places.sheet(len(columns) + 1, len(rows) + 1)
    draw = ImageDraw.Draw(sheet)
    lines = [line for label in [*columns, *rows] for line in label.split("\n")]
    font = _font(lines, 0.92 * width, 0.2 * min(width, height))

    def put_label(column: int, row: int, label: str) -> None:
        left, top = places.at(column, row)
        middle = (left + width / 2, top + height / 2)
        draw.multiline_text(middle, label, fill=TEXT, font=font, anchor="mm", align="center")

    _put_corner(sheet, corner, corner_label, width, height)
    for column, label in enumerate(columns, 1):
        put_label(column, 0, label)
    for row, (label, pictures) in enumerate(zip(rows, cells), 1):
        put_label(0, row, label)
        for column, picture in enumerate(pictures, 1):
            sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), places.at(column, row))
            if first is not None:
                _put_number(draw, places.at(column, row), first + (row - 1) * len(columns) + column - 1, height)
    return sheet


def _put_number(draw: ImageDraw.ImageDraw, at: tuple[int, int], number: int, height: int) -> None:
    """A number on a dark ground, at the top left of a cell."""
    left, top = at
    font = ImageFont.load_default(max(10, 0.12 * height))
    side = round(1.5 * font.size)
    width = max(side, round(font.getlength(str(number)) + 0.5 * font.size))
    draw.rectangle((left, top, left + width, top + side), fill=BACKGROUND)
    draw.text((left + width / 2, top + side / 2), str(number), fill=TEXT, font=font, anchor="mm")


def _put_corner(sheet: Image.Image, picture: Image.Image, label: str, width: int, height: int) -> None:
    """The cell at the top left: a label over a picture that leaves it room."""
    font = _font([label], 0.96 * width, 0.12 * min(width, height))
    strip = round(1.3 * font.size)
    ImageDraw.Draw(sheet).text((width / 2, strip / 2), label, fill=TEXT, font=font, anchor="mm")
    left = max(1, height - strip)
    size = (max(1, round(width * left / height)), left)
    sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, strip))


def labelled(pictures: list[Image.Image], labels: list[str], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, all at the first one's size, each with its label under it."""
    size = pictures[0].size
    alike = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    captioned = [with_caption(picture, [label]) for picture, label in zip(alike, labels)]
    width = captioned[0].width
    height = max(cell.height for cell in captioned)
    places = _Cells(width, height, gap=max(2, width // 64))
    sheet = places.sheet(min(columns, len(captioned)), -(-len(captioned) // columns))
    for number, cell in enumerate(captioned):
        row, column = divmod(number, columns)
        sheet.paste(cell, places.at(column, row))
    return sheet
