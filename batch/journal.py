"""What is done and what is to be done, in one SQLite file that survives being killed at any moment.

A row is `waiting`, `done` or `failed`. It is written once, when it has ended, after its pictures are on the disk; so
whatever was under way when everything stopped is `waiting` still.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rows import Row
from workflow import Workflow

FILE = "journal.sqlite"
PICTURES = "pictures"

_TABLE = """
CREATE TABLE IF NOT EXISTS rows (
    id TEXT PRIMARY KEY,
    number INTEGER,              -- its place in the table; NULL: the table of today does not have it
    was INTEGER,                 -- its place in the table of the last time
    image TEXT NOT NULL,
    text TEXT,
    settings TEXT NOT NULL,      -- JSON
    status TEXT NOT NULL,
    key TEXT,                    -- what the result depends on
    stamp TEXT,                  -- size and time of the picture's file when it was read
    picture TEXT,                -- hash of the picture's bytes
    starts INTEGER NOT NULL DEFAULT 0,
    seconds REAL,
    seed INTEGER,
    error TEXT,
    report TEXT,
    choice TEXT,
    scores TEXT,                 -- JSON
    pictures TEXT                -- JSON: [[name, bytes], ...]; of a waiting row those of an earlier run
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origin (source TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS next_row ON rows (image, text, settings, id) WHERE status = 'waiting' AND number NOTNULL;
CREATE INDEX IF NOT EXISTS next_alike ON rows (text, settings, image) WHERE status = 'waiting' AND number NOTNULL;
CREATE INDEX IF NOT EXISTS by_number ON rows (number, status) WHERE number NOTNULL;
"""
_WAITING = "status = 'waiting' AND number NOTNULL"
_ENDED = ("key", "stamp", "picture", "seconds", "seed", "error", "report", "choice", "scores", "pictures")


class Busy(RuntimeError):
    """Another run has this folder."""


@dataclass
class Ended:
    """How a row ended. status: "done" or "failed"; the other fields as the journal's columns."""

    id: str
    status: str
    key: str = ""
    stamp: str = ""
    picture: str = ""
    seconds: float = 0.0
    seed: int | None = None
    error: str | None = None
    report: str | None = None
    choice: str | None = None
    scores: dict | None = None
    pictures: list[tuple[str, int]] = field(default_factory=list)


class Journal:
    """The journal of one folder. One process has it at a time; its threads share it."""

    def __init__(self, folder: Path):
        """Raises Busy, and ValueError for a file that is no journal."""
        self.folder = folder
        self.workflow = ""
        self._lock = threading.RLock()
        self._held: dict[str, tuple[object, str]] = {}  # id -> (who has it, its picture)
        self._last: dict[object, str] = {}  # who -> the picture of the last row
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False, timeout=1)
        except sqlite3.OperationalError as error:
            raise ValueError(f"{folder / FILE} cannot be used: {error}") from None
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript("BEGIN IMMEDIATE;" + _TABLE + "COMMIT;")
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" not in str(error):
                raise ValueError(f"{folder / FILE} cannot be used: {error}") from None
            raise Busy(f"another run is using {folder}") from None
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{folder / FILE} is damaged ({error}); move it away to begin anew") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @property
    def source(self) -> str | None:
        """The folder or table that the rows came from the last time."""
        with self._lock:
            found = self._db.execute("SELECT source FROM origin").fetchone()
        return found and found["source"]

    @source.setter
    def source(self, source: str) -> None:
        with self._lock:
            self._db.executescript("BEGIN IMMEDIATE; DELETE FROM origin;")
            self._db.execute("INSERT INTO origin VALUES (?)", [source])
            self._db.execute("COMMIT")

    # --- taking rows in -----------------------------------------------------------------------------------------------

    def adopt(
        self,
        rows: Iterable[Row],
        workflow: Workflow,
        retry_failed: bool = False,
        on_change: Callable[[int], object] = lambda number: None,
    ) -> None:
        """Make these the rows to be done. One that has ended stays so if its inputs and its pictures are as they were.

        A picture that cannot be read now is taken for what it was: its share may not be mounted. What was made of a row
        before lies there until something else is made of it.
        on_change: called with each place of the table where something else stands than the last time.
        All or nothing: what raises while it is read leaves the journal as it was.
        """
        self.workflow = workflow.hash
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("UPDATE rows SET was = number, number = NULL WHERE number NOTNULL OR was NOTNULL")
                for row in rows:
                    if not self._adopt(row, workflow, retry_failed):
                        on_change(row.number)
                for (number,) in self._db.execute("SELECT was FROM rows WHERE number IS NULL AND was NOTNULL"):
                    on_change(number)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _adopt(self, row: Row, workflow: Workflow, retry_failed: bool) -> bool:
        """Take one row in; returns whether it has ended already and stands where it stood."""
        before = self._db.execute("SELECT * FROM rows WHERE id = ?", [row.id]).fetchone()
        values = (row.number, str(row.image or ""), row.text, json.dumps(row.settings, sort_keys=True), row.id)
        if before is None:
            sql = "INSERT INTO rows (number, image, text, settings, id, status) VALUES (?, ?, ?, ?, ?, 'waiting')"
            self._db.execute(sql, values)
            return False
        self._db.execute("UPDATE rows SET number = ?, image = ?, text = ?, settings = ? WHERE id = ?", values)
        if before["status"] == "waiting":
            return False
        if self._still_holds(before, row, workflow, retry_failed):
            return before["was"] == row.number
        nothing = ", ".join(f"{name} = NULL" for name in _ENDED if name != "pictures")
        self._db.execute(f"UPDATE rows SET status = 'waiting', starts = 0, {nothing} WHERE id = ?", [row.id])
        return False

    def _still_holds(self, before: sqlite3.Row, row: Row, workflow: Workflow, retry_failed: bool) -> bool:
        if before["status"] == "failed" and retry_failed:
            return False
        now = stamp(row.image)
        is_away = not now and row.image is not None and row.image.name == Path(before["image"]).name
        picture = before["picture"] if is_away or before["stamp"] == now else hash_of(row.image)
        if workflow.key(row, picture) != before["key"]:
            return False
        return all(_size(self.folder / PICTURES / name) == size for name, size in json.loads(before["pictures"]))

    # --- handing rows out ---------------------------------------------------------------------------------------------

    def take(self, who: object, most: int = 1) -> list[Row]:
        """The next row for a worker, with up to `most` - 1 others of the same text and settings; [] where none is left.

        Rows of one picture come one after another and go to one worker, as long as there is something else to do for
        the others.
        """
        with self._lock:
            found = self._next(who)
            if found is None:
                return []
            taken = [found]
            if most > 1:
                sql = (
                    f"SELECT * FROM rows WHERE {_WAITING} AND text IS ? AND settings = ? AND image <> '' ORDER BY image"
                )
                for other in self._db.execute(sql, [found["text"], found["settings"]]):
                    if len(taken) == most:
                        break
                    if other["id"] != found["id"] and other["id"] not in self._held:
                        taken.append(other)
            for row in taken:
                self._held[row["id"]] = (who, row["image"])
            self._last[who] = found["image"]
            self.count([row["id"] for row in taken])
            return [_row(row) for row in taken]

    def _next(self, who: object) -> sqlite3.Row | None:
        others = {image for id, (holder, image) in self._held.items() if holder != who}
        others |= {image for holder, image in self._last.items() if holder != who}
        last = self._last.get(who)
        same = self._first("image = ?", [last]) if last else None
        return same or self._first(f"image NOT IN ({_marks(others)})", list(others)) or self._first("1", [])

    def _first(self, condition: str, values: list) -> sqlite3.Row | None:
        """The first waiting row in order that nobody has."""
        held = list(self._held)
        # By its name: SQLite would sort all that is waiting by another index, for every row that is taken.
        sql = f"SELECT * FROM rows INDEXED BY next_row WHERE {_WAITING} AND {condition} AND id NOT IN ({_marks(held)})"
        return self._db.execute(f"{sql} ORDER BY image, text, settings, id LIMIT 1", [*values, *held]).fetchone()

    def count(self, ids: list[str]) -> None:
        """Note that rows are begun."""
        with self._lock:
            self._db.execute(f"UPDATE rows SET starts = starts + 1 WHERE id IN ({_marks(ids)})", ids)

    def put_back(self, rows: list[Row]) -> None:
        """Give rows back that were not begun."""
        with self._lock:
            ids = [row.id for row in rows]
            self._db.execute(f"UPDATE rows SET starts = starts - 1 WHERE id IN ({_marks(ids)})", ids)
            self.release(rows)

    def release(self, rows: Iterable[Row]) -> None:
        """Give rows back that did not end."""
        with self._lock:
            for row in rows:
                self._held.pop(row.id, None)

    def retire(self, who: object) -> None:
        """A worker takes no more rows."""
        with self._lock:
            self._last.pop(who, None)

    def finish(self, ended: list[Ended]) -> None:
        """Write down how rows ended, for good."""
        columns = ("status", *_ENDED)
        sql = f"UPDATE rows SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?"
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            for row in ended:
                values = asdict(row) | {"scores": json.dumps(row.scores), "pictures": json.dumps(row.pictures)}
                self._remove_replaced(row)
                self._db.execute(sql, [*(values[name] for name in columns), row.id])
            self._db.execute("COMMIT")
            for row in ended:
                self._held.pop(row.id, None)

    def _remove_replaced(self, ended: Ended) -> None:
        """Remove what an earlier run made of a row under names that this one does not use."""
        before = self._db.execute("SELECT pictures FROM rows WHERE id = ?", [ended.id]).fetchone()
        now = {name for name, _ in ended.pictures}
        for name, _ in json.loads(before["pictures"] or "[]"):
            if name not in now:
                (self.folder / PICTURES / name).unlink(missing_ok=True)

    # --- looking ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many rows of the table are waiting, done and failed."""
        with self._lock:
            found = self._db.execute("SELECT status, count(*) FROM rows WHERE number NOTNULL GROUP BY status")
            return {"waiting": 0, "done": 0, "failed": 0} | {status: count for status, count in found}

    def waiting(self) -> Iterator[Row]:
        """Every waiting row, rows of one picture one after another. Nothing else may use the journal meanwhile."""
        sql = f"SELECT * FROM rows INDEXED BY next_row WHERE {_WAITING} ORDER BY image, text, settings, id"
        for found in self._db.execute(sql):
            yield _row(found)

    def results(self, first: int = 1, last: int = 2**62) -> Iterator[dict]:
        """The rows from place `first` to `last` of the table, in its order, as dicts of the journal's columns."""
        sql = "SELECT * FROM rows WHERE number BETWEEN ? AND ? ORDER BY number LIMIT 1000"
        while True:
            with self._lock:
                page = self._db.execute(sql, [first, last]).fetchall()
            yield from map(dict, page)
            if not page:
                return
            first = page[-1]["number"] + 1

    def errors(self) -> list[tuple[str, int]]:
        """The sentences of failed rows, with how many have each, the most frequent ten."""
        sql = (
            "SELECT error, count(*) AS many FROM rows WHERE status = 'failed' AND number NOTNULL "
            "GROUP BY error ORDER BY many DESC, error LIMIT 10"
        )
        with self._lock:
            return [(error, many) for error, many in self._db.execute(sql)]

    def is_complete(self, first: int, last: int) -> bool:
        """Whether no row from place `first` to `last` is waiting."""
        sql = "SELECT 1 FROM rows INDEXED BY by_number WHERE number BETWEEN ? AND ? AND status = 'waiting' LIMIT 1"
        with self._lock:
            return self._db.execute(sql, [first, last]).fetchone() is None

    def place(self, id: str) -> int:
        with self._lock:
            return self._db.execute("SELECT number FROM rows WHERE id = ?", [id]).fetchone()[0]


def _row(found: sqlite3.Row) -> Row:
    image = Path(found["image"]) if found["image"] else None
    return Row(found["number"], found["id"], image, found["text"], json.loads(found["settings"]))


def _marks(values) -> str:
    return ", ".join("?" * len(values))


# --- pictures that rows begin with ------------------------------------------------------------------------------------


def stamp(image: Path | None) -> str:
    """Size and time of a file, by which it is seen that it is the same still; empty where there is none."""
    try:
        about = image.stat()
    except (OSError, AttributeError):
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def hash_of(image: Path | None) -> str:
    """A hash of a file's bytes, empty where there is none."""
    try:
        return digest(image.read_bytes())
    except (OSError, AttributeError):
        return ""


def digest(data: bytes) -> str:
    """The hash that a picture's bytes are known by."""
    return hashlib.sha256(data).hexdigest()[:32]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
