"""Make `docs/evidence.md` and its figures anew: what the method does on the drawn world, against its peers.

    python dev/evidence/run.py OTHER --world FILE      # first, on a model that nothing was chosen on
    python dev/evidence/run.py RUN --other OTHER       # then; stopped, the same command goes on
    python dev/evidence/run.py RUN --other OTHER --report     # only the tables and figures of what both hold

Seeded; two workers of one thread each. RUN holds a result for each measurement (`results/*.json`), the classifiers and
a few pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import comfyui
import in_process

HERE = Path(__file__).resolve().parent
WORKERS = 2
_bench = None


def _start(run: Path, sizes: dict[str, int], world: Path | None) -> None:
    """Make a worker's bench, once."""
    global _bench
    from studies import Bench

    _bench = Bench(run, sizes, world)


def _measure(task: tuple) -> None:
    """Run one group of a stage in a worker."""
    import studies

    stage, index = task
    function, *arguments = studies.GROUPS[stage][index]
    function(_bench, *arguments)


def measure(run: Path, sizes: dict[str, int], world: Path | None) -> None:
    """All stages; what one chooses the next ones take from ``RUN/chosen.json``. Another world chooses nothing."""
    import studies

    chosen: dict = {}
    stages = studies.GROUPS if world is None else studies.OTHER_WORLD
    with multiprocessing.get_context("spawn").Pool(WORKERS, _start, (run, sizes, world)) as pool:
        for stage, groups in stages.items():
            tasks = [(stage, index) for index in range(len(groups))]
            for _ in pool.imap_unordered(_measure, tasks):
                pass
            if stage == "rates" and world is None:
                chosen["rates"] = studies.choose_rates(run)
            elif stage == "tune":
                chosen["settings"] = studies.choose_settings(run, chosen)
            (run / "chosen.json").write_text(json.dumps(chosen, indent=1))


def about(run: Path, sizes: dict[str, int]) -> dict:
    """Machine, date, commit and time of the processors, for the document."""
    from lab import unet_dtype

    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True).stdout.strip()
    results = [json.loads(path.read_text()) for path in run.glob("results/*.json")]
    seconds = sum(result.get("seconds", 0.0) for result in results)
    return {
        "machine": f"{in_process.processor()}, no GPU",
        "unet": str(unet_dtype()).removeprefix("torch."),
        "date": str(date.today()),
        "commit": commit,
        "minutes": round(seconds / 60, 1),
        "sizes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder for results; an earlier run in it is continued")
    parser.add_argument("--scenes", type=int, default=48, help="scenes scored for each task (default: %(default)s)")
    parser.add_argument(
        "--tuning-scenes",
        type=int,
        default=8,
        help="other scenes on which each method's settings are chosen (default: %(default)s)",
    )
    parser.add_argument("--world", type=Path, help="another weights file: every method at its one setting, no document")
    parser.add_argument("--other", type=Path, help="folder of a run with --world, for the document")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the document from what RUN holds")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    host = comfyui.enter(options, tests=True)
    os.environ["COMFYUI_PATH"], os.environ["OMP_NUM_THREADS"] = str(host.path), "1"
    sys.path.append(str(HERE))
    options.run.mkdir(parents=True, exist_ok=True)
    if not options.report:
        sizes = {"rates": options.tuning_scenes, "tune": options.tuning_scenes, "score": options.scenes}
        measure(options.run, sizes, options.world)
        (options.run / "about.json").write_text(json.dumps(about(options.run, sizes)))
    if options.other is not None:
        from report import write

        write(options.run, options.other)


if __name__ == "__main__":
    main()
