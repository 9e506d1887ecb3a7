"""What is measured: groups of jobs. A job's result is a dict of lists, one number per scene, and costs.

Three stages: ``rates`` sweeps learning rates, ``tune`` sweeps each edit's settings, both on scenes of their own;
``score`` measures on held-out scenes with what was chosen. The jobs of a group share inversions. Costs are UNet passes
a scene: 1 for a forward, 1.1 more for a backward.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import in_process
import methods
import torch
from lab import CFG, FORMS, PACK, TASKS, Batch, decode, judging, load_world, make_batch, psnr, score

TUNED_ON, SCORED_ON = 3_000_000_000, 3_500_000_000  # seeds; neither the model nor the classifiers saw them
SHOWN = 3  # scenes of each edit that are kept as pictures

RATES = {"adam": (2e-2, 4e-2, 8e-2, 1.6e-1), "null": (1e-2, 3e-2, 1e-1, 3e-1)}
UPDATES = {"adam": (1, 2, 5), "null": (1, 5)}
TUNED_BY = {"adam": "ttis", "null": "null_text"}  # whose learning rates these are
PUBLISHED_RATE = 1e-2  # null-text inversion's

# What is tried for each method; the first is the published setting, or the node's default.
BARET = (
    # eta_start, tau_sa, tau_ca, cfg; eta_end is 0.1, or 0 or 1 where eta_start is
    (0.8, 0.3, 0.6, CFG),
    (0.0, 0.1, 0.2, CFG),
    (1.0, 0.3, 0.6, 4.0),
    (0.6, 0.2, 0.4, 4.0),
)
GUIDANCES = (CFG, 5.0, 3.0)
SDEDIT = (
    {"strength": 0.8, "cfg": CFG},
    {"strength": 0.5, "cfg": 4.0},
    {"strength": 0.6, "cfg": 4.0},
    {"strength": 0.8, "cfg": 4.0},
)
MASA = (
    {"start_step": 4, "first_block": 3, "cfg": CFG},
    {"start_step": 8, "first_block": 3, "cfg": CFG},
    {"start_step": 4, "first_block": 3, "cfg": 4.0},
)
P2P = (
    {"cross_share": 0.4, "self_share": 0.6, "cfg": CFG},
    {"cross_share": 0.2, "self_share": 0.3, "cfg": 4.0},
    {"cross_share": 0.4, "self_share": 0.6, "cfg": 2.5},
)


Cell = tuple[str, str]
"""A task and the form of its texts."""
CELLS = tuple((task, form) for form in FORMS for task in TASKS)
POSES: Cell = ("pose", "full")
"""On which reconstruction and dials are studied."""


class Bench:
    """A worker's state: the world, the classifiers, batches and inversions made so far, and where results lie."""

    def __init__(self, run: Path, sizes: dict[str, int], world: Path | None):
        self.run, self.sizes = run, sizes
        self.world = load_world(world)
        self._batches: dict[tuple[str, str, str], Batch] = {}
        self._inversions: dict[tuple, tuple[tuple, float]] = {}

    @cached_property
    def judge(self):
        return judging.load(self.run / "judge.pt")

    @property
    def chosen(self) -> dict:
        return json.loads((self.run / "chosen.json").read_text())

    def batch(self, cell: Cell, stage: str) -> Batch:
        """The scenes of a task in a stage, with texts of a form."""
        task, form = cell
        if (task, form, stage) not in self._batches:
            seed = SCORED_ON if stage == "score" else TUNED_ON
            self._batches[task, form, stage] = make_batch(self.world, task, form, seed, self.sizes[stage])
        return self._batches[task, form, stage]

    def invert(self, kind: str, cell: Cell, stage: str, **inputs) -> tuple[tuple, float]:
        """An inversion, made once, and its cost a scene."""
        key = (kind, cell, stage, json.dumps(inputs, sort_keys=True))
        if key not in self._inversions:
            invert, batch = getattr(methods, kind), self.batch(cell, stage)
            self._inversions[key] = self._counted(batch, lambda: invert(self.world, batch, **inputs))
        return self._inversions[key]

    def forget(self) -> None:
        self._inversions.clear()

    def job(self, name: str, measure: Callable[[], dict]) -> dict:
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

    def reconstruction(self, name: str, kind: str, cell: Cell, stage: str, **inputs) -> dict:
        """The job of an inversion: how well it redraws the pictures."""

        def measure() -> dict:
            batch = self.batch(cell, stage)
            (trajectory, embeddings, latent), cost = self.invert(kind, cell, stage, **inputs)
            missed = trajectory.latents[-1] - trajectory.pivots[-1]
            return {
                "psnr": psnr(decode(self.world, latent), batch.picture).tolist(),
                "mse": missed.square().flatten(1).mean(1).tolist(),
                "updates": embeddings.updates.sum(0).tolist(),
                "inversion_cost": cost,
                "inputs": inputs,
            }

        return self.job(name, measure)

    def edit(self, name: str, method: str, cell: Cell, stage: str, inversion: tuple | None = None, **settings) -> dict:
        """The job of an edit by a function of :mod:`methods`, scored.

        inversion: what :meth:`invert` takes, without task and stage; None for a method that has none.
        """

        def measure() -> dict:
            edit, batch, inverted, inversion_cost = getattr(methods, method), self.batch(cell, stage), (), 0.0
            if inversion is not None:
                kind, inputs = inversion
                made, inversion_cost = self.invert(kind, cell, stage, **inputs)
                inverted = (made,)
            latent, cost = self._counted(batch, lambda: edit(self.world, batch, *inverted, **settings))
            scores = self._scored(name, batch, stage, decode(self.world, latent))
            return {**scores, "cost": cost, "inversion_cost": inversion_cost, "settings": settings}

        return self.job(name, measure)

    def auto_edit(self, name: str, cell: Cell, inversion: tuple, seed: int) -> dict:
        """The job of Auto Edit: scored as any edit, and whether its judgement of each candidate is right.

        scores, obeyed: of each candidate of each scene, None where it was not tried. good: what it calls so.
        """

        def measure() -> dict:
            batch, (kind, inputs) = self.batch(cell, "score"), inversion
            made, inversion_cost = self.invert(kind, cell, "score", **inputs)
            found, cost = self._counted(batch, lambda: methods.auto_edit(self.world, batch, made, seed))
            family = made[0].family
            pictures = decode(self.world, methods.wires.latent_out(family, found.edit))
            tried = []
            for candidates in found.candidates:
                seen = decode(self.world, methods.wires.latent_out(family, candidates))
                tried.append(score(batch, seen, self.judge)["text"])
            known = (~found.scores.isnan()).tolist()
            return {
                **self._scored(name, batch, "score", pictures),
                "cost": cost,
                "inversion_cost": inversion_cost,
                "settings": {},
                "chosen": found.chosen.tolist(),
                "good": found.good.float().tolist(),
                "scores": [_where(row, there) for row, there in zip(found.scores.tolist(), known)],
                "obeyed": [_where(row, there) for row, there in zip(tried, known)],
            }

        return self.job(name, measure)

    def _scored(self, name: str, batch: Batch, stage: str, pictures) -> dict:
        """The scores of pictures, the first of which are kept."""
        if stage == "score":
            self._keep_pictures(name, (pictures[:SHOWN] * 255).round().byte())
        return score(batch, pictures, self.judge)

    def keep_scenes(self, cell: Cell) -> None:
        """Keep the first scenes of a task as pictures, beside those of their edits."""
        batch = self.batch(cell, "score")
        pictures = {"source": batch.picture, "ideal": batch.ideal}
        shown = {name: (value[:SHOWN] * 255).byte() for name, value in pictures.items()}
        self._keep_pictures("-".join(["scenes", *cell]), {**shown, "texts": batch.texts[:SHOWN]})

    def _keep_pictures(self, name: str, pictures) -> None:
        path = self.run / "pictures" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pictures, path)

    def _counted(self, batch: Batch, work: Callable):
        """What ``work()`` returns, and the UNet passes a scene that it took."""
        self.world.passes.reset()
        made = work()
        return made, self.world.passes.cost() / len(batch)


def _where(values: list, there: list[bool]) -> list:
    return [value if known else None for value, known in zip(values, there)]


def default_inversion(chosen: dict) -> dict:
    """The node's defaults; the learning rate, where its rule has one, as found on other scenes."""
    rule = in_process.defaults(PACK.nodes["BaretTTISInversion"])["step_rule"]
    return {"learning_rate": chosen["rates"]["adam"]["5"]} if rule == "adam" else {}


# --- stage "rates" ----------------------------------------------------------------------------------------------------


def train_judge(bench: Bench) -> None:
    """Train the classifiers, unless the run has them."""
    if not (bench.run / "judge.pt").exists():
        judging.train(bench.run / "judge.partial")
        (bench.run / "judge.partial").replace(bench.run / "judge.pt")


def sweep_rates(bench: Bench, kind: str) -> None:
    """Reconstruct pose scenes with Adam at each learning rate, for each number of updates."""
    for updates in UPDATES[kind]:
        for rate in RATES[kind]:
            given = {"step_rule": "adam", "iterations": updates, "learning_rate": rate, **methods.NO_STOP}
            bench.reconstruction(f"rates-{kind}-{updates}-{rate}", TUNED_BY[kind], POSES, "rates", **given)
    bench.forget()


def choose_rates(run: Path) -> dict:
    """The learning rate with the highest mean PSNR, for each number of updates."""
    found: dict = {}
    for kind in RATES:
        for updates in UPDATES[kind]:
            tried = {rate: _mean(_read(run, f"rates-{kind}-{updates}-{rate}")["psnr"]) for rate in RATES[kind]}
            found.setdefault(kind, {})[str(updates)] = max(tried, key=lambda rate: tried[rate])
    return found


# --- stage "tune" -----------------------------------------------------------------------------------------------------

Candidate = tuple[str, tuple | None, dict]
"""``(method, inversion, settings)``, as :meth:`Bench.edit` takes them."""


def candidates(chosen: dict) -> dict[str, list[Candidate]]:
    """What is tried for each method, the published or default setting first."""
    tuned = default_inversion(chosen)
    of_target, of_caption = ("direct", {"text": "target"}), ("direct", {})
    return {
        "BARET": [_baret_candidate(tuned, *tried) for tried in BARET],
        "plain sampling": [("baret", of_target, {**methods.PLAIN, "cfg": cfg}) for cfg in GUIDANCES],
        "SDEdit": [("sdedit", None, settings) for settings in SDEDIT],
        "MasaCtrl": [("masactrl", of_caption, settings) for settings in MASA],
        "prompt-to-prompt": [("prompt_to_prompt", of_caption, settings) for settings in P2P],
    }


def _baret_candidate(tuned: dict, eta: float, tau_sa: float, tau_ca: float, cfg: float) -> Candidate:
    """BARET at a row of :data:`BARET`, inverted at the same guidance. tuned: the inversion's other inputs."""
    eta_end = 1.0 if eta == 1.0 else min(eta, 0.1)
    settings = {"eta_start": eta, "eta_end": eta_end, "tau_sa": tau_sa, "tau_ca": tau_ca, "cfg": cfg}
    return "baret", ("ttis", {**tuned, "cfg": cfg}), settings


def tune(bench: Bench, *cell: str) -> None:
    """Try all candidates on a task's tuning scenes."""
    task, form = cell
    for name, tried in candidates(bench.chosen).items():
        for index, (method, inversion, settings) in enumerate(tried):
            bench.edit(f"tune-{form}-{task}-{name}-{index}", method, (task, form), "tune", inversion, **settings)
    bench.forget()


def choose_settings(run: Path, chosen: dict) -> dict:
    """The number of the best candidate for each form, task and method.

    Of the settings whose *all* is within 0.05 of the best, those that keep most.
    """
    found: dict = {}
    for task, form in CELLS:
        for name, tried in candidates(chosen).items():
            results = [_read(run, f"tune-{form}-{task}-{name}-{index}") for index in range(len(tried))]
            right = [_mean(result["all"]) for result in results]
            kept = [_mean(result["psnr"]) for result in results]
            good = [index for index, share in enumerate(right) if share >= max(right) - 0.05]
            best = max(good, key=lambda index: kept[index])
            found.setdefault(form, {}).setdefault(task, {})[name] = best
    return found


# --- stage "score" ----------------------------------------------------------------------------------------------------

CONVERGENCE = {
    "TTIS, Adam": ("ttis", "adam", (1, 2, 5), {}),
    "TTIS, secant": ("ttis", "secant", (1, 2), {}),
    "TTIS, secant with memory": ("ttis", "secant_memory", (1, 2), {}),
    "null-text, caption": ("null_text", "adam", (1, 5), {"text": "caption"}),
    "null-text, target text": ("null_text", "adam", (5,), {"text": "target"}),
}
"""By name: the inversion, its step rule, numbers of updates a step, and further inputs."""


def converge(bench: Bench, name: str) -> None:
    """Reconstruction of the pose scenes by updates spent; for TTIS also the pose edit that each gives, at the paper's
    settings."""
    kind, rule, counts, inputs = CONVERGENCE[name]
    rates = bench.chosen["rates"]["adam" if kind == "ttis" else "null"]

    def measure(updates: int, given: dict) -> None:
        bench.reconstruction(f"converge-{name}-{updates}", kind, POSES, "score", **given)
        if kind == "ttis":
            bench.edit(f"rules-{name}-{updates}", "baret", POSES, "score", (kind, given))
        bench.forget()

    for updates in counts:
        given = {"step_rule": rule, "iterations": updates, **methods.NO_STOP, **inputs}
        if rule == "adam":
            given["learning_rate"] = rates[str(updates)]
        measure(updates, given)
    if name == "TTIS, Adam":
        measure(0, {"step_rule": "adam", "iterations": 0})
    if name == "null-text, caption":
        published = {"step_rule": "adam", "iterations": 10, "learning_rate": PUBLISHED_RATE}
        bench.reconstruction("published-null", kind, POSES, "score", **published)
    bench.forget()


AUTO_SEEDS = {"Auto Edit": 0, "Auto Edit, other noise": 1}
PEERS = ("BARET", "plain sampling", "SDEdit", "MasaCtrl", "prompt-to-prompt")
OTHER_NOISE = 2  # SDEdit's other seed


def auto(bench: Bench, task: str, form: str, *names: str) -> None:
    """Auto Edit on one task, by the seeds of these names."""
    inversion = ("ttis", {**default_inversion(bench.chosen), "cfg": CFG})
    for name in names:
        bench.auto_edit(f"fixed-{form}-{task}-{name}", (task, form), inversion, AUTO_SEEDS[name])
    bench.forget()


def fixed(bench: Bench, task: str, form: str, *names: str) -> None:
    """These methods on one task, each at one setting for all tasks: the published one, or the node's defaults."""
    for name, tried in candidates(bench.chosen).items():
        if name not in names:
            continue
        method, inversion, settings = tried[0]
        bench.edit(f"fixed-{form}-{task}-{name}", method, (task, form), "score", inversion, **settings)
        if name == "SDEdit" and form == "short":
            again = {**settings, "seed": OTHER_NOISE}
            bench.edit(f"fixed-{form}-{task}-SDEdit, other noise", method, (task, form), "score", **again)
    bench.keep_scenes((task, form))
    bench.forget()


def best(bench: Bench, *cell: str) -> None:
    """The methods on one task whose best setting, found on other scenes, is not the one for all tasks."""
    task, form = cell
    for name, tried in candidates(bench.chosen).items():
        index = bench.chosen["settings"][form][task][name]
        if index:
            method, inversion, settings = tried[index]
            bench.edit(f"best-{form}-{task}-{name}", method, (task, form), "score", inversion, **settings)
    bench.forget()


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
            turned = {"cfg": value} if dial == "cfg" and value != CFG else {}
            inversion = ("ttis", {**tuned, **turned})
            bench.edit(dial_name(dial, value), "baret", POSES, "score", inversion, **{**DEFAULTS, dial: value})
    bench.forget()


GROUPS = {
    "rates": [(train_judge,), (sweep_rates, "adam"), (sweep_rates, "null")],
    "tune": [(tune, *cell) for cell in CELLS],
    "score": [
        *((auto, task, "short", *AUTO_SEEDS) for task in TASKS),
        *((auto, task, "full", "Auto Edit") for task in TASKS),
        *((fixed, *cell, *PEERS) for cell in CELLS),
        *((best, *cell) for cell in CELLS),
        (converge, "null-text, caption"),
        (converge, "TTIS, Adam"),
        (dials,),
        (converge, "TTIS, secant"),
        (converge, "TTIS, secant with memory"),
        (converge, "null-text, target text"),
    ],
}
"""The groups of each stage."""
OTHER_WORLD = {
    "rates": [(train_judge,)],
    "score": [
        *((auto, task, "short", "Auto Edit") for task in TASKS),
        *((fixed, task, "short", "BARET", "plain sampling") for task in TASKS),
    ],
}
"""What another world's model is asked: short texts, each method at its one setting."""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _read(run: Path, name: str) -> dict:
    return json.loads((run / "results" / f"{name}.json").read_text())
