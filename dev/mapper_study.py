"""Measure whether StyleCLIP's mapper pays: one residual on the text, learnt once for one edit, against a direction.

    python dev/mapper_study.py JUDGE    # JUDGE: the classifiers that python dev/world/judge.py JUDGE trains

For one edit ("lying", "red", "in the snow") a residual on the caption's embedding is learnt by the denoising loss from
pairs: the caption of a scene, and the drawing of what it is to become, which is more than a user has. On held-out
scenes it is the target text of BAM Edit, and so are the caption moved by Text Direction and the new text itself; all
from the same inversions, at one setting. Ten minutes of one core.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import fmean

import clip_study
import comfyui
import workflows

EDITS = {"pose": "lying", "colour": "red", "background": "snow"}
LEARNT_FROM, SCORED = 7500, 7400  # seeds of the lists of scenes
PAIRS, HELD_OUT = 12, 12
LEARNT = ((400, 0.01), (400, 0.05), (1600, 0.02))  # updates and their size
STRENGTHS = (1.0, 1.5, 2.0)


class Study(clip_study.Study):
    """The same world and judge, with scenes that one edit can change."""

    def batch(self, task: str, seed: int, count: int):
        (fact,) = self.lab.TASKS[task]
        value = self.lab.VALUES[fact].index(EDITS[task])
        source = [scene for scene in self.lab.scenes.sample(seed, 6 * count) if getattr(scene, fact) != value][:count]
        return self.lab.batch_of(self.world, task, "full", source, [{fact: value}] * count)

    def residual(self, batch, updates: int, rate: float):
        """What is added to each caption ``[1,T,D]``, learnt by Adam from a batch's drawings of what is to come."""
        import torch

        models, run, wires = (self.pack.module(f"host.{name}") for name in ("models", "run", "wires"))
        model, schedule = self.world.model, models.all_times(self.world.model)
        ideal = self.lab.encode_pictures(self.world, batch.ideal)
        pictures, captions = wires.latent_in(model, ideal), self.lab.encode(self.world, batch.captions)[0][0]
        generator = torch.Generator().manual_seed(0)

        def loop(predict, device):
            added = torch.zeros_like(captions[:1]).requires_grad_()
            optimiser = torch.optim.Adam([added], lr=rate)
            for update in range(updates):
                picture, caption = (each[update % len(batch)][None].clone() for each in (pictures, captions))
                level = int(torch.randint(schedule.steps + 1, (1,), generator=generator))
                noise = torch.randn(picture.shape, generator=generator)
                sigma = schedule.sigma(level)
                with torch.enable_grad():
                    eps, _ = predict(picture + sigma * noise, sigma, cond=caption + added)
                    (added.grad,) = torch.autograd.grad((eps - noise).square().mean(), added)
                optimiser.step()
            return added.detach()

        text = (captions[:1], {})
        shape = tuple(pictures.shape[1:])
        return run.sample(
            model, loop, positive=text, negative=text, rows=1, shape=shape, schedule=schedule, gradients=True
        )

    def inverted(self, batch) -> tuple:
        """Trajectory and embeddings of TTIS with the captions."""
        return self.pack.call(
            "BaretTTISInversion",
            model=self.world.model,
            positive=self.lab.encode(self.world, batch.captions),
            negative=self.lab.encode(self.world, [""]),
            latent=batch.latent,
            **workflows.WORLD_INVERSION,
        )[:2]

    def edited(self, trajectory, embeddings, target):
        """The pictures of BAM Edit towards a target text ``[B,T,D]``."""
        (blended,) = self.pack.call(
            "BaretTransitionEmbedding", embeddings=embeddings, positive=[[target, {}]], **workflows.WORLD_ETAS
        )
        edit, _ = self.pack.call("BaretBAMEdit", model=self.world.model, trajectory=trajectory, embeddings=blended)
        return self.lab.decode(self.world, edit)

    def row(self, task: str, name: str, batch, pictures) -> str:
        scores = self.lab.score(batch, pictures, self.judge)
        right = " | ".join(f"{fmean(scores[each]):.0%}" for each in ("text", "all"))
        return f"| {task} | {name} | {right} | {fmean(scores['psnr']):.1f} |"

    def rows(self, task: str):
        learnt_from, batch = self.batch(task, LEARNT_FROM, PAIRS), self.batch(task, SCORED, HELD_OUT)
        trajectory, embeddings = self.inverted(batch)
        captions = self.lab.encode(self.world, batch.captions)[0][0]
        written = self.lab.encode(self.world, batch.texts)[0][0]
        yield self.row(task, "the text written", batch, self.edited(trajectory, embeddings, written))
        for strength in STRENGTHS:
            moved = self.moved(batch, strength)[0][0]
            yield self.row(task, f"direction, {strength:g}", batch, self.edited(trajectory, embeddings, moved))
        for updates, rate in LEARNT:
            target = captions + self.residual(learnt_from, updates, rate)
            name = f"residual, {updates} updates at {rate:g}"
            yield self.row(task, name, batch, self.edited(trajectory, embeddings, target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", type=Path)
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    os.environ["COMFYUI_PATH"] = str(host.path)

    study = Study(options.judge)
    print("| edit | target | asked | right in all | kept |\n|---|---|---|---|---|", flush=True)
    for task in EDITS:
        for row in study.rows(task):
            print(row, flush=True)


if __name__ == "__main__":
    main()
