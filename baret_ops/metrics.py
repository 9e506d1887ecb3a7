"""How close two pictures are, and how well a picture fits a text."""

from __future__ import annotations

import torch
from torch import Tensor

_WINDOW, _DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels (Wang et al. 2004)


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures ``[B,H,W,C]`` in 0..1, per picture ``[B]``: ``-10 log10(mean((a -
    b)**2))``.

    where: ``[B,H,W]`` weights of the pixels. Infinite for equal pictures, NaN where no pixel weighs anything.
    """
    return -10 * torch.log10(_mean((a.double() - b.double()).square().mean(-1), where)).float()


def ssim(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """Structural similarity of pictures ``[B,H,W,C]`` in 0..1, per picture ``[B]``, at most 1 (Wang et al. 2004, eq.
    13).

    Gaussian window of 11 pixels and deviation 1.5, K1 0.01, K2 0.03; the mean over channels and over the pixels around
    which a whole window fits. where: ``[B,H,W]`` weights of the pixels. Raises ValueError for pictures smaller than the
    window.
    """
    if min(a.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"pictures of {a.shape[2]}x{a.shape[1]} came; SSIM looks through a window of {_WINDOW}x{_WINDOW}, "
            "so they must be at least that big."
        )
    x, y = (picture.double().movedim(-1, 1) for picture in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (light * structure).mean(1)
    edge = _WINDOW // 2
    return _mean(similarity, None if where is None else where[:, edge:-edge, edge:-edge]).float()


def clip_score(image: Tensor, text: Tensor) -> Tensor:
    """CLIPScore per picture ``[B]``, 0 to 2.5: ``2.5 * max(cos(image, text), 0)`` (Hessel et al. 2021).

    image: ``[B,D]``, text: ``[1 or B,D]``, both projected into CLIP's common space.
    """
    return 2.5 * torch.cosine_similarity(image.float(), text.float(), dim=-1).clamp_min(0)


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """The mean of ``values [B,H,W]`` per picture, weighted by ``where``."""
    if where is None:
        return values.mean((1, 2))
    return (values * where).sum((1, 2)) / where.double().sum((1, 2))


def _blur(x: Tensor) -> Tensor:
    """SSIM's Gaussian over ``x [B,C,H,W]``, only where a whole window fits."""
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _DEVIATION**2))
    kernel = (weights / weights.sum()).expand(x.shape[1], 1, -1)
    across = torch.nn.functional.conv2d(x, kernel[:, :, None], groups=x.shape[1])
    return torch.nn.functional.conv2d(across, kernel[..., None], groups=x.shape[1])
