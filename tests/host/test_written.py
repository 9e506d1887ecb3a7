"""What a person types into the nodes: lists of numbers, ranges, words and widths."""

from types import SimpleNamespace

import pytest

LONG = 100_000


@pytest.fixture
def written(pack):
    return pack.modules["nodes.written"]


@pytest.mark.parametrize(
    "text, ranges",
    [
        ("0.8-0.1, 0.6-0.1", [(0.8, 0.1), (0.6, 0.1)]),
        ("1", [(1.0, 1.0)]),
        (" 1 ,0.8 - 0.1,\n.5 to 0 ;0.9\u20130.2,", [(1.0, 1.0), (0.8, 0.1), (0.5, 0.0), (0.9, 0.2)]),
        ("0.8-0.1, 0.80-0.1", [(0.8, 0.1)]),
        ("1e-3, 1e-3-5e-1, 0.8   -\t0.1", [(0.001, 0.001), (0.001, 0.5), (0.8, 0.1)]),
        ("1\r\n0.5\r\n", [(1.0, 1.0), (0.5, 0.5)]),
    ],
)
def test_ranges_as_people_write_them(written, text, ranges):
    assert written.read_ranges(text, "eta_ranges") == ranges


def test_numbers(written):
    assert written.read_numbers("0.3, 0.1,0.3, 1", "tau_sa") == [0.3, 0.1, 1.0]


def test_words(written):
    assert written.read_words(" dog, a red cat ,,dog,\n", "words") == ["dog", "a red cat"]
    assert written.read_words(" , ", "words") == []


def test_words_with_numbers(written):
    found = written.read_values("dog:1.5, a red cat : -2,, embedding:mine:0.25", "reweight")
    assert found == [("dog", 1.5), ("a red cat", -2.0), ("embedding:mine", 0.25)]
    assert written.read_values("", "reweight") == []


@pytest.mark.parametrize(
    "text, seen",
    [("coarse", [16]), (" all ", [64, 32, 16]), ("16, 32", [32, 16]), ("64 16", [64, 16]), ("8", [])],
)
def test_resolutions(written, text, seen):
    sites = [SimpleNamespace(grid=(10, width), coarse=width == 16) for width in (64, 32, 16)]
    grids = written.read_resolutions(text, "resolutions")
    assert [site.grid[1] for site in sites if grids.wanted(site)] == seen


@pytest.mark.parametrize(
    "read, text, sentence",
    [
        ("read_ranges", "0.8-0.1-0.2", "eta_ranges has '0.8-0.1-0.2'; numbers from 0 to 1"),
        ("read_ranges", "much", "eta_ranges has 'much'"),
        ("read_ranges", "1.5-0.1", "eta_ranges has 1.5; numbers from 0 to 1 fit"),
        ("read_ranges", "-0.5", "eta_ranges has '-0.5'"),
        ("read_ranges", " , ", "eta_ranges is empty; write one number or more"),
        ("read_numbers", "0.1-0.3", "eta_ranges has the range 0.1-0.3; single numbers"),
        ("read_ranges", "0.5" + " " * 100 + "x", "eta_ranges has '0.5 x'"),
        ("read_values", "cat", "eta_ranges holds 'cat'; words and numbers such as"),
        ("read_values", "dog:1, :2", "eta_ranges holds ':2'; words and numbers such as"),
        ("read_values", "dog:inf", "eta_ranges holds 'dog:inf'; numbers from -1000 to 1000 fit"),
        ("read_values", "dog:nan", "eta_ranges holds 'dog:nan'; numbers"),
        ("read_values", "dog:1e300", "eta_ranges holds 'dog:1e300'; numbers"),
        ("read_values", "cat:1, dog:-1001", "eta_ranges holds 'dog:-1001'; numbers"),
        ("read_values", "a:1," * (LONG // 4), "eta_ranges has 25000 words; at most 256 fit"),
        ("read_words", "a," * (LONG // 2), "eta_ranges has 50000 words; at most 256 fit"),
        ("read_resolutions", "fine", "eta_ranges has 'fine'; coarse, all, or widths such as 16, 32 fit"),
        ("read_resolutions", "", "eta_ranges has ''; coarse, all, or widths"),
    ],
)
def test_what_does_not_fit(written, read, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(written, read)(text, "eta_ranges")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "read, text, quoted",
    [
        ("read_ranges", "1" * (LONG // 2) + "-" + "1" * (LONG // 2) + "x", "1" * 40),
        ("read_ranges", "1" * LONG + "x", "1" * 40),
        ("read_numbers", "1." * (LONG // 2), "1." * 20),
        ("read_values", "dog:" + "1" * LONG, "dog:" + "1" * 36),
        ("read_values", ":" * LONG, ":" * 40),
        ("read_resolutions", "1," * (LONG // 2) + "x", "1," * 20),
    ],
)
def test_a_long_text_is_refused_at_once_by_a_short_sentence(written, read, text, quoted):
    with pytest.raises(ValueError) as caught:
        getattr(written, read)(text, "eta_ranges")
    assert f"'{quoted}'... ({len(text)} characters)" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.timeout(20)
def test_a_long_list_is_read(written):
    assert written.read_ranges("0.5-0.1," * (LONG // 8), "eta_ranges") == [(0.5, 0.1)]
    assert len(written.read_words(",".join(map(str, range(256))), "words")) == 256
