"""The weights file that the pack ships."""

import json

import torch
import torch.nn.functional as F
from baret.host import world as model
from baret.world import scenes
from common import rendered, to_input
from safetensors.torch import save_file


def latent_rgb(codec):
    """Least-squares factors (36, 3) and bias (3,) from `model.neighbours` to a cell's mean colour in -1..1, for previews."""
    pictures = to_input(rendered(5, 200)[1])
    with torch.no_grad():
        features = model.neighbours(codec.encode(pictures)).movedim(1, -1).reshape(-1, 36)
    colours = F.avg_pool2d(pictures, 8).movedim(1, -1).reshape(-1, 3)
    fit = torch.linalg.lstsq(torch.cat([features, torch.ones(len(features), 1)], 1), colours).solution
    *factors, bias = [[round(v, 4) for v in row] for row in fit.tolist()]
    return factors, bias


def export(run, args, net, codec, found):
    """Write RUN/world.safetensors: fp16 tensors under "unet.", "text." and "codec.", and what they are as metadata.

    What was done to the run by hand, if anything, belongs into RUN/notes.txt and goes along.
    """
    parts = {"unet": net.unet, "text": net.text, "codec": codec}
    tensors = {
        f"{part}.{name}": t.half().contiguous()
        for part, module in parts.items()
        for name, t in module.state_dict().items()
    }
    metadata = {
        "baret_world": model.FORMAT, "licence": "MIT", "command": f"python dev/world/train.py RUN --seed {args.seed}",
        "seed": str(args.seed), "settings": json.dumps({k: v for k, v in vars(args).items() if k not in ("run", "codec", "version", "comfyui")}), "scores": json.dumps(found),
        "vocabulary": json.dumps(scenes.vocabulary()), "latent_rgb": json.dumps(latent_rgb(codec)),
    }  # fmt: skip
    if (run / "notes.txt").exists():
        metadata["notes"] = (run / "notes.txt").read_text()
    save_file(tensors, run / "world.safetensors", metadata)
    (run / "world.safetensors").chmod(0o644)
