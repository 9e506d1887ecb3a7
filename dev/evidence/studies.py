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
from lab import CFG, PACK, TASKS, Batch, decode, judging, load_world, make_batch, psnr, score

TUNED_ON, SCORED_ON = 3_000_000_000, 3_500_000_000  # seeds; neither the model nor the classifiers saw them
SHOWN = 3  # scenes of each edit that are kept as pictures

RATES = {"adam": (2e-2, 4e-2, 8e-2, 1.6e-1), "null": (1e-2, 3e-2, 1e-1, 3e-1)}
UPDATES = {"adam": (1, 2, 5), "null": (1, 5)}
TUNED_BY = {"adam": "ttis", "null": "null_text"}  # whose learning rates these are
PUBLISHED_RATE = 1e-2  # null-text inversion's
AUTO_MASK = 0.01  # the threshold of BAM Edit's automatic mask

# What is tried for each method, the published or default settings first.
BARET = {
    "non-rigid": (
        # eta_start, tau_sa, tau_ca, cfg; eta_end is 0.1, or 0 where eta_start is
        (0.8, 0.3, 0.6, CFG),
        (0.4, 0.6, 0.6, CFG),
        (0.0, 0.3, 0.6, CFG),
        (0.0, 0.1, 0.6, CFG),
        (0.2, 0.2, 0.4, CFG),
        (0.4, 0.1, 0.3, CFG),
        (0.6, 0.1, 0.2, CFG),
        (0.0, 0.6, 0.2, CFG),
        (0.6, 0.3, 0.6, 10.0),
        (0.4, 0.3, 0.4, 10.0),
        (0.2, 0.6, 0.4, 10.0),
        (0.4, 0.1, 0.2, 10.0),
    ),
    "rigid": (
        # the same; eta_end is 1 where eta_start is
        (1.0, 0.3, 0.6, CFG),
        (1.0, 0.6, 0.6, CFG),
        (1.0, 0.3, 0.6, 4.0),
        (1.0, 0.6, 0.6, 4.0),
        (1.0, 0.3, 0.6, 3.0),
        (1.0, 0.6, 0.6, 3.0),
        (0.6, 0.2, 0.4, 3.0),
        (1.0, 0.6, 0.6, 2.5),
        (0.6, 0.2, 0.4, 2.5),
    ),
}
GUIDANCES = (CFG, 5.0, 4.0, 3.0, 2.5, 2.0)
SDEDIT = tuple({"strength": strength, "cfg": cfg} for strength in (0.5, 0.6, 0.7, 0.8, 0.9) for cfg in (CFG, 4.0))
MASA = (
    {"start_step": 4, "first_block": 3, "cfg": CFG},
    {"start_step": 8, "first_block": 3, "cfg": CFG},
    {"start_step": 2, "first_block": 3, "cfg": CFG},
    {"start_step": 4, "first_block": 3, "cfg": 4.0},
    {"start_step": 4, "first_block": 3, "cfg": 3.0},
    {"start_step": 4, "first_block": 3, "cfg": 2.5},
)
P2P = (
    {"cross_share": 0.4, "self_share": 0.6, "cfg": CFG},
    {"cross_share": 0.8, "self_share": 0.4, "cfg": CFG},
    {"cross_share": 0.4, "self_share": 0.6, "cfg": 5.0},
    {"cross_share": 0.2, "self_share": 0.3, "cfg": 4.0},
    {"cross_share": 0.4, "self_share": 0.6, "cfg": 3.0},
    {"cross_share": 0.2, "self_share": 0.3, "cfg": 3.0},
    {"cross_share": 0.4, "self_share": 0.6, "cfg": 2.5},
)


def kind_of(task: str) -> str:
    return "non-rigid" if task == "pose" else "rigid"


class Bench:
    """A worker's state: the world, the classifiers, batches and inversions made so far, and where results lie."""

    def __init__(self, run: Path, sizes: dict[str, int]):
        self.run, self.sizes = run, sizes
        self.world = load_world()
        self._batches: dict[tuple[str, str], Batch] = {}
        self._inversions: dict[tuple, tuple[tuple, float]] = {}

    @cached_property
    def judge(self):
        return judging.load(self.run / "judge.pt")

    @property
    def chosen(self) -> dict:
        return json.loads((self.run / "chosen.json").read_text())

    def batch(self, task: str, stage: str) -> Batch:
        """The scenes of a task in a stage."""
        if (task, stage) not in self._batches:
            seed = SCORED_ON if stage == "score" else TUNED_ON
            self._batches[task, stage] = make_batch(self.world, task, seed, 0, self.sizes[stage])
        return self._batches[task, stage]

    def invert(self, kind: str, task: str, stage: str, **inputs) -> tuple[tuple, float]:
        """An inversion, made once, and its cost a scene."""
        key = (kind, task, stage, json.dumps(inputs, sort_keys=True))
        if key not in self._inversions:
            invert, batch = getattr(methods, kind), self.batch(task, stage)
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

    def reconstruction(self, name: str, kind: str, task: str, stage: str, **inputs) -> dict:
        """The job of an inversion: how well it redraws the pictures."""

        def measure() -> dict:
            batch = self.batch(task, stage)
            (trajectory, embeddings, latent), cost = self.invert(kind, task, stage, **inputs)
            missed = trajectory.latents[-1] - trajectory.pivots[-1]
            return {
                "psnr": psnr(decode(self.world, latent), batch.picture).tolist(),
                "mse": missed.square().flatten(1).mean(1).tolist(),
                "updates": embeddings.updates.sum(0).tolist(),
                "inversion_cost": cost,
                "inputs": inputs,
            }

        return self.job(name, measure)

    def edit(self, name: str, method: str, task: str, stage: str, inversion: tuple | None = None, **settings) -> dict:
        """The job of an edit by a function of :mod:`methods`, scored.

        inversion: what :meth:`invert` takes, without task and stage; None for a method that has none.
        """

        def measure() -> dict:
            edit, batch, inverted, inversion_cost = getattr(methods, method), self.batch(task, stage), (), 0.0
            if inversion is not None:
                kind, inputs = inversion
                made, inversion_cost = self.invert(kind, task, stage, **inputs)
                inverted = (made,)
            latent, cost = self._counted(batch, lambda: edit(self.world, batch, *inverted, **settings))
            pictures = decode(self.world, latent)
            if stage == "score":
                self._keep_pictures(name, (pictures[:SHOWN] * 255).round().byte())
            scores = score(batch, pictures, self.judge)
            return {**scores, "cost": cost, "inversion_cost": inversion_cost, "settings": settings}

        return self.job(name, measure)

    def keep_scenes(self, task: str) -> None:
        """Keep the first scenes of a task as pictures, beside those of their edits."""
        batch = self.batch(task, "score")
        pictures = {"source": batch.picture, "ideal": batch.ideal}
        shown = {name: (value[:SHOWN] * 255).byte() for name, value in pictures.items()}
        self._keep_pictures(f"scenes-{task}", {**shown, "texts": batch.texts[:SHOWN]})

    def _keep_pictures(self, name: str, pictures) -> None:
        path = self.run / "pictures" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pictures, path)

    def _counted(self, batch: Batch, work: Callable):
        """What ``work()`` returns, and the UNet passes a scene that it took."""
        self.world.passes.reset()
        made = work()
        return made, self.world.passes.cost() / len(batch)


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
            bench.reconstruction(f"rates-{kind}-{updates}-{rate}", TUNED_BY[kind], "pose", "rates", **given)
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


def candidates(task: str, chosen: dict) -> dict[str, list[Candidate]]:
    """What is tried for each method."""
    tuned = default_inversion(chosen)
    of_target, of_caption = ("direct", {"text": "target"}), ("direct", {})
    return {
        "BARET": [_baret_candidate(tuned, *tried) for tried in BARET[kind_of(task)]],
        "plain": [("baret", of_target, {**methods.PLAIN, "cfg": cfg}) for cfg in GUIDANCES],
        "SDEdit": [("sdedit", None, settings) for settings in SDEDIT],
        "MasaCtrl": [("masactrl", of_caption, settings) for settings in MASA],
        "prompt-to-prompt": [("prompt_to_prompt", of_caption, settings) for settings in P2P],
    }


def _baret_candidate(tuned: dict, eta: float, tau_sa: float, tau_ca: float, cfg: float) -> Candidate:
    """BARET at a row of :data:`BARET`, inverted at the same guidance. tuned: the inversion's other inputs."""
    eta_end = 1.0 if eta == 1.0 else min(eta, 0.1)
    settings = {"eta_start": eta, "eta_end": eta_end, "tau_sa": tau_sa, "tau_ca": tau_ca, "cfg": cfg}
    return "baret", ("ttis", {**tuned, "cfg": cfg}), settings


def tune(bench: Bench, task: str) -> None:
    """Try all candidates on a task's tuning scenes."""
    for name, tried in candidates(task, bench.chosen).items():
        for index, (method, inversion, settings) in enumerate(tried):
            bench.edit(f"tune-{task}-{name}-{index}", method, task, "tune", inversion, **settings)
    bench.forget()


def choose_settings(run: Path, chosen: dict) -> dict:
    """For each task and method: of the settings whose text success is within 0.05 of the best, those that keep most."""
    found: dict = {}
    for task in TASKS:
        for name, tried in candidates(task, chosen).items():
            results = [_read(run, f"tune-{task}-{name}-{index}") for index in range(len(tried))]
            obeyed = [_mean(result["text"]) for result in results]
            kept = [_mean(result["psnr"]) for result in results]
            good = [index for index, success in enumerate(obeyed) if success >= max(obeyed) - 0.05]
            best = max(good, key=lambda index: kept[index])
            found.setdefault(task, {})[name] = tried[best]
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
        bench.reconstruction(f"converge-{name}-{updates}", kind, "pose", "score", **given)
        if kind == "ttis":
            bench.edit(f"rules-{name}-{updates}", "baret", "pose", "score", (kind, given))
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
        bench.reconstruction("published-null", kind, "pose", "score", **published)
    bench.forget()


def edits(bench: Bench, task: str) -> None:
    """All methods on one task, each at the settings found on other scenes, and BARET at its defaults."""
    chosen, non_rigid = bench.chosen, kind_of(task) == "non-rigid"
    best = chosen["settings"][task]
    default_inputs = default_inversion(chosen)
    by_default = ("ttis", default_inputs)

    def run(name: str, method: str, inversion, **settings) -> None:
        inversion = None if inversion is None else tuple(inversion)
        bench.edit(f"edit-{task}-{name}", method, task, "score", inversion, **settings)

    bench.reconstruction(f"reconstruction-{task}", "ttis", task, "score", **default_inputs)
    run("BARET, defaults", "baret", by_default, **({} if non_rigid else methods.RIGID))
    if non_rigid:
        run("reconstruction-only attention", "baret", by_default, **methods.RIGID)
    for name in ("BARET", "plain"):
        method, inversion, settings = best[name]
        run(name, method, inversion, **settings)
        run(f"{name} with auto_mask", method, inversion, **settings, auto_mask=AUTO_MASK)
    if non_rigid:
        _, inversion, settings = best["BARET"]
        for name, (method, extra) in BEYOND.items():
            run(name, method, inversion, **settings, **extra)
    for name in ("SDEdit", "MasaCtrl", "prompt-to-prompt"):
        method, inversion, settings = best[name]
        run(name, method, inversion, **settings)
    bench.keep_scenes(task)
    bench.forget()


BEYOND = {
    "hard mask": ("hard_mask", {"threshold": AUTO_MASK}),
    "layers of the coarse grid only": ("baret", {"max_resolution": 8}),
}
"""Ideas beyond the paper, each against BARET at the same settings: the method, and what differs."""

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
            bench.edit(dial_name(dial, value), "baret", "pose", "score", inversion, **{**DEFAULTS, dial: value})
    bench.forget()


GROUPS = {
    "rates": [(train_judge,), (sweep_rates, "adam"), (sweep_rates, "null")],
    "tune": [(tune, "pose"), (tune, "colour"), (tune, "background"), (tune, "animal")],
    "score": [
        (converge, "null-text, caption"),
        (edits, "pose"),
        (edits, "colour"),
        (converge, "TTIS, Adam"),
        (edits, "background"),
        (edits, "animal"),
        (dials,),
        (converge, "TTIS, secant"),
        (converge, "TTIS, secant with memory"),
        (converge, "null-text, target text"),
    ],
}
"""The groups of each stage, the longest first, so that both workers end together."""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _read(run: Path, name: str) -> dict:
    return json.loads((run / "results" / f"{name}.json").read_text())
