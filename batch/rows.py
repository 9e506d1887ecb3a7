"""The rows of a batch: from a folder of pictures, or from a table (CSV, JSONL, Parquet)."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = (".csv", ".jsonl", ".parquet")
OWN_COLUMNS = ("id", "image", "text")

_ID = re.compile(r"[\w](?:[\w. -]*[\w-])?(?:/[\w](?:[\w. -]*[\w-])?)*")
_LONGEST_ID = 180  # bytes; names of files end at 255 bytes with most file systems


@dataclass(frozen=True)
class Row:
    """One row. image: a file, or None for a workflow that takes none. text: None leaves the workflow's own.

    number: its place in the table, from 1. settings: "Node title.input" -> value.
    """

    number: int
    id: str
    image: Path | None
    text: str | None
    settings: dict = field(default_factory=dict)


def read(source: Path, text: str | None = None, leave_out: Path | None = None) -> Iterator[Row]:
    """The rows of a folder or a table, one at a time, however many there are.

    text: for the rows that have none of their own. leave_out: a folder within `source` that is not looked into.
    Raises ValueError, with what fits, for what is neither, is damaged, or has an id twice or one that no file can have.
    """
    if source.is_dir():
        return _of_folder(source, text, leave_out)
    if source.suffix.lower() not in TABLES:
        raise ValueError(f"{source} is neither a folder of pictures nor a table; {', '.join(TABLES)} fit")
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    return _of_table(source, text)


def columns(source: Path) -> list[str]:
    """The names of a table's columns; of JSONL those of its first row. None of a folder."""
    if source.is_dir():
        return []
    if source.suffix.lower() == ".parquet":
        return _parquet(source).schema_arrow.names
    if source.suffix.lower() == ".csv":
        with open(source, encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    return list(next(_records(source), {}))


# --- a folder ---------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path, text: str | None, leave_out: Path | None) -> Iterator[Row]:
    """Every picture of a folder and those within it, by name. The id is the name without its ending.

    Where a.jpg and a.png lie side by side, the later one keeps the ending in its id. Raises ValueError for two pictures
    of one name, and for a name that is not UTF-8.
    """
    taken: set[str] = set()
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in within.parts)
        if hidden or path.suffix.lower() not in PICTURES or (leave_out and leave_out in path.parents):
            continue
        if not _is_utf8(within):
            raise ValueError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename that picture")
        id = _file_name(within.with_suffix("").as_posix())
        if id.casefold() in taken:  # some file systems know no capitals
            id = _file_name(within.as_posix())
        if id.casefold() in taken:
            raise ValueError(f"{path} and another picture would both be called {id}; rename one of them")
        taken.add(id.casefold())
        yield Row(len(taken), id, path, text)


def _file_name(name: str) -> str:
    """A name in which every character may stand in the name of a file."""
    if _ID.fullmatch(name) and len(name.encode()) <= _LONGEST_ID:
        return name
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:100].decode(errors="ignore")
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- a table ----------------------------------------------------------------------------------------------------------


def _of_table(table: Path, text: str | None) -> Iterator[Row]:
    seen: dict[bytes, int] = {}  # a digest of each id: of one size, however long ids are
    for number, record in enumerate(_records(table), 1):
        where = f"row {number} of {table.name}"
        cells = {name: record.pop(name, None) for name in OWN_COLUMNS}
        own = {name: "" if value is None else str(value).strip() for name, value in cells.items()}
        settings = {name: value for name, value in record.items() if "." in name and value not in (None, "")}
        image = (table.parent / own["image"]) if own["image"] else None
        wanted = own["text"] or text
        if own["id"]:
            id = own["id"]
            if not _ID.fullmatch(id) or len(id.encode()) > _LONGEST_ID:
                raise ValueError(
                    f"the id of {where} is {id[:80]!r}; letters, digits and . _ - / fit, at most {_LONGEST_ID} bytes"
                )
        else:
            written = json.dumps([own["image"], wanted, settings], sort_keys=True, default=str)
            id = hashlib.sha256(written.encode()).hexdigest()[:16]
        digest = hashlib.sha256(id.casefold().encode()).digest()[:12]  # some file systems know no capitals
        if digest in seen and own["id"]:
            raise ValueError(f"the id {id} stands in rows {seen[digest]} and {number} of {table.name}; one may have it")
        copy = 1
        while digest in seen:  # the same row again
            copy += 1
            digest = hashlib.sha256(f"{id}-{copy}".encode()).digest()[:12]
        seen[digest] = number
        yield Row(number, id if copy == 1 else f"{id}-{copy}", image, wanted, settings)


def _records(table: Path) -> Iterator[dict]:
    kind = table.suffix.lower()
    return {".csv": _csv, ".jsonl": _jsonl, ".parquet": _rows_of_parquet}[kind](table)


def _csv(table: Path) -> Iterator[dict]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for record in reader:
                if None in record:
                    raise ValueError(f"line {reader.line_num} of {table.name} has more cells than the first line")
                yield record
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{table} cannot be read as CSV in UTF-8: {error}") from None


def _jsonl(table: Path) -> Iterator[dict]:
    with open(table, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {table.name} is no JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f'line {number} of {table.name} is no JSON object; {{"image": "...", ...}} fits')
            yield record


def _rows_of_parquet(table: Path) -> Iterator[dict]:
    for batch in _parquet(table).iter_batches(1000):
        yield from batch.to_pylist()


def _parquet(table: Path):
    if not importlib.util.find_spec("pyarrow"):
        raise ValueError(f"{table} needs pyarrow, which is not installed: python -m pip install pyarrow; or a CSV fits")
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(table)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{table} cannot be read as Parquet: {error}") from None


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """So many items at a time; the last may be fewer."""
    some: list = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
