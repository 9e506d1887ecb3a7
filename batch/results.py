"""The results of a run as one table, and as a few lines."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from files import UNFINISHED, publish, write_whole
from journal import Journal
from rows import chunks

COLUMNS = {
    "row": "int64",
    "id": "string",
    "image": "string",
    "text": "string",
    "settings": "string",
    "status": "string",
    "attempts": "int64",
    "seconds": "float64",
    "seed": "int64",
    "workflow": "string",
    "error": "string",
    "report": "string",
    "choice": "string",
    "scores": "string",
    "pictures": "string",
}
"""Column -> its type in Parquet. settings, scores and pictures are JSON; the files of pictures lie in `pictures`."""
_AT_A_TIME = 10_000
NO_PARQUET = "pyarrow is not installed, so the results are written as CSV (python -m pip install pyarrow)."


def write(journal: Journal) -> Path:
    """Write every row of the table, in its order; returns the file: Parquet, or CSV without pyarrow."""
    parquet = importlib.util.find_spec("pyarrow") is not None
    path = journal.folder / ("results.parquet" if parquet else "results.csv")
    unfinished = path.with_name(path.name + UNFINISHED)
    (_write_parquet if parquet else _write_csv)(unfinished, _records(journal))
    with open(unfinished, "rb+") as file:
        os.fsync(file.fileno())
    publish(unfinished, path)
    return path


def _records(journal: Journal) -> Iterator[dict]:
    for found in journal.results():
        ended = found["status"] != "waiting"
        pictures = [name for name, _ in json.loads(found["pictures"] or "[]")] if ended else []
        scores = json.loads(found["scores"] or "null")
        yield {
            **{name: found.get(name) for name in COLUMNS},
            "row": found["number"],
            "attempts": found["starts"],
            "workflow": journal.workflow if ended else None,
            "scores": json.dumps(scores) if scores is not None else None,
            "pictures": json.dumps(pictures),
        }


def _write_parquet(path: Path, records: Iterator[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for some in chunks(records, _AT_A_TIME):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))


def _write_csv(path: Path, records: Iterator[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)


def summary(journal: Journal, ran: int, seconds: float) -> str:
    """What came of a run, for people. ran: rows that ended in it, in that many seconds. Also written to summary.txt."""
    counts = journal.counts()
    lines = [f"{sum(counts.values())} rows: {counts['done']} done, {counts['failed']} failed, {counts['waiting']} left"]
    if ran:
        lines.append(f"{ran} of them in this run, in {seconds:.0f} s: {ran / seconds:.2f} a second")
    lines += [f"{many} failed: {error}" for error, many in journal.errors()]
    text = "\n".join(lines) + "\n"
    write_whole(journal.folder / "summary.txt", text.encode())
    return text
