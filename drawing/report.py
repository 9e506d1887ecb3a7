"""The picture of an inversion: loss and threshold over the steps, updates, and where the reconstruction is off."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from .pictures import BACKGROUND, TEXT

_LINE = "#777777"
_STYLE = {
    "figure.facecolor": BACKGROUND,
    "axes.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "legend.facecolor": BACKGROUND,
    "axes.edgecolor": _LINE,
    "legend.edgecolor": _LINE,
    "grid.color": "#3a3a3a",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "font.size": 15,
    "axes.grid": True,
}
_COLOURS = ("#4fc3f7", "#ffb74d", "#81c784", "#f06292", "#ba68c8", "#fff176", "#4db6ac", "#e57373")
_MOST_NAMED = len(_COLOURS)
_LEAST_LOSS = 1e-12  # a logarithm has no place for 0


def inversion_picture(
    losses: Tensor, updates: Tensor, thresholds: Tensor | None, decibels: Tensor, errors: Tensor
) -> Image.Image:
    """Draw an inversion of B images in N steps, one line per image.

    losses, updates: ``[N,B]``. thresholds: ``[N]``, or None where not known. decibels: ``[B]``, how much stronger the
    picture is than the reconstruction's error. errors: ``[B,h,w]``, the error of each place.
    Raises ValueError where matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            f"the picture is drawn with matplotlib, which cannot be imported ({error}); "
            "install what this pack's requirements.txt lists."
        ) from error

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 8.0), dpi=100, layout="constrained")
        curves, maps = figure.subfigures(2, 1, height_ratios=(5.6, 2.4))
        top, middle = curves.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_losses(top, losses, thresholds, _names(decibels, updates))
        _draw_updates(middle, updates)
        _draw_errors(maps, errors)
        figure.legend(
            *top.get_legend_handles_labels(),
            fontsize=14,
            ncols=1 if losses.shape[1] < 3 else 2,
            loc="outside upper center",
            frameon=False,
            handlelength=1.2,
        )
        data = io.BytesIO()
        FigureCanvasAgg(figure).print_png(data)
    return Image.open(data).convert("RGB")


def _names(decibels: Tensor, updates: Tensor) -> list[str]:
    """The legend's entries of the images that are named."""
    spent = updates.sum(0)[:_MOST_NAMED].tolist()
    return [f"{image + 1}: {decibels[image]:.1f} dB, {count} updates" for image, count in enumerate(spent)]


def _line_of(image: int) -> dict:
    return {"color": _COLOURS[image % len(_COLOURS)], "linewidth": 2}


def _draw_losses(axes, losses: Tensor, thresholds: Tensor | None, names: list[str]) -> None:
    from matplotlib.ticker import LogFormatter

    images = losses.shape[1]
    for image in range(images):
        name = names[image] if image < len(names) else None
        axes.plot(losses[:, image].clamp_min(_LEAST_LOSS), label=name, **_line_of(image))
    if thresholds is not None and (thresholds > 0).any():
        axes.plot(thresholds.clamp_min(_LEAST_LOSS), color=TEXT, linestyle="--", linewidth=1.5, label="threshold")
    left_out = f" (first {len(names)} of {images} named)" if len(names) < images else ""
    axes.set_title("loss" + left_out)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))


def _draw_updates(axes, updates: Tensor) -> None:
    from matplotlib.ticker import MaxNLocator

    for image in range(updates.shape[1]):
        axes.plot(updates[:, image], drawstyle="steps-mid", **_line_of(image))
    axes.set_title("updates of the text")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_errors(figure, errors: Tensor) -> None:
    """A map of each image's error, on one scale; of more images than have a colour the first ones."""
    images = len(errors)
    maps = figure.subplots(1, min(images, _MOST_NAMED), squeeze=False)[0]
    most = float(errors.max()) or 1.0
    for number, (axes, error) in enumerate(zip(maps, errors), 1):
        drawn = axes.imshow(error, cmap="inferno", vmin=0, vmax=most, interpolation="nearest")
        axes.grid(False)
        axes.set_axis_off()
        axes.set_title(str(number) if images > 1 else "")
    figure.suptitle("where the reconstruction is off")
    figure.colorbar(drawn, ax=list(maps), shrink=0.9, panchor=(0.5, 0.5))
