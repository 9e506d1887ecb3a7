"""The measures of PIE-Bench's published evaluation (Ju et al., ICLR 2024, arXiv 2310.01506), by torchmetrics.

Pictures are uint8 arrays [H,W,3], masks bool arrays [H,W], True where the edit belongs. Outside is measured as there:
both pictures black inside the mask, the mean over all pixels. Weights come from disk, or are fetched by the libraries
that they belong to; what cannot be had is left out, and `Metrics.left_out` says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor

CLIP = "openai/clip-vit-large-patch14"
DINO_REPOSITORY, DINO = "facebookresearch/dino:main", "dino_vitb8"
DINO_SIDE = 224  # pixels

COLUMNS = {
    "structure": ("structure distance x1000", 1e3),
    "psnr": ("PSNR outside, dB", 1.0),
    "lpips": ("LPIPS outside x1000", 1e3),
    "mse": ("MSE outside x10000", 1e4),
    "ssim": ("SSIM outside x100", 1e2),
    "clip_whole": ("CLIP score, whole", 1.0),
    "clip_edited": ("CLIP score, edited part", 1.0),
}
"""Measure -> its title in the published table, and what it is multiplied by there."""


class Metrics:
    """All measures that can be had here. left_out: measure -> why it cannot."""

    def __init__(self, offline: bool = False):
        """offline: only weights on disk are used. Raises ImportError without torchmetrics."""
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
        from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
        from torchmetrics.regression import MeanSquaredError

        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.left_out: dict[str, str] = {}
        self._psnr = PeakSignalNoiseRatio(data_range=1.0)
        self._ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self._mse = MeanSquaredError()
        self._lpips = self._had(("lpips",), _lpips, offline)
        self._clip = self._had(("clip_whole", "clip_edited"), _clip, offline)
        self._dino = self._had(("structure",), _dino, offline)

    def _had(self, names: tuple[str, ...], load: Callable, offline: bool):
        try:
            return load(offline)
        except Exception as error:  # a download, a library and a damaged file fail in ways of their own
            why = " ".join(str(error).split())[:200] or type(error).__name__
            self.left_out |= {name: f"its weights are not there ({why})" for name in names}
            return None

    @torch.no_grad()
    def measure(self, source, edit, mask=None, text: str = "") -> dict[str, float]:
        """Every measure of one edit, but for those that need a mask where there is none, or nothing outside it."""
        before, after = _tensor(source), _tensor(edit)
        found: dict[str, float] = {}
        if self._dino is not None:
            found["structure"] = float(
                (_self_similarity(self._dino, before) - _self_similarity(self._dino, after)).square().mean()
            )
        if self._clip is not None:
            found["clip_whole"] = float(self._clip((255 * after[0]).round().byte(), text))
        if mask is None:
            return found
        inside = torch.from_numpy(numpy.asarray(mask, dtype=bool))
        if not inside.all():
            kept_before, kept_after = before * ~inside, after * ~inside
            found["psnr"] = float(self._psnr(kept_after, kept_before))
            found["mse"] = float(self._mse(kept_after.contiguous(), kept_before.contiguous()))
            found["ssim"] = float(self._ssim(kept_after, kept_before))
            if self._lpips is not None:
                found["lpips"] = float(self._lpips(2 * kept_after - 1, 2 * kept_before - 1))
        if self._clip is not None and inside.any():
            found["clip_edited"] = float(self._clip((255 * (after * inside)[0]).round().byte(), text))
        return found


def _tensor(picture) -> Tensor:
    """[H,W,3] of 0..255 as [1,3,H,W] of 0..1."""
    return torch.from_numpy(numpy.array(picture, dtype=numpy.float32) / 255).permute(2, 0, 1)[None]


def _lpips(offline: bool):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    if offline and not any(Path(torch.hub.get_dir(), "checkpoints").glob("squeezenet1_1-*.pth")):
        raise FileNotFoundError("no squeezenet1_1 in torch.hub's folder")
    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze")


def _clip(offline: bool):
    from torchmetrics.multimodal import CLIPScore

    return CLIPScore(model_name_or_path=CLIP)


def _dino(offline: bool):
    if offline and not any(Path(torch.hub.get_dir()).glob("facebookresearch_dino*")):
        raise FileNotFoundError("no facebookresearch_dino in torch.hub's folder")
    return torch.hub.load(DINO_REPOSITORY, DINO, verbose=False).eval()


def _self_similarity(model, picture: Tensor) -> Tensor:
    """Cosines between the keys of all patches in DINO's last block, [T,T], of a picture [1,3,H,W]."""
    from torchvision.transforms.functional import normalize, resize

    taken: list[Tensor] = []
    hook = model.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, out: taken.append(out))
    try:
        model(normalize(resize(picture, DINO_SIDE, max_size=480), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    finally:
        hook.remove()
    keys = taken[0][0].unflatten(-1, (3, -1))[:, 1]
    keys = torch.nn.functional.normalize(keys, dim=-1)
    return keys @ keys.T
