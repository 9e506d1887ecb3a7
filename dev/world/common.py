"""What the training's stages share: scenes as tensors, the descent loop with its checkpoints and log, PSNR, grids."""

import json
import math
import time
from dataclasses import dataclass, field

import drawn  # noqa: F401
import torch
import torch.nn.functional as F
from baret.baret_ops import metrics
from baret.world import scenes
from PIL import Image
from torch import nn

HELD_OUT = 1_000_000_000  # scenes of seeds from here on are never trained on


def rendered(seed, n):
    """`n` scenes, their pictures (n, 3, 128, 128) uint8 and their masks (n, 16, 16) float.

    A mask holds the animal's share of each latent cell.
    """
    batch, pictures, masks = scenes.sample(seed, n), [], []
    for start in range(0, n, 100):
        picture, mask = scenes.render(batch[start : start + 100])
        pictures.append((picture.movedim(-1, 1) * 255).round().byte())
        masks.append(F.avg_pool2d(mask[:, None], 8)[:, 0])
    return batch, torch.cat(pictures), torch.cat(masks)


def to_input(pictures):
    """uint8 pictures to the codec's -1..1."""
    return pictures.float() / 127.5 - 1


def to_image(pictures):
    """The codec's pictures (n, 3, h, w) in -1..1 as an IMAGE (n, h, w, 3) in 0..1."""
    return ((pictures + 1) / 2).movedim(1, -1)


def psnr(a, b):
    """PSNR in dB of pictures (n, 3, h, w) in -1..1, as the mean over pictures."""
    return metrics.psnr(to_image(a), to_image(b)).mean().item()


def save_grid(pictures, path, columns=8):
    """Write pictures (n, 3, h, w) in -1..1 as one PNG."""
    rows = [torch.cat(list(row), 2) for row in pictures.split(columns)]
    grid = torch.cat(rows, 1).movedim(0, -1)
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


@dataclass
class Descent:
    """AdamW with warm-up and cosine decay, going on from RUN/stage.pt where there is one.

    modules: what a checkpoint holds, by name. groups: the optimiser's parameter groups. rate: the highest learning
    rate. batch: only for the speed in the log. clip: the greatest norm of a gradient. every: steps between checkpoints.
    All randomness is the generator's that the loss is given, seeded by the step.
    """

    run: object
    stage: str
    modules: dict
    groups: list
    steps: int
    rate: float
    batch: int
    seed: int
    clip: float = 1.0
    every: int = 500
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self):
        self.optimiser = torch.optim.AdamW(self.groups, betas=(0.9, 0.99))

    def go(self, problem):
        """Descend.

        problem: called only if steps are left; returns `loss(generator)`, what to do `after(step)` each step, and
        `check(step)`, called after every `every`-th step and the last, once the checkpoint is written.
        """
        first = self._restore()
        if first >= self.steps:
            return
        loss_of, after, check = problem()
        started, mean = time.time(), None
        for step in range(first + 1, self.steps + 1):
            loss = self._step(step, loss_of)
            after(step)
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            if step % 50 == 0:
                speed = self.batch * (step - first) / (time.time() - started)
                log(self.run, stage=self.stage, step=step, loss=round(mean, 5), per_s=round(speed, 1))
            if step % self.every == 0 or step == self.steps:
                self._save(step)
                check(step)

    def _step(self, step, loss_of):
        """One update; returns the loss before it."""
        warm_up = min(1.0, step / 200)
        decay = 0.5 + 0.5 * math.cos(math.pi * (step - 1) / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * (warm_up * decay + 1e-3)
        loss = loss_of(torch.Generator().manual_seed(self.seed * 10**6 + step))
        self.optimiser.zero_grad()
        loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimiser.step()
        return loss.item()

    def _parts(self):
        return {**self.modules, "optimiser": self.optimiser}

    def _path(self):
        return self.run / f"{self.stage}.pt"

    def _restore(self):
        """The step of the checkpoint that is gone on from, 0 where there is none."""
        if not self._path().exists():
            return 0
        state = torch.load(self._path(), weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        return state["step"]

    def _save(self, step):
        state = {name: part.state_dict() for name, part in self._parts().items()}
        save(self._path(), {**state, "step": step})
