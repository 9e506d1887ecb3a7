"""Measure what Text Direction, CLIP Optimise and Text Layer do on the drawn world: the tables of docs/clip.md.

    python dev/clip_study.py JUDGE                 # JUDGE: the classifiers that python dev/world/judge.py JUDGE trains
    python dev/clip_study.py JUDGE --only layer    # or direction, optimise
    python dev/clip_study.py JUDGE --choose        # settings of Text Layer, on other scenes

On held-out scenes, seeded, in float32. Half an hour of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import fmean

import comfyui

SEED = 7300  # of the lists of scenes
TASKS = ("colour", "pose", "background")
SAMPLED, TUNED = 16, 6  # scenes of each task
STEPS, CFG = 10, 4.0
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
PRESETS = (
    {"preset": "StyleCLIP", "steps": 100},
    {"preset": "StyleCLIP", "steps": 100, "keep": 0.05},
    {"preset": "VQGAN-CLIP", "steps": 60, "views": 8, "strength": 0.5},
    {"preset": "TediGAN", "steps": 100},
)
LAYER = {"steps": 100, "channels": 32, "views": 8}
CHOICES = (
    {},
    {"learning_rate": 0.005},
    {"learning_rate": 0.01},
    {"sparsity": 0.3},
    {"structure": 0.5},
    {"structure": 8.0},
    {"steps": 200},
)
"""What else is tried of a layer, one at a time."""
CHOOSING = 8100  # seed of the list of scenes on which that is done


class Study:
    """The drawn world, two CLIPs of it, and the classifiers."""

    def __init__(self, judge: Path):
        sys.path.append(str(Path(__file__).resolve().parent / "evidence"))
        import lab

        self.lab, self.pack = lab, lab.PACK
        model, clip, vae, vision = lab.PACK.call("BaretWorldLoader")
        self.world = lab.World(model, clip, vae, None)
        self.own, self.other = (clip, vision), lab.in_process.other_clip(lab.PACK)
        self.judge = lab.judging.load(judge)

    def phrase(self, scene, facts: tuple[str, ...]) -> str:
        """The animal and what changes of it, without an article: "red dog"."""
        return self.lab.caption_of(scene, facts, "short").removeprefix("a ")

    def sampled(self, batch, text: list):
        """Stock sampling from noise, decoded."""
        import torch

        empty = {"samples": torch.zeros_like(batch.latent["samples"])}
        how = {"sampler_name": "euler", "scheduler": "normal", "steps": STEPS, "cfg": CFG, "denoise": 1.0}
        return self.lab.decode(self.world, self.lab.ksampler(self.world, text, empty, seed=0, **how))

    def moved(self, batch, strength: float) -> list:
        """The captions of a batch, each moved from its own value towards the other."""
        import torch

        texts = []
        for number, caption in enumerate(batch.captions):
            phrases = [self.phrase(scenes[number], batch.changed[number]) for scenes in (batch.source, batch.target)]
            conditioning, _ = self.pack.call(
                "BaretTextDirection",
                clip=self.world.clip,
                phrase_from=phrases[0],
                phrase_to=phrases[1],
                strength=strength,
                conditioning=self.lab.encode(self.world, [caption]),
            )
            texts.append(conditioning[0][0])
        return [[torch.cat(texts), {}]]

    def shares(self, batch, pictures) -> str:
        """The shares of pictures that show what is asked for, and of which animal, pose, colour and place are right."""
        scores = self.lab.score(batch, pictures, self.judge)
        right = [text * identity for text, identity in zip(scores["text"], scores["identity"])]
        return f"{fmean(scores['text']):.0%}, {fmean(right):.0%}"

    def direction(self, task: str) -> str:
        batch = self.lab.make_batch(self.world, task, "full", SEED, SAMPLED)
        cells = [self.shares(batch, self.sampled(batch, self.moved(batch, strength))) for strength in STRENGTHS]
        written = self.shares(batch, self.sampled(batch, self.lab.encode(self.world, batch.texts)))
        return f"| {task} | {' | '.join(cells)} | {written} |"

    def tuned(self, batch, masks, how: dict):
        """The pictures of a batch ``[B,H,W,3]``, each tuned towards its text."""
        import torch

        found = []
        for number, text in enumerate(batch.texts):
            (latent,) = self.pack.call(
                "BaretClipOptimise",
                vae=self.world.vae,
                clip=self.own[0],
                clip_vision=self.own[1],
                latent={"samples": batch.latent["samples"][number : number + 1]},
                text=text,
                mask=None if masks is None else masks[number : number + 1],
                **how,
            )
            found.append(self.lab.decode(self.world, latent))
        return torch.cat(found)

    def fit(self, clips: tuple, pictures, texts: list[str]) -> float:
        """The mean CLIPScore of pictures and their texts."""
        clip, vision = clips
        found = []
        for picture, text in zip(pictures.split(1), texts):
            measured = self.pack.call(
                "BaretEditMetrics", source=picture, edit=picture, clip=clip, clip_vision=vision, text=text
            )
            found.append(measured[4])
        return fmean(found)

    def optimised(self, task: str, how: dict, masked: bool) -> str:
        batch = self.lab.make_batch(self.world, task, "full", SEED, TUNED)
        masks = self.drawn_masks(batch) if masked else None
        started = time.process_time()
        pictures = self.tuned(batch, masks, how)
        seconds = (time.process_time() - started) / TUNED
        name = ", ".join([how["preset"], *(f"{key} {value}" for key, value in how.items() if key != "preset")])
        name += ", mask" if masked else ""
        return f"| {task} | {name} | {self.measured(batch, pictures)} | {seconds:.0f} |"

    def layered(self, task: str, how: dict, where: str, seed: int = SEED) -> str:
        """A row of Text Layer. where: whose mask it starts from, a key of MASKS."""
        import torch

        batch = self.lab.make_batch(self.world, task, "full", seed, TUNED)
        masks = MASKS[where](self, batch)
        started, found = time.process_time(), []
        for number, picture in enumerate(batch.picture.split(1)):
            changed = batch.changed[number]
            painted = self.pack.call(
                "BaretTextLayer",
                clip=self.own[0],
                clip_vision=self.own[1],
                image=picture,
                text=self.phrase(batch.target[number], changed),
                text_before=self.phrase(batch.source[number], changed),
                start_mask=None if masks is None else masks[number : number + 1],
                **{**LAYER, **how},
            )
            found.append(painted[0])
        seconds = (time.process_time() - started) / TUNED
        name = ", ".join([f"{key} {value}" for key, value in how.items()] + [where])
        return f"| {task} | {name} | {self.measured(batch, torch.cat(found))} | {seconds:.0f} |"

    def drawn_masks(self, batch):
        """The animals of a batch, as they were drawn ``[B,H,W]``."""
        return self.lab.scenes.render(batch.source)[1]

    def attended_masks(self, batch):
        """Where the model looks for the animals of a batch, by Attention Maps ``[B,H,W]``."""
        import torch

        found = []
        for number, (caption, scene) in enumerate(zip(batch.captions, batch.source)):
            latent = {"samples": batch.latent["samples"][number : number + 1]}
            texts = {"positive": self.lab.encode(self.world, [caption]), "negative": self.lab.encode(self.world, [""])}
            trajectory, embeddings, *_ = self.pack.call(
                "BaretTTISInversion", model=self.world.model, latent=latent, steps=20, **texts
            )
            _, masks, _ = self.pack.call(
                "BaretAttentionMaps",
                model=self.world.model,
                trajectory=trajectory,
                embeddings=embeddings,
                clip=self.world.clip,
                vae=self.world.vae,
                text=caption,
                words=self.lab.scenes.WORDS["animal"][scene.animal][0],
            )
            found.append(masks)
        return torch.cat(found)

    def measured(self, batch, pictures) -> str:
        """The cells of what pictures show: the scores of both CLIPs, the shares, and what is kept."""
        cells = []
        for clips in (self.own, self.other):
            before, after = (self.fit(clips, each, batch.texts) for each in (batch.picture, pictures))
            cells.append(f"{before:.2f} to {after:.2f}")
        kept = fmean(self.lab.score(batch, pictures, self.judge)["psnr"])
        return " | ".join([*cells, self.shares(batch, pictures), f"{kept:.1f}"])


MASKS = {
    "no mask": lambda study, batch: None,
    "the model's mask": Study.attended_masks,
    "the drawn mask": Study.drawn_masks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", type=Path)
    parser.add_argument("--only", choices=("direction", "optimise", "layer"), help="one part of it (default: all)")
    parser.add_argument("--choose", action="store_true", help="try settings of Text Layer on other scenes")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    os.environ["COMFYUI_PATH"] = str(host.path)

    study = Study(options.judge)
    head = "| task | settings | own CLIP | other CLIP | asked, right | kept | seconds |"
    if options.choose:
        print(head, flush=True)
        for how in CHOICES:
            print(study.layered("colour", how, "the model's mask", CHOOSING), flush=True)
        return
    if options.only in (None, "direction"):
        print(f"| task | {' | '.join(f'{strength:g}' for strength in STRENGTHS)} | the text written |", flush=True)
        for task in TASKS:
            print(study.direction(task), flush=True)
    if options.only in (None, "optimise"):
        print(head, flush=True)
        for task in ("colour", "pose"):
            for how in PRESETS:
                for masked in (False, True):
                    print(study.optimised(task, how, masked), flush=True)
    if options.only in (None, "layer"):
        print(head, flush=True)
        for task in TASKS:
            for where in MASKS:
                print(study.layered(task, {}, where), flush=True)


if __name__ == "__main__":
    main()
