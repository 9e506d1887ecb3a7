"""Generate a stand-in for an SD1.5 checkpoint: the keys, shapes and load path of the real file, with random weights.

    python dev/stand_in.py small      # few and narrow blocks, 0.5 GB, an edit takes about a minute on a CPU
    python dev/stand_in.py full       # the true width and depth (860 M parameters in the UNet alone), 2.1 GB

What comes out of such a model means nothing; that it loads, runs and can be inverted like a real one is the point.
Names and shapes are taken from the host's own modules, so they are the ones its loader asks for. Every tensor has a
generator of its own, seeded by its name, and is written as soon as it is made, so that memory stays low.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import comfyui
import in_process

SEED = 0
REVISION = 1  # part of the file name: count it up whenever the weights change

UNET = {**in_process.SD15, "num_heads": 8, "num_head_channels": -1}
# The host recognises SD1.5 by its 320 channels and its 768-wide context; levels and blocks it counts from the keys.
LEVELS = {
    "small": {
        "channel_mult": [1, 1],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
    },
    "full": {},
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}

# The last layer of each residual branch (zero in an untrained SD model): small, so that depth adds up to order 1.
BRANCH_ENDS = (
    "out_layers.3.weight",
    "attn1.to_out.0.weight",
    "ff.net.2.weight",
    "conv2.weight",
    "attn_1.proj_out.weight",
    "out_proj.weight",
    "mlp.fc2.weight",
)
# Random cross-attention averages the text away; sharper, so that the prompt moves the prediction as much as in SD1.5.
SHARPENED = ("attn2.to_q.weight", "attn2.to_k.weight")


def ensure(host: comfyui.Host, size: str = "small") -> Path:
    """The stand-in checkpoint of that size in the cache, generated on first use by the host's interpreter."""
    target = comfyui.cache_root() / "checkpoints" / f"baret-stand-in-{size}-{REVISION}.safetensors"
    if not target.is_file():
        command = [str(host.python), __file__, size, "--tree", str(host.path), "--out", str(target)]
        if subprocess.run(command).returncode:
            raise comfyui.HostError(
                f"The stand-in checkpoint {target} could not be generated; the reason stands above."
            )
    return target


def shapes(size: str, tree: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the whole checkpoint, from the host's modules built without memory (on the meta device)."""
    in_process.load_host(tree)
    import torch
    from comfy import ops, sd1_clip
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": UNetModel(**{**UNET, **LEVELS[size]}, operations=ops.disable_weight_init),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
            "cond_stage_model.": sd1_clip.SDClipModel(device="meta"),
        }
    found = {}
    for prefix, part in parts.items():
        found |= {prefix + key: tuple(value.shape) for key, value in part.state_dict().items()}
    for absent in ("logit_scale", "transformer.text_projection.weight"):  # as in the real file
        found.pop(f"cond_stage_model.{absent}", None)
    return found


def weights(key: str, shape: tuple[int, ...]):
    """One tensor: norms the identity, biases zero, everything else normal with the variance of its input kept."""
    import torch

    if key.endswith(".bias"):
        value = torch.zeros(shape)
        if key == "first_stage_model.quant_conv.bias":
            value[4:] = -30.0  # log-variance: the latent is its mean
        return value
    if len(shape) == 1:
        return torch.ones(shape)
    seed = int.from_bytes(hashlib.sha256(f"{SEED}:{key}".encode()).digest()[:8], "little") >> 1
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if "embedding" in key:
        return value.mul_(0.5)
    gain = 0.3 if key.endswith(BRANCH_ENDS) else 1.0
    if key.endswith(SHARPENED):
        gain = 2.0
    if key == "first_stage_model.quant_conv.weight":
        value[4:] = 0.0
        gain = 5.0  # latents are multiplied by 0.18 on their way to the UNet, which expects order 1
    if key in ("first_stage_model.decoder.conv_out.weight", "model.diffusion_model.out.2.weight"):
        gain = 0.7
    return value.mul_(gain / math.sqrt(math.prod(shape[1:])))


def write(target: Path, keys: dict[str, tuple[int, ...]]) -> None:
    """Write all tensors of `keys` in fp16 as one safetensors file, one tensor in memory at a time."""
    import torch

    header, offset = {"__metadata__": {"note": "random weights, only to test with", "seed": str(SEED)}}, 0
    for key, shape in keys.items():
        end = offset + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for key, shape in keys.items():
                file.write(weights(key, shape).to(torch.float16).numpy().tobytes())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate a stand-in SD1.5 checkpoint with random weights.")
    parser.add_argument("size", choices=LEVELS)
    comfyui.add_arguments(parser)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)  # both are set when this runs inside the host
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tree:
        print(f"[baret] generating {options.out}", file=sys.stderr, flush=True)
        write(options.out, shapes(options.size, options.tree))
        return
    host = comfyui.enter(options)
    try:
        print(ensure(host, options.size))
    except comfyui.HostError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
