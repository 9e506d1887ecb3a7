"""Pictures that are to be compared, brought to one size and number."""

from __future__ import annotations

from torch import Tensor

from .wires import latent_mask


def comparable(source: Tensor, edit: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures ``[B,H,W,3]`` to be compared, and their mask ``[B,H,W]``, at the edit's size and number, on the CPU.

    A source that is up to 7 pixels bigger loses what the VAE cut off its edges. Raises ValueError for other sizes or numbers.
    """
    images, height, width = edit.shape[:3]
    extra = [have - need for have, need in zip(source.shape[1:3], (height, width))]
    if not all(0 <= pixels < 8 for pixels in extra):
        raise ValueError(
            f"the source is {source.shape[2]}x{source.shape[1]} and the edit {width}x{height} pixels; connect the picture as it went into VAE Encode, scaled like the edit."
        )
    for name, count in (
        ("source pictures", source.shape[0]),
        ("masks", 1 if mask is None else mask.reshape(-1, *mask.shape[-2:]).shape[0]),
    ):
        if count not in (1, images):
            raise ValueError(f"{count} {name} came for {images} edit(s); one, or one per edit, fits.")
    source, edit, mask = source.cpu(), edit.cpu(), None if mask is None else mask.cpu()
    top, left = (pixels // 2 for pixels in extra)
    if mask is not None:
        mask = latent_mask(mask, images, source.shape[:3])[:, 0, top : top + height, left : left + width].expand(
            images, -1, -1
        )
    return source[:, top : top + height, left : left + width, :3].expand(images, -1, -1, -1), edit[..., :3], mask
