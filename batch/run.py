"""Run a workflow over a folder of pictures or a table, and go on where it stopped.

    python batch/run.py photos --text "a dog lying" --checkpoint v1-5-pruned-emaonly-fp16.safetensors
    python batch/run.py rows.csv --out edited        # columns: image, text, id, and any "Node title.input"
    python batch/run.py rows.parquet --workflow mine.json --picture-node "Load Image" --text-node "Positive"

Without --checkpoint or --workflow the small model of drawn scenes that comes with the pack edits. One ComfyUI runs for
each GPU. Killed at any moment, the same command goes on; rows that have ended are not run again. The exit status is 0
where all rows are done, 1 where some failed or are left, 2 where nothing could start. docs/batch.md tells the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import queue
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "dev"))  # what sets up, starts and asks ComfyUI is shared with the tools there

import comfyui  # noqa: E402
import rows  # noqa: E402
import workflow  # noqa: E402

ALL_DONE, SOME_FAILED, NOTHING_STARTED = 0, 1, 2
STOPPED = "stopped; the same command goes on"
SECONDS_TO_STOP = 25
"""What all workers have together to end before the results are written: what stops a job waits 30 seconds or more."""


# --- what was asked for ---------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="TABLE_OR_FOLDER", help="a folder of pictures, or a .csv, .jsonl or .parquet file")
    add("--out", type=Path, metavar="DIR", help="where everything goes (default: beside you, named after the source)")
    add("--text", help="the text of every row that has none of its own")
    add("--workflow", type=Path, metavar="FILE", help="any workflow in API form (default: the edit by a short text)")
    add("--checkpoint", type=Path, metavar="FILE", help="the checkpoint that Load Checkpoint loads")
    add("--picture-node", metavar="TITLE", help='the node that takes the picture, "Title" or "Title.input"')
    add("--text-node", metavar="TITLE", help='the node that takes the text, "Title" or "Title.input"')
    add("--workers", type=int, metavar="N", help="servers side by side (default: one for each GPU, else one)")
    add("--batch-size", type=int, default=1, metavar="N", help="pictures of one size, text and settings in one run (1)")
    add("--stall", type=float, default=600, metavar="SECONDS", help="without any progress a server is restarted (600)")
    add("--retry-failed", action="store_true", help="run rows again that have failed")
    add("--ray", metavar="ADDRESS", help='spread over a Ray cluster: its address, "auto", or "local" for this machine')
    add("--gpus-a-worker", type=float, metavar="N", help="with --ray: GPUs of each server (1 where there are any)")
    comfyui.add_arguments(parser)
    options = parser.parse_args(arguments)
    options.names_out = options.out is not None
    if options.out is None:
        source = options.source.resolve()
        options.out = Path(f"{source.name if source.is_dir() else source.stem}-edited")
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, with what fits, for what could only fail later."""
    if not options.source.exists():
        raise ValueError(f"there is no {options.source}")
    if options.source.is_file() and options.source.suffix.lower() not in rows.TABLES:
        raise ValueError(f"{options.source} is neither a folder of pictures nor a table; {', '.join(rows.TABLES)} fit")
    if options.checkpoint and not options.checkpoint.is_file():
        raise ValueError(f"there is no file {options.checkpoint}")
    if options.text is not None and not options.text.strip():
        raise ValueError("--text is empty; write what is in the pictures and what is new")
    for name, least in (("workers", 1), ("batch_size", 1), ("stall", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; {least} or more fits")
    if options.gpus_a_worker is not None and not options.ray:
        raise ValueError("--gpus-a-worker is for --ray")
    if options.ray and options.batch_size > 1:
        raise ValueError("--batch-size is for a run without --ray")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out is {options.out}, which is a file; a folder fits")


def workflow_of(options: argparse.Namespace) -> workflow.Workflow:
    """The workflow, once it is clear that every column has a place in it. Raises ValueError."""
    names = rows.columns(options.source)
    pictures = options.source.is_dir() or "image" in names
    found = workflow.load(options.workflow, options.checkpoint, pictures, options.picture_node, options.text_node)
    unused = found.require(names, pictures, bool(options.text) or "text" in names)
    if unused:
        print(f"Not used: the column(s) {', '.join(unused)}.")
    if options.batch_size > 1 and not (pictures and found.can_batch):
        raise ValueError("--batch-size is for workflows whose picture comes from a Load Image node")
    return found


def require_ray(options: argparse.Namespace) -> None:
    """Raise ValueError where Ray is asked for and not installed. Runs under the host's interpreter."""
    if options.ray and not all(map(importlib.util.find_spec, ("ray", "pyarrow"))):
        raise ValueError(f"--ray needs Ray, which is not installed: {sys.executable} -m pip install 'ray[data]'")


def devices_of(options: argparse.Namespace, host: comfyui.Host) -> list[str | None]:
    """The GPU of each worker, None where there is one or none."""
    import comfy_server

    count = comfy_server.accelerators(host)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(number) for number in range(count)]
    workers = options.workers or max(1, count)
    return [names[number % count] if count > 1 else None for number in range(workers)]


def threads_of(found: workflow.Workflow, workers: int) -> int | None:
    """Threads of torch for each server: one for the drawn world, else a fair share where several share the cores."""
    if any(node["class_type"] == "BaretWorldLoader" for node in found.prompt.values()):
        return 1
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """Workers in threads, fed from one journal."""

    def __init__(self, journal, settings, devices: list[str | None], say):
        self.journal, self.settings, self.devices, self.say = journal, settings, devices, say
        self.stopping = threading.Event()
        self.trouble: list[str] = []
        self._ended: queue.Queue = queue.Queue()

    def ended(self) -> Iterator:
        """How each row ended, as it ends. Closing this stops the workers, with the rows that they have."""
        from worker import Worker

        workers = [Worker(self.settings, device, self.say, self.stopping) for device in self.devices]
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                one = self._next()
                if one is None:
                    running -= 1
                else:
                    yield one
        finally:
            self.stopping.set()
            for worker in workers:
                worker.stop()
            deadline = time.monotonic() + SECONDS_TO_STOP
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self):
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ended.get(timeout=1)  # without an end to it, Ctrl-C has no effect on Windows

    def _work(self, worker) -> None:
        from worker import Stopped, Unusable

        taken: list = []
        try:
            with worker:
                while not self.stopping.is_set() and (taken := self.journal.take(worker, worker.batch_size)):
                    ended, later = worker.run(taken)
                    self.journal.finish(ended)
                    if later:
                        self.journal.put_back(later)
                    for one in ended:
                        self._ended.put(one)
        except Stopped:
            pass
        except Unusable as error:
            self.trouble.append(str(error))
        except Exception as error:  # of this machine, such as a full disk: its worker ends, and its row is left
            self.trouble.append(f"{type(error).__name__}: {error}")
        finally:
            self.journal.release(taken)
            self.journal.retire(worker)
            self._ended.put(None)


def carry_out(options: argparse.Namespace, host: comfyui.Host, found: workflow.Workflow) -> int:
    """Do what is to be done; returns the exit status. Raises ValueError and Busy where nothing can start."""
    import sheet
    from files import sweep
    from journal import Journal
    from worker import Settings

    with contextlib.closing(Journal(options.out)) as journal:
        source = str(options.source.resolve())
        if not options.names_out and journal.source not in (None, source):
            raise ValueError(
                f"{options.out} holds the edits of {journal.source}; "
                f"give --out another folder, or --out {options.out} to go on in this one"
            )
        sweep(options.out)
        inside = options.out.resolve() if options.source.is_dir() else None
        read = rows.read(options.source.resolve(), options.text, inside)
        journal.adopt(read, found, options.retry_failed, lambda number: sheet.discard(options.out, number))
        journal.source = source
        total = sum(journal.counts().values())
        if not total:
            raise ValueError(f"{options.source} has no rows")
        own = host.path if options.comfyui or os.environ.get("COMFYUI_PATH") else None
        settings = Settings(
            host, found, options.out.resolve(), options.checkpoint, options.stall, options.batch_size, own
        )
        began = time.monotonic()
        ran, trouble = _run_rows(options, journal, settings, total)
        _write_down(journal, total, ran, time.monotonic() - began)
        for sentence in trouble:
            print(f"error: {sentence}", file=sys.stderr)
        if trouble and not ran:
            return NOTHING_STARTED
        return ALL_DONE if journal.counts()["done"] == total else SOME_FAILED


def _run_rows(options: argparse.Namespace, journal, settings, total: int) -> tuple[int, list[str]]:
    """Run what is waiting, with a bar, until it is done or stopped; how many ended, and what was wrong with servers."""
    import sheet
    from tqdm import tqdm  # the host's

    counts, ran = journal.counts(), 0
    done = total - counts["waiting"]
    with tqdm(total=total, initial=done, unit="row", dynamic_ncols=True, smoothing=0.1) as bar:
        bar.set_postfix(failed=counts["failed"])
        if not counts["waiting"]:
            return 0, []
        bar.write(f"Starting ComfyUI {settings.host.version}", file=sys.stderr)
        run = _runner(options, journal, settings, lambda text: bar.write(text, file=sys.stderr))
        try:
            with contextlib.closing(run.ended()) as all_ended:
                for one in all_ended:
                    ran += 1
                    counts["failed"] += one.status == "failed"
                    bar.set_postfix(failed=counts["failed"], refresh=False)
                    bar.update()
                    _make_sheet(journal, sheet.page_of(journal.place(one.id)), total)
        except KeyboardInterrupt:
            bar.write(STOPPED, file=sys.stderr)
        return ran, run.trouble


def _write_down(journal, total: int, ran: int, seconds: float) -> None:
    """Write the results, what sheets are missing, and the summary."""
    import results
    import sheet

    for page in range(1, sheet.page_of(total) + 1):
        if not sheet.path_of(journal.folder, page).exists():
            _make_sheet(journal, page, total)
    path = results.write(journal)
    print(results.summary(journal, ran, seconds), end="")
    print(f"Results: {path.resolve()}")
    if path.suffix == ".csv":
        print(results.NO_PARQUET)


def _runner(options, journal, settings, say):
    if options.ray:
        from ray_backend import RayRun

        settings = replace(settings, threads=threads_of(settings.workflow, options.workers or 1))
        return RayRun(journal, settings, options, say)
    devices = devices_of(options, settings.host)
    settings = replace(settings, threads=threads_of(settings.workflow, len(devices)))
    return Run(journal, settings, devices, say)


def _make_sheet(journal, page: int, total: int) -> None:
    """Make a contact sheet, once all its rows have ended."""
    import sheet

    first = (page - 1) * sheet.ROWS + 1
    if journal.is_complete(first, min(total, first + sheet.ROWS - 1)):
        sheet.make(journal, page)


def main() -> None:
    options = parse_arguments()
    try:
        host = comfyui.enter(options)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            sys.exit(NOTHING_STARTED)
        raise
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, even where a shell has that ignored
    from comfy_server import ServerError
    from journal import Busy

    with contextlib.redirect_stdout(_Unheard(sys.stdout)), contextlib.redirect_stderr(_Unheard(sys.stderr)):
        try:
            require_ray(options)
            sys.exit(carry_out(options, host, workflow_of(options)))
        except (ValueError, OSError, Busy, ServerError, sqlite3.Error) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(NOTHING_STARTED)
        except KeyboardInterrupt:
            print(STOPPED, file=sys.stderr)
            sys.exit(SOME_FAILED)


class _Unheard:
    """A stream whose other end may be gone, as `tee` is after Ctrl-C: the results are written nonetheless."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


if __name__ == "__main__":
    main()
