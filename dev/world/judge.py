"""The world's own classifiers: what a picture shows, as one small network with a head for each fact of a scene.

`python dev/world/judge.py judge.pt` trains it on drawn scenes (about three minutes on one CPU core) and prints how
often it reads held-out drawings rightly. `load(path)` gives the network, `read(network, pictures)` the facts.
"""

import argparse
import time
from pathlib import Path

import drawn  # noqa: F401
import torch
import torch.nn.functional as F
from baret.world import scenes
from torch import nn

FACTS = {
    "animal": len(scenes.ANIMALS),
    "pose": len(scenes.POSES),
    "colour": len(scenes.COLOURS),
    "place": len(scenes.PLACES),
    "position": len(scenes.POSITIONS),
    "facing": len(scenes.SIDES),
    "sun": 2,
    "tree": 2,
}
HELD_OUT = 2_000_000_000  # seeds from here on are never trained on


class Judge(nn.Module):
    """(b, 3, 128, 128) pictures in 0..1 to a dict of logits (b, values) for each of FACTS."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 64, 96, 96)
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, n) for name, n in FACTS.items()})

    def forward(self, pictures):
        h = self.body(pictures)
        return {name: head(h) for name, head in self.heads.items()}


def truth(batch):
    """The facts of scenes as a dict of (n,) int64: for sun and tree 1 where there is one."""

    def fact(scene, name):
        value = getattr(scene, name)
        return int(value != scenes.NO_SIDE) if name in ("sun", "tree") else value

    return {name: torch.tensor([fact(scene, name) for scene in batch]) for name in FACTS}


def smear(x):
    """What a codec or a denoiser does to a picture: blur, noise and a change of light, each to a random degree."""
    if torch.rand(()) < 0.6:
        factor = float(torch.empty(()).uniform_(0.35, 0.9))
        small = F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=True)
        x = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    x = x * (1 + 0.06 * torch.randn(len(x), 3, 1, 1)) + 0.03 * torch.randn(len(x), 3, 1, 1)
    return (x + 0.06 * torch.rand(()) * torch.randn_like(x)).clamp(0, 1)


@torch.no_grad()
def read(judge, pictures):
    """The facts that `judge` sees in IMAGE-like `pictures` (n, 128, 128, 3) in 0..1: a dict of (n,) int64."""
    parts = [judge(part.movedim(-1, 1)) for part in pictures.split(64)]
    return {name: torch.cat([part[name] for part in parts]).argmax(1) for name in FACTS}


def accuracy(judge, n):
    """The share of `n` held-out drawings whose fact `judge` reads rightly, by fact."""
    held = scenes.sample(HELD_OUT, n)
    facts, seen = truth(held), read(judge, scenes.render(held)[0])
    return {name: round((seen[name] == facts[name]).float().mean().item(), 4) for name in FACTS}


def load(path):
    judge = Judge()
    judge.load_state_dict(torch.load(path, weights_only=True))
    return judge.eval()


def train(path, steps=1000, batch=64, seed=7):
    """Train a `Judge` on drawings made on the fly and save it to `path`."""
    torch.manual_seed(seed)
    judge = Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    started = time.time()
    for step in range(steps):
        sampled = scenes.sample(seed * 10**6 + step, batch)
        pictures = smear(scenes.render(sampled)[0].movedim(-1, 1))
        logits, facts = judge(pictures), truth(sampled)
        loss = sum(F.cross_entropy(logits[name], facts[name]) for name in FACTS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if (step + 1) % 100 == 0:
            speed = (step + 1) * batch / (time.time() - started)
            print(f"step {step + 1} loss {loss.item():.4f} {speed:.0f}/s", flush=True)
    torch.save(judge.state_dict(), path)
    print(accuracy(judge.eval(), 2000))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.path)
