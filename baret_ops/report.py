"""What an inversion did, as numbers: loss and threshold, updates spent, and how far the reconstruction is off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .values import Embeddings, Trajectory, require_match

REDRAWN, ANOTHER = 20.0, 10.0
"""Decibels from which on a latent is its picture redrawn well, and below which it is another picture."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """How well B images are reconstructed, in latents: ``errors [B,h,w]``, the root of the mean square over channels,
    and ``decibels [B]``, ``10 log10`` of the picture's mean square over the error's (infinite for none)."""

    errors: Tensor
    decibels: Tensor


def reconstruction_error(trajectory: Trajectory) -> Reconstruction:
    """The last reconstructed latent against the image's own."""
    picture, redrawn = trajectory.pivots[-1], trajectory.latents[-1]
    return Reconstruction(
        (redrawn - picture).cpu().double().square().mean(1).sqrt().float(), likeness(redrawn, picture)
    )


def likeness(latents: Tensor, picture: Tensor) -> Tensor:
    """Decibels ``[B]`` by which the pictures' latents ``[B,C,h,w]`` outweigh what others differ from them."""
    latents, picture = latents.cpu().double(), picture.cpu().double()
    square = (latents - picture).square().flatten(1).mean(1)
    return (10 * torch.log10(picture.square().flatten(1).mean(1) / square)).float()


def inversion_in_short(trajectory: Trajectory) -> str:
    """How well each picture is redrawn, in a line."""
    return "\n".join(_redrawn(float(decibels)) for decibels in reconstruction_error(trajectory).decibels)


def _redrawn(decibels: float) -> str:
    if decibels >= REDRAWN:
        return f"Reconstruction {decibels:.0f} dB: good."
    if decibels >= ANOTHER:
        return f"Reconstruction {decibels:.0f} dB: fair. More iterations bring it closer."
    return f"Reconstruction {decibels:.0f} dB: poor, another picture. Raise iterations, or lower cfg."


def edit_in_short(edited: Tensor, trajectory: Trajectory) -> str:
    """Whether each edit ``[B,C,h,w]`` differs from its picture, in a line."""
    return "\n".join(_differs(float(decibels)) for decibels in likeness(edited, trajectory.pivots[-1]))


def _differs(decibels: float) -> str:
    if decibels >= REDRAWN:
        return f"The edit hardly differs from the picture ({decibels:.0f} dB): lower eta_start, then tau_ca."
    return f"The edit differs from the picture ({decibels:.0f} dB)."


def inversion_text(trajectory: Trajectory, embeddings: Embeddings) -> str:
    """One line per image, and a table with a line per step. Raises ValueError when the two are not of one inversion."""
    require_match(trajectory, embeddings)
    decibels = reconstruction_error(trajectory).decibels
    lines = [_summary(embeddings, b, float(decibels[b])) for b in range(embeddings.images)]
    return "\n".join([*lines, "", *_aligned(_table(trajectory, embeddings))])


def _summary(embeddings: Embeddings, b: int, decibels: float) -> str:
    """One image in a line."""
    losses, updates = embeddings.losses[:, b].cpu(), embeddings.updates[:, b].cpu()
    worst = int(losses.argmax())
    reached = ""
    if embeddings.thresholds is not None:
        within = int((losses <= embeddings.thresholds.cpu()).sum())
        reached = f", {within} of {embeddings.steps} steps within the threshold"
    return (
        f"picture {b + 1}: reconstruction {decibels:.1f} dB (loss {losses[-1]:.3g}), {int(updates.sum())} updates, "
        f"at most {int(updates.max())} a step{reached}, worst step {worst} (loss {losses[worst]:.3g})"
    )


def _table(trajectory: Trajectory, embeddings: Embeddings) -> list[list[str]]:
    """A head and a row for each step: step, time, threshold where known, and loss and updates of each image."""
    thresholds = embeddings.thresholds
    head = ["step", "time"]
    if thresholds is not None:
        head.append("threshold")
    for b in range(embeddings.images):
        head += [f"loss {b + 1}", f"updates {b + 1}"]
    table = [head]
    for i, time in enumerate(trajectory.schedule.timesteps):
        row = [str(i), str(time)]
        if thresholds is not None:
            row.append(f"{float(thresholds[i]):.3g}")
        for b in range(embeddings.images):
            row += [f"{float(embeddings.losses[i, b]):.4g}", str(int(embeddings.updates[i, b]))]
        table.append(row)
    return table


def _aligned(table: list[list[str]]) -> list[str]:
    """The rows as lines whose columns end at one place."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table]
