"""One ComfyUI server and the rows that it runs: restarted where it dies or hangs, one row's failure never another's."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy_server
import comfyui
from comfy_server import Client, ExecutionFailed, Interrupted, PromptRejected, ServerError
from files import write_whole
from journal import PICTURES, Ended, digest, hash_of, stamp
from PIL import Image  # the host's
from rows import Row
from workflow import Workflow

RETRIES = 2
OPTIONS = ("--cache-classic", "--preview-method", "none")
"""The classic cache keeps what the last row made, whatever memory is left; nobody looks at previews."""
_GONE = (ServerError, OSError, http.client.HTTPException)  # what a server that died ends in


@dataclass(frozen=True)
class Settings:
    """What every worker of a run shares.

    out: the run's folder. stall: seconds without any sign of progress after which a server is given up.
    own: a ComfyUI folder whose models and custom nodes the servers have as well. threads: of torch on the CPU.
    """

    host: comfyui.Host
    workflow: Workflow
    out: Path
    checkpoint: Path | None = None
    stall: float = 600
    batch_size: int = 1
    own: Path | None = None
    threads: int | None = None


class Unusable(RuntimeError):
    """The server cannot be started, or what it made cannot be written."""


class Stopped(RuntimeError):
    """The run ends, and what was under way with it."""


@dataclass(frozen=True)
class _Loaded:
    """A row with its picture as the server has it. name: in the server's input folder."""

    row: Row
    name: str | None = None
    stamp: str = ""
    hash: str = ""
    size: tuple[int, int] = (0, 0)
    is_opaque: bool = True


class Worker:
    """Runs rows on a server of its own, which starts with the first of them. Use as a context manager."""

    def __init__(
        self,
        settings: Settings,
        device: str | None = None,
        say: Callable[[str], None] = print,
        stopping: threading.Event | None = None,
    ):
        """device: the one GPU of the server, None for all that there are, or the CPU. stopping: set by who ends it."""
        self.settings, self.device, self.say = settings, device, say
        self.stopping = stopping or threading.Event()
        self.batch_size = settings.batch_size
        self._server = contextlib.ExitStack()
        self._client: Client | None = None
        self._keep: set[Path] = set()
        self._alone: set[str] = set()  # rows that failed in a batch: which of them it was is found one by one

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    # --- the server ---------------------------------------------------------------------------------------------------

    def start(self) -> Client:
        """The server, started where none runs. Raises Unusable, and Stopped where the run ended meanwhile."""
        if self._client is None:
            s = self.settings
            checkpoints = [s.checkpoint] if s.checkpoint else []
            try:
                self._client = self._server.enter_context(
                    comfy_server.running(s.host, checkpoints, OPTIONS, s.threads, self.device, s.own)
                )
            except _GONE as error:
                raise Unusable(str(error)) from None
            self._client.patience = min(self._client.patience, s.stall)
            if self.stopping.is_set():
                self.stop()
                raise Stopped
        return self._client

    def stop(self) -> None:
        self._client = None
        self._keep = set()
        with contextlib.suppress(*_GONE):
            self._server.close()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def run(self, rows: Sequence[Row]) -> tuple[list[Ended], list[Row]]:
        """Run rows of one text and one group of settings; returns how they ended, and those to be tried later.

        Raises Unusable where the server cannot be started again or a file cannot be written, Stopped where it was
        stopped on purpose.
        """
        for attempt in range(RETRIES + 1):
            try:
                return self._run(rows)
            except _GONE as error:
                if self.stopping.is_set():
                    raise Stopped from None
                self.say(f"The server of {', '.join(row.id for row in rows)} is gone: {_sentence(error)}")
                self.stop()
                if attempt == RETRIES and len(rows) == 1:
                    sentence = f"The server died or hung {RETRIES + 1} times with this row: {_sentence(error)}"
                    return [self._failed(_Loaded(rows[0], stamp=stamp(rows[0].image)), sentence)], []
                if attempt == RETRIES:
                    self._lower(len(rows))
                    return [], list(rows)
        raise AssertionError

    def _run(self, rows: Sequence[Row]) -> tuple[list[Ended], list[Row]]:
        client = self.start()
        ended: list[Ended] = []
        ready: list[_Loaded] = []
        for row in rows:
            try:
                ready.append(self._load(row, client))
            except ValueError as error:
                ended.append(self._failed(_Loaded(row, stamp=stamp(row.image), hash=hash_of(row.image)), str(error)))
        if not ready:
            return ended, []
        together = [one for one in ready if one is ready[0] or self._share_a_batch(ready[0], one)]
        later = [one.row for one in ready if one not in together]
        try:
            return ended + self._edit(together, client), later
        except ExecutionFailed as error:
            if len(together) > 1:
                if _is_out_of_memory(error):
                    self._lower(len(together))
                else:
                    self._alone |= {one.row.id for one in together}
                return ended, [one.row for one in together] + later
            return [*ended, self._failed(together[0], _sentence(error))], later
        except _CannotBeSplit as error:
            self.say(f"{error} The rows go one by one from here.")
            self.batch_size = 1
            return ended, [one.row for one in together] + later
        except (PromptRejected, Interrupted, ValueError) as error:
            return ended + [self._failed(one, _sentence(error)) for one in together], later

    def _share_a_batch(self, first: _Loaded, other: _Loaded) -> bool:
        """Whether two pictures can lie in one batch: a mask painted on one would count for all."""
        if {first.row.id, other.row.id} & self._alone:
            return False
        return first.size == other.size and first.is_opaque and other.is_opaque

    def _lower(self, size: int) -> None:
        self.batch_size = max(1, size // 2)
        self.say(f"{size} pictures at a time are too much here; from now on {self.batch_size}.")

    def _load(self, row: Row, client: Client) -> _Loaded:
        """Put a row's picture where the server reads it. Raises ValueError for what is no picture."""
        if row.image is None:
            return _Loaded(row)
        try:
            data = row.image.read_bytes()
        except OSError as error:
            raise ValueError(f"{row.image} cannot be read: {error.strerror}.") from None
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                size, bands = picture.size, picture.getbands()
        except Exception as error:  # its decoders raise what they like on damaged bytes
            raise ValueError(f"{row.image} cannot be read as a picture: {_without_address(error)}") from None
        known_by = digest(data)
        path = client.work / "input" / (known_by + row.image.suffix.lower())
        if not path.exists():
            with _writing(path):
                path.write_bytes(data)
        opaque = "A" not in bands and "transparency" not in picture.info
        return _Loaded(row, path.name, stamp(row.image), known_by, size, opaque)

    def _edit(self, loaded: list[_Loaded], client: Client) -> list[Ended]:
        """Run the workflow for one row, or for several in a batch."""
        workflow, first = self.settings.workflow, loaded[0]
        if len(loaded) == 1:
            prompt = workflow.filled(first.row, first.name)
        else:
            prompt = workflow.for_several(first.row, [one.name for one in loaded])
        began = time.monotonic()
        run = client.run(prompt, stall=self.settings.stall)
        seconds = (time.monotonic() - began) / len(loaded)
        written = self._pictures(run.outputs, prompt, client, [one.row for one in loaded])
        ended = []
        for number, one in enumerate(loaded):
            report = _report(run.outputs, number, len(loaded))
            choice, scores = choice_and_scores(report or "")
            ended.append(
                Ended(
                    id=one.row.id,
                    status="done",
                    key=workflow.key(one.row, one.hash),
                    stamp=one.stamp,
                    picture=one.hash,
                    seconds=round(seconds, 3),
                    seed=workflow.seed(prompt),
                    report=report,
                    choice=choice,
                    scores=scores,
                    pictures=written[number],
                )
            )
        self._tidy(run, client, {one.name for one in loaded})
        return ended

    def _failed(self, one: _Loaded, sentence: str) -> Ended:
        key = self.settings.workflow.key(one.row, one.hash)
        return Ended(one.row.id, "failed", key, one.stamp, one.hash, error=sentence)

    # --- what comes out -----------------------------------------------------------------------------------------------

    def _pictures(self, outputs: dict, prompt: dict, client: Client, rows: list[Row]) -> list[list[tuple[str, int]]]:
        """Write what the workflow saved, or where it saves nothing what it shows; (name, bytes) of each row's files."""
        files = {id: _files_of(output) for id, output in outputs.items()}
        kinds = {entry["type"] for entries in files.values() for entry in entries}
        wanted = "output" if "output" in kinds else "temp"
        saving = {id: [entry for entry in files[id] if entry["type"] == wanted] for id in prompt if files.get(id)}
        saving = {id: entries for id, entries in saving.items() if entries}
        written: list[list[tuple[str, int]]] = [[] for _ in rows]
        for id, entries in saving.items():
            if len(entries) % len(rows):
                title = self.settings.workflow.titles.get(id, id)
                raise _CannotBeSplit(f"{title} gives {len(entries)} pictures for a batch of {len(rows)}.")
            each = len(entries) // len(rows)
            title = f".{_plain(self.settings.workflow.titles.get(id, id))}" if len(saving) > 1 else ""
            for place, entry in enumerate(entries):
                number, copy = divmod(place, each)
                source = client.work / wanted / entry["subfolder"] / entry["filename"]
                name = f"{rows[number].id}{title}{f'.{copy + 1}' if copy else ''}{source.suffix}"
                data = source.read_bytes()
                with _writing(self.settings.out / PICTURES / name) as path:
                    write_whole(path, data)
                written[number].append((name, len(data)))
        return written

    def _tidy(self, run: comfy_server.Run, client: Client, inputs: set[str | None]) -> None:
        """Keep the server small: no history, and no file but those of this row, which its cache may name once more."""
        client.forget(run)
        now = {client.work / "input" / name for name in inputs if name}
        for output in run.outputs.values():
            now |= {client.work / entry["type"] / entry["subfolder"] / entry["filename"] for entry in _files_of(output)}
        for path in self._keep - now:
            path.unlink(missing_ok=True)
        self._keep = now


class _CannotBeSplit(RuntimeError):
    """A batch whose pictures cannot be told apart."""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Turn a disk's refusal into Unusable: it is no fault of the row's, nor of the server's."""
    try:
        yield path
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror or error}") from None


def _files_of(output: dict) -> list[dict]:
    """Every file that an output of a node names."""
    lists = [value for value in output.values() if isinstance(value, (list, tuple))]
    return [entry for value in lists for entry in value if isinstance(entry, dict) and "filename" in entry]


def _report(outputs: dict, number: int, rows: int) -> str | None:
    """The text that nodes report, one row's line of it where each row has one."""
    texts = [str(part) for output in outputs.values() for part in output.get("text", ())]
    if rows > 1:
        texts = [text.splitlines()[number] for text in texts if len(text.splitlines()) == rows]
    return "\n".join(re.sub(r"^picture \d+: ", "", text) for text in texts) or None


def choice_and_scores(report: str) -> tuple[str | None, dict[str, float] | None]:
    """What Auto Edit's report says it took, and how far each candidate obeys; None, None of any other report."""
    found = re.search(r"how far each candidate obeys, from 0 to 1: (.+?); taken: (.+)", report)
    if not found:
        return None, None
    scores = {name: float(score) for name, score in re.findall(r"(\D.*?) (-?\d+\.\d\d)(?:, |$)", found[1])}
    return max((name for name in scores if found[2].startswith(name)), key=len, default=None), scores


def _plain(title: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in title)


def _is_out_of_memory(error: ExecutionFailed) -> bool:
    return "OutOfMemory" in error.exception_type or "out of memory" in error.message.lower()


def _sentence(error: Exception) -> str:
    """What an error says, in one line."""
    text = error.message if isinstance(error, ExecutionFailed) else str(error)
    return " ".join(text.split()) or type(error).__name__


def _without_address(error: Exception) -> str:
    """An error's text without the address of the object that it was about, which differs from run to run."""
    text = _sentence(error)
    return "its bytes are none that a picture begins with." if "BytesIO" in text else f"{text.rstrip('.')}."
