"""The command for other versions of ComfyUI: what it makes of pytest's words, and of too small a disk."""

from subprocess import CompletedProcess
from types import SimpleNamespace

import hosts
import pytest


@pytest.mark.parametrize(
    "printed, counted",
    [
        ("...\n\n871 passed, 3 skipped in 512.30s (0:08:32)\n", "871 passed, 3 skipped"),
        ("FAILED a\n=== 2 failed, 5 passed in 3.1s ===\n", "2 failed, 5 passed"),
        ("ERROR: no such file\n", "failed: ERROR: no such file"),
    ],
)
def test_summary(printed, counted):
    assert hosts.summary(CompletedProcess([], 1, printed, "")) == counted


def test_a_frontend_is_downloaded_once(tmp_path, monkeypatch):
    installed = []

    def install(command, failure):
        installed.append(command[-1])
        folder = tmp_path / command[command.index("--target") + 1]
        for name in ("comfyui_frontend_package-1.58.1.dist-info", "comfyui_frontend_package/static"):
            (folder / name).mkdir(parents=True)

    monkeypatch.setattr(hosts.comfyui, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(hosts.comfyui, "_run", install)
    page = hosts.comfyui.frontend("newest", "python")
    assert page.is_dir() and page.is_relative_to(tmp_path / "frontend-1.58.1")
    assert hosts.comfyui.frontend("1.58.1", "python") == page
    assert installed == ["comfyui-frontend-package"], "what is there is not downloaded again"


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.comfyui, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(hosts.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(SystemExit, match="has less than 8 GB free, which ComfyUI 0.16.3 needs"):
        hosts.tried("0.16.3", keep=False)


def test_what_was_set_up_for_it_goes_and_what_was_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.comfyui, "cache_root", lambda: tmp_path)
    (tmp_path / "comfyui-0.16.3").mkdir()

    def run(name, *arguments):
        (tmp_path / "venv-0.16.3").mkdir(exist_ok=True)
        return CompletedProcess([], 0, "5 passed in 1.0s\n", "")

    monkeypatch.setattr(hosts, "_run", run)
    assert hosts.tried("0.16.3", keep=False) == ("0.16.3", "5 passed", "works")
    assert [folder.name for folder in tmp_path.iterdir()] == ["comfyui-0.16.3"]
