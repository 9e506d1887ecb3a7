"""Run a real ComfyUI server with this pack in it, and talk to it the way the frontend does.

    with comfy_server.running(host, checkpoints=[path]) as client:
        result = client.run(prompt, on_event=print)

The server works in a folder of its own (`--base-directory`), so that the ComfyUI tree, which may be the user's, is
left as it is. Needs the host's interpreter (aiohttp is among ComfyUI's requirements). Not named `server`, because
ComfyUI has a module of that name and some tests have both in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import queue
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import comfyui

PACK = Path(__file__).resolve().parent.parent
PACK_NAME = "ComfyUI-BARET"
WITH_PARENT = Path(__file__).resolve().parent / "with_parent.py"
PROBE = "BaretTTISInversion"  # ComfyUI skips a pack that fails to import with one warning: this node tells

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's server
_OF_A_RUN = ("executing", "executed", "progress", "progress_state", "status")  # and execution_...; packs send others

SECONDS_TO_END = 15
"""What a server has to end properly before it is killed."""

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4  # ComfyUI's protocol.BinaryEventTypes


class ServerError(RuntimeError):
    """The server did not start, died, or did not load the pack; the message ends with what its log says."""


class Stalled(ServerError):
    """The server gave no sign of progress for too long."""


class PromptRejected(RuntimeError):
    """The server refused a workflow before running it. `errors`: per node id, the list of what is wrong there."""

    def __init__(self, answer: dict):
        self.errors: dict[str, list[dict]] = {id: node["errors"] for id, node in answer.get("node_errors", {}).items()}
        lines = [f"node {id}: {e['message']} ({e['details']})" for id, errors in self.errors.items() for e in errors]
        super().__init__("; ".join(lines) or str(answer.get("error")))


class ExecutionFailed(RuntimeError):
    """A node raised: its id, its class and the exception's own text, as the user sees them."""

    def __init__(self, event: dict):
        self.node_id, self.node_type = event["node_id"], event["node_type"]
        self.exception_type, self.message = event["exception_type"], event["exception_message"].strip()
        super().__init__(f"node {self.node_id} ({self.node_type}): {self.message}")


class Interrupted(RuntimeError):
    """The run was cancelled; `node_id` is the node that was running."""

    def __init__(self, event: dict):
        self.node_id, self.node_type = event["node_id"], event["node_type"]
        super().__init__(f"cancelled in node {self.node_id} ({self.node_type})")


@dataclass(frozen=True)
class Preview:
    """A preview picture that arrived while a node ran (`node_id` None: the server is too old to say which)."""

    node_id: str | None
    image: bytes


@dataclass(frozen=True)
class Remark:
    """What a node says under itself while it runs."""

    node_id: str
    text: str


Event = dict | Preview | Remark
"""What a server sends while a workflow runs."""


@dataclass
class Run:
    """What one queued workflow did: events in order, previews, ids of nodes run and taken from the cache, outputs.

    `remarks`: what stands under each node at the end, by its id.
    """

    prompt_id: str
    events: list[dict] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    outputs: dict[str, dict] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    def concerns(self, event: Event) -> bool:
        """Whether an event is of this run: not of an earlier one, nor what another pack sends of its own accord."""
        if not isinstance(event, dict):
            return True
        kind, data = event["type"], event["data"]
        is_of_a_run = kind in _OF_A_RUN or kind.startswith("execution_")
        return is_of_a_run and data.get("prompt_id") in (None, self.prompt_id)

    def take(self, event: Event) -> None:
        """Note down one event."""
        if isinstance(event, Preview):
            self.previews.append(event)
        elif isinstance(event, Remark):
            self.remarks[event.node_id] = event.text
        else:
            self._take_message(event)

    def _take_message(self, event: dict) -> None:
        self.events.append(event)
        kind, data = event["type"], event["data"]
        if kind == "execution_cached":
            self.cached.update(data["nodes"])
        elif kind == "executed" and data["output"]:
            self.outputs[data["node"]] = data["output"]
        elif kind == "executing" and data["node"] is not None:
            self.executed.append(data["node"])

    def ended_by(self, event: dict) -> bool:
        """Whether an event says that nothing of this run is executed any more."""
        data = event["data"]
        return event["type"] == "executing" and data["node"] is None and data.get("prompt_id") == self.prompt_id

    def progress(self, node_id: str) -> list[tuple[float, float]]:
        """The (value, maximum) pairs that node reported, in order."""
        data = [e["data"] for e in self.events if e["type"] == "progress"]
        return [(d["value"], d["max"]) for d in data if d["node"] == node_id]


class Client:
    """One frontend: a WebSocket that listens from the start, and the HTTP routes.

    `work` is the server's folder, with its `input` and `output`; `log` its log file. `patience` is how many seconds a
    request may take. One `run` at a time.
    """

    def __init__(self, url: str, work: Path, log: Path):
        self.url, self.work, self.log = url, work, log
        self.patience = 60.0
        self.id = uuid.uuid4().hex
        self._events: queue.Queue = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._listen(),), daemon=True)
        self._thread.start()
        if not self._listening.wait(30):
            raise ServerError(f"The WebSocket of {url} did not open.")

    async def _listen(self) -> None:
        address = f"{self.url}/ws?clientId={self.id}"
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as self._socket:
                # Must be the first message: previews then come with the id of their node.
                await self._socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
                self._listening.set()
                async for message in self._socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self._events.put(json.loads(message.data))
                    elif message.type == aiohttp.WSMsgType.BINARY and (event := _decoded(message.data)):
                        self._events.put(event)
        finally:
            self._events.put(None)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._socket.close(), self._loop)
        self._thread.join(10)

    # --- HTTP -------------------------------------------------------------------------------------------------------

    def object_info(self, node: str = "") -> dict:
        """The schemas of all nodes, or of one ({} if the server has no such node)."""
        return self._json(f"/object_info/{node}" if node else "/object_info")

    def history(self, prompt_id: str) -> dict:
        return self._json(f"/history/{prompt_id}").get(prompt_id, {})

    def forget(self, run: Run) -> None:
        """Let the server's history go without a run that has ended."""
        self._post("/history", {"delete": [run.prompt_id]})

    def interrupt(self) -> None:
        """Cancel what runs now."""
        self._post("/interrupt", {})

    def upload(self, image: Path) -> str:
        """Put a picture into the server's input folder; returns the name that LoadImage takes."""
        form = uuid.uuid4().hex
        head = (
            f'--{form}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{form}\r\nContent-Disposition: form-data; name="image"; filename="{image.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + image.read_bytes() + f"\r\n--{form}--\r\n".encode()
        answer = json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={form}"))
        return answer["name"]

    def view(self, image: dict) -> bytes:
        """The file behind one entry of a node's `images` output."""
        return self._request("/view?" + urllib.parse.urlencode(image))

    def pictures(self, run: Run, prompt: dict) -> dict[str, bytes]:
        """The first picture of each node that shows some after a run of `prompt`, by the node's title."""
        shown = {id: output["images"][0] for id, output in run.outputs.items() if output.get("images")}
        return {prompt[id]["_meta"]["title"]: self.view(image) for id, image in shown.items()}

    def queue(self, prompt: dict) -> str:
        """Submit a workflow in API form; returns its id. Raises PromptRejected."""
        try:
            answer = self._post("/prompt", {"prompt": prompt, "client_id": self.id})
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.loads(error.read())) from None
        if answer["node_errors"]:  # the server would still run the outputs that do not depend on those nodes
            self._post("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt()
            raise PromptRejected(answer)
        return answer["prompt_id"]

    def _json(self, path: str) -> dict:
        return json.loads(self._request(path))

    def _post(self, path: str, value: dict) -> dict:
        return json.loads(self._request(path, json.dumps(value).encode(), "application/json") or b"{}")

    def _request(self, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if kind else {})
        with _DIRECT.open(request, timeout=self.patience) as answer:
            return answer.read()

    # --- running a workflow -----------------------------------------------------------------------------------------

    def run(
        self,
        prompt: dict,
        on_event: Callable[[Event], None] | None = None,
        timeout: float = 600,
        stall: float | None = None,
    ) -> Run:
        """Submit a workflow and follow it to its end.

        on_event: called with each event, preview and remark as it comes.
        timeout: seconds, after which the run is cancelled.
        stall: seconds without any event of the run, after which the server is given up, in place of a timeout.
        Raises PromptRejected, ExecutionFailed, Interrupted, TimeoutError, Stalled.
        """
        run = Run(self.queue(prompt))
        failure: Exception | None = None
        limit = timeout if stall is None else stall
        deadline = time.monotonic() + limit
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._too_long(limit, stall is not None) from None
            if event is None:
                raise ServerError("The server closed the connection while the workflow ran.")
            if not run.concerns(event):
                continue
            if stall is not None:
                deadline = time.monotonic() + stall
            if on_event:
                on_event(event)
            run.take(event)
            if not isinstance(event, dict):
                continue
            failure = _failure(event) or failure
            if run.ended_by(event):  # sent last, however the run ended
                if failure:
                    raise failure
                return run

    def _too_long(self, seconds: float, is_stall: bool) -> Exception:
        """What a run ends in that did not end, or gave no sign, for so long."""
        if is_stall:
            return Stalled(f"The server gave no sign of progress for {seconds:.0f} s.")
        self.interrupt()
        return TimeoutError(f"The workflow did not end within {seconds:.0f} s.")


def _failure(event: dict) -> Exception | None:
    """What an event says went wrong."""
    if event["type"] == "execution_error":
        return ExecutionFailed(event["data"])
    if event["type"] == "execution_interrupted":
        return Interrupted(event["data"])
    return None


def _decoded(message: bytes) -> Preview | Remark | None:
    """Decode a binary message: its type; where it has one, the length of a head and the head; the content."""
    kind, number = struct.unpack(">II", message[:8])
    head, content = message[8 : 8 + number], message[8 + number :]
    if kind == PREVIEW:  # the number is the image's type
        return Preview(None, message[8:])
    if kind == PREVIEW_WITH_METADATA:
        return Preview(json.loads(head)["node_id"], content)
    if kind == TEXT:
        return Remark(head.decode(), content.decode())
    return None


# --- the server process ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    host: comfyui.Host,
    checkpoints: Sequence[Path] = (),
    options: Sequence[str] = (),
    threads: int | None = None,
    device: str | None = None,
    own: Path | None = None,
) -> Iterator[Client]:
    """Start the server with the pack and `checkpoints` in it, yield a Client, stop it. Raises ServerError.

    `options`: further ComfyUI command line options. `threads`: of torch on the CPU; small models want one, since
    several wait for each other at every operation, and on a busy machine for long. `device`: the one GPU that it
    sees, as CUDA_VISIBLE_DEVICES names it. `own`: a ComfyUI folder whose models and custom nodes it has as well. The
    server's folder is gone at the end, and the server itself when this process is gone, however that ends.
    """
    with tempfile.TemporaryDirectory(prefix="baret-server-") as folder:
        work = Path(folder)
        for name in ("custom_nodes", "input", "output", "user", "models/checkpoints"):
            (work / name).mkdir(parents=True)
        if own is None or PACK.parent != own / "custom_nodes":
            link(PACK, work / "custom_nodes" / PACK_NAME)
        if own is not None:
            options = [*options, "--extra-model-paths-config", str(_paths_of(own, work))]
        for checkpoint in checkpoints:
            link(Path(checkpoint).resolve(), work / "models" / "checkpoints" / Path(checkpoint).name)
        port = _free_port()
        log = work / "server.log"
        # Compiled files go to our cache: the tree, which may be the user's, is not written to.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(comfyui.cache_root() / "pycache")}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*_command(host, work, port), *options],
                stdin=subprocess.PIPE,  # it ends with its other end
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        client = None
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(process, url, log)
            client = Client(url, work, log)
            if not client.object_info(PROBE):
                raise ServerError(f"ComfyUI runs but did not load {PACK_NAME}; its log says:\n{_about_pack(log)}")
            yield client
        finally:
            if client:
                client.close()
            process.terminate()
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()


def _paths_of(own: Path, work: Path) -> Path:
    """A file that tells ComfyUI where the models and custom nodes of another folder of it lie (JSON is YAML)."""
    kinds = [path.name for path in (own / "models").iterdir() if path.is_dir()] if (own / "models").is_dir() else []
    paths = {"base_path": str(own), "custom_nodes": "custom_nodes", **{kind: f"models/{kind}" for kind in kinds}}
    file = work / "paths.yaml"
    file.write_text(json.dumps({"own": paths}), encoding="utf-8")
    return file


def _command(host: comfyui.Host, work: Path, port: int) -> list[str]:
    """What starts ComfyUI with everything it writes in the folder `work`."""
    database = f"sqlite:///{(work / 'user' / 'comfyui.db').as_posix()}"
    return [
        *(str(host.python), "-u", str(WITH_PARENT), str(work), str(host.path / "main.py")),
        *("--base-directory", str(work)),
        *("--port", str(port)),
        *("--database-url", database),
        *("--preview-method", "latent2rgb"),
        *("--disable-auto-launch", "--disable-api-nodes"),
        *([] if accelerators(host) else ["--cpu"]),
    ]


def _wait_until_up(process: subprocess.Popen, url: str, log: Path, limit: float = 600) -> None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"ComfyUI ended with code {process.returncode} while starting; its log ends:\n{_tail(log)}"
            )
        try:
            with _DIRECT.open(f"{url}/system_stats", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise ServerError(f"ComfyUI was not up within {limit:.0f} s; its log ends:\n{_tail(log)}")


@functools.cache
def accelerators(host: comfyui.Host) -> int:
    """How many GPUs the host's torch sees; ComfyUI does not start without one unless it is told `--cpu`.

    Raises ServerError where torch does not import.
    """
    code = "import torch; print(getattr(torch, 'accelerator', torch.cuda).device_count())"
    result = subprocess.run([str(host.python), "-c", code], capture_output=True, text=True)
    if result.returncode:
        raise ServerError(f"{host.python} cannot import torch: {comfyui.last_line(result)}")
    return int(result.stdout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where those are not allowed (Windows without developer mode)."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        else:
            shutil.copy2(source, target)


def _lines(log: Path) -> list[str]:
    """The log's lines without their colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).splitlines()


def _tail(log: Path) -> str:
    return "\n".join(_lines(log)[-30:])


def _about_pack(log: Path) -> str:
    """The log from the first traceback to the last line that names the pack, or the log's end."""
    lines = _lines(log)
    named = [i for i, line in enumerate(lines) if PACK_NAME in line]
    first = next((i for i, line in enumerate(lines) if "Traceback" in line), named[0] if named else 0)
    return "\n".join(lines[first : named[-1] + 1][-60:]) if named else _tail(log)
