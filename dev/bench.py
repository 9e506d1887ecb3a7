"""What TTIS and BAM cost beyond their UNet passes, beside null-text inversion as published: one command, tables and JSON.

    python dev/bench.py                        # on whatever is there: a CUDA card, else the CPU
    python dev/bench.py --quick                # the same tables from a few steps at small sizes, to see that all of it runs
    python dev/bench.py --models sd15 --latents 64 128 --dtypes bfloat16 float16 --batches 1 8 --steps 50    # what a card is asked for

A *unit* is one forward of the bare UNet, or one forward and backward to the embedding. *Ideal* is the rows a run sent through the UNet times
the unit of its kind; *overhead* is the run's time over that. Units and runs alternate, and medians are shown. Times on a shared machine say
nothing by themselves; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import comfyui

ROOT = Path(__file__).resolve().parents[1]
SD15 = {
    "use_checkpoint": False, "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "use_spatial_transformer": True, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "legacy": False, "adm_in_channels": None,
    "use_linear_in_transformer": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
CFG = 7.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("world", "sd15"), default=("world", "sd15"))
    parser.add_argument(
        "--latents",
        nargs="+",
        type=int,
        help="sides of square latents for the SD1.5-sized model (default: 32, on a GPU 64)",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16", "float16"),
        help="of the SD1.5-sized model (default: float32, on a GPU bfloat16)",
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1], help="pictures at once, for the SD1.5-sized model"
    )
    parser.add_argument(
        "--steps", type=int, help="of the SD1.5-sized model's runs (default: 4, on a GPU 50); the drawn world's have 50"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads",
        type=int,
        help="torch threads on a CPU (default: 1 for the drawn world, all cores for the SD1.5-sized model)",
    )
    parser.add_argument("--quick", action="store_true", help="few steps and small sizes")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="writes OUT.md and OUT.json (default: bench)")
    comfyui.add_arguments(parser)
    args = parser.parse_args()
    host = comfyui.enter(args, tests=True)
    tables = run(host, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(tables, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(tables))
    print(markdown(tables) + f"\nWritten to {args.out}.md and {args.out}.json")


def run(host, args) -> dict:
    lab = Lab(host)
    quick, cuda = args.quick, lab.device.type == "cuda"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    tables = {
        "about": {
            "command": "python dev/bench.py " + " ".join(a for a in sys.argv[1:] if not a.startswith(str(Path.home()))), "commit": commit,
            "device": lab.device_name(), "ComfyUI": host.version, "torch": lab.torch.__version__, "date": time.strftime("%Y-%m-%d"),
        },
        "overhead": [], "memory": [], "peer": [], "growth": [],
    }  # fmt: skip
    if "sd15" in args.models:
        lab.torch.set_num_threads(args.threads or os.cpu_count())
        for dtype in args.dtypes or (["bfloat16"] if cuda else ["float32"]):
            model = lab.sd15(dtype)
            for side in args.latents or ([64] if cuda else [8] if quick else [32]):
                for batch in args.batches:
                    problem = lab.random_problem(model, batch, side)
                    steps = args.steps or (50 if cuda else 2 if quick else 4)
                    tables["overhead"] += lab.overhead(f"SD1.5-sized, {dtype}", problem, steps, args.repeats)
                    tables["memory"] += lab.memory(f"SD1.5-sized, {dtype}", problem)
            tables["peer"] += lab.peer_time(
                f"SD1.5-sized, {dtype}",
                lab.random_problem(model, 1, 8 if quick else 64 if cuda else 32),
                SD15,
                args.repeats,
            )
            del model, problem
            gc.collect()
    if "world" in args.models:
        lab.torch.set_num_threads(args.threads or 1)
        steps = 4 if quick else 50
        problem = lab.world_problem(1)
        tables["overhead"] += lab.overhead("drawn world", problem, steps, args.repeats)
        tables["peer"] += lab.peer_passes(lab.world_problem(2 if quick else 8), steps)
        tables["growth"] += lab.growth(steps // 2)
    return tables


class Lab:
    """The host in this process, the pack in it, and runs through its nodes."""

    def __init__(self, host):
        import torch

        sys.path.insert(0, str(host.path))
        import comfy.options

        argv, sys.argv = (
            sys.argv,
            [sys.argv[0]] + ([] if torch.cuda.is_available() else ["--cpu"]),
        )  # the host reads its own command line
        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401

        sys.argv = argv
        import asyncio

        import comfy.model_management

        import nodes

        self.torch, self.device, self.host_nodes = torch, comfy.model_management.get_torch_device(), nodes
        assert asyncio.run(nodes.load_custom_node(str(ROOT))), "the host's loader refused the pack"
        name = str(ROOT).replace(".", "_x_")
        self.module = lambda part: sys.modules[f"{name}.{part}"]
        self.nodes = {key: node for key, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(name)}

    def device_name(self) -> str:
        if self.device.type == "cuda":
            return self.torch.cuda.get_device_name()
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        return (
            next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
            + f", {os.cpu_count()} cores"
        )

    def call(self, node_id, **inputs):
        node = self.nodes[node_id]
        defaults = {
            entry.id: entry.default
            for entry in node.define_schema().inputs
            if getattr(entry, "default", None) is not None
        }
        with self.torch.inference_mode():
            return node.execute(**{**defaults, **inputs}).args

    # Problems: a model, two texts and pictures.

    def sd15(self, dtype):
        """The UNet of SD1.5 at its true size with random weights, as a MODEL."""
        import comfy.model_base
        import comfy.model_management
        import comfy.model_patcher
        import comfy.supported_models

        torch, dtype = self.torch, getattr(self.torch, dtype)
        with torch.inference_mode():
            config = comfy.supported_models.SD15({**SD15, "dtype": dtype})
            config.unet_config["num_heads"] = 8
            config.set_inference_dtype(dtype, None)
            base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
            generator = torch.Generator().manual_seed(0)
            for name, weight in base.diffusion_model.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * weight[:1].numel() ** -0.5)
            return comfy.model_patcher.ModelPatcher(base, self.device, comfy.model_management.unet_offload_device())

    def random_problem(self, model, batch, side):
        draw = lambda *shape, seed: self.torch.randn(*shape, generator=self.torch.Generator().manual_seed(seed))  # noqa: E731
        texts = {"positive": [[draw(1, 77, 768, seed=1), {}]], "negative": [[draw(1, 77, 768, seed=2), {}]]}
        return SimpleNamespace(
            model=model, texts=texts, latent={"samples": draw(batch, 4, side, side, seed=3)}, batch=batch, side=side
        )

    def world_problem(self, batch, side=16):
        """Drawn scenes and texts that ask for another pose."""
        scenes = self.module("world.scenes")
        model, clip, vae = self.call("BaretWorldLoader")
        sources = scenes.sample(3_000_000_000, batch)
        targets = [scenes.replace(source, pose=(source.pose + 1) % len(scenes.POSES)) for source in sources]
        with self.torch.inference_mode():
            encode = self.host_nodes.CLIPTextEncode().encode
            positive = self.torch.cat([encode(clip, scenes.plain_caption(scene))[0][0][0] for scene in targets])
            pictures = scenes.render(sources)[0]
            latent = self.host_nodes.VAEEncode().encode(vae, pictures.repeat(1, side // 16, side // 16, 1))[0]
            texts = {"positive": [[positive, {}]], "negative": encode(clip, "")[0]}
        return SimpleNamespace(model=model, texts=texts, latent=latent, batch=batch, side=side, vae=vae)

    def invert(self, problem, steps, **inputs):
        return self.call(
            "BaretTTISInversion",
            model=problem.model,
            latent=problem.latent,
            steps=steps,
            cfg=CFG,
            **problem.texts,
            **inputs,
        )

    def edit(self, problem, trajectory, embeddings):
        (moving,) = self.call("BaretTransitionEmbedding", embeddings=embeddings)
        return self.call("BaretBAMEdit", model=problem.model, trajectory=trajectory, embeddings=moving, cfg=CFG)

    # Instruments.

    def timed(self, work):
        self.settle()
        started = time.perf_counter()
        result = work()
        self.settle()
        return time.perf_counter() - started, result

    def settle(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    @contextlib.contextmanager
    def counted(self, model):
        """Rows through the UNet: `plain`, and `tuned` ones that are differentiated."""
        rows = SimpleNamespace(plain=0, tuned=0)

        def count(module, args, kwargs):
            kind = "tuned" if self.torch.is_grad_enabled() and kwargs["context"].requires_grad else "plain"
            setattr(rows, kind, getattr(rows, kind) + len(args[0]))

        handle = model.model.diffusion_model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield rows
        finally:
            handle.remove()

    def unit(self, problem, gradient):
        """Seconds of one row through the bare UNet, with backward to the embedding or without, `problem.batch` rows at once."""
        torch, unet = self.torch, problem.model.model.diffusion_model
        dtype = problem.model.model.get_dtype_inference()
        x = torch.randn(problem.batch, 4, problem.side, problem.side, device=self.device, dtype=dtype)
        t = torch.full([problem.batch], 500.0, device=self.device)
        width, tokens = problem.texts["positive"][0][0].shape[-1], problem.texts["positive"][0][0].shape[-2]
        context = torch.randn(problem.batch, tokens, width, device=self.device, dtype=dtype, requires_grad=gradient)

        def work():
            out = unet(x, t, context=context, transformer_options={})
            return torch.autograd.grad(out, context, out.detach()) if gradient else out

        with torch.set_grad_enabled(gradient):
            first, _ = self.timed(work)
            again = [
                self.timed(work)[0] for _ in range(min(9, int(0.3 / first)))
            ]  # short ones are measured several times
        return statistics.median([first, *again]) / problem.batch

    def overhead(self, name, problem, steps, repeats):
        """Runs through the nodes over the same number of bare passes."""
        self.invert(problem, 2)  # loads the model and leaves its weights differentiable
        runs = {"TTIS, default rule": lambda: self.invert(problem, steps, stop_threshold=0.0, stop_growth=0.0)}
        runs["TTIS, adam, 5 updates"] = lambda: self.invert(
            problem, steps, step_rule="adam", iterations=5, stop_threshold=0.0, stop_growth=0.0
        )
        inversion = self.invert(problem, steps, iterations=0)[:2]
        runs["BAM"] = lambda: self.edit(problem, *inversion)
        figures = {key: [] for key in runs}
        for _ in range(repeats):
            for key, work in runs.items():
                before = self.unit(problem, False), self.unit(problem, True)
                with self.counted(problem.model) as rows:
                    seconds, _ = self.timed(work)
                after = self.unit(problem, False), self.unit(problem, True)
                units = [(a + b) / 2 for a, b in zip(before, after)]
                figures[key].append(
                    (seconds, rows.plain, rows.tuned, *units, seconds / (rows.plain * units[0] + rows.tuned * units[1]))
                )
        table = []
        for key, values in figures.items():
            seconds, plain, tuned, forward, both, ratio = (statistics.median(column) for column in zip(*values))
            table.append({
                "model": name, "latent": f"{problem.side}x{problem.side}", "batch": problem.batch, "run": key, "steps": steps, "rows": plain, "rows with gradient": tuned,
                "forward, s": round(forward, 5), "forward + backward, s": round(both, 5), "run, s": round(seconds, 3), "overhead": round(ratio, 3),
            })  # fmt: skip
        return table

    def peak(self, work):
        """Most bytes used while `work` runs, above what was in use before: the device's allocator, or resident memory on Linux."""
        gc.collect()
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
            before = self.torch.cuda.memory_allocated()
            work()
            return self.torch.cuda.max_memory_allocated() - before, self.torch.cuda.max_memory_allocated()
        status = lambda key: (
            int(
                next(
                    line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
                ).split()[1]
            )
            * 1024
        )  # noqa: E731
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        work()
        return status("VmHWM") - before, status("VmHWM")

    def memory(self, name, problem):
        if self.device.type != "cuda" and not Path("/proc/self/clear_refs").exists():
            return []
        gradients, table = self.module("host.gradients"), []
        decide = gradients.must_recompute
        inversion = self.invert(problem, 2)[:2]
        for run, work in (("TTIS", lambda: self.invert(problem, 2)), ("BAM", lambda: self.edit(problem, *inversion))):
            for saver in (False, True) if run == "TTIS" else (False,):
                gradients.must_recompute = lambda *_, saver=saver: saver
                try:
                    above, whole = self.peak(work)
                    seconds = statistics.median(self.timed(work)[0] for _ in range(2))
                finally:
                    gradients.must_recompute = decide
                shape = problem.latent["samples"].shape[1:]
                estimate = (
                    gradients.activations(problem.model, problem.batch, shape, recompute=saver)
                    if run == "TTIS"
                    else None
                )
                table.append({
                    "model": name, "latent": f"{problem.side}x{problem.side}", "batch": problem.batch, "run": run + (", blocks computed again" if saver else ""),
                    "peak above rest, MB": round(above / 1e6), "estimated for backward, MB": estimate and round(estimate / 1e6), "peak in all, MB": round(whole / 1e6), "2 steps, s": round(seconds, 2),
                })  # fmt: skip
        return table

    # The peer: null-text inversion (Mokady et al. 2022) with diffusers' parts, at its published settings.

    def diffusers_unet(self, model, config):
        from diffusers import UNet2DConditionModel
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        channels, levels = config["model_channels"], config["channel_mult"]
        depth = list(config["transformer_depth"])
        per_level = [depth[i * config["num_res_blocks"][0]] > 0 for i in range(len(levels))]
        settings = {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": config["num_res_blocks"][0], "block_out_channels": [channels * m for m in levels],
            "cross_attention_dim": config["context_dim"], "attention_head_dim": config.get("num_heads", 8),
            "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in per_level],
            "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(per_level)],
        }  # fmt: skip
        state = {
            f"model.diffusion_model.{key}": value.clone()
            for key, value in model.model.diffusion_model.state_dict().items()
        }
        converted = convert_ldm_unet_checkpoint(state, {**settings, "class_embed_type": None})
        with self.torch.device("meta"):
            unet = UNet2DConditionModel(**settings)
        unet.load_state_dict(converted, assign=True)
        return unet.to(self.device).requires_grad_(False)

    def null_text(self, unet, z, text, negative, steps, inner):
        """Invert latents `z` (b, 4, h, w) in VP form; the reconstruction, and rows spent (plain, tuned). The prediction for the text is computed once a step."""
        from diffusers import DDIMScheduler

        torch, dtype = self.torch, unet.dtype
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        scheduler.set_timesteps(steps)
        predict = lambda z, t, e: unet(z.to(dtype), t, encoder_hidden_states=e.to(dtype)).sample.float()  # noqa: E731
        rows, images = SimpleNamespace(plain=0, tuned=0), len(z)
        alphas = scheduler.alphas_cumprod.to(z.device)
        level = lambda t: alphas[t] if t >= 0 else scheduler.final_alpha_cumprod  # noqa: E731
        gap = 1000 // steps

        def move(z, eps, at, to):
            return to.sqrt() * (z - (1 - at).sqrt() * eps) / at.sqrt() + (1 - to).sqrt() * eps

        pivots = [z]
        for t in scheduler.timesteps.tolist()[::-1]:
            with torch.no_grad():
                pivots.append(move(pivots[-1], predict(pivots[-1], t, text), level(t - gap), level(t)))
            rows.plain += images
        pivots.reverse()
        z, null = pivots[0], negative.clone()
        for i, t in enumerate(scheduler.timesteps.tolist()):
            with torch.no_grad():
                cond = predict(z, t, text)
            rows.plain += images
            null = null.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            for _ in range(inner):
                with torch.enable_grad():
                    uncond = predict(z, t, null)
                    landed = move(z, uncond + CFG * (cond - uncond), level(t), level(t - gap))
                    loss = torch.nn.functional.mse_loss(landed, pivots[i + 1])
                rows.tuned += images
                (gradient,) = torch.autograd.grad(loss * landed[0].numel() * images, null)
                null.grad = gradient / (landed[0].numel() * images)
                optimizer.step()
                if loss.item() < 1e-5 + i * 2e-5:
                    break
            with torch.no_grad():
                uncond = predict(z, t, null)
            rows.plain += images
            z = move(z, uncond + CFG * (cond - uncond), level(t), level(t - gap))
        return z, rows

    def peer_inputs(self, problem):
        family = self.module("host.models").family_of(problem.model)
        z = problem.latent["samples"].to(self.device) * family.latent_scale
        texts = [
            problem.texts[key][0][0].to(self.device).expand(len(z), -1, -1).clone() for key in ("positive", "negative")
        ]
        return z.clone(), *texts

    def peer_time(self, name, problem, config, repeats):
        """Wall time by step: the peer to its own end, TTIS, and a plain edit of six rows a step beside BAM."""
        torch, steps = self.torch, 2
        unet = self.diffusers_unet(problem.model, config)
        inputs = self.peer_inputs(problem)
        inversion = self.invert(problem, steps)[:2]
        bare = problem.model.model.diffusion_model
        six = [torch.cat([value] * 6).to(unet.dtype) for value in inputs[:2]]

        def plain_edit():
            with torch.no_grad():
                for _ in range(steps):
                    bare(six[0], torch.full([6], 500.0, device=self.device), context=six[1], transformer_options={})

        runs = {
            "null-text inversion, diffusers": lambda: self.null_text(unet, *inputs, steps, 10), "TTIS, default rule": lambda: self.invert(problem, steps),
            "plain edit, 6 rows a step": plain_edit, "BAM": lambda: self.edit(problem, *inversion),
        }  # fmt: skip
        times = {key: [] for key in runs}
        for _ in range(repeats):
            for key, work in runs.items():
                times[key].append(self.timed(work)[0])
        return [
            {
                "model": name,
                "latent": f"{problem.side}x{problem.side}",
                "run": key,
                "s a step": round(statistics.median(values) / steps, 3),
            }
            for key, values in times.items()
        ]

    def peer_passes(self, problem, steps):
        """On the trained model: passes spent (forward 1, forward + backward 2.1, by picture) and the reconstruction they buy."""
        unet = self.diffusers_unet(problem.model, {**self.module("host.world").UNET, "num_heads": 2})
        inputs, table = self.peer_inputs(problem), []
        decode = lambda z: self.host_nodes.VAEDecode().decode(problem.vae, {"samples": z})[0]  # noqa: E731

        def row(run, z, rows, seconds):
            with self.torch.inference_mode():
                error = (decode(z) - decode(inputs[0])).square().flatten(1).mean(1)
                psnr = float((-10 * error.log10()).mean())
            passes = (rows.plain + 2.1 * rows.tuned) / problem.batch
            table.append(
                {
                    "model": "drawn world",
                    "run": run,
                    "passes a picture": round(passes),
                    "reconstruction, dB": round(psnr, 1),
                    "s a picture": round(seconds / problem.batch, 2),
                }
            )

        for rule, iterations in (("adam", 5), ("secant", 1), ("secant", 2), ("secant_memory", 1), ("secant_memory", 2)):
            with self.counted(problem.model) as rows:
                seconds, out = self.timed(
                    lambda: self.invert(problem, steps, step_rule=rule, iterations=iterations, learning_rate=1e-2)
                )
            row(f"TTIS, {rule}, {iterations} update(s)", out[2]["samples"], rows, seconds)
        for inner in (1, 2, 5, 10):
            seconds, (z, rows) = self.timed(lambda: self.null_text(unet, *inputs, steps, inner))
            row(f"null-text inversion, diffusers, {inner} update(s)", z, rows, seconds)
        return table

    def growth(self, steps):
        """Seconds and rows of TTIS on the drawn world as one thing at a time doubles."""
        table = []
        for what, batch, side, length, iterations in (
            ("base", 1, 16, steps, 1), ("steps doubled", 1, 16, 2 * steps, 1), ("iterations doubled", 1, 16, steps, 2), ("batch doubled", 2, 16, steps, 1), ("area quadrupled", 1, 32, steps, 1)
        ):  # fmt: skip
            problem = self.world_problem(batch, side)
            work = lambda: self.invert(problem, length, iterations=iterations, stop_threshold=0.0, stop_growth=0.0)  # noqa: E731, B023
            self.invert(problem, 2)
            with self.counted(problem.model) as rows:
                work()
            seconds = statistics.median(self.timed(work)[0] for _ in range(3))
            unit = self.unit(problem, False), self.unit(problem, True)
            table.append(
                {
                    "what": what,
                    "rows": rows.plain,
                    "rows with gradient": rows.tuned,
                    "s": round(seconds, 3),
                    "overhead": round(seconds / (rows.plain * unit[0] + rows.tuned * unit[1]), 3),
                }
            )
        return table


def markdown(tables) -> str:
    about = tables["about"]
    lines = [
        "# Benchmark",
        "",
        f"`{about['command']}` on {about['device']}; ComfyUI {about['ComfyUI']}, torch {about['torch']}, {about['date']}, commit {about['commit']}.",
        "",
    ]
    titles = {
        "overhead": "Runs through the nodes over the same number of bare UNet passes", "memory": "Peak memory, with the model loaded",
        "peer": "Beside null-text inversion", "growth": "How TTIS grows (drawn world)",
    }  # fmt: skip
    for key, title in titles.items():
        for columns in dict.fromkeys(tuple(row) for row in tables[key]):
            lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += [
                "| " + " | ".join("" if row[c] is None else str(row[c]) for c in columns) + " |"
                for row in tables[key]
                if tuple(row) == columns
            ] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
