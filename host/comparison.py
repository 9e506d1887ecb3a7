"""Pictures that are to be compared, brought to one size and number."""

from __future__ import annotations

from torch import Tensor

from .wires import mask_in, pictures_in


def comparable(source: Tensor, edit: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures ``[B,H,W,3]`` to be compared, and their mask ``[B,H,W]``, at the edit's size and number, on the CPU.

    A source that is up to 7 pixels bigger loses what the VAE cut off its edges.
    Raises ValueError for other sizes or numbers.
    """
    source, edit = pictures_in(source, "source"), pictures_in(edit, "edit")
    images, height, width = edit.shape[:3]
    taller, wider = source.shape[1] - height, source.shape[2] - width
    if not (0 <= taller < 8 and 0 <= wider < 8):
        raise ValueError(
            f"the source is {source.shape[2]}x{source.shape[1]} and the edit {width}x{height} pixels; connect the "
            "picture as it went into VAE Encode, scaled like the edit."
        )
    _require_number("source pictures", source.shape[0], images)
    rows = slice(taller // 2, taller // 2 + height)
    columns = slice(wider // 2, wider // 2 + width)
    if mask is not None:
        _require_number("masks", mask.reshape(-1, *mask.shape[-2:]).shape[0], images)
        whole = mask_in(mask.cpu(), images, source.shape[:3])
        mask = whole[:, 0, rows, columns].expand(images, -1, -1)
    source = source.cpu()[:, rows, columns].expand(images, -1, -1, -1)
    return source, edit.cpu(), mask


def _require_number(name: str, count: int, images: int) -> None:
    if count not in (1, images):
        raise ValueError(f"{count} {name} came for {images} edit(s); one, or one per edit, fits.")
