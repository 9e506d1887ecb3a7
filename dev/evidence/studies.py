"""What is measured: groups of jobs. A group's jobs share inversions; a job's result is a dict of lists, one number per scene, and costs.

Three stages: ``rates`` sweeps learning rates, ``tune`` sweeps each edit's settings, both on scenes of their own; ``score`` measures on held-out scenes
with what was chosen. Costs are UNet passes a scene: 1 for a forward, 1.1 more for a backward.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path

import methods
import torch
from lab import CFG, NODES, TASKS, decode, judging, load_world, make_batch, module, psnr, score

TUNED_ON, SCORED_ON = 3_000_000_000, 3_500_000_000  # seeds; neither the model nor the classifiers saw them
SHOWN = 3  # scenes of each edit that are kept as pictures

RATES = {"adam": (2e-2, 4e-2, 8e-2, 1.6e-1), "null": (1e-2, 3e-2, 1e-1, 3e-1)}
UPDATES = {"adam": (1, 2, 5), "null": (1, 5)}
PUBLISHED_RATE = 1e-2  # null-text inversion's

# What is tried for each method, the published or default settings first.
BARET = {  # eta_start, tau_sa, tau_ca, cfg; eta_end is 0.1, but 0 and 1 where eta_start is
    "non-rigid": ((0.8, 0.3, 0.6, CFG), (0.4, 0.6, 0.6, CFG), (0.0, 0.3, 0.6, CFG), (0.0, 0.1, 0.6, CFG), (0.2, 0.2, 0.4, CFG), (0.4, 0.1, 0.3, CFG), (0.6, 0.1, 0.2, CFG),
                  (0.0, 0.6, 0.2, CFG), (0.6, 0.3, 0.6, 10.0), (0.4, 0.3, 0.4, 10.0), (0.2, 0.6, 0.4, 10.0), (0.4, 0.1, 0.2, 10.0)),
    "rigid": ((1.0, 0.3, 0.6, CFG), (1.0, 0.6, 0.6, CFG), (1.0, 0.3, 0.6, 4.0), (1.0, 0.6, 0.6, 4.0), (1.0, 0.3, 0.6, 3.0), (1.0, 0.6, 0.6, 3.0), (0.6, 0.2, 0.4, 3.0),
              (1.0, 0.6, 0.6, 2.5), (0.6, 0.2, 0.4, 2.5)),
}  # fmt: skip
SDEDIT = tuple({"strength": strength, "cfg": cfg} for strength in (0.5, 0.6, 0.7, 0.8, 0.9) for cfg in (CFG, 4.0))
GUIDANCES = (CFG, 5.0, 4.0, 3.0, 2.5, 2.0)
MASA = tuple(
    {"start_step": step, "first_block": 3, "cfg": cfg}
    for step, cfg in ((4, CFG), (8, CFG), (2, CFG), (4, 4.0), (4, 3.0), (4, 2.5))
)
P2P = tuple(
    {"cross_share": c, "self_share": s, "cfg": cfg}
    for c, s, cfg in (
        (0.4, 0.6, CFG),
        (0.8, 0.4, CFG),
        (0.4, 0.6, 5.0),
        (0.2, 0.3, 4.0),
        (0.4, 0.6, 3.0),
        (0.2, 0.3, 3.0),
        (0.4, 0.6, 2.5),
    )
)


def kind_of(task: str) -> str:
    return "non-rigid" if task == "pose" else "rigid"


class Bench:
    """A worker's state: the world, the classifiers, batches and inversions made so far, and where results lie."""

    def __init__(self, run: Path, sizes: dict[str, int]):
        self.run, self.sizes = run, sizes
        self.world = load_world()
        self._batches: dict = {}
        self._inversions: dict = {}

    @cached_property
    def judge(self):
        return judging.load(self.run / "judge.pt")

    @property
    def chosen(self) -> dict:
        return json.loads((self.run / "chosen.json").read_text())

    def batch(self, task: str, stage: str):
        if (task, stage) not in self._batches:
            self._batches[task, stage] = make_batch(
                self.world, task, SCORED_ON if stage == "score" else TUNED_ON, 0, self.sizes[stage]
            )
        return self._batches[task, stage]

    def invert(self, kind: str, task: str, stage: str, **inputs) -> tuple[tuple, float]:
        """An inversion, made once, and its cost a scene."""
        key = (kind, task, stage, json.dumps(inputs, sort_keys=True))
        if key not in self._inversions:
            batch = self.batch(task, stage)
            self.world.passes.taken()
            made = getattr(methods, kind)(self.world, batch, **inputs)
            self._inversions[key] = made, self.world.passes.taken() / len(batch)
        return self._inversions[key]

    def forget(self) -> None:
        self._inversions.clear()

    def job(self, name: str, measure) -> dict:
        """The result of a job: read if there is one, else measured and written."""
        path = self.run / "results" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial, before = path.with_suffix(".partial"), time.process_time()
            result = measure()
            partial.write_text(json.dumps({**result, "seconds": round(time.process_time() - before, 1)}))
            partial.replace(path)
            print(name, flush=True)
        return json.loads(path.read_text())

    def reconstruction(self, name: str, kind: str, task: str, stage: str, **inputs) -> dict:
        def measure():
            batch = self.batch(task, stage)
            (trajectory, embeddings, latent), cost = self.invert(kind, task, stage, **inputs)
            return {
                "psnr": psnr(decode(self.world, latent), batch.picture).tolist(),
                "mse": (trajectory.latents[-1] - trajectory.pivots[-1]).square().flatten(1).mean(1).tolist(),
                "updates": embeddings.updates.sum(0).tolist(),
                "inversion_cost": cost, "inputs": inputs,
            }  # fmt: skip

        return self.job(name, measure)

    def edit(self, name: str, edit, task: str, stage: str, inversion: tuple | None = None, **settings) -> dict:
        """inversion: what :meth:`invert` takes, without task and stage."""

        def measure():
            batch = self.batch(task, stage)
            given, cost = ((), 0.0)
            if inversion:
                made, cost = self.invert(inversion[0], task, stage, **inversion[1])
                given = (made,)
            self.world.passes.taken()
            latent = edit(self.world, batch, *given, **settings)
            spent = self.world.passes.taken() / len(batch)
            pictures = decode(self.world, latent)
            if stage == "score":
                shown = self.run / "pictures" / f"{name}.pt"
                shown.parent.mkdir(parents=True, exist_ok=True)
                torch.save((pictures[:SHOWN] * 255).round().byte(), shown)
            return {**score(batch, pictures, self.judge), "cost": spent, "inversion_cost": cost, "settings": settings}

        return self.job(name, measure)


def default_inversion(chosen: dict) -> dict:
    """The node's defaults; the learning rate, where its rule has one, as found on other scenes."""
    (rule,) = (entry.default for entry in NODES["BaretTTISInversion"].define_schema().inputs if entry.id == "step_rule")
    return {"learning_rate": chosen["rates"]["adam"]["5"]} if rule == "adam" else {}


# --- stage "rates" ----------------------------------------------------------------------------------------------------


def train_judge(bench: Bench) -> None:
    if not (bench.run / "judge.pt").exists():
        judging.train(bench.run / "judge.partial")
        (bench.run / "judge.partial").replace(bench.run / "judge.pt")


def sweep_adam(bench: Bench) -> None:
    for updates in UPDATES["adam"]:
        for rate in RATES["adam"]:
            bench.reconstruction(
                f"rates-adam-{updates}-{rate}",
                "ttis",
                "pose",
                "rates",
                step_rule="adam",
                iterations=updates,
                learning_rate=rate,
                **methods.NO_STOP,
            )
    bench.forget()


def sweep_null(bench: Bench) -> None:
    for updates in UPDATES["null"]:
        for rate in RATES["null"]:
            bench.reconstruction(
                f"rates-null-{updates}-{rate}",
                "null_text",
                "pose",
                "rates",
                step_rule="adam",
                iterations=updates,
                learning_rate=rate,
                **methods.NO_STOP,
            )
    bench.forget()


def choose_rates(run: Path) -> dict:
    """The learning rate with the least mean error in dB, for each number of updates."""
    found: dict = {}
    for kind in RATES:
        for updates in UPDATES[kind]:
            tried = {rate: _mean(_read(run, f"rates-{kind}-{updates}-{rate}")["psnr"]) for rate in RATES[kind]}
            found.setdefault(kind, {})[str(updates)] = max(tried, key=tried.get)
    return found


# --- stage "tune" -----------------------------------------------------------------------------------------------------


def candidates(task: str, chosen: dict) -> dict[str, list[tuple]]:
    """For each method the settings to try: ``(edit, inversion, settings)``."""
    tuned = default_inversion(chosen)
    return {
        "BARET": [
            (
                "baret",
                ("ttis", {**tuned, "cfg": cfg}),
                {
                    "eta_start": eta,
                    "eta_end": 1.0 if eta == 1 else min(eta, 0.1),
                    "tau_sa": sa,
                    "tau_ca": ca,
                    "cfg": cfg,
                },
            )
            for eta, sa, ca, cfg in BARET[kind_of(task)]
        ],
        "plain": [("baret", ("direct", {"text": "target"}), {**methods.PLAIN, "cfg": cfg}) for cfg in GUIDANCES],
        "SDEdit": [("sdedit", None, settings) for settings in SDEDIT],
        "MasaCtrl": [("masactrl", ("direct", {}), settings) for settings in MASA],
        "prompt-to-prompt": [("prompt_to_prompt", ("direct", {}), settings) for settings in P2P],
    }


def tune(bench: Bench, task: str) -> None:
    for method, tried in candidates(task, bench.chosen).items():
        for index, (edit, inversion, settings) in enumerate(tried):
            bench.edit(f"tune-{task}-{method}-{index}", getattr(methods, edit), task, "tune", inversion, **settings)
    bench.forget()


def choose_settings(run: Path, chosen: dict) -> dict:
    """For each task and method: of the settings whose text success is within 0.05 of the best, those that keep most."""
    found: dict = {}
    for task in TASKS:
        for method, tried in candidates(task, chosen).items():
            results = [_read(run, f"tune-{task}-{method}-{index}") for index in range(len(tried))]
            best = max(_mean(result["text"]) for result in results)
            good = [index for index, result in enumerate(results) if _mean(result["text"]) >= best - 0.05]
            found.setdefault(task, {})[method] = tried[max(good, key=lambda index: _mean(results[index]["psnr"]))]
    return found


# --- stage "score" ----------------------------------------------------------------------------------------------------

CONVERGENCE = {
    "TTIS, Adam": ("ttis", "adam", (1, 2, 5), {}),
    "TTIS, secant": ("ttis", "secant", (1, 2), {}),
    "TTIS, secant with memory": ("ttis", "secant_memory", (1, 2), {}),
    "null-text, caption": ("null_text", "adam", (1, 5), {"text": "caption"}),
    "null-text, target text": ("null_text", "adam", (5,), {"text": "target"}),
}


def converge(bench: Bench, method: str) -> None:
    """Reconstruction of the pose scenes by updates spent; for TTIS also the pose edit that each gives, at the paper's settings."""
    kind, rule, counts, inputs = CONVERGENCE[method]
    rates = bench.chosen["rates"]["adam" if kind == "ttis" else "null"]
    for updates in counts:
        given = {"step_rule": rule, "iterations": updates, **methods.NO_STOP, **inputs}
        if rule == "adam":
            given["learning_rate"] = rates[str(updates)]
        bench.reconstruction(f"converge-{method}-{updates}", kind, "pose", "score", **given)
        if kind == "ttis":
            bench.edit(f"rules-{method}-{updates}", methods.baret, "pose", "score", (kind, given))
        bench.forget()
    if method == "TTIS, Adam":
        bench.reconstruction(f"converge-{method}-0", "ttis", "pose", "score", step_rule="adam", iterations=0)
        bench.edit(
            f"rules-{method}-0", methods.baret, "pose", "score", ("ttis", {"step_rule": "adam", "iterations": 0})
        )
    if method == "null-text, caption":
        bench.reconstruction(
            "published-null",
            "null_text",
            "pose",
            "score",
            step_rule="adam",
            iterations=10,
            learning_rate=PUBLISHED_RATE,
        )
    bench.forget()


def edits(bench: Bench, task: str) -> None:
    """All methods on one task, each at the settings found on other scenes, and BARET at its defaults."""
    chosen, batch = bench.chosen, bench.batch(task, "score")
    own = ("ttis", default_inversion(chosen))
    eta = {} if kind_of(task) == "non-rigid" else methods.RIGID

    def run(name, edit, inversion, **settings):
        bench.edit(
            f"edit-{task}-{name}", getattr(methods, edit), task, "score", inversion and tuple(inversion), **settings
        )

    bench.reconstruction(f"reconstruction-{task}", *("ttis", task, "score"), **own[1])
    run("BARET, defaults", "baret", own, **eta)
    if kind_of(task) == "non-rigid":
        run("reconstruction-only attention", "baret", own, **methods.RIGID)
    edit, inversion, settings = chosen["settings"][task]["BARET"]
    run("BARET", edit, inversion, **settings)
    run("BARET with auto_mask", edit, inversion, **settings, auto_mask=0.01)
    for name, function, extra in beyond(settings):
        if task == "pose" or task == "colour" and function in ("falling_guidance", "injection_outside"):
            run(name, function, inversion, **{**settings, **extra})
    for method in ("plain", "SDEdit", "MasaCtrl", "prompt-to-prompt"):
        run(method, *chosen["settings"][task][method][:2], **chosen["settings"][task][method][2])
    edit, inversion, settings = chosen["settings"][task]["plain"]
    run("plain with auto_mask", edit, inversion, **settings, auto_mask=0.01)
    if not (path := bench.run / "pictures" / f"scenes-{task}.pt").exists():
        torch.save(
            {
                "source": (batch.picture[:SHOWN] * 255).byte(),
                "ideal": (batch.ideal[:SHOWN] * 255).byte(),
                "texts": batch.texts[:SHOWN],
            },
            path,
        )
    bench.forget()


def beyond(settings: dict) -> list[tuple[str, str, dict]]:
    """Ideas beyond the paper, each against BARET at the same settings: name, edit, what differs."""
    return [
        ("guidance falling to 1", "falling_guidance", {"end": 1.0}),
        ("hard mask", "hard_mask", {"threshold": 0.01}),
        ("injection outside the mask only", "injection_outside", {"threshold": 0.01}),
        ("residual added back outside the mask", "residual_back", {"threshold": 0.01}),
        ("layers of the coarse grid only", "baret", {"max_resolution": 8}),
    ]


DIALS = {
    "eta_start": (0.0, 0.4, 0.6, 0.8, 1.0),
    "eta_end": (0.1, 0.8),
    "tau_sa": (0.0, 0.1, 0.3, 1.0),
    "tau_ca": (0.0, 0.2, 0.6, 1.0),
    "passes": ("conditional", "both"),
    "max_resolution": (0, 8),
    "cfg": (3.0, 5.0, 7.5),
}
DEFAULTS = {
    "eta_start": 0.8,
    "eta_end": 0.1,
    "tau_sa": 0.3,
    "tau_ca": 0.6,
    "passes": "conditional",
    "max_resolution": 0,
    "cfg": CFG,
}


def dial_name(dial: str, value) -> str:
    return "dial-default" if value == DEFAULTS[dial] else f"dial-{dial}-{value}"


def dials(bench: Bench) -> None:
    """One dial at a time from the defaults, on pose edits; guidance is turned in both nodes."""
    tuned = default_inversion(bench.chosen)
    for dial, values in DIALS.items():
        for value in values:
            inversion = ("ttis", {**tuned, "cfg": value} if dial == "cfg" and value != CFG else tuned)
            bench.edit(dial_name(dial, value), methods.baret, "pose", "score", inversion, **{**DEFAULTS, dial: value})
    bench.forget()


OPEN = ("inversion text: negative", "stop tested after the update", "schedule ends at sigma 0")


def open_choices(bench: Bench) -> None:
    """The alternatives to what the method's description leaves open: reconstruction and pose edit of each, all else at the defaults."""
    base = default_inversion(bench.chosen)
    module("baret_ops.inversions.step_rules").STEP_RULES["late"] = methods.tested_after

    def both(name, **changes):
        bench.reconstruction(f"open-{name}", "ttis", "pose", "score", **base, **changes)
        bench.edit(f"open-edit-{name}", methods.baret, "pose", "score", ("ttis", {**base, **changes}))
        bench.forget()

    both(OPEN[0], inversion_text="negative")
    both(OPEN[1], step_rule="late")
    with methods.ending_at_zero():
        both(OPEN[2])


GROUPS = {
    "rates": [(train_judge,), (sweep_adam,), (sweep_null,)],
    "tune": [(tune, task) for task in ("pose", *[task for task in TASKS if task != "pose"])],
    "score": [(converge, "null-text, caption"), (edits, "pose"), (edits, "colour"), (converge, "TTIS, Adam"), (edits, "background"), (edits, "animal"), (dials,),
              (converge, "TTIS, secant"), (converge, "TTIS, secant with memory"), (open_choices,), (converge, "null-text, target text")],
}  # fmt: skip
"""The groups of each stage, the longest first, so that both workers end together."""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _read(run: Path, name: str) -> dict:
    return json.loads((run / "results" / f"{name}.json").read_text())
