"""The weights file that the pack ships."""

import json

import torch
import torch.nn.functional as F
from baret.host import world as model
from baret.world import scenes
from common import rendered, to_input
from safetensors.torch import save_file

NOT_SETTINGS = ("run", "codec", "version", "comfyui")  # arguments that say where, not how


def latent_rgb(codec):
    """How a preview's colours follow from latents: factors (36, 3) and bias (3,), by least squares.

    They lead from `model.neighbours` to a cell's mean colour in -1..1.
    """
    pictures = to_input(rendered(5, 200)[1])
    with torch.no_grad():
        features = model.neighbours(codec.encode(pictures)).movedim(1, -1).reshape(-1, 36)
    colours = F.avg_pool2d(pictures, 8).movedim(1, -1).reshape(-1, 3)
    with_one = torch.cat([features, torch.ones(len(features), 1)], 1)
    fit = torch.linalg.lstsq(with_one, colours).solution
    *factors, bias = [[round(value, 4) for value in row] for row in fit.tolist()]
    return factors, bias


def export(run, args, net, codec, found):
    """Write RUN/world.safetensors: fp16 tensors under "unet.", "text." and "codec.", and what they are as metadata.

    What was done to the run by hand, if anything, belongs into RUN/notes.txt and goes along.
    """
    tensors = {}
    for part, module in {"unet": net.unet, "text": net.text, "codec": codec}.items():
        tensors |= {f"{part}.{name}": tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    metadata = {
        "baret_world": model.FORMAT,
        "licence": "MIT",
        "command": f"python dev/world/train.py RUN --seed {args.seed}",
        "seed": str(args.seed),
        "settings": json.dumps(settings),
        "scores": json.dumps(found),
        "vocabulary": json.dumps(scenes.vocabulary()),
        "latent_rgb": json.dumps(latent_rgb(codec)),
    }
    notes = run / "notes.txt"
    if notes.exists():
        metadata["notes"] = notes.read_text()
    save_file(tensors, run / "world.safetensors", metadata)
    (run / "world.safetensors").chmod(0o644)
