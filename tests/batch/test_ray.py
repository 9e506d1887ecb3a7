"""The same run over Ray, on this machine."""

import psutil
import pytest

pytest.importorskip("ray.data", reason="Ray is not installed")


def test_two_actors_share_the_rows(batch, here, results, squares, inverted, tmp_path):
    """Resumed, with a row that fails, and as without Ray to the byte."""
    folder = squares(12)
    (folder / "0005.png").write_text("no picture")
    arguments = ["squares", "--workflow", inverted, "--out"]
    by_ray = [*arguments, "out", "--ray", "local", "--workers", "2"]
    done = batch(*by_ray)
    assert done.returncode == 1, done.stderr
    assert "Ray: up to 2 ComfyUI" in done.stderr
    rows = results(tmp_path / "out")
    assert [row["status"] for row in rows] == ["done"] * 5 + ["failed"] + ["done"] * 6
    assert "its bytes are none that a picture begins with" in rows[5]["error"]
    assert [row["attempts"] for row in rows] == [1] * 12

    before = results(tmp_path / "out")
    again = here(*by_ray)
    assert "Ray: up to" not in again.stderr and results(tmp_path / "out") == before, "nothing is left to do"

    pictures = tmp_path / "out" / "pictures"
    written = {picture.name: picture.stat().st_mtime_ns for picture in pictures.iterdir()}
    by_actor = (pictures / "0003.png").read_bytes()
    (pictures / "0003.png").unlink()
    alone = here(*arguments, "out")
    assert alone.returncode == 1, "what Ray began goes on without it"
    others = [row for row in before if row["id"] != "0003"]
    assert [row for row in results(tmp_path / "out") if row["id"] != "0003"] == others, "the failed one neither"
    assert {path.name for path in pictures.iterdir() if path.stat().st_mtime_ns != written[path.name]} == {"0003.png"}
    assert (pictures / "0003.png").read_bytes() == by_actor
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


def test_without_ray_it_is_asked_for(batch, squares, tmp_path, monkeypatch):
    """An interpreter that cannot find Ray says how to get it, before anything starts."""
    squares(1)
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'ray' else find(name, *a)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = batch("squares", "--text", "a dog", "--ray", "local")
    assert done.returncode == 2 and "--ray needs Ray" in done.stderr and "ray[data]" in done.stderr


def test_a_machine_on_which_ray_starts_too_slowly_at_first():
    from ray_backend import _patiently

    tries = iter([RuntimeError("timed out during startup"), None])

    def start():
        if error := next(tries):
            raise error

    _patiently(start)
    with pytest.raises(RuntimeError, match="again and again"):
        _patiently(lambda: (_ for _ in ()).throw(RuntimeError("again and again")))
