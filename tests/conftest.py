"""The real host with the pack in this process, and one real server for all tests that need one.

``python dev/test.py`` sets the host up and names its folder in COMFYUI_PATH.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "dev"))  # last, so that nothing of the host's is hidden

import comfy_server  # noqa: E402
import comfyui  # noqa: E402
import in_process  # noqa: E402
import stand_in  # noqa: E402
import workflows  # noqa: E402


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
    nodes = in_process.load_host(_comfyui_path())
    import folder_paths
    import torch

    torch.set_num_threads(1)  # the models are small: more threads gain nothing, and on a busy machine they wait
    base = tmp_path_factory.mktemp("comfyui")
    for kind in ("input", "output", "temp"):
        (base / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(base / kind))
    return SimpleNamespace(nodes=nodes, folders=folder_paths, base=base)


@pytest.fixture(scope="session")
def pack(host):
    """The pack as the host's loader made it: its ``modules``, and its ``nodes`` by id."""
    return in_process.load_pack()


@pytest.fixture(scope="session")
def make_model(host):
    """A factory of MODELs: the host's UNet of the SD1.5 family, small, with random weights, loaded as the host does."""

    def make(seed=0, dtype=None, cast=None, v_prediction=False, config=None, **changes):
        unet = {**in_process.SMALL, **changes}
        return in_process.random_model(
            unet, heads=4, seed=seed, dtype=dtype, cast=cast, v_prediction=v_prediction, family=config
        )

    return make


@pytest.fixture(scope="session")
def model(make_model):
    """One small MODEL, shared by all tests: whatever a run leaves on it, the next ones meet."""
    return make_model()


@pytest.fixture
def execute(pack):
    """Call a node by its id as the host does, with its defaults for what is not given; returns its outputs."""
    return pack.call


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
    """As much of a CLIP as the nodes with texts need, over `text`, in windows of 12 tokens.

    The first number in a text is the seed of its embedding.
    """

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
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            return {"samples": 3 * torch.randn(images, channels, height, width, generator=generator)}

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
    options = ["--cache-classic"]
    if frontend := os.environ.get("BARET_FRONTEND"):  # python dev/test.py --frontend
        options += ["--front-end-root", frontend]
    with comfy_server.running(installed, [checkpoint], options, threads=1) as client:
        client.upload(workflows.PICTURE_FILE)
        yield client


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(installed, tmp_path, monkeypatch, capsys):
    """Run a command's main in this process, in a folder of its own; returns what subprocess.run does."""

    def run(main, *arguments):
        host = [str(installed.path), str(installed.python), installed.version]
        if "--comfyui" not in arguments:  # else it is looked at
            monkeypatch.setenv("BARET_HOST", json.dumps(host))
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        before, status = signal.getsignal(signal.SIGTERM), 0
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
            print("" if isinstance(ended.code, int) else ended.code, file=sys.stderr)
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, said.out, said.err)

    return run


@pytest.fixture
def on_client(client, monkeypatch):
    """Whatever starts a server in this process finds the one that is there, and leaves it."""
    monkeypatch.setattr(comfy_server, "running", lambda *_, **__: contextlib.nullcontext(client))
