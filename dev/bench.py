"""What TTIS and BAM cost beyond their UNet passes, beside null-text inversion as published: tables and JSON.

    python dev/bench.py            # on whatever is there: a CUDA card, else the CPU
    python dev/bench.py --quick    # the same tables from a few steps at small sizes, to see that all of it runs
    python dev/bench.py --models sd15 --latents 64 128 --dtypes bfloat16 float16 --batches 1 8 --steps 50    # a card

A *unit* is one forward of the bare UNet, or one forward and backward to the embedding. *Ideal* is the rows that a run
sent through the UNet times the unit of their kind; *overhead* is the run's time over that. Units and runs alternate,
and medians are shown. Times on a shared machine say nothing by themselves; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import comfyui
import in_process

ROOT = Path(__file__).resolve().parents[1]
CFG = 7.5
WORLD_HEADS, SD15_HEADS = 2, 8
UNSTOPPED = {"stop_threshold": 0.0, "stop_growth": 0.0}  # every step takes all its updates
ESTIMATES = "host.memory"
WORLD_SEED = 3_000_000_000  # of scenes that the drawn world's model was not trained on

TITLES = {
    "overhead": "Runs through the nodes over the same number of bare UNet passes",
    "memory": "Peak memory, with the model loaded",
    "peer": "Beside null-text inversion",
    "growth": "How TTIS grows (drawn world)",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=("world", "sd15"), default=("world", "sd15"))
    sized = parser.add_argument_group("the SD1.5-sized model")
    sized.add_argument("--latents", nargs="+", type=int, help="sides of square latents (default: 32, on a GPU 64)")
    sized.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16", "float16"),
        help="of its weights (default: float32, on a GPU bfloat16)",
    )
    sized.add_argument("--batches", nargs="+", type=int, default=[1], help="pictures at once (default: 1)")
    sized.add_argument("--steps", type=int, help="of its runs (default: 4, on a GPU 50); the drawn world's have 50")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, help="of torch on a CPU (default: 1 for the drawn world, all cores for the other)")
    add("--quick", action="store_true", help="few steps and small sizes")
    add("--out", type=Path, default=Path("bench"), help="writes OUT.md and OUT.json (default: bench)")
    comfyui.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    host = comfyui.enter(options, tests=True)
    bench = Bench(host)
    tables = {"about": about(host, bench), **{name: [] for name in TITLES}}
    if "sd15" in options.models:
        measure_sd15(bench, options, tables)
    if "world" in options.models:
        measure_world(bench, options, tables)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(tables, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(tables))
    print(markdown(tables) + f"\nWritten to {options.out}.md and {options.out}.json")


def about(host: comfyui.Host, bench: Bench) -> dict:
    """What the tables were measured with."""
    describe = ["git", "describe", "--always", "--dirty"]
    public = [argument for argument in sys.argv[1:] if not argument.startswith(str(Path.home()))]
    return {
        "command": " ".join(["python dev/bench.py", *public]),
        "commit": subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "device": bench.torch.cuda.get_device_name() if bench.cuda else in_process.processor(),
        "ComfyUI": host.version,
        "torch": bench.torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def measure_sd15(bench: Bench, options: argparse.Namespace, tables: dict) -> None:
    """The tables of a UNet at SD1.5's true size with random weights."""
    bench.torch.set_num_threads(options.threads or os.cpu_count())
    side, steps = (64, 50) if bench.cuda else (8, 2) if options.quick else (32, 4)
    for dtype in options.dtypes or ["bfloat16" if bench.cuda else "float32"]:
        model, name = bench.sd15(dtype), f"SD1.5-sized, {dtype}"
        for each in options.latents or [side]:
            for batch in options.batches:
                problem = bench.random_problem(name, model, batch, each)
                tables["overhead"] += bench.overhead(problem, options.steps or steps, options.repeats)
                tables["memory"] += bench.memory(problem)
        problem = bench.random_problem(name, model, 1, 8 if options.quick else side)
        tables["peer"] += bench.peer_time(problem, options.repeats)
        del model, problem
        gc.collect()


def measure_world(bench: Bench, options: argparse.Namespace, tables: dict) -> None:
    """The tables of the drawn world's trained model."""
    bench.torch.set_num_threads(options.threads or 1)
    steps, pictures = (4, 2) if options.quick else (50, 8)
    tables["overhead"] += bench.overhead(bench.world_problem(1), steps, options.repeats)
    tables["peer"] += bench.peer_passes(bench.world_problem(pictures), steps)
    tables["growth"] += bench.growth(steps // 2)


@dataclass(frozen=True)
class Problem:
    """A MODEL, a LATENT to edit and two texts as CONDITIONING. vae: where the latent came from, if from a picture."""

    name: str
    model: object
    latent: dict
    positive: list
    negative: list
    vae: object = None

    @property
    def batch(self) -> int:
        return len(self.latent["samples"])

    @property
    def side(self) -> int:
        return self.latent["samples"].shape[-1]

    @property
    def size(self) -> str:
        return f"{self.side}x{self.side}"

    @property
    def unet(self):
        return self.model.model.diffusion_model


@dataclass(frozen=True)
class Sample:
    """One run beside the units of its time.

    seconds: of the run. plain, tuned: its rows without and with a gradient.
    forward, both: seconds of a bare row without and with one.
    """

    seconds: float
    plain: float
    tuned: float
    forward: float
    both: float

    @property
    def overhead(self) -> float:
        return self.seconds / (self.plain * self.forward + self.tuned * self.both)


class Bench:
    """The host in this process, the pack in it, and measurements of runs through its nodes."""

    def __init__(self, host: comfyui.Host):
        import torch

        self.torch, self.cuda = torch, torch.cuda.is_available()
        in_process.load_host(host.path, cpu=not self.cuda)
        self.pack = in_process.load_pack()
        self.device = torch.device("cuda" if self.cuda else "cpu")

    # --- problems ---------------------------------------------------------------------------------------------------

    def sd15(self, dtype: str):
        """The UNet of SD1.5 at its true size with random weights, as a MODEL."""
        return in_process.random_model(in_process.SD15, heads=SD15_HEADS, dtype=getattr(self.torch, dtype))

    def random_problem(self, name: str, model, batch: int, side: int) -> Problem:
        def draw(*shape, seed):
            return self.torch.randn(*shape, generator=self.torch.Generator().manual_seed(seed))

        positive, negative = draw(1, 77, 768, seed=1), draw(1, 77, 768, seed=2)
        latent = {"samples": draw(batch, 4, side, side, seed=3)}
        return Problem(name, model, latent, [[positive, {}]], [[negative, {}]])

    def world_problem(self, batch: int, side: int = 16) -> Problem:
        """Drawn scenes, and texts that ask for another pose. side: of the latent; above 16 the scene repeats."""
        scenes = self.pack.module("world.scenes")
        model, clip, vae, _ = self.pack.call("BaretWorldLoader")
        sources = scenes.sample(WORLD_SEED, batch)
        targets = [scenes.replace(scene, pose=(scene.pose + 1) % len(scenes.POSES)) for scene in sources]

        def encoded(text):
            ((entry,),) = in_process.call_stock("CLIPTextEncode", clip=clip, text=text)
            return entry[0]

        positive = self.torch.cat([encoded(scenes.plain_caption(scene)) for scene in targets])
        pixels = scenes.render(sources)[0].repeat(1, side // 16, side // 16, 1)
        (latent,) = in_process.call_stock("VAEEncode", vae=vae, pixels=pixels)
        return Problem("drawn world", model, latent, [[positive, {}]], [[encoded(""), {}]], vae)

    # --- runs -------------------------------------------------------------------------------------------------------

    def invert(self, problem: Problem, steps: int, **inputs) -> tuple:
        """A trajectory, embeddings and the reconstruction."""
        texts = {"positive": problem.positive, "negative": problem.negative}
        inputs = {"model": problem.model, "latent": problem.latent, "cfg": CFG, "steps": steps, **texts, **inputs}
        return self.pack.call("BaretTTISInversion", **inputs)

    def edit(self, problem: Problem, trajectory, embeddings) -> tuple:
        (moving,) = self.pack.call("BaretTransitionEmbedding", embeddings=embeddings)
        inputs = {"model": problem.model, "trajectory": trajectory, "embeddings": moving, "cfg": CFG}
        return self.pack.call("BaretBAMEdit", **inputs)

    # --- instruments ------------------------------------------------------------------------------------------------

    def timed(self, work: Callable) -> tuple:
        """Seconds that `work` takes, and what it returns."""
        self.settle()
        started = time.perf_counter()
        result = work()
        self.settle()
        return time.perf_counter() - started, result

    def settle(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def unit(self, problem: Problem, gradient: bool) -> float:
        """Seconds of one row through the bare UNet, with the way back to the embedding or without it."""
        torch = self.torch
        place = {"device": self.device, "dtype": problem.model.model.get_dtype_inference()}
        x = torch.randn(problem.batch, 4, problem.side, problem.side, **place)
        t = torch.full([problem.batch], 500.0, device=self.device)
        tokens, width = problem.positive[0][0].shape[-2:]
        context = torch.randn(problem.batch, tokens, width, **place, requires_grad=gradient)

        def work():
            out = problem.unet(x, t, context=context, transformer_options={})
            return torch.autograd.grad(out, context, out.detach()) if gradient else out

        with torch.set_grad_enabled(gradient):
            first, _ = self.timed(work)
            more = min(9, int(0.3 / first))  # a short one is measured several times
            seconds = [first, *(self.timed(work)[0] for _ in range(more))]
        return statistics.median(seconds) / problem.batch

    def sample(self, problem: Problem, work: Callable) -> Sample:
        """One run of `work`, between units measured before and after it."""
        before = self.unit(problem, False), self.unit(problem, True)
        with in_process.Passes(problem.unet) as passes:
            seconds, _ = self.timed(work)
        after = self.unit(problem, False), self.unit(problem, True)
        forward, both = ((a + b) / 2 for a, b in zip(before, after))
        tuned = passes.differentiated
        return Sample(seconds, passes.rows - tuned, tuned, forward, both)

    def peak(self, work: Callable) -> tuple[int, int]:
        """Most bytes used while `work` runs, above what was in use before and in all.

        On a card what torch allocated there, else the process's resident memory, which only Linux tells.
        """
        gc.collect()
        if self.cuda:
            cuda = self.torch.cuda
            cuda.empty_cache()
            cuda.reset_peak_memory_stats()
            before = cuda.memory_allocated()
            work()
            return cuda.max_memory_allocated() - before, cuda.max_memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)
        before = in_process.begin_peak()
        work()
        return in_process.peak() - before, in_process.peak()

    # --- tables: overhead, memory, growth ---------------------------------------------------------------------------

    def overhead(self, problem: Problem, steps: int, repeats: int) -> list[dict]:
        """Runs through the nodes over the same number of bare passes."""
        self.invert(problem, 2)  # loads the model and leaves its weights differentiable
        untuned = self.invert(problem, steps, iterations=0)[:2]
        adam = {"step_rule": "adam", "iterations": 5}
        runs = {
            "TTIS, default rule": lambda: self.invert(problem, steps, **UNSTOPPED),
            "TTIS, adam, 5 updates": lambda: self.invert(problem, steps, **adam, **UNSTOPPED),
            "BAM": lambda: self.edit(problem, *untuned),
        }
        samples = {name: [] for name in runs}
        for _ in range(repeats):
            for name, work in runs.items():
                samples[name].append(self.sample(problem, work))
        return [_overhead_row(problem, name, steps, found) for name, found in samples.items()]

    def memory(self, problem: Problem) -> list[dict]:
        """The peaks of two steps of each run; [] where the system tells no peak."""
        if not self.cuda and not Path("/proc/self/clear_refs").exists():
            return []
        inversion = self.invert(problem, 2)[:2]
        estimate = self.pack.module(ESTIMATES).activations
        shape = tuple(problem.latent["samples"].shape[1:])
        table = []

        def add(run, work, estimated=None):
            above, whole = self.peak(work)
            seconds = statistics.median(self.timed(work)[0] for _ in range(2))
            table.append(
                {
                    "model": problem.name,
                    "latent": problem.size,
                    "batch": problem.batch,
                    "run": run,
                    "peak above rest, MB": round(above / 1e6),
                    "estimated for backward, MB": None if estimated is None else round(estimated / 1e6),
                    "peak in all, MB": round(whole / 1e6),
                    "2 steps, s": round(seconds, 2),
                }
            )

        for recompute, run in ((False, "TTIS"), (True, "TTIS, blocks computed again")):
            with self.recomputing(recompute):
                estimated = estimate(problem.model, problem.batch, shape, recompute=recompute)
                add(run, lambda: self.invert(problem, 2), estimated)
        add("BAM", lambda: self.edit(problem, *inversion))
        return table

    @contextlib.contextmanager
    def recomputing(self, recompute: bool) -> Iterator[None]:
        """Within it, the tuning computes blocks again or keeps all activations, whatever memory is free."""
        estimates = self.pack.module(ESTIMATES)
        decide = estimates.must_recompute
        estimates.must_recompute = lambda *_, **__: recompute
        try:
            yield
        finally:
            estimates.must_recompute = decide

    def growth(self, steps: int) -> list[dict]:
        """Seconds and rows of TTIS on the drawn world as one thing at a time doubles."""
        return [
            self.grown("base", steps),
            self.grown("steps doubled", 2 * steps),
            self.grown("iterations doubled", steps, iterations=2),
            self.grown("batch doubled", steps, batch=2),
            self.grown("area quadrupled", steps, side=32),
        ]

    def grown(self, what: str, steps: int, batch: int = 1, side: int = 16, iterations: int = 1) -> dict:
        problem = self.world_problem(batch, side)
        self.invert(problem, 2)

        def work():
            return self.invert(problem, steps, iterations=iterations, **UNSTOPPED)

        with in_process.Passes(problem.unet) as passes:
            work()
        seconds = statistics.median(self.timed(work)[0] for _ in range(3))
        plain, tuned = passes.rows - passes.differentiated, passes.differentiated
        sample = Sample(seconds, plain, tuned, self.unit(problem, False), self.unit(problem, True))
        return {
            "what": what,
            "rows": plain,
            "rows with gradient": tuned,
            "s": round(seconds, 3),
            "overhead": round(sample.overhead, 3),
        }

    # --- tables: the peer -------------------------------------------------------------------------------------------

    def peer_inputs(self, problem: Problem) -> tuple:
        """Latents in VP form and both texts, as the peer takes them: tensors ``[B,...]`` on the device."""
        family = self.pack.module("host.models").family_of(problem.model)
        z = problem.latent["samples"].to(self.device) * family.latent_scale
        texts = (problem.positive[0][0], problem.negative[0][0])
        return z.clone(), *(text.to(self.device).expand(len(z), -1, -1).clone() for text in texts)

    def peer_time(self, problem: Problem, repeats: int) -> list[dict]:
        """Wall time by step: the peer to its own end, TTIS, and a plain edit of six rows a step beside BAM."""
        from peer import NullText, diffusers_unet

        torch, steps = self.torch, 2
        null_text = NullText(diffusers_unet(problem.model, in_process.SD15, SD15_HEADS), steps, CFG)
        inputs = self.peer_inputs(problem)
        inversion = self.invert(problem, steps)[:2]
        z, text = (torch.cat([value] * 6).to(null_text.unet.dtype) for value in inputs[:2])
        times = torch.full([6], 500.0, device=self.device)

        def plain_edit():
            with torch.no_grad():
                for _ in range(steps):
                    problem.unet(z, times, context=text, transformer_options={})

        runs = {
            "null-text inversion, diffusers": lambda: null_text.run(*inputs, updates=10),
            "TTIS, default rule": lambda: self.invert(problem, steps),
            "plain edit, 6 rows a step": plain_edit,
            "BAM": lambda: self.edit(problem, *inversion),
        }
        seconds = {name: [] for name in runs}
        for _ in range(repeats):
            for name, work in runs.items():
                seconds[name].append(self.timed(work)[0])
        place = {"model": problem.name, "latent": problem.size}
        return [
            {**place, "run": name, "s a step": round(statistics.median(found) / steps, 3)}
            for name, found in seconds.items()
        ]

    def peer_passes(self, problem: Problem, steps: int) -> list[dict]:
        """On the trained model: passes spent, by picture, and the reconstruction they buy."""
        from peer import NullText, diffusers_unet

        unet = diffusers_unet(problem.model, self.pack.module("host.world").UNET, WORLD_HEADS)
        null_text = NullText(unet, steps, CFG)
        psnr = self.pack.module("baret_ops.metrics").psnr
        inputs = self.peer_inputs(problem)
        table = []

        def decoded(z):
            (picture,) = in_process.call_stock("VAEDecode", vae=problem.vae, samples={"samples": z})
            return picture

        picture = decoded(inputs[0])

        def add(run, counted_unet, work):
            """work: returns the reconstruction's latents."""
            with in_process.Passes(counted_unet) as passes:
                seconds, z = self.timed(work)
            table.append(
                {
                    "model": problem.name,
                    "run": run,
                    "passes a picture": round(passes.cost() / problem.batch),
                    "reconstruction, dB": round(float(psnr(decoded(z), picture).mean()), 1),
                    "s a picture": round(seconds / problem.batch, 2),
                }
            )

        def tuned(**settings):
            return self.invert(problem, steps, learning_rate=1e-2, **settings)[2]["samples"]

        for rule, updates in (("adam", 5), ("secant", 1), ("secant", 2), ("secant_memory", 1), ("secant_memory", 2)):
            settings = {"step_rule": rule, "iterations": updates}
            add(f"TTIS, {rule}, {updates} update(s)", problem.unet, lambda chosen=settings: tuned(**chosen))
        for updates in (1, 2, 5, 10):
            name = f"null-text inversion, diffusers, {updates} update(s)"
            add(name, unet, lambda chosen=updates: null_text.run(*inputs, updates=chosen))
        return table


def _overhead_row(problem: Problem, run: str, steps: int, samples: list[Sample]) -> dict:
    middle = Sample(*map(statistics.median, zip(*map(astuple, samples))))
    return {
        "model": problem.name,
        "latent": problem.size,
        "batch": problem.batch,
        "run": run,
        "steps": steps,
        "rows": middle.plain,
        "rows with gradient": middle.tuned,
        "forward, s": round(middle.forward, 5),
        "forward + backward, s": round(middle.both, 5),
        "run, s": round(middle.seconds, 3),
        "overhead": round(statistics.median(sample.overhead for sample in samples), 3),
    }


def markdown(tables: dict) -> str:
    about = tables["about"]
    versions = f"ComfyUI {about['ComfyUI']}, torch {about['torch']}, {about['date']}, commit {about['commit']}"
    lines = ["# Benchmark", "", f"`{about['command']}` on {about['device']}; {versions}.", ""]
    for name, title in TITLES.items():
        for columns in dict.fromkeys(tuple(row) for row in tables[name]):
            rows = [row for row in tables[name] if tuple(row) == columns]
            lines += [f"## {title}", "", _line(columns), "|---" * len(columns) + "|"]
            lines += [_line(row.values()) for row in rows] + [""]
    return "\n".join(lines)


def _line(cells) -> str:
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
