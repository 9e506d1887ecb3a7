"""The weights file that the pack ships."""

import json

import torch
import torch.nn.functional as F
from baret.host import world as model
from baret.world import scenes
from common import log, rendered, to_input
from safetensors.torch import save_file
from train_clip import accuracy

NOT_SETTINGS = ("run", "codec", "clip_for", "version", "comfyui")  # arguments that say where, not how
PROJECTION = "text.text_projection"


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


def _half(prefix, module):
    """A module's tensors in 16 bit, under a prefix."""
    return {f"{prefix}.{name}": tensor.half().contiguous() for name, tensor in module.state_dict().items()}


def _settings(args):
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def export(run, args, net, codec, clip, text, found):
    """Write RUN/world.safetensors: fp16 tensors under "unet.", "text.", "codec." and "vision.", and their metadata.

    What was done to the run by hand, if anything, belongs into RUN/notes.txt and goes along.
    """
    tensors = _half("unet", net.unet) | _half("text", net.text) | _half("codec", codec)
    metadata = {
        "baret_world": model.FORMAT,
        "licence": "MIT",
        "command": f"python dev/world/train.py RUN --seed {args.seed}",
        "seed": str(args.seed),
        "settings": json.dumps(_settings(args)),
        "scores": json.dumps(found),
        "vocabulary": json.dumps(scenes.vocabulary()),
        "latent_rgb": json.dumps(latent_rgb(codec)),
    }
    notes = run / "notes.txt"
    if notes.exists():
        metadata["notes"] = notes.read_text()
    _write(run, args, tensors, metadata, clip, text)


def export_clip(run, args, clip, text):
    """Write RUN/world.safetensors: the file that the CLIP was trained for, with it."""
    tensors, metadata = model.read(args.clip_for)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("vision.", PROJECTION))}
    _write(run, args, tensors, metadata, clip, text)


def _write(run, args, tensors, metadata, clip, text):
    """The file with its CLIP: the image encoder under "vision.", the projection with the text side."""
    tensors = tensors | _half("vision", clip.vision) | _half(PROJECTION, clip.text_projection)
    settings = {name: value for name, value in _settings(args).items() if name.startswith("clip_")}
    found = accuracy(clip, text, 2000)
    log(run, stage="clip", **found)
    about = {"command": "python dev/world/train.py RUN --clip-for FILE", "seed": args.seed, "settings": settings}
    metadata = metadata | {"clip": json.dumps({**about, "accuracy": found})}
    save_file(tensors, run / "world.safetensors", metadata)
    (run / "world.safetensors").chmod(0o644)
