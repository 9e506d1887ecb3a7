"""Workflows to queue on the real server, at a size for tests."""

import json

import pytest
import workflows

SIDE = 128  # pixels
STEPS = 4
SHORTER = {
    "BaretTTISInversion": {"steps": STEPS, "iterations": 1},
    "BaretImagic": {"text_updates": 3, "updates": 3},
    "BaretOneImageLoRA": {"updates": 3},
    "BaretClipOptimise": {"steps": 3},
    "BaretTextLayer": {"steps": 3},
    "TrainLoraNode": {"steps": 3},
}
"""What example workflows are given here, so that they take seconds."""


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
        id = str(max((int(id) for id in self if id.isdigit()), default=0) + 1)
        self[id] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return id

    def copy(self) -> "Graph":
        return Graph(json.loads(json.dumps(self)))

    def without_pictures(self) -> "Graph":
        """The same workflow without decoding, for tests that look at latents."""
        drawn = ("VAEDecode", "BaretLabelledGrid", "ImageScaleBy", "PreviewImage", "SaveImage")
        return Graph({id: node for id, node in self.copy().items() if node["class_type"] not in drawn})


@pytest.fixture(scope="session")
def companions(client, checkpoint):
    """A LoRA and a ControlNet for the stand-in checkpoint, under the names that the example workflow has.

    The ControlNet is made as real ones begin: a copy of the UNet's encoder, and 1x1 convolutions behind each block,
    which are not zero here.
    """
    import torch
    from safetensors.torch import load_file, save_file

    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): value for key, value in load_file(checkpoint).items() if key.startswith(prefix)}
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float16) * 0.02

    encoder = ("input_blocks.", "middle_block.", "time_embed.")
    net = {key: value for key, value in unet.items() if key.startswith(encoder)}
    width = unet["input_blocks.0.0.weight"].shape[0]
    blocks = {int(key.split(".")[1]) for key in net if key.startswith("input_blocks.")}
    for name in [*(f"zero_convs.{block}.0" for block in sorted(blocks)), "middle_block_out.0"]:
        net[f"{name}.weight"] = noise(width, width, 1, 1)
        net[f"{name}.bias"] = noise(width)
    hint = (3, 16, 16, 32, 32, 96, 96, 256, width)
    for i, (into, out) in enumerate(zip(hint, hint[1:])):
        net[f"input_hint_block.{2 * i}.weight"] = noise(out, into, 3, 3)
        net[f"input_hint_block.{2 * i}.bias"] = noise(out)

    lora = {}
    for key in (key for key in unet if key.endswith("to_v.weight")):
        out, into = unet[key].shape
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        lora[f"{name}.lora_up.weight"] = noise(out, 4)
        lora[f"{name}.lora_down.weight"] = noise(4, into)

    workflow = workflows.example("baret_lora_controlnet")

    def put(folder, role, weights):
        """Save under the file name that the workflow has in its input ``role``."""
        (name,) = [node["inputs"][role] for node in workflow.values() if role in node["inputs"]]
        path = client.work / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)

    put("loras", "lora_name", lora)
    put("controlnet", "control_net_name", {f"control_model.{key}": value for key, value in net.items()})


@pytest.fixture
def example(checkpoint):
    """A committed example workflow, at a size and a number of steps for tests.

    photo: with a checkpoint and a photo in place of the drawn world.
    """

    def load(name: str, photo: bool = False) -> Graph:
        graph = Graph(workflows.example(name))
        if photo:
            workflows.use_checkpoint(graph, checkpoint.name)
            workflows.use_picture(graph, workflows.PICTURE, SIDE)
        elif graph.ids("CheckpointLoaderSimple"):
            graph.inputs("CheckpointLoaderSimple")["ckpt_name"] = checkpoint.name
            graph.inputs("BaretFitPicture")["megapixels"] = SIDE**2 / 1024**2
        for class_type, fewer in SHORTER.items():
            for id in graph.ids(class_type):
                graph[id]["inputs"].update(fewer)
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
        latents = []
        for id in savers:
            (entry,) = done.outputs[id]["latents"]
            path = client.work / "output" / entry["subfolder"] / entry["filename"]
            latents.append(load_file(path)["latent_tensor"])
        return latents, done

    return run
