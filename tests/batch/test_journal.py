"""What is done stays done, what changed is done anew, and nothing is lost or done twice."""

import random
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def modules():
    import journal
    import rows
    import workflow

    class Modules:
        pass

    Modules.journal, Modules.rows, Modules.workflow = journal, rows, workflow
    return Modules


@pytest.fixture
def table(tmp_path, modules, plain):
    """Rows on pictures that are there, and the workflow for them."""

    def make(pictures=4, each=1, scale=1.0):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        made = []
        for number in range(pictures * each):
            image = folder / f"{number % pictures}.png"
            if not image.exists():
                image.write_bytes(b"picture %d" % (number % pictures))
            made.append(modules.rows.Row(number + 1, f"r{number}", image, f"text {number // pictures}", {}))
        plain["3"]["inputs"]["scale_by"] = scale
        return made, modules.workflow.Workflow(plain)

    return make


def end(journal, modules, workflow, row, status="done"):
    """Write a row's picture and end it, as a worker does."""
    name, data = f"{row.id}.png", b"made of " + row.image.read_bytes()
    (journal.folder / "pictures").mkdir(exist_ok=True)
    (journal.folder / "pictures" / name).write_bytes(data)
    picture = modules.journal.hash_of(row.image)
    ended = modules.journal.Ended(
        row.id,
        status,
        key=workflow.key(row, picture),
        stamp=modules.journal.stamp(row.image),
        picture=picture,
        pictures=[(name, len(data))] if status == "done" else [],
    )
    journal.finish([ended])


@pytest.fixture
def opened(tmp_path, modules):
    """Open the journal of a folder, and close it at the end."""
    journals = []

    def make(folder="out"):
        journals.append(modules.journal.Journal(tmp_path / folder))
        return journals[-1]

    yield make
    for journal in journals:
        journal.close()


def run_all(journal, modules, workflow):
    """Take and end every waiting row; returns their ids in that order."""
    ids = []
    while taken := journal.take("worker"):
        ids.append(taken[0].id)
        end(journal, modules, workflow, taken[0])
    return ids


def test_what_has_ended_is_not_run_again_and_what_changed_is(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    assert sorted(run_all(journal, modules, workflow)) == ["r0", "r1", "r2", "r3"]
    journal.adopt(rows, workflow)
    assert run_all(journal, modules, workflow) == []

    for path in (rows[0].image, rows[1].image):  # written anew: one with the same bytes, one with others
        path.write_bytes(path.read_bytes() + (b"!" if path == rows[1].image else b""))
    (journal.folder / "pictures" / "r2.png").unlink()
    rows[3] = modules.rows.Row(4, "r3", rows[3].image, rows[3].text, {"Size.scale_by": "3"})
    journal.adopt(rows, workflow)
    assert sorted(run_all(journal, modules, workflow)) == ["r1", "r2", "r3"]

    _, other = table(scale=2.0)
    journal.adopt(rows, other)
    ran = run_all(journal, modules, other)
    assert sorted(ran) == ["r0", "r1", "r2"], "another workflow, but in what the fourth row sets itself"


def test_a_cut_picture_is_made_anew(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    run_all(journal, modules, workflow)
    (journal.folder / "pictures" / "r1.png").write_bytes(b"ma")
    journal.adopt(rows, workflow)
    assert run_all(journal, modules, workflow) == ["r1"]


def test_pictures_that_are_away_for_a_while_cost_nothing(opened, modules, table, tmp_path):
    """A share that is not mounted, or a table that was copied elsewhere: what was made of them is done still."""
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    run_all(journal, modules, workflow)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    journal.adopt(rows, workflow)
    assert run_all(journal, modules, workflow) == [] and len(list((journal.folder / "pictures").iterdir())) == 4
    other = [modules.rows.Row(1, "r0", tmp_path / "in" / "other.png", rows[0].text, {})]
    journal.adopt(other, workflow)
    assert journal.counts()["waiting"] == 1, "another picture is another row"


def test_a_picture_lies_there_until_another_is_made(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    run_all(journal, modules, workflow)
    picture = journal.folder / "pictures" / "r0.png"
    rows[0].image.write_bytes(b"changed")
    journal.adopt(rows, workflow)
    assert journal.counts()["waiting"] == 1 and picture.exists()
    taken = journal.take("worker")[0]
    picture.with_name("r0.Result.png").write_bytes(b"new")
    ended = modules.journal.Ended(taken.id, "done", pictures=[("r0.Result.png", 3)])
    journal.finish([ended])
    assert not picture.exists() and picture.with_name("r0.Result.png").exists()


def test_a_failed_row_stays_failed_until_it_is_asked_for_or_mended(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    end(journal, modules, workflow, journal.take("worker")[0], "failed")
    run_all(journal, modules, workflow)
    journal.adopt(rows, workflow)
    assert run_all(journal, modules, workflow) == []
    journal.adopt(rows, workflow, retry_failed=True)
    assert run_all(journal, modules, workflow) == ["r0"]


def test_a_table_that_lost_and_gained_rows(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    run_all(journal, modules, workflow)
    changed = []
    fewer = [modules.rows.Row(number, *list(vars(row).values())[1:]) for number, row in enumerate(rows[1:], 1)]
    journal.adopt(fewer, workflow, on_change=changed.append)
    assert [row["id"] for row in journal.results()] == ["r1", "r2", "r3"] and run_all(journal, modules, workflow) == []
    assert sorted(set(changed)) == [1, 2, 3], "other rows stand there now, and none at 4"
    journal.adopt(rows, workflow)
    assert [row["id"] for row in journal.results()] == ["r0", "r1", "r2", "r3"]
    assert run_all(journal, modules, workflow) == [], "what was done is known still"


def test_a_table_with_a_mistake_changes_nothing(opened, modules, table):
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)

    def broken():
        yield rows[0]
        raise ValueError("line 2")

    with pytest.raises(ValueError, match="line 2"):
        journal.adopt(broken(), workflow)
    assert journal.counts()["waiting"] == 4


def test_rows_of_one_picture_go_one_after_another_to_one_worker(opened, modules, table):
    rows, workflow = table(pictures=4, each=5)
    random.Random(0).shuffle(rows)
    rows = [modules.rows.Row(number, *list(vars(row).values())[1:]) for number, row in enumerate(rows, 1)]
    journal = opened()
    journal.adopt(rows, workflow)
    order = {"a": [], "b": []}
    for turn in range(20):
        who = "ab"[turn % 2]
        (row,) = journal.take(who)
        order[who].append(row.image.name)
        end(journal, modules, workflow, row)
    assert journal.take("a") == journal.take("b") == []
    for images in order.values():
        assert len(images) == 10 and sum(one != other for one, other in zip(images, images[1:])) == 1, images


def test_the_last_rows_of_a_picture_are_shared_out(opened, modules, table):
    rows, workflow = table(pictures=1, each=3)
    journal = opened()
    journal.adopt(rows, workflow)
    assert [len(journal.take(who)) for who in "abcd"] == [1, 1, 1, 0]


def test_rows_for_a_batch_have_one_text(opened, modules, table):
    rows, workflow = table(pictures=3, each=2)
    journal = opened()
    journal.adopt(rows, workflow)
    first, second = journal.take("worker", 8), journal.take("worker", 8)
    assert [{row.text for row in taken} for taken in (first, second)] == [{"text 0"}, {"text 1"}]
    assert [len(first), len(second)] == [3, 3]
    journal.put_back(first[1:])
    assert [row.id for row in journal.take("worker", 8)] == [row.id for row in first[1:]]
    assert {row["starts"] for row in journal.results()} == {1}


def test_taking_a_row_does_not_look_at_all_of_them(opened, modules, table):
    """The next row is found by an index: SQLite reads as little of a long table as of a short one."""
    rows, workflow = table(pictures=2, each=2)
    journal = opened()
    journal.adopt(rows, workflow)
    asked = []
    journal._db.set_trace_callback(asked.append)
    journal.take("a", 3)
    journal.take("b", 3)
    journal._db.set_trace_callback(None)
    selects = [sql for sql in asked if sql.startswith("SELECT")]
    plans = [row[3] for sql in selects for row in journal._db.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert len(plans) >= 3 and all("USING INDEX next_" in plan for plan in plans), plans


def test_one_run_at_a_time(opened, modules, tmp_path):
    opened()
    with pytest.raises(modules.journal.Busy, match="another run is using"):
        opened()


def test_a_file_that_is_no_journal(opened, modules, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.sqlite").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="is damaged .*; move it away to begin anew"):
        opened()
    (tmp_path / "other" / "journal.sqlite").mkdir(parents=True)
    with pytest.raises(ValueError, match="journal.sqlite cannot be used: unable to open"):
        opened("other")


def test_a_power_cut_at_any_byte_of_the_log_loses_rows_at_most(opened, modules, table, tmp_path):
    """Whatever of SQLite's log had not reached the disk: the journal opens, and every row ends once."""
    rows, workflow = table()
    journal = opened()
    journal.adopt(rows, workflow)
    saved = []
    while taken := journal.take("worker"):
        end(journal, modules, workflow, taken[0])
        saved.append(sorted(path.name for path in journal.folder.iterdir()))
    drawn = random.Random(0)
    log = journal.folder / "journal.sqlite-wal"
    size = log.stat().st_size
    assert size > 0
    for number in range(20):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(journal.folder, copy)
        with open(copy / log.name, "rb+") as file:
            file.truncate(drawn.randrange(size))
        after = opened(copy.name)
        after.adopt(rows, workflow)
        ran = run_all(after, modules, workflow)
        assert after.counts() == {"waiting": 0, "done": 4, "failed": 0}
        assert len(set(ran)) == len(ran) <= 4


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    import os

    import files

    path = tmp_path / "a" / "b.png"
    files.write_whole(path, b"old")
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, b"newer")
    assert path.read_bytes() == b"old" and synced == [5], "its bytes are on the disk before it has its name"
    files.sweep(tmp_path)
    assert [file.name for file in Path(path.parent).iterdir()] == ["b.png"]
