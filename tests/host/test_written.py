"""What a person types into Edit Sweep."""

import pytest


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
    ],
)
def test_ranges_as_people_write_them(written, text, ranges):
    assert written.read_ranges(text, "eta_ranges") == ranges


def test_numbers(written):
    assert written.read_numbers("0.3, 0.1,0.3, 1", "tau_sa") == [0.3, 0.1, 1.0]


@pytest.mark.parametrize(
    "read, text, sentence",
    [
        ("read_ranges", "0.8-0.1-0.2", "eta_ranges has '0.8-0.1-0.2'; numbers from 0 to 1"),
        ("read_ranges", "much", "eta_ranges has 'much'"),
        ("read_ranges", "1.5-0.1", "eta_ranges has 1.5; numbers from 0 to 1 fit"),
        ("read_ranges", "-0.5", "eta_ranges has '-0.5'"),
        ("read_ranges", " , ", "eta_ranges is empty; write one number or more"),
        ("read_numbers", "0.1-0.3", "eta_ranges has the range 0.1-0.3; single numbers"),
    ],
)
def test_what_does_not_fit(written, read, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(written, read)(text, "eta_ranges")
