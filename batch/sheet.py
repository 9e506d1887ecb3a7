"""Contact sheets: a hundred rows to a page, each before and after."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

from files import write_whole
from journal import PICTURES, Journal
from PIL import Image, ImageDraw  # the host's

ROWS, COLUMNS = 100, 10
SIDE, CAPTION = 128, 16  # pixels
FOLDER = "sheets"


def path_of(out: Path, page: int) -> Path:
    return out / FOLDER / f"{page:05}.jpg"


def page_of(number: int) -> int:
    """The page of a row by its place in the table, both from 1."""
    return (number - 1) // ROWS + 1


def discard(out: Path, number: int) -> None:
    """Remove the sheet of a row, which has changed."""
    path_of(out, page_of(number)).unlink(missing_ok=True)


def make(journal: Journal, page: int) -> None:
    """Write the sheet of one page."""
    first = (page - 1) * ROWS + 1
    rows = list(journal.results(first, first + ROWS - 1))
    columns = min(COLUMNS, math.isqrt(max(0, len(rows) - 1)) + 1)  # as many as lines
    lines = -(-len(rows) // columns)
    cell_width, cell_height = 2 * SIDE + 8, SIDE + CAPTION + 4
    sheet = Image.new("RGB", (columns * cell_width, max(1, lines) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        x, y = place % columns * cell_width, place // columns * cell_height
        after = _after(journal.folder, row)
        for dx, path in ((0, row["image"]), (SIDE, after)):
            picture = _thumbnail(path)
            if picture:
                sheet.paste(picture, (x + dx, y))
        word = row["id"] if row["status"] == "done" else f"{row['id']}: {row['status']}"
        draw.text((x + 2, y + SIDE + 2), word[-40:], fill="black" if row["status"] == "done" else "red")
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=85)
    write_whole(path_of(journal.folder, page), data.getvalue())


def _after(folder: Path, row: dict) -> Path | None:
    names = [name for name, _ in json.loads(row["pictures"] or "[]")]
    return folder / PICTURES / names[0] if names else None


def _thumbnail(path: Path | str | None) -> Image.Image | None:
    """A picture made small, None where it cannot be read."""
    if not path:
        return None
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (SIDE, SIDE))
            picture.thumbnail((SIDE, SIDE))
            return picture.convert("RGB")
    except Exception:  # a damaged picture has failed its row already
        return None
