"""The host and the pack inside this process, for the tests, the benchmark, the evidence and the training.

    import in_process

    in_process.load_host()                            # ComfyUI on the CPU, from the folder COMFYUI_PATH
    pack = in_process.load_pack()                     # by the host's own loader, as in a user's ComfyUI
    model, clip, vae, _ = pack.call("BaretWorldLoader")  # a node of the pack, with its defaults for what is not given
    (text,) = in_process.call_stock("CLIPTextEncode", clip=clip, text="a red dog")
    psnr = pack.module("baret_ops.metrics").psnr      # a module of the pack, by its path from the pack's root

    with in_process.Passes(model.model.diffusion_model) as passes:
        pack.call("BaretTTISInversion", model=model, positive=text, ...)
    passes.rows, passes.cost()

    in_process.random_model({**in_process.SD15, "model_channels": 32, ...}, heads=4)

Needs the host's interpreter (`comfyui.enter`). `load_host` comes before the first import of any of the host's modules:
they look for a GPU as they are imported, and fail where there is none and nobody said so.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
OTHER_CLIP = ROOT / "tests" / "host" / "other_clip.safetensors"

SD15 = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "legacy": False,
}
"""SD1.5's UNet, as the host's `UNetModel` and its model configurations take it. Its 8 heads are given beside it."""

SMALL = {
    **SD15,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 24,
}
"""The same, small enough for tests; with 4 heads."""

TINY = {
    **SMALL,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
"""The first level of that, for what is run ten thousand times."""


def load_host(path: str | Path | None = None, cpu: bool = True) -> ModuleType:
    """Make the host's modules importable and return its `nodes`.

    path: ComfyUI's folder, else the variable COMFYUI_PATH. cpu: compute there even where a GPU is.
    """
    sys.path.insert(0, str(path or os.environ["COMFYUI_PATH"]))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    import nodes

    return nodes


@dataclass(frozen=True)
class Pack:
    """The pack as the host loaded it: the name of its package, and its node classes by id."""

    name: str
    nodes: dict[str, type]

    @property
    def root(self) -> ModuleType:
        return sys.modules[self.name]

    @property
    def modules(self) -> dict[str, ModuleType]:
        """What of the pack is imported by now, by its path from the root."""
        prefix = f"{self.name}."
        return {key.removeprefix(prefix): module for key, module in sys.modules.items() if key.startswith(prefix)}

    def module(self, path: str) -> ModuleType:
        """A module by its path from the root, imported if it is not yet."""
        return importlib.import_module(f"{self.name}.{path}")

    def call(self, node_id: str, **inputs) -> tuple:
        """The outputs of a node, called as the host does: a locked clone of its class, in inference mode.

        What is not given takes the default that the node's schema has.
        """
        import torch
        from comfy_api.internal import make_locked_method_func

        node = self.nodes[node_id]
        execute = make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE(None))
        with torch.inference_mode():
            return execute(**{**defaults(node), **inputs}).args


def load_pack() -> Pack:
    """Load the pack by the host's own loader. Raises RuntimeError where it refuses; its log then says why."""
    import nodes

    # In a thread of its own: beside a browser an event loop runs in this one, and there can be no second.
    with ThreadPoolExecutor(1) as thread:
        loaded = thread.submit(asyncio.run, nodes.load_custom_node(str(ROOT))).result()
    if not loaded:
        raise RuntimeError("the host's loader refused the pack; see the log.")
    name = str(ROOT).replace(".", "_x_")  # as the loader makes it
    classes = nodes.NODE_CLASS_MAPPINGS.items()
    return Pack(name, {node_id: node for node_id, node in classes if node.__module__.startswith(name)})


def defaults(node: type) -> dict:
    """The inputs of a node that have a default, with it."""
    found = {entry.id: getattr(entry, "default", None) for entry in node.define_schema().inputs}
    return {name: value for name, value in found.items() if value is not None}


def call_stock(node_id: str, **inputs) -> tuple:
    """The outputs of one of ComfyUI's own nodes of the older form, in inference mode; every input is to be given."""
    import torch

    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS[node_id]
    with torch.inference_mode():
        return getattr(kind(), kind.FUNCTION)(**inputs)


class Passes:
    """Counts what goes through a UNet, the host's or diffusers', until it is closed or its `with` ends.

    calls: forwards. rows: latents in them. differentiated: rows whose output can be differentiated.
    backward: rows whose gradient came.
    """

    def __init__(self, unet):
        self.reset()
        self._handle = unet.register_forward_hook(self._forward)

    def reset(self) -> None:
        """Begin at zero again."""
        self.calls = self.rows = self.differentiated = self.backward = 0

    def cost(self, backward: float = 1.1) -> float:
        """Rows, where a row's way back counts as `backward` forwards."""
        return self.rows + backward * self.backward

    def close(self) -> None:
        self._handle.remove()

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _forward(self, unet, inputs, output) -> None:
        noise = getattr(output, "sample", output)  # diffusers wraps it
        self.calls += 1
        self.rows += len(noise)
        if noise.requires_grad:
            self.differentiated += len(noise)
            noise.register_hook(self._came_back)

    def _came_back(self, gradient) -> None:
        self.backward += len(gradient)


def other_clip(pack: Pack) -> tuple:
    """The drawn world's CLIP and CLIP_VISION with another seed's weights, to judge what its own has tuned.

    Made by `python dev/world/train.py RUN --seed 2 --clip-for world/world.safetensors`, of which the file holds the
    image encoder and the text projection.
    """
    import torch
    from safetensors.torch import load_file

    world, weights = pack.module("host.world"), load_file(OTHER_CLIP)
    with torch.inference_mode():
        clip, vision = world.load_clip(), world.load_clip_vision()
        projection = clip.cond_stage_model.clip_l.transformer.text_projection
        projection.weight.copy_(weights.pop("text_projection.weight"))
        if missing := vision.load_sd(weights).missing_keys:
            raise ValueError(f"{OTHER_CLIP} lacks {', '.join(missing)}")
    return clip, vision


def random_model(unet: dict, *, heads: int, seed=0, dtype=None, cast=None, v_prediction=False, family=None):
    """A MODEL with random weights: norms the identity, biases zero, all else normal and of a size that keeps variances.

    unet: the UNet's configuration, `SD15` or one like it. dtype: of the weights (default: float32). cast: the type to
    compute in, if another. family: one of `comfy.supported_models` (default: SD15).
    """
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    dtype, family = dtype or torch.float32, family or comfy.supported_models.SD15
    with torch.inference_mode():
        config = family({**unet, "dtype": dtype})
        config.unet_config["num_heads"] = heads  # the family has set its own
        config.set_inference_dtype(dtype, cast)
        kind = comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
        base = comfy.model_base.BaseModel(config, kind, device="cpu")
        _fill(base.diffusion_model, torch.Generator().manual_seed(seed))
    load_device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(base, load_device, comfy.model_management.unet_offload_device())


def _fill(module, generator) -> None:
    """Give a module's weights their random values, in place."""
    import torch

    for name, weight in module.named_parameters():
        if weight.ndim == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            inputs = max(1, weight[:1].numel())
            weight.copy_(torch.randn(weight.shape, generator=generator) * inputs**-0.5)


def begin_peak() -> int | None:
    """Bytes of this process's resident memory now, from which :func:`peak` counts anew; None where only Linux tells."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")
    return _resident("VmRSS")


def peak() -> int:
    """Most bytes of resident memory since :func:`begin_peak`."""
    return _resident("VmHWM")


def _resident(key: str) -> int:
    """Bytes of this process's memory, as Linux counts them: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def processor() -> str:
    """The name of this machine's processor, and its number of cores."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
