"""Workflows to queue on the real server, at a size for tests."""

import json

import pytest
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
