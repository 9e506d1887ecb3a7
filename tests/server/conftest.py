"""One real server for all tests here, with the pack and the small stand-in checkpoint in it."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev"))  # last, so that nothing of the host's is hidden

import comfy_server
import comfyui
import stand_in
import workflows

SIDE = 128  # pixels; the scaling node of the examples does not go much lower
STEPS = 4


class Graph(dict):
    """A workflow in API form, with handles for the tests."""

    def ids(self, class_type: str) -> list[str]:
        return [id for id, node in self.items() if node["class_type"] == class_type]

    def id(self, class_type: str) -> str:
        """The id of the first node of that class."""
        return self.ids(class_type)[0]

    def inputs(self, class_type: str) -> dict:
        """The inputs of the first node of that class, to read or to change."""
        return self[self.id(class_type)]["inputs"]

    def add(self, class_type: str, **inputs) -> str:
        """Add a node; returns its id."""
        id = str(max(map(int, self), default=0) + 1)
        self[id] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return id

    def copy(self) -> "Graph":
        return Graph(json.loads(json.dumps(self)))

    def without_pictures(self) -> "Graph":
        """The same workflow without decoding, for tests that look at latents."""
        drawn = ("VAEDecode", "PreviewImage", "SaveImage")
        return Graph({id: node for id, node in self.copy().items() if node["class_type"] not in drawn})


def _files(tree: Path) -> dict[str, int]:
    """Every file of a tree with the time of its last change, compiled files aside."""
    paths = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(tree).as_posix(): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="session")
def installed():
    """The ComfyUI that `python dev/test.py` provided."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.exit("COMFYUI_PATH is not set; run the tests with: python dev/test.py", returncode=2)
    return comfyui.Host(Path(path), Path(sys.executable), comfyui.version_of(Path(path)))


@pytest.fixture(scope="session")
def checkpoint(installed):
    return stand_in.ensure(installed, "small")


@pytest.fixture(scope="session")
def tree_before(installed):
    return _files(installed.path)


@pytest.fixture(scope="session")
def changed_files(installed, tree_before):
    """Call for the files of the ComfyUI tree that came, went or changed since before the server started."""
    return lambda: sorted(dict(set(_files(installed.path).items()) ^ set(tree_before.items())))


@pytest.fixture(scope="session")
def client(installed, checkpoint, tree_before):
    # The classic cache keeps the last workflow whatever memory is left, so that what is cached can be asserted.
    with comfy_server.running(installed, [checkpoint], ["--cache-classic"], threads=1) as client:
        client.upload(workflows.PICTURE_FILE)
        yield client


@pytest.fixture
def example(checkpoint):
    """A committed example workflow, at a size and a number of steps for tests."""

    def load(name: str) -> Graph:
        graph = Graph(json.loads((workflows.API_FOLDER / f"{name}.json").read_text(encoding="utf-8")))
        if graph.ids("CheckpointLoaderSimple"):
            graph.inputs("CheckpointLoaderSimple")["ckpt_name"] = checkpoint.name
            graph.inputs("ImageScaleToTotalPixels")["megapixels"] = SIDE**2 / 1024**2
        graph.inputs("BaretTTISInversion").update(steps=STEPS, iterations=1)
        return graph

    return load


@pytest.fixture
def latent_of(client):
    """Run a workflow and return, as tensors, the latents that reach the given (node id, slot) outputs, and the run."""
    from safetensors.torch import load_file

    def run(graph: Graph, *outputs):
        graph = graph.copy()
        savers = [graph.add("SaveLatent", samples=list(output), filename_prefix="latents/test") for output in outputs]
        done = client.run(graph)
        entries = [done.outputs[id]["latents"][0] for id in savers]
        return [load_file(client.work / "output" / e["subfolder"] / e["filename"])["latent_tensor"] for e in entries], done

    return run
