"""Measure what a subject's LoRA adds to an edit of a photo of it, on drawn scenes.

    python dev/subject_study.py             # the settings of the template, on held-out subjects: prints a table
    python dev/subject_study.py --choose    # numbers of updates and pictures at a time, on other subjects

A subject is an animal in a colour that the drawn world has no word for: two of its colours, blended. ComfyUI's own
trainer learns it from three pictures, and Auto Edit gives it another pose in a fourth. How far the colour is off is
measured where the edit has the animal, by the drawing that it is nearest to. Ten minutes of one core.
"""

from __future__ import annotations

import argparse
import os
from statistics import fmean

import comfyui
import fine_tuning
import workflows

PLACES = ("meadow", "beach", "wall", "snow")  # of the three pictures to learn from, and of the photo
POSES = ("standing", "sitting", "lying", "sitting")
ASKED = ("lying", "jumping")
SUBJECTS = (("cat", "red", "yellow"), ("dog", "blue", "pink"), ("dog", "red", "black"), ("cat", "yellow", "pink"))
CHOSEN_ON = (("dog", "red", "yellow"), ("cat", "blue", "red"))
TRIED = ({"steps": 75}, {"steps": 150}, {"steps": 300}, {"batch_size": 3, "steps": 100})


class Bench(fine_tuning.Bench):
    """The same world, and its subjects."""

    def drawn(self, subject: tuple, seed: int, pose: str, place: str) -> tuple:
        """A picture of a subject ``[1,H,W,3]``, its mask, and the scene of its first colour."""
        animal, *colours = subject
        given = {"seed": seed, "animal": animal, "pose": pose, "place": place}
        pictures = [self.lab.PACK.call("BaretWorldScene", colour=colour, **given) for colour in colours]
        values = {"animal": animal, "pose": pose, "place": place, "colour": colours[0]}
        (scene,) = self.lab.scenes.sample(seed, 1)
        facts = {name: self.index(name, value) for name, value in values.items()}
        return (pictures[0][0] + pictures[1][0]) / 2, pictures[0][2], self.lab.scenes.replace(scene, **facts)

    def index(self, fact: str, value: str) -> int:
        return self.lab.VALUES[fact].index(value)

    def learnt(self, subject: tuple, first: int, how: dict):
        """The model with a LoRA of three pictures of a subject."""
        import torch
        from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode

        shown = [self.drawn(subject, first + n, POSES[n], PLACES[n])[0] for n in range(3)]
        schema = {each.id: each for each in TrainLoraNode.define_schema().inputs}
        given = {name: each.default for name, each in schema.items() if hasattr(each, "default")}
        given |= {**workflows.SUBJECT, **how}
        given |= {
            "model": self.world.model,
            "latents": self.lab.encode_pictures(self.world, torch.cat(shown)),
            "positive": self.lab.encode(self.world, [f"a {subject[0]}"]),
        }
        with torch.inference_mode():
            lora = TrainLoraNode.execute(**{name: [value] for name, value in given.items()}).args[0]
            return LoraModelLoader.execute(model=self.world.model, lora=lora, strength_model=1.0, bypass=False).args[0]

    def edits(self, subject: tuple, first: int, model) -> list[dict]:
        """The poses that are asked for: whether they come, and how far the subject's colour is off, of 255."""
        photo, _, scene = self.drawn(subject, first + 3, POSES[3], PLACES[3])
        latent = self.lab.encode_pictures(self.world, photo)
        found = []
        for pose in ASKED:
            ideal, mask, _ = self.drawn(subject, first + 3, pose, PLACES[3])
            text = self.lab.encode(self.world, [f"a {subject[0]} {pose}"])
            trajectory, embeddings, _ = self.lab.PACK.call(
                "BaretTTISInversion",
                model=model,
                positive=text,
                negative=self.lab.encode(self.world, [""]),
                latent=latent,
                **workflows.WORLD_INVERSION,
            )
            auto = self.lab.PACK.call("BaretAutoEdit", model=model, trajectory=trajectory, embeddings=embeddings)
            edited = self.lab.decode(self.world, auto[0])
            (seen,) = self.reach.read(self.lab.scenes, scene, edited)
            off = mean_colour(edited, self.lab.scenes.render([seen])[1]) - mean_colour(ideal, mask)
            found.append({"pose": seen.pose == self.index("pose", pose), "off": 255 * float(off.abs().mean())})
        return found


def mean_colour(picture, mask):
    """The mean ``[3]`` of a picture ``[1,H,W,3]`` where a mask ``[1,H,W]`` is."""
    return (picture * mask[..., None]).sum((0, 1, 2)) / mask.sum()


def row(name: str, found: list[dict]) -> str:
    poses = sum(each["pose"] for each in found)
    return f"| {name} | {poses} of {len(found)} | {fmean(each['off'] for each in found):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="try settings, on other subjects")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    os.environ["COMFYUI_PATH"] = str(host.path)

    bench = Bench()
    subjects, first = (CHOSEN_ON, 1_500_000_500) if options.choose else (SUBJECTS, 1_500_000_600)
    settings = TRIED if options.choose else ({},)
    print("| LoRA | pose as asked | colour off, of 255 |\n|---|---|---|", flush=True)
    plain = [
        edit for n, subject in enumerate(subjects) for edit in bench.edits(subject, first + 9 * n, bench.world.model)
    ]
    print(row("none", plain), flush=True)
    for how in settings:
        found = []
        for n, subject in enumerate(subjects):
            found += bench.edits(subject, first + 9 * n, bench.learnt(subject, first + 9 * n, how))
        print(row(", ".join(f"{name} {value}" for name, value in how.items()) or "the template's", found), flush=True)


if __name__ == "__main__":
    main()
