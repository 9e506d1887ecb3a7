"""Put small faults into the code, one at a time, and see whether the tests notice.

    python dev/mutate.py            # all of MUTATIONS; minutes, one after another
    python dev/mutate.py schedule   # those whose file's name has this word

Works on a copy of the checkout. A mutation that no test notices is a survivor: a test is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import comfyui

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """In ``file``, ``old`` becomes ``new``; ``tests`` should fail then."""

    file: str
    old: str
    new: str
    tests: str


def _core(tests: str, *faults: tuple[str, str, str]) -> list[Mutation]:
    """Faults as ``(file, old, new)`` in the core, and the core's tests that should notice."""
    paths = " ".join(f"tests/core/test_{name}.py" for name in tests.split())
    return [Mutation(f"baret_ops/{file}.py", old, new, paths) for file, old, new in faults]


MUTATIONS = [
    *_core(
        "schedule",
        ("schedule", "1 + times * (steps - 1 - i) // steps", "times * (steps - 1 - i) // steps"),
        ("schedule", "2 <= steps <= times - 1", "2 <= steps <= times"),
        ("schedule", "[[*timesteps, 0]]", "[[*timesteps, 1]]"),
        ("schedule", "return x + (sigma_next - sigma) * eps", "return x + (sigma - sigma_next) * eps"),
        ("schedule", "(1.0 + self.sigmas[level] ** 2).sqrt()", "(1.0 + self.sigmas[level]).sqrt()"),
        (
            "inversions/ddim",
            "schedule.to_sampler(z, i), schedule.sigma(i)",
            "schedule.to_sampler(z, i + 1), schedule.sigma(i)",
        ),
        ("inversions/ddim", "schedule.step(z, eps, i + 1, i)", "schedule.step(z, eps, i, i + 1)"),
    ),
    *_core(
        "ttis step_rules",
        (
            "schedule",
            "eps_uncond + guidance_scale * (eps_cond - eps_uncond)",
            "eps_cond + guidance_scale * (eps_cond - eps_uncond)",
        ),
        ("transition", "target + eta * (tuned - target)", "tuned + eta * (target - tuned)"),
        ("inversions/tuning", "self.threshold + self.growth * step", "self.threshold"),
        (
            "inversions/tuning",
            "weight=((schedule.sigma(i + 1) - sigma) / schedule.scale(i + 1)) ** 2",
            "weight=(schedule.sigma(i + 1) - sigma) ** 2",
        ),
        ("inversions/tuning", "eps = step.goal + found.residual", "eps = step.goal"),
        (
            "inversions/tuning",
            "embedding, memory = found.embedding, found.memory",
            "embedding, memory = found.embedding, None",
        ),
        ("inversions/step_rules", "0.01 * scale, length)", "1.0 * scale, length)"),
        ("inversions/step_rules", "torch.minimum(known, 0.1 * scale)", "known"),
        ("inversions/step_rules", "best = -used * _dot(residual, change)", "best = used * _dot(residual, change)"),
        ("inversions/step_rules", "better = (found < self.losses[rows])", "better = (found > self.losses[rows])"),
        ("inversions/step_rules", "if self.threshold < loss < float", "if self.threshold <= loss + 1 < float"),
        ("inversions/step_rules", "1.0 - self.fall * step.progress", "1.0"),
        ("inversions/step_rules", "-wanted).to(moves)", "wanted).to(moves)"),
        ("inversions/step_rules", "            del r, trial", "            pass"),
        ("inversions/step_rules", "value.cpu().double()", "value.double().cpu()"),
    ),
    *_core(
        "bam plan sweep attention",
        ("edits/plan", "return step < self.self_steps", "return step <= self.self_steps"),
        ("edits/plan", "return step >= self.looks_from", "return step > self.looks_from"),
        ("edits/plan", "cross_from[place] = place_of.get(edit.entry, last)", "cross_from[place] = last"),
        ("edits/plan", "self_from[place] = last", "self_from[place] = place"),
        (
            "edits/plan",
            "sum(process.role != RECONSTRUCTION for process",
            "sum(process.role == process.role for process",
        ),
        ("edits/sampling", "math.floor(tau * steps + 0.5)", "math.floor(tau * steps)"),
        ("edits/bam", "return embeddings.is_rigid and same_guidance", "return embeddings.is_rigid"),
        (
            "edits/bam",
            "torch.lerp(trajectory.pivots[i + 1], self.latents[place], mask)",
            "torch.lerp(trajectory.pivots[i], self.latents[place], mask)",
        ),
        ("edits/sweep", "width = max(1, self.most - 2)", "width = max(1, self.most)"),
        ("edits/region", "((change - threshold) / threshold)", "((change - threshold) / change)"),
        ("edits/region", "(1 - share).sqrt() * z", "z"),
        ("edits/auto_mask", "(difference - threshold) / (2 * threshold)", "(difference - threshold) / threshold"),
        ("attention", "looks if layout == process else layout", "looks"),
        ("attention", "shares = conditional or self.uncond", "shares = conditional"),
    ),
    *_core(
        "auto_edit",
        ("edits/judge", "self.obeyed() - source.obeyed()", "self.obeyed()"),
        ("edits/judge", "((self.noise - self.tuned) * way)", "((self.noise - self.target) * way)"),
        ("edits/auto_edit", "scores >= 1 - LENIENCE * keep", "scores >= LENIENCE * keep"),
        ("edits/auto_edit", "z = trajectory.latents[first]", "z = trajectory.latents[0]"),
        ("edits/auto_edit", "return parts[0], parts[edits - 1]", "return parts[0], parts[-1]"),
        ("edits/auto_edit", "(scores >= of_own_noise + keep)", "(scores >= keep)"),
    ),
    *_core(
        "values storage prompt_to_prompt prompts metrics maps",
        ("values", "tokens % length == 0 and", "tokens % length >= 0 and"),
        ("storage", "return value.clone()", "return value"),
        ("schedule", "(self.sigmas[:-1] > self.sigmas[1:]).all()", "(self.sigmas[:-1] >= self.sigmas[1:]).all()"),
        (
            "edits/prompt_to_prompt",
            "edited = (torch.tensor(ends) > step).float()",
            "edited = (torch.tensor(ends) >= step).float()",
        ),
        ("edits/prompt_to_prompt", "1.0 / len(ours)", "1.0"),
        ("prompts", "elif rows[len(source) - i] & bit[j]:", "elif rows[len(source) - i - 1] & bit[j]:"),
        ("metrics", "(2 * _DEVIATION**2)", "(_DEVIATION**2)"),
        ("metrics", "c1, c2 = 0.01**2, 0.03**2", "c1, c2 = 0.03**2, 0.01**2"),
        ("maps", "maps.mean(1) @ words", "maps.sum(1) @ words"),
    ),
    Mutation(
        "host/run.py",
        'passes: list[Any] = [self._conds("positive", cond), self._conds("negative", uncond)]',
        'passes: list[Any] = [self._conds("positive", uncond), self._conds("negative", cond)]',
        "tests/host/test_sharing.py",
    ),
    Mutation("host/run.py", "(x - out) / sigma for conds", "(x - out) * sigma for conds", "tests/host/test_sharing.py"),
    Mutation(
        "host/run.py",
        '(extra.get("block"), extra.get("block_index"))',
        'extra.get("block_index")',
        "tests/host/test_sharing.py",
    ),
    Mutation("host/attention.py", "label == 0 for label", "label == 1 for label", "tests/host/test_hooks.py"),
    Mutation("host/wires.py", "z / family.latent_scale", "z * family.latent_scale", "tests/host/test_method.py"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only in files whose path has this word")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    environment = {**os.environ, "COMFYUI_PATH": str(host.path), "OMP_NUM_THREADS": "1"}
    chosen = [mutation for mutation in MUTATIONS if options.word in mutation.file]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        for mutation in chosen:
            path = copy / mutation.file
            before = path.read_text()
            if before.count(mutation.old) == 0:
                sys.exit(f"error: {mutation.file} no longer has {mutation.old!r}; write the mutation anew.")
            path.write_text(before.replace(mutation.old, mutation.new, 1))
            command = [sys.executable, "-m", "pytest", "-q", "-x", *mutation.tests.split()]
            noticed = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode != 0
            path.write_text(before)
            if not noticed:
                survivors.append(mutation)
            print("killed  " if noticed else "SURVIVED", mutation.file, "|", mutation.new.splitlines()[0], flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
