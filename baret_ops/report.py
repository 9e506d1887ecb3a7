"""What an inversion did, as numbers: loss against threshold, updates spent, and how far the reconstruction is from the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .values import Embeddings, Trajectory, require_match


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """How well B images are reconstructed, in latents: ``errors [B,h,w]``, the root of the mean square over channels, and
    ``decibels [B]``, ``10 log10`` of the picture's mean square over the error's (infinite for none)."""

    errors: Tensor
    decibels: Tensor


def reconstruction_error(trajectory: Trajectory) -> Reconstruction:
    """The last reconstructed latent against the image's own."""
    picture, redrawn = (each[-1].cpu().double() for each in (trajectory.pivots, trajectory.latents))
    square = (redrawn - picture).square()
    decibels = 10 * torch.log10(picture.square().flatten(1).mean(1) / square.flatten(1).mean(1))
    return Reconstruction(square.mean(1).sqrt().float(), decibels.float())


def inversion_text(trajectory: Trajectory, embeddings: Embeddings) -> str:
    """One line per image, and a table with a line per step. Raises ValueError when the two are not of one inversion."""
    require_match(trajectory, embeddings)
    losses, updates, thresholds = embeddings.losses.cpu(), embeddings.updates.cpu(), embeddings.thresholds
    steps, images = losses.shape
    decibels = reconstruction_error(trajectory).decibels
    lines = []
    for b in range(images):
        worst = int(losses[:, b].argmax())
        reached = (
            ""
            if thresholds is None
            else f", {int((losses[:, b] <= thresholds.cpu()).sum())} of {steps} steps within the threshold"
        )
        lines.append(
            f"picture {b + 1}: reconstruction {decibels[b]:.1f} dB (loss {losses[-1, b]:.3g}), {int(updates[:, b].sum())} updates, "
            f"at most {int(updates[:, b].max())} a step{reached}, worst step {worst} (loss {losses[worst, b]:.3g})"
        )
    head = [
        "step",
        "time",
        *([] if thresholds is None else ["threshold"]),
        *(f"{name} {b + 1}" for b in range(images) for name in ("loss", "updates")),
    ]
    table = [head]
    for i, time in enumerate(trajectory.schedule.timesteps):
        limit = [] if thresholds is None else [f"{float(thresholds[i]):.3g}"]
        table.append(
            [
                str(i),
                str(time),
                *limit,
                *(cell for b in range(images) for cell in (f"{losses[i, b]:.4g}", str(int(updates[i, b])))),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join([*lines, "", *("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table)])
