"""The rows of a run spread over a Ray cluster: Ray Data hands them to actors that hold one ComfyUI each.

Imported with --ray alone. The journal stays with the driver, which writes a row down when its result comes back; so
what was under way when the driver died is run again, as without Ray. Pictures and the run's folder must lie on paths
that every machine of the cluster has, and so must this checkout and ComfyUI.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pyarrow.parquet
from comfyui import Host
from journal import Ended, Journal
from rows import Row, chunks
from worker import Settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray  # noqa: E402
import ray.data  # noqa: E402

MANIFEST = "manifest.parquet"
TOGETHER = 8  # rows of one picture that go to an actor at once, so that its server's cache serves them


class RayRun:
    """Like `run.Run`, over Ray."""

    def __init__(self, journal: Journal, settings: Settings, options, say: Callable[[str], None]):
        self.journal, self.settings, self.options, self.say = journal, settings, options, say
        self.trouble: list[str] = []

    def ended(self) -> Iterator[Ended]:
        """How each row ended, as it ends. Closing this stops the actors, with the rows that they have."""
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it before they begin
        try:
            self._connect()
            manifest = self._write_manifest()
            for result in self._pipeline(manifest).iter_rows():
                some = [Ended(**fields) for fields in json.loads(result["ended"])]
                self.journal.count([one.id for one in some])
                self.journal.finish(some)
                yield from some
        except Exception as error:  # Ray and Ray Data raise what they like; the rows that are left stay waiting
            self.trouble.append(f"Ray: {type(error).__name__}: {_reason(error)}")
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if self.options.ray == "local":
            cores = (self.options.workers or 1) + 1  # one to read the manifest with
            _patiently(lambda: ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet))
        else:
            ray.init(address=self.options.ray, **quiet)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the run without its results
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False

    def _write_manifest(self) -> Path:
        """The waiting rows, those of one picture together, as a table."""
        path = self.settings.out / MANIFEST
        schema = pyarrow.schema([("rows", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for some in chunks(_groups(self.journal.waiting()), 1000):
                writer.write_table(pyarrow.table({"rows": [json.dumps(group) for group in some]}, schema))
        return path

    def _pipeline(self, manifest: Path) -> ray.data.Dataset:
        gpus = self.options.gpus_a_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        there = ray.cluster_resources().get("GPU", 0) / gpus if gpus else 1
        most = self.options.workers or max(1, int(there))
        # Rows of a machine whose server does not start are left for the next run, until all machines have had such.
        ray.data.DataContext.get_current().max_errored_blocks = most - 1
        self.say(f"Ray: up to {most} ComfyUI, each with {f'{gpus:g} GPU' if gpus else 'one CPU'}")
        groups = ray.data.read_parquet(str(manifest)).repartition(target_num_rows_per_block=1)
        return groups.map_batches(
            Edit,
            fn_constructor_args=[_portable(self.settings)],
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=2),
            **({"num_gpus": gpus} if gpus else {"num_cpus": 1}),
        )


class Edit:
    """An actor: one ComfyUI, and the rows that come to it."""

    def __init__(self, given: dict):
        sys.path += given["folders"]
        from comfyui import Host
        from worker import Settings, Worker
        from workflow import Workflow

        flow = Workflow(given["prompt"], given["picture"], given["text"])
        path, python, version = given["host"]
        paths = {name: Path(given[name]) if given[name] else None for name in ("out", "checkpoint", "own")}
        host = Host(Path(path), Path(python), version)
        self.worker = Worker(Settings(host, flow, stall=given["stall"], threads=given["threads"], **paths))

    def __call__(self, batch: dict) -> dict:
        """batch: {"rows": groups as JSON}. Returns {"ended": how their rows ended, as JSON}."""
        from rows import Row

        answers = []
        for group in batch["rows"]:
            ended = []
            for fields in json.loads(group):
                image = Path(fields["image"]) if fields["image"] else None
                some, _ = self.worker.run([Row(**{**fields, "image": image})])
                ended += [asdict(one) for one in some]
            answers.append(json.dumps(ended))
        return {"ended": answers}


def _portable(settings: Settings) -> dict:
    """Settings as values of Python's own, for a process that has none of these modules yet."""
    flow, here = settings.workflow, Path(__file__).resolve().parent
    host: Host = settings.host
    return {
        "folders": [str(here), str(here.parent / "dev")],
        "prompt": flow.prompt,
        "picture": flow.picture,
        "text": flow.text,
        "host": [str(host.path), str(host.python), host.version],
        "out": str(settings.out),
        "checkpoint": str(settings.checkpoint.resolve()) if settings.checkpoint else None,
        "own": str(settings.own) if settings.own else None,
        "stall": settings.stall,
        "threads": settings.threads,
    }


def _reason(error: BaseException) -> str:
    """What was wrong at the bottom of an error of Ray's, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("worker.Unusable: ")]
    return (ours or lines or [type(error).__name__])[-1].removeprefix("worker.Unusable: ")


def _patiently(start: Callable[[], object], tries: int = 3) -> None:
    """Start Ray on this machine. It gives up on itself after 30 seconds, which a busy machine may take."""
    for left in reversed(range(tries)):
        try:
            start()
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def _groups(rows: Iterator[Row]) -> Iterator[list[dict]]:
    """Rows that follow each other with one picture, up to TOGETHER at a time."""
    group: list[dict] = []
    for row in rows:
        fields = asdict(row) | {"image": str(row.image) if row.image else None}
        if group and (fields["image"] != group[0]["image"] or len(group) == TOGETHER):
            yield group
            group = []
        group.append(fields)
    if group:
        yield group
