"""The command from its start to its results, on real servers."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import draw
import psutil
import pytest
from PIL import Image

COMPARED = ("row", "id", "text", "settings", "status", "seed", "workflow", "error", "report", "choice", "pictures")


def contents(out: Path) -> dict[str, bytes]:
    """Every picture of a run by its name."""
    folder = out / "pictures"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there(out: Path) -> int:
    """How many pictures a run has written so far."""
    return len(list(out.glob("pictures/**/*.png")))


def alike(rows: list[dict]) -> list[dict]:
    """What must be the same however often a run was interrupted."""
    return [{name: row[name] for name in COMPARED} for row in rows]


def test_a_folder_of_drawn_scenes_and_a_text(batch, results, tmp_path):
    draw.draw(tmp_path / "scenes", 2)
    done = batch("scenes", "--text", "a yellow dog")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "scenes-edited"
    rows = results(out)
    assert [row["pictures"] for row in rows] == [["scene-0001.png"], ["scene-0002.png"]]
    assert all(Image.open(out / "pictures" / name).size == (512, 512) for name in contents(out))
    assert all("how far each candidate obeys" in row["report"] and row["choice"] in row["report"] for row in rows)
    assert all(row["choice"] in json.loads(row["scores"]) for row in rows), "how far each candidate obeys"
    sheet = Image.open(out / "sheets" / "00001.jpg").convert("L")
    assert sheet.getextrema()[0] < 128, "pictures on the contact sheet"
    assert sheet.width < 2 * 2 * 150, "no wider than its rows"
    assert "2 rows: 2 done, 0 failed, 0 left" in (out / "summary.txt").read_text()


def test_a_row_that_fails_is_told_and_the_others_run(here, results, squares, inverted, tmp_path):
    """Once: what fails in every way. Again: nothing runs, but for what was mended."""
    folder = squares(3)
    (folder / "broken.png").write_bytes((folder / "0000.png").read_bytes()[:40])
    (folder / "words.png").write_text("no picture")
    table = [
        {"id": "good", "image": "squares/0000.png"},
        {"id": "same", "image": "squares/0000.png"},
        {"id": "broken", "image": "squares/broken.png"},
        {"id": "words", "image": "squares/words.png"},
        {"id": "missing", "image": "squares/missing.png"},
        {"id": "setting", "image": "squares/0001.png", "Size.scale_by": "big"},
        {"id": "refused", "image": "squares/0001.png", "Size.upscale_method": "by hand"},
        {"id": "raises", "image": "squares/0001.png", "Size.scale_by": 0.01},
        {"id": "large", "image": "squares/0002.png", "Size.scale_by": 4},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    arguments = ["t.jsonl", "--workflow", inverted, "--out", "out"]
    done = here(*arguments)
    assert done.returncode == 1, done.stderr
    rows = {row["id"]: row for row in results(tmp_path / "out")}
    assert list(rows) == [row["id"] for row in table], "each once, in the table's order"
    assert {id for id, row in rows.items() if row["status"] == "done"} == {"good", "same", "large"}
    sentences = {
        "broken": "broken.png cannot be read as a picture",
        "words": "its bytes are none that a picture begins with",
        "missing": "missing.png cannot be read: No such file",
        "setting": "Size.scale_by is 'big'; a number fits",
        "refused": "Value not in list",
        "raises": "",
    }
    for id, sentence in sentences.items():
        assert sentence in rows[id]["error"] and "\n" not in rows[id]["error"], rows[id]["error"]
        assert rows[id]["pictures"] == [] and rows[id]["attempts"] == 1
    made = contents(tmp_path / "out")
    assert set(made) == {"good.png", "same.png", "large.png"}
    assert made["good.png"] == made["same.png"], "cached, and there nonetheless"
    assert Image.open(tmp_path / "out" / "pictures" / "large.png").size == (64, 64)
    before = Image.open(folder / "0002.png").getpixel((0, 0))
    after = Image.open(tmp_path / "out" / "pictures" / "large.png").convert("RGB").getpixel((0, 0))
    assert all(abs(one - (255 - other)) <= 1 for one, other in zip(after, before)), "inverted"

    again = here(*arguments)
    assert again.returncode == 1 and "Starting ComfyUI" not in again.stderr
    assert alike(results(tmp_path / "out")) == alike(list(rows.values()))
    (folder / "missing.png").write_bytes((folder / "0001.png").read_bytes())
    here(*arguments)
    mended = {row["id"]: row for row in results(tmp_path / "out")}
    assert mended["missing"]["status"] == "done" and mended["good"]["attempts"] == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere"], "there is no nowhere"),
        (["t.txt"], "is neither a folder of pictures nor a table"),
        (["empty"], "has no rows"),
        (["t.csv", "--workflow", "t.csv"], "which cannot be read"),
        (["t.csv", "--stall", "0"], "--stall is 0; 1 or more fits"),
        (["t.csv", "--text", " "], "--text is empty"),
        (["t.csv", "--gpus-a-worker", "1"], "--gpus-a-worker is for --ray"),
        (["odd.csv"], "Auto Edit.sed: Auto Edit has no such input to set; seed, effort, keep, cfg can be set"),
        (["twice.csv"], "the id a stands in rows 1 and 2"),
        (["t.csv", "--comfyui", "empty"], "is not a ComfyUI folder"),
    ],
)
def test_what_cannot_start_is_said_with_status_2(here, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.txt").touch()
    (tmp_path / "t.csv").write_text("image\na.png\n")
    (tmp_path / "odd.csv").write_text("image,Auto Edit.sed\na.png,1\n")
    (tmp_path / "twice.csv").write_text("id,image\na,a.png\na,b.png\n")
    done = here(*arguments)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert "Starting" not in done.stderr


# --- killed -----------------------------------------------------------------------------------------------------------


def started(command: list, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "COMFYUI_PYTHON": sys.executable}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(what, process: subprocess.Popen, seconds: float = 240) -> bool:
    """Whether something came true before a process ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if what():
            return True
        time.sleep(0.002)
    return False


def folders_of(server: psutil.Process) -> list[Path]:
    """The folder that a server works in."""
    words = server.cmdline()
    return [Path(word) for flag, word in zip(words, words[1:]) if flag == "--base-directory"]


def test_killed_at_any_moment_it_goes_on(here, results, squares, inverted, tmp_path):
    """The driver is killed outright, then a server under it; every row is there once, and as if nothing had been."""
    from run import __file__ as command

    squares(30)
    arguments = ["squares", "--workflow", str(inverted), "--out"]
    assert here(*arguments, "undisturbed").returncode == 0
    expected, out = contents(tmp_path / "undisturbed"), tmp_path / "out"

    process = started([sys.executable, command, *arguments, "out"], tmp_path)
    assert wait_for(lambda: there(out) >= 3, process)
    servers = psutil.Process(process.pid).children(recursive=True)
    folders = [folder for server in servers for folder in folders_of(server)]
    time.sleep(random.random() / 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert not alive, "a server ends with its driver"
    assert folders and not any(folder.exists() for folder in folders), "and takes its folder with it"
    whole = {name: data for name, data in contents(out).items() if not name.endswith(".unfinished")}
    assert all(expected[name] == data for name, data in whole.items()), "no picture is seen half written"
    (out / "pictures" / "0029.png.unfinished").write_bytes(b"\x89PNG")  # as a power cut leaves one

    process = started([sys.executable, command, *arguments, "out"], tmp_path)
    assert wait_for(lambda: there(out) >= len(whole) + 4, process)
    for server in psutil.Process(process.pid).children(recursive=True):
        server.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0 and "is gone" in said, said
    rows = results(out)
    assert alike(rows) == alike(results(tmp_path / "undisturbed")) and contents(out) == expected
    assert sum(row["attempts"] for row in rows) <= 30 + 2, "only what was under way runs twice"


@pytest.mark.parametrize("alone", [False, True])
def test_stopped_it_writes_the_results(results, squares, inverted, tmp_path, alone):
    """Also where SIGINT is ignored, as in what a shell's script starts in the background, and where nobody listens."""
    from run import __file__ as command

    many = 2000  # for minutes, however late the signal comes on a busy machine
    squares(many)
    out = tmp_path / "out"
    arguments = ["squares", "--workflow", str(inverted), "--out", "out"]
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if alone else signal.default_int_handler)
    try:
        process = started([sys.executable, command, *arguments], tmp_path)  # which inherits that it is ignored
    finally:
        signal.signal(signal.SIGINT, handler)
    assert wait_for(lambda: there(out) >= 5, process)
    if alone:
        process.stdout.close()  # as `tee` ends with Ctrl-C
    process.send_signal(signal.SIGTERM)
    said = "" if alone else process.communicate(timeout=120)[0].decode()
    assert process.wait(120) == 1 and (alone or "the same command goes on" in said), said
    rows = results(out)
    done = [row for row in rows if row["status"] == "done"]
    assert len(rows) == many and 4 <= len(done) < many
    extra = set(contents(out)) - {row["pictures"][0] for row in done}
    assert len(extra) <= 1, "of the row that was under way"


# --- servers that die or hang ----------------------------------------------------------------------------------------


def test_models_and_nodes_of_your_own_comfyui_are_there(server):
    loras = server.object_info("LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert "mine.safetensors" in json.dumps(loras)
    assert server.object_info("OwnNode") and server.object_info("BaretAutoEdit")


@pytest.fixture
def worker(installed, tmp_path, plain):
    """Make a worker of this process. client: a server that runs already."""
    from worker import Settings, Worker
    from workflow import Workflow

    made = []

    def make(prompt=plain, client=None, **settings):
        said = []
        flow = prompt if isinstance(prompt, Workflow) else Workflow(prompt)
        made.append(Worker(Settings(installed, flow, tmp_path / "out", threads=1, **settings), say=said.append))
        made[-1].said, made[-1]._client = said, client
        return made[-1]

    yield make
    for one in made:
        one.stop()


def a_row(image: Path, id="x", **fields):
    from rows import Row

    return Row(**{"number": 1, "id": id, "image": image, "text": None, **fields})


def test_a_server_that_hangs_is_restarted(worker, squares, monkeypatch):
    import comfy_server

    monkeypatch.setattr(comfy_server, "SECONDS_TO_END", 1)  # it will not
    image = squares(1) / "0000.png"
    hanging = worker(stall=5)
    before = set(psutil.Process().children())
    hanging.start()
    (server,) = set(psutil.Process().children()) - before
    server.suspend()
    (ended,), later = hanging.run([a_row(image)])
    assert ended.status == "done" and later == [] and "is gone" in hanging.said[0]
    assert not server.is_running()


def test_what_another_pack_sends_is_no_sign_of_life(server, monkeypatch):
    import comfy_server

    def sends(client, prompt):
        for number in range(20):
            data = {"load": number} if number % 2 else ["a list"]
            threading.Timer(number / 5, client._events.put, [{"type": "pack.monitor", "data": data}]).start()
        return "a run"

    monkeypatch.setattr(comfy_server.Client, "queue", sends)
    began = time.monotonic()
    with pytest.raises(comfy_server.Stalled, match="no sign of progress for 1 s"):
        server.run({}, stall=1)
    assert time.monotonic() - began < 3


def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # one that was made before the proxy was named
    assert server.object_info("BaretAutoEdit")


def test_a_full_disk_is_no_fault_of_a_row(worker, server, squares, monkeypatch):
    import worker as module

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(module.Unusable, match=r"x\.png cannot be written: No space left on device"):
        worker(client=server).run([a_row(squares(1) / "0000.png")])


def test_a_run_that_ends_while_its_server_starts(worker, server, squares, monkeypatch):
    import comfy_server
    import worker as module

    starting = worker()

    @contextlib.contextmanager
    def running(*_, **__):
        starting.stopping.set()
        yield server

    monkeypatch.setattr(comfy_server, "running", running)
    with pytest.raises(module.Stopped):
        starting.run([a_row(squares(1) / "0000.png")])


def test_two_sources_do_not_share_a_folder_by_chance(here, squares, inverted, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        squares(1, f"{name}/photos")
    done = here("one/photos", "--workflow", inverted)
    assert done.returncode == 0, done.stderr
    done = here("two/photos", "--workflow", inverted)
    assert done.returncode == 2 and f"holds the edits of {tmp_path / 'one' / 'photos'}" in done.stderr
    assert here("two/photos", "--workflow", inverted, "--out", "photos-edited").returncode == 0, "once it is said"


def test_a_row_that_always_kills_its_server_is_given_up(worker, server, squares, monkeypatch):
    import comfy_server

    starts = []

    @contextlib.contextmanager
    def running(*_, **__):
        starts.append(len(starts))
        yield server

    def gone(*_, **__):
        raise comfy_server.ServerError("The server closed the connection while the workflow ran.")

    monkeypatch.setattr(comfy_server, "running", running)
    monkeypatch.setattr(comfy_server.Client, "run", gone)
    (ended,), _ = worker().run([a_row(squares(1) / "0000.png")])
    assert ended.status == "failed" and "died or hung 3 times with this row" in ended.error and len(starts) == 3


# --- inversions that rows share, pictures that share a batch ---------------------------------------------------------


def small_edit(steps=3):
    import workflow

    found = workflow.load(None)
    for node in found.prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    return found


def test_rows_that_share_a_picture_invert_once(worker, server, tmp_path, monkeypatch):
    """The same picture and text by other seeds: the server takes the inversion from its cache."""
    from comfy_server import Client

    draw.draw(tmp_path / "scenes", 2)
    found, ran = small_edit(), []
    run = Client.run

    def noted(client, prompt, **options):
        done = run(client, prompt, **options)
        ran.append({prompt[id]["class_type"] for id in done.executed})
        return done

    monkeypatch.setattr(Client, "run", noted)
    editing = worker(found, server)
    image = tmp_path / "scenes" / "scene-0001.png"
    for seed in range(3):
        row = a_row(image, f"s{seed}", text="a dog", settings={"Auto Edit.seed": seed})
        (ended,), _ = editing.run([row])
        assert ended.status == "done" and ended.seed == seed
    assert [("BaretTTISInversion" in types, "BaretAutoEdit" in types) for types in ran] == [
        (True, True),
        (False, True),
        (False, True),
    ]


def test_pictures_share_a_batch(worker, server, tmp_path):
    """Each row's result is that of the row alone, and what cannot lie in a batch goes by itself."""
    import numpy

    scenes = tmp_path / "scenes"
    draw.draw(scenes, 3)
    found = small_edit()
    for id in [id for id, node in found.prompt.items() if node["class_type"] in ("PreviewImage", "BaretLabelledGrid")]:
        del found.prompt[id]
    rows = [a_row(scenes / f"scene-000{n}.png", f"s{n}", text="a yellow dog") for n in (1, 2, 3)]
    Image.new("RGB", (64, 64)).save(scenes / "small.png")
    small = a_row(scenes / "small.png", "small", text="a yellow dog")
    together = worker(found, server, batch_size=4)
    ended, later = together.run([*rows, small])
    assert [one.id for one in ended] == ["s1", "s2", "s3"] and later == [small]
    pictures = tmp_path / "out" / "pictures"
    by_batch = [numpy.asarray(Image.open(pictures / f"s{n}.png")).astype(int) for n in (1, 2, 3)]
    for one, picture in zip(ended, by_batch):
        (row,) = (row for row in rows if row.id == one.id)
        (alone,), _ = together.run([row])
        difference = numpy.abs(numpy.asarray(Image.open(pictures / f"{row.id}.png")).astype(int) - picture)
        assert difference.max() <= 2, "but for rounding"
        assert alone.choice == one.choice and alone.report.split(";")[-1] == one.report.split(";")[-1]


def run_all(worker, rows):
    """How all rows end, taken in batches as large as the worker takes them then."""
    waiting, ended = list(rows), []
    while waiting:
        taken, waiting = waiting[: worker.batch_size], waiting[worker.batch_size :]
        some, later = worker.run(taken)
        ended += some
        waiting += later
    return ended


def test_out_of_memory_lowers_the_batch(worker, server, squares, monkeypatch):
    from comfy_server import Client, ExecutionFailed

    folder = squares(8)
    rows = [a_row(folder / f"000{n}.png", f"r{n}") for n in range(8)]
    run = Client.run

    def small_memory(client, prompt, **options):
        if sum(node["class_type"] == "LoadImage" for node in prompt.values()) > 2:
            event = {"node_id": "2", "node_type": "ImageInvert", "exception_type": "torch.OutOfMemoryError"}
            raise ExecutionFailed({**event, "exception_message": "Allocation on device"})
        return run(client, prompt, **options)

    monkeypatch.setattr(Client, "run", small_memory)
    crowded = worker(client=server, batch_size=8)
    ended = run_all(crowded, rows)
    assert crowded.batch_size == 2 and len(crowded.said) == 2, crowded.said
    assert sorted(one.id for one in ended) == [row.id for row in rows]
    assert all(one.status == "done" for one in ended)


def test_a_row_that_fails_in_a_batch_takes_no_other_with_it(worker, server, squares, monkeypatch):
    from comfy_server import Client, ExecutionFailed

    folder = squares(4)
    rows = [a_row(folder / f"000{n}.png", f"r{n}") for n in range(4)]
    bad, run = (folder / "0002.png").read_bytes(), Client.run

    def one_is_bad(client, prompt, **options):
        names = [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"]
        if bad in [(client.work / "input" / name).read_bytes() for name in names]:
            event = {"node_id": "2", "node_type": "ImageInvert", "exception_type": "ValueError"}
            raise ExecutionFailed({**event, "exception_message": "Invert: this one does not fit."})
        return run(client, prompt, **options)

    monkeypatch.setattr(Client, "run", one_is_bad)
    batches = worker(client=server, batch_size=4)
    ended = run_all(batches, rows)
    assert {one.id: one.error for one in ended if one.status == "failed"} == {"r2": "Invert: this one does not fit."}
    assert len(ended) == 4 and batches.batch_size == 4, "other rows go in batches still"
