"""Measure edits by short texts, which say only what is in the picture and what is new: `docs/auto-edit.md`.

    python dev/evidence/short.py RUN                 # the held-out scenes, and the document's table
    python dev/evidence/short.py RUN --other-scenes  # the scenes on which settings are chosen; writes nothing

Resumable: RUN holds a result for each task and method (`short/*.json`). One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import comfyui  # noqa: E402

DOCUMENT = HERE.parents[1] / "docs" / "auto-edit.md"
CHANGES = {
    "pose": ["pose"],
    "colour": ["colour"],
    "animal": ["animal"],
    "background": ["place"],
    "two changes": ["colour", "pose"],
    "a thing added": [],  # a sun or a tree, whichever the scene has not
}
OTHER_SEED, SCORED_SEED = 3_000_000_000, 3_500_000_000
COLUMNS = "task | method | text obeyed | identity | sun and tree | all | kept, dB | passes"


def short_batch(world, task: str, seed: int, count: int):
    """``count`` scenes of a task, what each is to become, the facts that change, and the short texts."""
    from lab import VALUES, scenes

    source, target, changed, texts = [], [], [], []
    for number, scene in enumerate(scenes.sample(seed, 6 * count)):
        if len(source) == count:
            break
        rng = random.Random(f"{seed} {task} {number}")
        facts = CHANGES[task]
        if not facts:
            missing = [thing for thing in ("sun", "tree") if getattr(scene, thing) == scenes.NO_SIDE]
            if not missing:
                continue
            facts = [rng.choice(missing)]
        values = {}
        for fact in facts:
            options = range(len(VALUES[fact])) if fact in VALUES else (0, 1)
            values[fact] = rng.choice([value for value in options if value != getattr(scene, fact)])
        source.append(scene)
        target.append(scenes.replace(scene, **values))
        changed.append(facts)
        texts.append(short_text(target[-1], facts))
    return source, target, changed, texts


def short_text(scene, facts: list[str]) -> str:
    """The animal and what is new, in the model's words."""
    from lab import scenes

    word = {fact: groups[getattr(scene, fact)][0] for fact, groups in scenes.WORDS.items()}
    colour = f"{word['colour']} " if "colour" in facts else ""
    pose = f" {word['pose']}" if "pose" in facts else ""
    place = f" {word['place']}" if "place" in facts else ""
    things = [thing for thing in ("sun", "tree") if thing in facts]
    added = f" with a {things[0]}" if things else ""
    return f"a {colour}{word['animal']}{pose}{place}{added}"


def kept_where(task: str, source: list, target: list, changed: list):
    """``[n,128,128]`` true where nothing may change: outside both animals, or inside the one whose place changes."""
    import torch
    from lab import scenes

    drawn, here = scenes.render(source)
    _, there = scenes.render(target)
    glyphs = torch.maximum(here, there)
    if task == "background":
        return glyphs > 0.999
    if task != "a thing added":
        return glyphs < 0.001
    keep = torch.ones_like(here, dtype=torch.bool)
    for side in (0, 1):  # the text does not say on which side it is to be
        with_it = [scenes.replace(scene, **{facts[0]: side}) for scene, facts in zip(source, changed)]
        keep &= (scenes.render(with_it)[0] - drawn).abs().amax(-1) < 0.02
    return keep


def measure(world, judge, task: str, seed: int, count: int) -> dict[str, dict]:
    """The results of every method on one task: a list of numbers for each score, one a scene."""
    import lab

    source, target, changed, texts = short_batch(world, task, seed, count)
    drawn, _ = lab.scenes.render(source)
    latent = lab.encode_pictures(world, drawn)
    picture, keep = lab.decode(world, latent), kept_where(task, source, target, changed)
    given = {"model": world.model, "steps": lab.STEPS, "cfg": lab.CFG, "latent": latent}
    world.passes.reset()
    trajectory, embeddings, _ = lab.PACK.call(
        "BaretTTISInversion", positive=lab.encode(world, texts), negative=lab.encode(world, [""]), **given
    )
    inversion = world.passes.cost() / count
    sockets = {"model": world.model, "trajectory": trajectory, "cfg": lab.CFG}
    (moving,) = lab.PACK.call("BaretTransitionEmbedding", embeddings=embeddings)
    plain = {"tau_sa": 0.0, "tau_ca": 0.0}
    runs = {
        "Auto Edit": lambda: lab.PACK.call("BaretAutoEdit", embeddings=embeddings, seed=0, **sockets),
        "plain sampling": lambda: lab.PACK.call("BaretBAMEdit", embeddings=embeddings, **plain, **sockets),
        "BARET, defaults": lambda: lab.PACK.call("BaretBAMEdit", embeddings=moving, **sockets),
    }
    truth = {"source": lab.judging.truth(source), "target": lab.judging.truth(target)}
    results = {}
    for name, edit in runs.items():
        world.passes.reset()
        edited = edit()
        passes = world.passes.cost() / count
        pictures = lab.decode(world, edited[0])
        scores = scored(lab.judging.read(judge, pictures), truth, changed)
        scores["psnr"] = lab.psnr(pictures, picture, keep).tolist()
        results[name] = {**scores, "passes": passes, "inversion": inversion, "texts": texts}
        if name == "Auto Edit":
            results[name]["report"] = edited[3].splitlines()
    return results


def scored(seen: dict, truth: dict, changed: list[list[str]]) -> dict[str, list[float]]:
    """For each scene 1 or 0: text obeyed, identity, details (sun and tree), and all of them."""
    groups = {"identity": ("animal", "pose", "colour", "place"), "details": ("sun", "tree")}
    scores: dict[str, list[float]] = {"text": [], "identity": [], "details": [], "all": []}
    for k, facts in enumerate(changed):
        row = {"text": all(int(seen[fact][k]) == int(truth["target"][fact][k]) for fact in facts)}
        for name, group in groups.items():
            others = [fact for fact in group if fact not in facts]
            row[name] = all(int(seen[fact][k]) == int(truth["source"][fact][k]) for fact in others)
        row["all"] = all(row.values())
        for name, value in row.items():
            scores[name].append(float(value))
    return scores


def table(results: dict[str, dict[str, dict]]) -> str:
    """The document's table: shares and decibels with their 95 % intervals."""
    import report

    rows = []
    for task, methods in results.items():
        for name, result in methods.items():
            row = [task, name]
            for key in ("text", "identity", "details", "all"):
                share = report.mean_of(result[key])
                low, high = report.wilson(share, len(result[key]))
                row.append(f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
            row.append(f"{report.mean_of(result['psnr']):.1f} ± {report.student_half(result['psnr']):.1f}")
            row.append(f"{result['inversion']:.0f} + {result['passes']:.0f}")
            rows.append(row)
    return report.table(COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder for results; an earlier run in it is continued")
    parser.add_argument("--scenes", type=int, default=24, help="scenes of each task (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--other-scenes", action="store_true", help="those on which settings are chosen")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    os.environ["COMFYUI_PATH"], os.environ["OMP_NUM_THREADS"] = str(host.path), "1"
    sys.path.append(str(HERE))
    import lab

    folder = options.run / ("short-other" if options.other_scenes else "short")
    folder.mkdir(parents=True, exist_ok=True)
    if not (options.run / "judge.pt").exists():
        lab.judging.train(options.run / "judge.pt")
    judge, world = lab.judging.load(options.run / "judge.pt"), lab.load_world()
    results = {}
    for task in options.tasks:
        path = folder / f"{task}.json"
        if not path.exists():
            seed = OTHER_SEED if options.other_scenes else SCORED_SEED
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(measure(world, judge, task, seed, options.scenes)))
            partial.replace(path)
        results[task] = json.loads(path.read_text())
        print(table({task: results[task]}), flush=True)
    if not options.other_scenes and set(options.tasks) == set(CHANGES):
        text = DOCUMENT.read_text(encoding="utf-8")
        filled = re.sub(
            r"(<!-- short -->\n).*?(<!-- end -->)",
            lambda match: match[1] + table(results) + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
        DOCUMENT.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
