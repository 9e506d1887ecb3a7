"""Count which words come true from the first template: every pose, colour, animal and place, on three drawn scenes.

    python dev/reach.py     # prints what was asked for and did not come; some minutes of one core

Only the text changes from edit to edit: settings are the template's, and a text says only what is in the picture and
what is new. An edit shows what the drawing shows that it is nearest to, of all drawings with its sun and tree.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import comfyui
import workflows

SEEDS = (workflows.SCENE["seed"], 1, 0)  # the template's own scene, one of the README's, and that of a new Drawn Scene
TEXTS = {
    "pose": "a {animal} {pose}",
    "colour": "a {colour} {animal}",
    "animal": "a {animal}",
    "place": "a {animal} {place}",
}
COARSE = 4  # pixels of a side that are compared as one, so that a small shift is no difference


@dataclass(frozen=True)
class Wish:
    """Another value, by its number, of one of a scene's facts, and the text that asks for it."""

    fact: str
    value: int
    text: str


def values(scenes) -> list[tuple[str, int]]:
    """Every pose, colour, animal and place, as a fact and the number of its value. scenes: the pack's module."""
    return [(fact, value) for fact in TEXTS for value in range(len(scenes.WORDS[fact]))]


def wish(scenes, scene, fact: str, value: int) -> Wish:
    """The wish for a value on a scene."""
    wanted = replace(scene, **{fact: value})
    words = {name: scenes.WORDS[name][getattr(wanted, name)][0] for name in TEXTS}
    return Wish(fact, value, TEXTS[fact].format(**words))


def wishes(scenes, scene) -> list[Wish]:
    """All that the scene does not show yet."""
    return [wish(scenes, scene, fact, value) for fact, value in values(scenes) if value != getattr(scene, fact)]


def edited(pack, scene, texts: list[str]):
    """The edits ``[texts,H,W,3]`` of a scene, by the first template's nodes and settings in one batch."""
    import torch
    from in_process import call_stock

    settings = {}
    for node in workflows.example("baret_edit").values():
        own = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        settings[node["class_type"]] = own
    picture, _ = pack.module("world.scenes").render([scene])
    model, clip, vae, _ = pack.call("BaretWorldLoader")
    encoded = [call_stock("CLIPTextEncode", clip=clip, text=text)[0][0][0] for text in texts]
    (negative,) = call_stock("CLIPTextEncode", clip=clip, text="")
    (latent,) = call_stock("VAEEncode", vae=vae, pixels=picture.repeat(len(texts), 1, 1, 1))
    trajectory, embeddings, _ = pack.call(
        "BaretTTISInversion",
        model=model,
        positive=[[torch.cat(encoded), {}]],
        negative=negative,
        latent=latent,
        **settings["BaretTTISInversion"],
    )
    edit, *_ = pack.call(
        "BaretAutoEdit", model=model, trajectory=trajectory, embeddings=embeddings, **settings["BaretAutoEdit"]
    )
    (pictures,) = call_stock("VAEDecode", vae=vae, samples=edit)
    return pictures


def read(scenes, scene, pictures) -> list:
    """What edits of a scene show, as scenes: for each picture ``[n,H,W,3]`` the drawing that it is nearest to."""
    import torch

    def coarse(pictures):
        return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), COARSE).flatten(1)

    facts = [*TEXTS, "position", "facing"]
    combinations = product(*(range(len(scenes.WORDS[fact])) for fact in facts))
    drawn = [replace(scene, **dict(zip(facts, each))) for each in combinations]
    drawings = torch.cat([coarse(scenes.render(drawn[i : i + 8])[0]) for i in range(0, len(drawn), 8)])
    return [drawn[int(number)] for number in torch.cdist(coarse(pictures), drawings).argmin(1)]


def came_true(scenes, scene, wanted: list[Wish], pictures) -> list[bool]:
    """Whether each edit shows what its text asked for."""
    shown = read(scenes, scene, pictures)
    return [getattr(each, wish.fact) == wish.value for wish, each in zip(wanted, shown)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count which words come true from the first template.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import in_process  # needs the host's interpreter

    in_process.load_host(host.path, cpu=True)
    pack = in_process.load_pack()
    scenes = pack.module("world.scenes")
    asked, came = Counter(), Counter()
    for seed in SEEDS:
        (scene,) = scenes.sample(seed, 1)
        wanted = wishes(scenes, scene)
        pictures = edited(pack, scene, [wish.text for wish in wanted])
        for wish, true in zip(wanted, came_true(scenes, scene, wanted, pictures)):
            asked[wish.fact] += 1
            came[wish.fact] += true
            if not true:
                print(f"scene {seed}, {wish.text!r} did not come")
    for fact, number in asked.items():
        print(f"{fact}: {came[fact]} of {number}")
    print(f"in all: {sum(came.values())} of {sum(asked.values())}")


if __name__ == "__main__":
    main()
