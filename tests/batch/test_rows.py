"""What a folder or a table is read as, and what is said of one that cannot be."""

import json
import os
import sys

import pytest


@pytest.fixture
def read(tmp_path):
    import rows

    def of(name, content=None, **more):
        path = tmp_path / name
        if content is not None:
            path.write_text(content, encoding="utf-8")
        return list(rows.read(path, **more))

    return of


def test_a_folder_gives_its_pictures_by_name(read, tmp_path):
    for name in ("b.jpg", "a.png", "a.jpg", "sub/c.webp", "words.txt", ".hidden.png", "out/pictures/a.png", "d e?.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = read("in", text="a cat", leave_out=tmp_path / "in" / "out")
    assert [row.id for row in found][:3] == ["a", "a.png", "b"], "of two with one name the later keeps its ending"
    assert found[3].id.startswith("d_e-"), "no character that a file's name cannot have"
    assert [row.number for row in found] == [1, 2, 3, 4, 5] and found[4].id == "sub/c"
    assert found[0].image == tmp_path / "in" / "a.jpg" and found[0].text == "a cat"


def test_names_that_file_systems_do_not_take_apart(read, tmp_path):
    long = "\u72d7" * 80  # of 240 bytes
    (tmp_path / "in").mkdir()
    for name in ("IMG_1.JPG", "img_1.png", f"{long}.png"):
        (tmp_path / "in" / name).touch()
    first, second, third = read("in")
    assert (first.id, second.id) == ("IMG_1", "img_1.png")
    assert third.id.startswith("\u72d7") and len(third.id.encode()) < 180


@pytest.mark.skipif(sys.platform != "linux", reason="a name of other bytes than UTF-8's")
def test_a_name_that_is_not_utf_8(read, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(ValueError, match=r"caf\\xe9.png' is not UTF-8; rename that picture"):
        read("in")


def test_an_id_of_0_is_an_id(read):
    assert read("t.jsonl", '{"id": 0, "image": "a.png"}\n')[0].id == "0"


def test_a_table_in_three_forms(read, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    from pyarrow import Table

    records = [
        {"id": "one", "image": "a.png", "text": "a dog", "Auto Edit.seed": 3},
        {"id": "two", "image": "b.png", "text": "", "Auto Edit.seed": None},
    ]
    head, *lines = (",".join("" if v is None else str(v) for v in r.values()) for r in records)
    lines = [head, *lines]
    csv = read("t.csv", "\ufeff" + "\n".join([",".join(records[0]), *lines]))
    jsonl = read("t.jsonl", "\n".join(map(json.dumps, records)))
    parquet.write_table(Table.from_pylist(records), tmp_path / "t.parquet")
    for rows in (csv, jsonl, read("t.parquet", text="a cat")):
        assert [row.id for row in rows] == ["one", "two"]
        assert rows[0].image == tmp_path / "a.png" and rows[0].text == "a dog"
        assert str(rows[0].settings["Auto Edit.seed"]) == "3" and rows[1].settings == {}, "an empty cell sets nothing"
    assert csv[1].text is None and read("t.parquet", text="a cat")[1].text == "a cat"


def test_rows_without_ids_are_named_by_what_they_say(read):
    content = "image,text\na.png,a dog\nb.png,a dog\na.png,a dog\n"
    first, second, again = read("t.csv", content)
    assert first.id != second.id and again.id == first.id + "-2"
    assert [row.id for row in read("t.csv", content)] == [first.id, second.id, again.id]
    assert read("t.csv", "image,text\nb.png,a dog\n")[0].id == second.id, "whatever its place"


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("t.csv", "id,image\nx,a.png\nX,b.png\n", "the id X stands in rows 1 and 2"),
        ("t.csv", "id,image\n../x,a.png\n", "the id of row 1 of t.csv is '../x'"),
        ("t.csv", f"id,image\n{'x' * 300},a.png\n", "at most 180"),
        ("t.csv", "id,image\nx,a.png,more\n", "line 2 of t.csv has more cells than the first line"),
        ("t.jsonl", '{"image": "a.png"}\n{"image": \n', "line 2 of t.jsonl is no JSON"),
        ("t.jsonl", "[1]\n", "line 1 of t.jsonl is no JSON object"),
        ("t.parquet", "no parquet", "t.parquet"),
        ("t.txt", "", "is neither a folder of pictures nor a table"),
    ],
)
def test_a_table_that_cannot_be_right(read, name, content, sentence):
    with pytest.raises(ValueError, match="(?s)" + sentence.replace(".", r"\.")) as caught:
        read(name, content)
    assert len(str(caught.value)) < 400
