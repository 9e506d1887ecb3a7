"""The nodes that bring pictures to size and pick one, and what a mask means in which nothing is painted."""

import pytest
import torch


@pytest.mark.parametrize(
    "came, megapixels, fits",
    [
        ((800, 1200), 0.25, (448, 640)),
        ((1200, 800), 0.25, (640, 448)),
        ((512, 512), 0.25, (512, 512)),
        ((4000, 400), 0.25, (1600, 192)),
        ((128, 128), 0.25, (128, 128)),
        ((100, 500), 0.25, (64, 448)),
        ((40, 300), 1.0, (64, 256)),
    ],
)
def test_a_picture_of_any_shape_is_fitted_and_never_enlarged(execute, came, megapixels, fits):
    """Sides are multiples of 64, none is longer than it was except below 64, and a flat colour stays that colour."""
    picture = torch.full((2, *came, 3), 0.5)
    (fitted,) = execute("BaretFitPicture", image=picture, megapixels=megapixels)
    assert fitted.shape == (2, *fits, 3)
    torch.testing.assert_close(fitted, torch.full_like(fitted, 0.5), atol=0.01, rtol=0.0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_picture_of_any_channels_is_fitted(execute, channels):
    (fitted,) = execute("BaretFitPicture", image=torch.full((1, 128, 128, channels), 0.5))
    assert fitted.shape == (1, 128, 128, 3)


def test_no_picture_is_said(execute):
    with pytest.raises(ValueError, match="Fit Picture: image is of shape .*; pictures .* fit"):
        execute("BaretFitPicture", image=torch.zeros(0, 128, 128, 3))


def test_pick_edit_takes_the_cell_of_that_number(execute):
    edits = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 8, 8, 3)
    for number in (1, 3, 5):
        (picked,) = execute("BaretPickEdit", edits=edits, number=number)
        assert picked.equal(edits[number - 1 : number])
    with pytest.raises(ValueError, match="Pick Edit: number is 6; there are 5 edits"):
        execute("BaretPickEdit", edits=edits, number=6)


def test_a_mask_in_which_nothing_is_painted_counts_as_none(execute, model, text, picture):
    """Load Image gives such a mask, of a size of its own, with every picture that has none."""
    trajectory, embeddings, _ = execute(
        "BaretTTISInversion", model=model, positive=text(1), negative=text(2), latent=picture(), steps=4
    )
    inverted = {"model": model, "trajectory": trajectory, "embeddings": embeddings, "effort": 1}
    without = execute("BaretAutoEdit", **inverted)
    black = execute("BaretAutoEdit", **inverted, mask=torch.zeros(1, 64, 64))
    half = torch.zeros(1, 64, 64)
    half[:, :32] = 1
    painted = execute("BaretAutoEdit", **inverted, mask=half)
    assert black[0]["samples"].equal(without[0]["samples"])
    assert not painted[0]["samples"].equal(without[0]["samples"])
