"""The real host in this process with the pack loaded by the host's own loader, and one real server for all tests that need one.

``python dev/test.py`` sets the host up and names its folder in COMFYUI_PATH.
"""

import asyncio
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "dev"))  # last, so that nothing of the host's is hidden

import comfy_server
import comfyui
import stand_in
import workflows


def pytest_addoption(parser):
    parser.addoption("--no-browser", action="store_true", help="leave out the tests that need a browser")


def _core():
    """The numerical core alone, as its own package: it must import without the host and without the pack."""
    spec = importlib.util.spec_from_file_location(
        "baret_ops", ROOT / "baret_ops" / "__init__.py", submodule_search_locations=[str(ROOT / "baret_ops")]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["baret_ops"] = module
    spec.loader.exec_module(module)


_core()


def _comfyui_path() -> str:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.exit("COMFYUI_PATH is not set; run the tests with: python dev/test.py", returncode=2)
    return path


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The host's modules in this process, on the CPU, with folders of its own."""
    sys.path.insert(0, _comfyui_path())
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import torch

    torch.set_num_threads(
        1
    )  # the models here are small: more threads gain nothing, and wait for each other on a busy machine
    import folder_paths

    base = tmp_path_factory.mktemp("comfyui")
    for kind in ("input", "output", "temp"):
        (base / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(base / kind))
    import nodes

    return SimpleNamespace(nodes=nodes, folders=folder_paths, base=base)


@pytest.fixture(scope="session")
def pack(host):
    """The pack's modules as the host's loader made them, and its node classes by id."""
    # In a thread of its own: a browser test before this one keeps an event loop running here.
    with ThreadPoolExecutor(1) as thread:
        loaded = thread.submit(asyncio.run, host.nodes.load_custom_node(str(ROOT))).result()
    assert loaded, "the host's loader refused the pack; see the log"
    name = str(ROOT).replace(".", "_x_")
    modules = {
        key.removeprefix(name + "."): module for key, module in sys.modules.items() if key.startswith(name + ".")
    }
    ids = {key: node for key, node in host.nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(name)}
    return SimpleNamespace(modules=modules, nodes=ids, root=sys.modules[name])


@pytest.fixture(scope="session")
def make_model(host):
    """A factory of MODELs: the host's UNet of the SD1.5 family, small, with random weights, loaded as the host loads them."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    def make(seed=0, dtype=torch.float32, cast=None, v_prediction=False, config=comfy.supported_models.SD15, **changes):
        unet = {
            "use_checkpoint": False,
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "use_spatial_transformer": True,
            "legacy": False,
            "adm_in_channels": None,
            "dtype": dtype,
            "model_channels": 32,
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "channel_mult": [1, 2],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1],
            "context_dim": 24,
            "use_linear_in_transformer": False,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            **changes,
        }
        with torch.inference_mode():
            model_config = config(unet)
            model_config.unet_config["num_heads"] = 4
            model_config.set_inference_dtype(dtype, cast)
            kind = comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
            base = comfy.model_base.BaseModel(model_config, kind, device="cpu")
            generator = torch.Generator().manual_seed(seed)
            for name, weight in base.diffusion_model.named_parameters():
                if weight.ndim == 1:
                    value = torch.zeros(weight.shape) if name.endswith("bias") else torch.ones(weight.shape)
                else:
                    value = torch.randn(weight.shape, generator=generator) * max(1, weight[:1].numel()) ** -0.5
                weight.copy_(value.to(weight.dtype))
            return comfy.model_patcher.ModelPatcher(
                base, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
            )

    return make


@pytest.fixture(scope="session")
def model(make_model):
    """One small MODEL, shared by all tests: whatever a run leaves on it, the next ones meet."""
    return make_model()


@pytest.fixture
def execute(pack):
    """Call a node by its id as the host does: a locked clone of its class, in inference mode; with defaults for what is not given."""
    import torch
    from comfy_api.internal import make_locked_method_func

    def call(node_id, **inputs):
        node = pack.nodes[node_id]
        defaults = {
            entry.id: entry.default
            for entry in node.define_schema().inputs
            if getattr(entry, "default", None) is not None
        }
        with torch.inference_mode():
            return make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE(None))(
                **{**defaults, **inputs}
            ).args

    return call


@pytest.fixture(scope="session")
def text():
    """A CONDITIONING of random text by seed, made in inference mode as CLIPTextEncode does."""
    import torch

    def make(seed, tokens=6, width=24, rows=1, **options):
        with torch.inference_mode():
            return [[torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(seed)), options]]

    return make


@pytest.fixture(scope="session")
def clip(text):
    """As much of a CLIP as the nodes with texts need, over `text`: the first number in a text is the seed of its embedding; windows of 12 tokens."""

    class Clip:
        vocabulary: dict = {}

        @staticmethod
        def decode(ids):
            return next(word for word, i in Clip.vocabulary.items() if i == ids[0])

        def __init__(self):
            self.tokenizer = SimpleNamespace(clip="clip_l", clip_l=SimpleNamespace(inv_vocab={}, tokenizer=self))

        def tokenize(self, written, return_word_ids=False):
            ids = [self.vocabulary.setdefault(word, len(self.vocabulary) + 2) for word in written.split()]
            windows = []
            for first in range(0, max(1, len(ids)), 10):
                words = [(i, 1.0, first + n + 1) for n, i in enumerate(ids[first : first + 10])]
                windows.append([(0, 1.0, 0), *words, *[(1, 1.0, 0)] * (11 - len(words))])
            return {"l": [window if return_word_ids else [entry[:2] for entry in window] for window in windows]}

        def encode_from_tokens_scheduled(self, tokens):
            words = [self.decode([i]) for window in tokens["l"] for i, _ in window if i > 1]
            return text(next(int(word) for word in words if word.isdigit()), tokens=12 * len(tokens["l"]))

    return Clip()


@pytest.fixture(scope="session")
def picture():
    """A LATENT of random pictures by seed, of a size that is not square."""
    import torch

    def make(seed=0, images=1, height=8, width=12, channels=4):
        with torch.inference_mode():
            return {
                "samples": torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(seed))
                * 3
            }

    return make


# --- the real server -----------------------------------------------------------------------------------------------


def _files(tree: Path) -> dict[str, int]:
    """Every file of a tree with the time of its last change, compiled files aside."""
    paths = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(tree).as_posix(): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="session")
def installed():
    """The ComfyUI that `python dev/test.py` provided."""
    path = _comfyui_path()
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
