"""What the training stages share: the host on the path, the descent loop with its checkpoints and log, scenes as tensors, grids."""

import json
import math
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.options  # noqa: E402

_argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]  # the host reads its own command line as it is imported
comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402, F401

sys.argv = _argv

import drawn  # noqa: E402, F401
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from baret.world import scenes  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

HELD_OUT = 1_000_000_000  # scenes of seeds from here on are never trained on


def rendered(seed, n):
    """`n` scenes with pictures (n, 3, 128, 128) uint8 and masks (n, 16, 16) float: the animal's share of each latent cell."""
    batch, pictures, masks = scenes.sample(seed, n), [], []
    for start in range(0, n, 100):
        picture, mask = scenes.render(batch[start : start + 100])
        pictures.append((picture.movedim(-1, 1) * 255).round().byte())
        masks.append(F.avg_pool2d(mask[:, None], 8)[:, 0])
    return batch, torch.cat(pictures), torch.cat(masks)


def to_input(pictures):
    """uint8 pictures to the codec's -1..1."""
    return pictures.float() / 127.5 - 1


def psnr(a, b):
    """PSNR in dB of pictures in -1..1, as the mean over pictures."""
    return (10 * torch.log10(4 / (a - b).pow(2).flatten(1).mean(1))).mean().item()


def save_grid(pictures, path, columns=8):
    """Write pictures (n, 3, h, w) in -1..1 as one PNG."""
    n, _, h, w = pictures.shape
    grid = (
        pictures.view(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, 3)
    )
    Image.fromarray(((grid + 1) * 127.5).clamp(0, 255).round().byte().numpy()).save(path)


def log(run, **entry):
    """Print `entry` and add it to RUN/log.jsonl."""
    with open(run / "log.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")
    print(entry, flush=True)


def save(path, state):
    """Atomic: a stop while writing leaves the file of before."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def descend(run, stage, modules, groups, steps, rate, batch, seed, problem, clip=1.0, every=500):
    """AdamW with warm-up and cosine decay, going on from RUN/stage.pt where there is one.

    modules: what a checkpoint holds, by name. groups: the optimiser's parameter groups. rate: the highest learning rate.
    problem: called only if steps are left; returns `loss(generator)`, what to do `after(step)` each step, and `check(step)`, called
    after every `every`-th step and the last, once the checkpoint is written. All randomness is the generator's, seeded by the step.
    """
    optimiser, path, first = torch.optim.AdamW(groups, betas=(0.9, 0.99)), run / f"{stage}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in (modules | {"optimiser": optimiser}).items():
            module.load_state_dict(state[name])
        first = state["step"]
    if first >= steps:
        return
    loss_of, after, check = problem()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    started, mean = time.time(), None
    for step in range(first + 1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * (min(1.0, step / 200) * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps)) + 1e-3)
        loss = loss_of(torch.Generator().manual_seed(seed * 10**6 + step))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        after(step)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            log(
                run,
                stage=stage,
                step=step,
                loss=round(mean, 5),
                per_s=round(batch * (step - first) / (time.time() - started), 1),
            )
        if step % every == 0 or step == steps:
            save(
                path,
                {name: module.state_dict() for name, module in (modules | {"optimiser": optimiser}).items()}
                | {"step": step},
            )
            check(step)
