"""Labelled Grid: every picture where it belongs, with its label."""

import pytest
import torch


def plain(*colour, count=1, height=48, width=64):
    return torch.tensor(colour).expand(count, height, width, 3)


def cells(sheet, columns, rows):
    return [[cell for cell in line.chunk(columns, 1)] for line in sheet.chunk(rows, 0)]


def test_pictures_stand_in_their_places_with_their_labels(execute):
    colours = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
    images = {f"image_{n}": plain(*colour, width=64 if n < 4 else 32) for n, colour in zip((1, 2, 4, 5), colours)}
    (sheet,) = execute("BaretLabelledGrid", **images, labels="one\ntwo\nnot connected\n\nfive", columns=3)
    assert sheet.shape[0] == 1
    first, second = cells(sheet[0], 3, 2)
    for cell, colour, label in zip([*first, second[0]], colours, [True, True, False, True]):
        middle = cell[cell.shape[0] // 3, cell.shape[1] // 2]
        torch.testing.assert_close(middle, torch.tensor(colour), atol=0.01, rtol=0.0)
        below = cell[int(cell.shape[0] * 0.92) :, 8:-8]
        assert (below.max() > 0.6) == label, "light letters on a dark ground"
    assert second[1].max() < 0.3, "nothing where no picture is left"


def test_a_batch_makes_a_grid_for_each_picture(execute):
    batch = torch.cat([plain(1.0, 0.0, 0.0), plain(0.0, 0.0, 1.0)])
    (sheets,) = execute("BaretLabelledGrid", image_1=plain(0.0, 1.0, 0.0), image_2=batch, columns=2)
    assert len(sheets) == 2
    for sheet, colour in zip(sheets, batch[:, 0, 0]):
        left, right = cells(sheet, 2, 1)[0]
        torch.testing.assert_close(left[100, 100], torch.tensor([0.0, 1.0, 0.0]), atol=0.01, rtol=0.0)
        torch.testing.assert_close(right[100, 100], colour, atol=0.01, rtol=0.0)


def test_bad_input(execute):
    with pytest.raises(ValueError, match="Labelled Grid: no picture is connected"):
        execute("BaretLabelledGrid")
    with pytest.raises(ValueError, match="Labelled Grid: batches of 2, 3 pictures came"):
        execute("BaretLabelledGrid", image_1=plain(1.0, 1.0, 1.0, count=2), image_2=plain(1.0, 1.0, 1.0, count=3))
