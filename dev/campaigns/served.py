"""Through a real server: inputs that nobody would choose, and many runs of several clients."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import comfy_server
import comfyui
import psutil
import workflows

from . import Report, complaint

SHORT = {"steps": 3, "text_updates": 3, "updates": 3}
"""What long runs are shortened to, by the input."""
SECONDS = 240
EACH = 10
"""Prompts of one workflow, one after another."""
GRAPHS = (
    "baret_edit",
    "baret_paper",
    "baret_masked_edit",
    "baret_stock_sampler",
    "baret_compare",
    "baret_sweep",
    "baret_maps",
    "baret_invert_once",
    "baret_imagic",
    "baret_sine",
    "baret_clip",
    "baret_layer",
)
_OF_THE_HOST = {"MODEL", "CLIP", "VAE", "LATENT", "CONDITIONING", "IMAGE", "MASK", "CLIP_VISION"}
"""Wires in whose place the host lets anything be written; what comes of it is the same for every node of the host."""

_SLOW = {*SHORT, "iterations", "effort", "views", "channels"}
"""Inputs whose greatest number is a long run, and nothing else."""


@contextmanager
def served(host: comfyui.Host) -> Iterator[tuple[comfy_server.Client, psutil.Process]]:
    """A server with the pack, and its process."""
    before = {child.pid for child in psutil.Process().children()}
    with comfy_server.running(host, options=["--cache-classic"], threads=1) as client:
        (process,) = (child for child in psutil.Process().children() if child.pid not in before)
        yield client, process


def graph_of(name: str) -> dict:
    """An example workflow on the drawn world, short."""
    graph = workflows.example(name)
    for node in graph.values():
        node["inputs"].update({name: least for name, least in SHORT.items() if name in node["inputs"]})
    return graph


def loading(client: comfy_server.Client) -> dict:
    """An example workflow that loads its inversion and fits its picture: nodes that need a file or a photo."""
    graph = graph_of("baret_invert_once")
    run = client.run(graph)
    (saved,) = (file for output in run.outputs.values() for file in output.get("files", ()))
    loaded = {"file": f"{saved['subfolder']}/{saved['filename']} [output]"}
    graph[workflows.only(graph, "BaretTTISInversion")] = {"class_type": "BaretLoadInversion", "inputs": loaded}
    picture = [workflows.only(graph, "BaretWorldScene"), 0]
    graph["fitted"] = {"class_type": "BaretFitPicture", "inputs": {"image": picture, "megapixels": 0.05}}
    graph[workflows.only(graph, "BaretLabelledGrid")]["inputs"]["image_1"] = ["fitted", 0]
    return graph


def pictures_of(client: comfy_server.Client, graph: dict, run: comfy_server.Run) -> dict[str, bytes]:
    """Every picture that a run shows, by its node and place."""
    shown = {}
    for node_id, output in run.outputs.items():
        for place, image in enumerate(output.get("images", ())):
            shown[f"{node_id}/{place}"] = client.view(image)
    return shown


def fresh(graph: dict, number: int) -> dict:
    """The same workflow for the server's cache to know nothing of: every node of ours runs again."""
    graph = json.loads(json.dumps(graph))
    for node in graph.values():
        if node["class_type"] == "BaretWorldScene":
            node["inputs"]["seed"] = number
    return graph


# --- inputs at extremes -----------------------------------------------------------------------------------------------


def prompts(host: comfyui.Host, tries: int, seed: int) -> Report:
    """One input of one node at a time is something that nobody would choose."""
    report, drawn = Report(), random.Random(seed)
    with served(host) as (client, _):
        ours = {id: info for id, info in client.object_info().items() if id.startswith("Baret")}
        names = tuple(f"{info['display_name']}: " for info in ours.values())
        inputs = {id: _inputs_of(info) for id, info in ours.items()}
        graphs = [*map(graph_of, GRAPHS), loading(client)]
        plain = graph_of("baret_edit")
        expected = pictures_of(client, plain, client.run(fresh(plain, 5)))
        for number in range(tries):
            if number % EACH == 0:  # the next ones are of one workflow: what lies before their node is cached
                whole = fresh(drawn.choice(graphs), drawn.randrange(3))
            graph = json.loads(json.dumps(whole))
            node = drawn.choice([node for node in graph.values() if inputs.get(node["class_type"])])
            kinds = inputs[node["class_type"]]
            name = drawn.choice(list(kinds))
            value = drawn.choice(_extremes(name, *kinds[name]))
            node["inputs"][name] = value
            where = f"{node['class_type']}.{name} = {str(value)[:60]!r}"
            wire_of_the_host = kinds[name][0] in _OF_THE_HOST
            report.outcomes[_outcome(client, graph, names, where, wire_of_the_host, report)] += 1
            if number % 50 == 49 or number == tries - 1:
                client.run(fresh(plain, 6))
                if pictures_of(client, plain, client.run(fresh(plain, 5))) != expected:
                    report.failures.append(f"after {where}: a plain run gives something else")
    return report


def _inputs_of(info: dict) -> dict[str, list]:
    """A node's inputs by name, each with its kind and what is said of it."""
    groups = [info["input"].get(group, {}) for group in ("required", "optional")]
    return {name: kind for group in groups for name, kind in group.items()}


def _outcome(client, graph: dict, names: tuple[str, ...], where: str, raw_fits: bool, report: Report) -> str:
    try:
        client.run(graph, timeout=SECONDS)
    except comfy_server.PromptRejected:
        return "rejected"
    except comfy_server.ExecutionFailed as error:
        wrong = complaint(error.message, names)
        if wrong is None:
            return "a sentence"
        if raw_fits:
            return "raw, a literal in place of a wire of the host's"
        report.failures.append(f"{where}: {error.node_type} ({error.exception_type}) {wrong}")
        return "raw"
    except Exception as error:
        report.failures.append(f"{where}: {type(error).__name__} {str(error)[:200]}")
        return "no answer"
    return "works"


def _extremes(name: str, kind: str | list, about: dict | None = None) -> list:
    """Values of the right type at its ends and beyond, and some of other types."""
    about = about or {}
    others: list = [
        None,
        True,
        -1,
        0,
        1.5,
        "",
        "x" * 100_000,
        "\ud83d\ude00\0\n",
        [],
        {},
        {"a": [1]},
        float("nan"),
        10**30,
    ]
    if kind in ("INT", "FLOAT"):
        low, high = about.get("min", -1e9), about.get("max", 1e9)
        ends = [low, low - 1, high + 1, float("inf"), -float("inf"), float("nan"), "1", "many"]
        return [*ends, *([] if name in _SLOW else [high]), *others]
    if kind == "STRING":
        long = [
            "a," * 50_000,
            "dog " * 1000,
            "1" * 2000 + "-" + "1" * 2000 + "x",
            "dog:1e300",
            "(" * 5000,
            "0.5," * 5000,
        ]
        odd = ["..", "../../x", "dog:nan", "embedding:none", "\ud800", "%date%", "0-1", "a:b:c", "all", "\u0660", "{}"]
        return [*long, *odd, *others]
    return others


# --- many runs --------------------------------------------------------------------------------------------------------


def soak(host: comfyui.Host, tries: int, seed: int) -> Report:
    """Workflows back to back from two clients; each gets its own pictures, and the server stays as large as it was."""
    report, graphs = Report(), [graph_of(name) for name in ("baret_edit", "baret_stock_sampler", "baret_paper")]
    samples: list[dict[str, float]] = []
    with served(host) as (first, process):
        second = comfy_server.Client(first.url, first.work, first.log)
        try:
            expected = {
                (which, scene): pictures_of(first, graph, first.run(fresh(graph, scene)))
                for which, graph in enumerate(graphs)
                for scene in range(4)
            }
            lock = threading.Lock()

            def use(client: comfy_server.Client, number: int) -> None:
                drawn = random.Random(f"{seed} {number}")
                for turn in range(tries // 2):
                    which, scene = drawn.randrange(len(graphs)), 2 * drawn.randrange(2) + number
                    shown = pictures_of(client, graphs[which], client.run(fresh(graphs[which], scene)))
                    with lock:
                        report.outcomes["its own" if shown == expected[which, scene] else "another's"] += 1
                        if shown != expected[which, scene]:
                            report.failures.append(f"client {number}, turn {turn}: not the pictures of its own scene")
                        samples.append(_size(process, first))

            users = [
                threading.Thread(target=use, args=(client, number)) for number, client in enumerate((first, second))
            ]
            for user in users:
                user.start()
            for user in users:
                user.join()
        finally:
            second.close()
    _require_flat(samples, report)
    return report


def _size(process: psutil.Process, client: comfy_server.Client) -> dict[str, float]:
    return {
        "memory (MB)": process.memory_info().rss / 1e6,
        "open files": process.num_fds() if hasattr(process, "num_fds") else 0,
        "threads": process.num_threads(),
        "temporary files": sum(1 for path in (client.work / "temp").rglob("*.partial")),
        "at": time.monotonic(),
    }


def _require_flat(samples: list[dict[str, float]], report: Report) -> None:
    """Note how large the server was in the second third of the runs and in the last; they must not differ by much."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[-third:]
    for name, slack in (("memory (MB)", 60), ("open files", 8), ("threads", 4), ("temporary files", 0)):
        before, after = (sorted(sample[name] for sample in part)[len(part) // 2] for part in (middle, last))
        report.outcomes[f"{name}: {before:.0f}, later {after:.0f}"] = 0
        if after > before + slack:
            report.failures.append(f"{name} grew from {before:.0f} to {after:.0f}")
