"""Measure what fine-tunes on one picture, Imagic and SINE, beside SDEdit, on drawn scenes.

    python dev/fine_tuning.py            # the settings of the templates, on held-out scenes: prints a table
    python dev/fine_tuning.py --choose   # rates, numbers of updates and ranks, on other scenes

Poses and colours in turn, by short texts, at one setting each; a dial of each method is swept. Some minutes of one core
a scene. An edit shows what the drawing shows that it is nearest to, as in reach.py. Every edit goes into a file as a
line of JSON, from which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import comfyui
import workflows

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs" / "evidence" / "fine-tuning.jsonl"
TASKS = ("pose", "colour")
SCORED, CHOSEN_ON = 7200, 7100  # seeds of the lists of scenes
STEPS, SEED = 20, 0
ETAS = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0)
BETAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
TRIED = [
    {"updates": updates, "learning_rate": rate, "rank": rank}
    for updates, rate, rank in ((150, 5e-4, 8), (75, 1e-3, 8), (150, 5e-4, 2))
]


class Bench:
    """The drawn world in float32, its scenes, and stock sampling on it."""

    def __init__(self):
        sys.path.append(str(ROOT / "dev" / "evidence"))
        import lab
        import reach

        self.lab, self.reach = lab, reach
        self.world = lab.World(*lab.PACK.call("BaretWorldLoader")[:3], None)

    def scene(self, task: str, seed: int, number: int):
        """The ``number``-th scene of a task, as a batch of one, and its latent alone."""
        batch = self.lab.make_batch(self.world, task, "short", seed, number + 1)
        return batch, {"samples": batch.latent["samples"][number : number + 1]}

    def sample(self, model, text: list, latent: dict, cfg: float, denoise: float = 1.0):
        """Stock KSampler from seeded noise, decoded."""
        how = {"sampler_name": "euler", "scheduler": "ddim_uniform", "steps": STEPS, "cfg": cfg, "denoise": denoise}
        sampled = self.lab.ksampler(self.world, text, latent, model, seed=SEED, **how)
        return self.lab.decode(self.world, sampled)

    def imagic(self, batch, number: int, latent: dict, how: dict) -> dict[float, object]:
        target = self.lab.encode(self.world, [batch.texts[number]])
        model, _, tuned, target = self.lab.PACK.call(
            "BaretImagic", model=self.world.model, target=target, latent=latent, **how
        )
        empty, found = {"samples": latent["samples"] * 0.0}, {}
        for eta in ETAS:
            (text,) = self.lab.in_process.call_stock(
                "ConditioningAverage", conditioning_to=target, conditioning_from=tuned, conditioning_to_strength=eta
            )
            found[eta] = self.sample(model, text, empty, workflows.IMAGIC_CFG)
        return found

    def sine(self, batch, number: int, latent: dict, how: dict) -> dict[float, object]:
        import comfy.samplers
        import torch

        caption, positive = (self.lab.encode(self.world, [each[number]]) for each in (batch.captions, batch.texts))
        tuned, _ = self.lab.PACK.call(
            "BaretOneImageLoRA", model=self.world.model, caption=caption, latent=latent, **how
        )
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(SEED))
        found = {}
        for beta in BETAS:
            (guider,) = self.lab.PACK.call(
                "BaretModelGuidance",
                model=self.world.model,
                tuned=tuned,
                positive=positive,
                caption=caption,
                negative=self.lab.encode(self.world, [""]),
                **{**workflows.SINE_GUIDANCE, "beta": beta},
            )
            with torch.inference_mode():
                sampling = self.world.model.get_model_object("model_sampling")
                sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", STEPS)
                euler = comfy.samplers.sampler_object("euler")
                sampled = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)
            found[beta] = self.lab.decode(self.world, {"samples": sampled})
        return found

    def sdedit(self, batch, number: int, latent: dict, how: dict) -> dict[float, object]:
        text = self.lab.encode(self.world, [batch.texts[number]])
        return {each: self.sample(self.world.model, text, latent, how["cfg"], each) for each in STRENGTHS}

    def score(self, batch, number: int, pictures: list) -> list[dict]:
        """text: whether the fact is as asked. all: whether animal, pose, colour and place are as they are to be.

        psnr, kept: in dB to the picture as the codec gives it, everywhere and outside both animals.
        """
        import torch

        source, target = batch.source[number], batch.target[number]
        before, keep = batch.picture[number : number + 1], batch.keep[number : number + 1]
        return [
            {
                "text": all(getattr(seen, fact) == getattr(target, fact) for fact in batch.changed[number]),
                "all": all(getattr(seen, fact) == getattr(target, fact) for fact in self.lab.VALUES),
                "psnr": round(float(self.lab.psnr(picture, before)), 2),
                "kept": round(float(self.lab.psnr(picture, before, keep)), 2),
            }
            for picture, seen in zip(pictures, self.reach.read(self.lab.scenes, source, torch.cat(pictures)))
        ]


def plan(choose: bool, count: int) -> list[dict]:
    """What is measured: runs of one method on one scene."""
    settings = {
        "imagic": [workflows.IMAGIC],
        "sine": [workflows.SINE],
        "sdedit": [{"cfg": 7.5}, {"cfg": workflows.IMAGIC_CFG}],
    }
    if choose:
        text = {name: workflows.IMAGIC[name] for name in ("text_updates", "text_rate")}
        settings = {"imagic": [{**text, **each} for each in TRIED], "sine": TRIED}
    seed = CHOSEN_ON if choose else SCORED
    scenes = [(TASKS[n % len(TASKS)], n // len(TASKS)) for n in range(count)]
    return [
        {"seed": seed, "task": task, "number": number, "method": method, "how": how}
        for task, number in scenes
        for method, each in settings.items()
        for how in each
    ]


def table(rows: list[dict]) -> str:
    """A row for each setting and place of its dial: how many obey, are right in all, and what is kept."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], json.dumps(row["how"]), row["dial"]].append(row)
    lines = ["| method | setting | dial | text | all | psnr | kept |", "|---|---|---|---|---|---|---|"]
    for (method, how, dial), each in sorted(groups.items()):
        n = len(each)
        counts = " | ".join(f"{sum(row[name] for row in each)} of {n}" for name in ("text", "all"))
        means = " | ".join(f"{sum(row[name] for row in each) / n:.1f}" for name in ("psnr", "kept"))
        lines.append(f"| {method} | {how.strip('{}')} | {dial} | {counts} | {means} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Imagic and SINE on drawn scenes.")
    parser.add_argument("--choose", action="store_true", help="try settings, on other scenes")
    parser.add_argument("--scenes", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of the edits (default: in docs/evidence)")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options)
    os.environ["COMFYUI_PATH"] = str(host.path)

    lines = options.rows.read_text(encoding="utf-8").splitlines() if options.rows.exists() else []
    rows = [json.loads(line) for line in lines]
    done = [{key: row[key] for key in ("seed", "task", "number", "method", "how")} for row in rows]
    bench = None
    for run in plan(options.choose, options.scenes):
        if run in done:
            continue
        bench = bench or Bench()
        batch, latent = bench.scene(run["task"], run["seed"], run["number"])
        edits = getattr(bench, run["method"])(batch, run["number"], latent, run["how"])
        scores = bench.score(batch, run["number"], list(edits.values()))
        new = [{**run, "dial": dial, **score} for dial, score in zip(edits, scores)]
        rows += new
        with options.rows.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
    seed = CHOSEN_ON if options.choose else SCORED
    print(table([row for row in rows if row["seed"] == seed]))


if __name__ == "__main__":
    main()
