from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..baret_ops.metrics import clip_score, psnr, ssim
from ..drawing.pictures import to_pil, to_tensor, with_caption
from ..host import clip as host_clip
from ..host import comparison
from .common import CATEGORY, SEARCH_ALIASES, errors_of


class BaretEditMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretEditMetrics",
            display_name="Edit Metrics",
            category=CATEGORY,
            description="Measures an edit: how close it stays to the picture (PSNR, SSIM), inside and outside a mask, and how well it fits the text (CLIPScore).",
            search_aliases=[*SEARCH_ALIASES, "PSNR", "SSIM", "CLIPScore", "fidelity", "compare"],
            is_output_node=True,
            inputs=[
                io.Image.Input("source", tooltip="The picture before the edit, as it went into VAE Encode."),
                io.Image.Input("edit", tooltip="The picture after it. Several are measured one by one."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What the edit was to change (white). Inside and outside are then measured apart as well: high outside means that the rest was kept.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For CLIPScore: a CLIP vision model, such as ViT-L of the same CLIP as the text side.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For CLIPScore: a CLIP with its text projection, from Load CLIP with clip_l.safetensors. That of an SD1.x checkpoint has none.",
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
                    tooltip="Closeness of all pixels in dB, the mean over the pictures; infinite for equal ones. About 20 is a changed picture, 30 a near copy.",
                ),
                io.Float.Output(
                    "ssim", tooltip="Closeness of structure, 1 for equal pictures; the mean over the pictures."
                ),
                io.Float.Output(
                    "clip_score",
                    tooltip="Fit of the edit to the text, 0 to 2.5, for good fits 0.6 to 0.9; NaN without clip, clip_vision and text.",
                ),
                io.Float.Output("psnr_inside", tooltip="PSNR where the mask is white; NaN without a mask."),
                io.Float.Output("ssim_inside", tooltip="SSIM where the mask is white; NaN without a mask."),
                io.Float.Output("psnr_outside", tooltip="PSNR where the mask is black; NaN without a mask."),
                io.Float.Output("ssim_outside", tooltip="SSIM where the mask is black; NaN without a mask."),
            ],
        )

    @classmethod
    def execute(cls, source, edit, mask=None, clip_vision=None, clip=None, text="") -> io.NodeOutput:
        with errors_of(cls):
            source, edit, mask = comparison.comparable(source, edit, mask)
            found = {"psnr": psnr(source, edit), "ssim": ssim(source, edit)}
            for place, where in (("inside", mask), ("outside", None if mask is None else 1 - mask)):
                for name, measure in (("psnr", psnr), ("ssim", ssim)):
                    found[f"{name}_{place}"] = (
                        torch.full_like(found[name], float("nan")) if where is None else measure(source, edit, where)
                    )
            found["clip_score"] = found["clip_score_source"] = torch.full_like(found["psnr"], float("nan"))
            if clip is not None or clip_vision is not None:
                missing = [
                    name
                    for name, value in (("clip", clip), ("clip_vision", clip_vision), ("text", text.strip()))
                    if not value
                ]
                if missing:
                    raise ValueError(
                        f"CLIPScore needs clip, clip_vision and text, and {' and '.join(missing)} came empty; connect all three, or none."
                    )
                pictures = host_clip.image_features(clip_vision, torch.cat([edit, source]))
                wanted = host_clip.text_features(clip, text, pictures.shape[-1])
                found["clip_score"], found["clip_score_source"] = clip_score(pictures, wanted).cpu().chunk(2)

            rows = [{name: float(values[b]) for name, values in found.items()} for b in range(len(edit))]
            captioned = torch.cat(
                [to_tensor(with_caption(to_pil(picture), _lines(row))) for picture, row in zip(edit, rows)]
            )
            report = "\n".join(f"picture {b}: " + ", ".join(_lines(row)) for b, row in enumerate(rows, 1))
            mean = {name: float(values.mean()) for name, values in found.items()}
            return io.NodeOutput(
                captioned, report,
                *(mean[name] for name in ("psnr", "ssim", "clip_score", "psnr_inside", "ssim_inside", "psnr_outside", "ssim_outside")),
                ui=ui.PreviewImage(captioned, cls=cls),
            )  # fmt: skip


def _lines(row: dict[str, float]) -> list[str]:
    """The caption of one picture: a line per place, and one for the text; what was not measured (NaN) is left out."""
    lines = [
        f"{where}PSNR {row['psnr' + place]:.1f} dB, SSIM {row['ssim' + place]:.3f}"
        for where, place in (("", ""), ("inside: ", "_inside"), ("outside: ", "_outside"))
        if row["psnr" + place] == row["psnr" + place]
    ]
    if row["clip_score"] == row["clip_score"]:
        lines.append(f"CLIPScore {row['clip_score']:.3f} (source {row['clip_score_source']:.3f})")
    return lines
