"""The picture of an inversion: loss and threshold over the steps, updates spent, and where the reconstruction is off."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from .pictures import BACKGROUND, TEXT

_INK = {
    "figure.facecolor": BACKGROUND, "axes.facecolor": BACKGROUND, "savefig.facecolor": BACKGROUND, "legend.facecolor": BACKGROUND,
    "axes.edgecolor": "#777777", "grid.color": "#3a3a3a", "text.color": TEXT, "axes.labelcolor": TEXT, "axes.titlecolor": TEXT,
    "xtick.color": TEXT, "ytick.color": TEXT, "legend.edgecolor": "#777777", "font.size": 15, "axes.grid": True,
}  # fmt: skip
_COLOURS = ("#4fc3f7", "#ffb74d", "#81c784", "#f06292", "#ba68c8", "#fff176", "#4db6ac", "#e57373")
_MOST_NAMED = len(_COLOURS)


def inversion_picture(
    losses: Tensor, updates: Tensor, thresholds: Tensor | None, decibels: Tensor, errors: Tensor
) -> Image.Image:
    """Draw an inversion of B images in N steps, one line per image.

    losses, updates: ``[N,B]``. thresholds: ``[N]``, or None where not known. decibels: ``[B]``, the picture's power over the
    reconstruction's error. errors: ``[B,h,w]``, the error where it is. Raises ValueError where matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter, MaxNLocator
    except ImportError as error:
        raise ValueError(
            f"the picture is drawn with matplotlib, which cannot be imported ({error}); install what this pack's requirements.txt lists."
        ) from error

    steps, images = losses.shape
    shown = min(images, _MOST_NAMED)
    with matplotlib.rc_context(_INK):
        figure = Figure(figsize=(6.4, 8.0), dpi=100, layout="constrained")
        rows = figure.subfigures(2, 1, height_ratios=(5.6, 2.4))
        top, middle = rows[0].subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for image in range(images):
            style = {"color": _COLOURS[image % len(_COLOURS)], "linewidth": 2}
            name = (
                f"{image + 1}: {decibels[image]:.1f} dB, {int(updates[:, image].sum())} updates"
                if image < shown
                else None
            )
            top.plot(losses[:, image].clamp_min(1e-12), label=name, **style)
            middle.plot(updates[:, image], drawstyle="steps-mid", **style)
        if thresholds is not None and (thresholds > 0).any():
            top.plot(thresholds.clamp_min(1e-12), color=TEXT, linestyle="--", linewidth=1.5, label="threshold")
        top.set_yscale("log")
        top.set_title("loss" + (f" (first {shown} of {images} named)" if shown < images else ""))
        top.yaxis.set_major_formatter(LogFormatter())
        top.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
        figure.legend(
            *top.get_legend_handles_labels(),
            fontsize=14,
            ncols=1 if images < 3 else 2,
            loc="outside upper center",
            frameon=False,
            handlelength=1.2,
        )
        middle.set_title("updates of the text")
        middle.set_xlabel("step")
        middle.set_ylim(bottom=0)
        for axis in (middle.xaxis, middle.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        maps = rows[1].subplots(1, shown, squeeze=False)[0]
        most = float(errors.max()) or 1.0
        for number, (axes, error) in enumerate(zip(maps, errors), 1):
            drawn = axes.imshow(error, cmap="inferno", vmin=0, vmax=most, interpolation="nearest")
            axes.grid(False)
            axes.set_axis_off()
            axes.set_title(str(number) if images > 1 else "")
        rows[1].suptitle("where the reconstruction is off")
        rows[1].colorbar(drawn, ax=list(maps), shrink=0.9, panchor=(0.5, 0.5))
        data = io.BytesIO()
        FigureCanvasAgg(figure).print_png(data)
    return Image.open(data).convert("RGB")
