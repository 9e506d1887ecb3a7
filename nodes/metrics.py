from __future__ import annotations

import math

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..baret_ops.metrics import clip_score, psnr, ssim
from ..drawing.pictures import to_pil, to_tensor, with_caption
from ..host import clip as host_clip
from ..host import comparison
from ..host.text import require_length
from .common import CATEGORY, SEARCH_ALIASES, checked

_NUMBERS = ("psnr", "ssim", "clip_score", "psnr_inside", "ssim_inside", "psnr_outside", "ssim_outside")
"""The outputs that are numbers, in their order."""


class BaretEditMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretEditMetrics",
            display_name="Edit Metrics",
            category=CATEGORY,
            description="Measures an edit: how close it stays to the picture (PSNR, SSIM), inside and outside a mask, "
            "and how well it fits the text (CLIPScore).",
            search_aliases=[*SEARCH_ALIASES, "PSNR", "SSIM", "CLIPScore", "fidelity", "compare"],
            is_output_node=True,
            inputs=[
                io.Image.Input("source", tooltip="The picture before the edit, as it went into VAE Encode."),
                io.Image.Input("edit", tooltip="The picture after it. Several are measured one by one."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What the edit was to change (white). Inside and outside are then measured apart as well: "
                    "high outside means that the rest was kept.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For CLIPScore: a CLIP vision model, such as ViT-L of the same CLIP as the text side.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For CLIPScore: a CLIP with its text projection, from Load CLIP with clip_l.safetensors. "
                    "That of an SD1.x checkpoint has none.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="For CLIPScore: the target text. Its first 77 tokens count.",
                ),
            ],
            outputs=[
                io.Image.Output("captioned", tooltip="The edit with the numbers written under it."),
                io.String.Output("report", tooltip="All numbers, one line per picture."),
                io.Float.Output(
                    "psnr",
                    tooltip="Closeness of all pixels in dB, the mean over the pictures; infinite for equal ones. "
                    "About 20 is a changed picture, 30 a near copy.",
                ),
                io.Float.Output(
                    "ssim", tooltip="Closeness of structure, 1 for equal pictures; the mean over the pictures."
                ),
                io.Float.Output(
                    "clip_score",
                    tooltip="Fit of the edit to the text, 0 to 2.5, for good fits 0.6 to 0.9; "
                    "NaN without clip, clip_vision and text.",
                ),
                io.Float.Output("psnr_inside", tooltip="PSNR where the mask is white; NaN without a mask."),
                io.Float.Output("ssim_inside", tooltip="SSIM where the mask is white; NaN without a mask."),
                io.Float.Output("psnr_outside", tooltip="PSNR where the mask is black; NaN without a mask."),
                io.Float.Output("ssim_outside", tooltip="SSIM where the mask is black; NaN without a mask."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, source, edit, mask=None, clip_vision=None, clip=None, text="") -> io.NodeOutput:
        source, edit, mask = comparison.comparable(source, edit, mask)
        found = _closeness(source, edit, mask)
        if clip is not None or clip_vision is not None:
            found |= _fit(source, edit, clip, clip_vision, text)
        captions = [_caption(found, number) for number in range(len(edit))]
        captioned = [to_tensor(with_caption(to_pil(picture), lines)) for picture, lines in zip(edit, captions)]
        pictures = torch.cat(captioned)
        return io.NodeOutput(pictures, _report(captions), *_means(found), ui=ui.PreviewImage(pictures, cls=cls))


def _closeness(source: Tensor, edit: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """PSNR and SSIM per picture ``[B]``; with a mask ``[B,H,W]`` also of its inside and its outside alone."""
    found = {"psnr": psnr(source, edit), "ssim": ssim(source, edit)}
    if mask is not None:
        for place, where in (("inside", mask), ("outside", 1 - mask)):
            found[f"psnr_{place}"] = psnr(source, edit, where)
            found[f"ssim_{place}"] = ssim(source, edit, where)
    return found


def _fit(source: Tensor, edit: Tensor, clip, clip_vision, text: str) -> dict[str, Tensor]:
    """CLIPScore per picture ``[B]``, of the edit and of the source. Raises ValueError where one input is missing."""
    needed = {"clip": clip, "clip_vision": clip_vision, "text": text.strip()}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise ValueError(
            f"CLIPScore needs clip, clip_vision and text, and {' and '.join(missing)} came empty; "
            "connect all three, or none."
        )
    require_length(text, "text")
    pictures = host_clip.image_features(clip_vision, torch.cat([edit, source]))
    wanted = host_clip.text_features(clip, text, pictures.shape[-1])
    of_edit, of_source = clip_score(pictures, wanted).cpu().chunk(2)
    return {"clip_score": of_edit, "clip_score_source": of_source}


def _means(found: dict[str, Tensor]) -> list[float]:
    """The outputs that are numbers: means over the pictures, NaN for what was not measured."""
    return [float(found[name].mean()) if name in found else math.nan for name in _NUMBERS]


def _caption(found: dict[str, Tensor], number: int) -> list[str]:
    """The caption of one picture: a line for each place, and one for the text; without what was not measured (NaN)."""
    row = {name: float(values[number]) for name, values in found.items()}
    lines = []
    for where, place in (("", ""), ("inside: ", "_inside"), ("outside: ", "_outside")):
        closeness = row.get("psnr" + place, math.nan)
        if not math.isnan(closeness):
            lines.append(f"{where}PSNR {closeness:.1f} dB, SSIM {row['ssim' + place]:.3f}")
    if not math.isnan(row.get("clip_score", math.nan)):
        lines.append(f"CLIPScore {row['clip_score']:.3f} (source {row['clip_score_source']:.3f})")
    return lines


def _report(captions: list[list[str]]) -> str:
    return "\n".join(f"picture {number}: {', '.join(lines)}" for number, lines in enumerate(captions, 1))
