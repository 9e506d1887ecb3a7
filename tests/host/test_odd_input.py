"""Input at its edges: pictures that are tiny, grey or none, numbers that are none, and what no wire carries."""

import math

import pytest
import torch

STEPS = 2


def refused(sentence):
    return pytest.raises(ValueError, match=f"^{sentence}")


@pytest.fixture
def small(drawn_world, execute):
    """A drawn scene of a given size, inverted without tuning: trajectory and embeddings."""

    def make(width, height, **inputs):
        world = drawn_world
        picture, caption, _ = execute("BaretWorldScene", seed=1)
        latent, text = world.latent(picture[:, :height, :width]), world.encode(caption)
        given = {"positive": text, "negative": text, "latent": latent, "steps": STEPS}
        trajectory, embeddings, _ = execute("BaretInversion", model=world.model, **{**given, **inputs})
        return {"model": world.model, "trajectory": trajectory, "embeddings": embeddings}

    return make


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_other_channels(execute, channels):
    """Grey, grey with alpha, and colours with alpha; the alpha is left out."""
    colours = torch.rand(2, 24, 24, 3)
    odd = (
        torch.cat([colours, torch.zeros(2, 24, 24, 1)], -1)
        if channels == 4
        else colours[..., :1].repeat(1, 1, 1, channels)
    )
    plain = odd[..., :3] if channels == 4 else colours[..., :1].repeat(1, 1, 1, 3)
    (grid,) = execute("BaretLabelledGrid", image_1=odd, image_2=colours)
    (expected,) = execute("BaretLabelledGrid", image_1=plain, image_2=colours)
    assert torch.equal(grid, expected)
    captioned, _, psnr, *_ = execute("BaretEditMetrics", source=odd, edit=colours)
    wanted, _, plain_psnr, *_ = execute("BaretEditMetrics", source=plain, edit=colours)
    assert torch.equal(captioned, wanted) and psnr == plain_psnr


@pytest.mark.parametrize("shape", [(0, 24, 24, 3), (1, 0, 24, 3), (1, 24, 24, 0), (24, 24, 3)])
def test_no_picture(execute, shape):
    there = torch.rand(1, 24, 24, 3)
    with refused("Labelled Grid: image_2 is of shape .* pictures .* fit"):
        execute("BaretLabelledGrid", image_1=there, image_2=torch.zeros(shape))
    with refused("Edit Metrics: edit is of shape .* pictures .* fit"):
        execute("BaretEditMetrics", source=there, edit=torch.zeros(shape))


def test_no_latent_and_no_mask(small, execute):
    with refused(r"Inversion: the latent is of shape \[0, 4, 8, 8\]"):
        small(64, 64, latent={"samples": torch.zeros(0, 4, 8, 8)})
    for mask in (torch.zeros(1, 0, 0), torch.zeros(0, 64, 64)):
        with refused("BAM Edit: the mask is of shape"):
            execute("BaretBAMEdit", **small(64, 64), mask=mask)
    with refused("BAM Edit: the mask is not finite"):
        execute("BaretBAMEdit", **small(64, 64), mask=torch.full((1, 64, 64), math.nan))


@pytest.mark.parametrize("width, height", [(8, 8), (16, 8), (8, 128)])
def test_tiny_pictures(small, execute, drawn_world, width, height):
    """The smallest that the VAE takes, through every node that draws."""
    world, given = drawn_world, small(width, height)
    sheet, edits = execute("BaretEditSweep", **given, vae=world.vae, eta_ranges="1, 0.5", tau_sa="0.3")
    assert edits.shape == (2, height, width, 3) and max(sheet.shape[1:3]) >= 64
    text = execute("BaretWorldScene", seed=1)[1]
    maps, *_ = execute("BaretAttentionMaps", **given, vae=world.vae, clip=world.clip, text=text, resolutions="all")
    assert torch.isfinite(maps).all() and max(maps.shape[1:3]) >= 64


def test_a_long_and_narrow_grid(pack):
    """A cell that is too low for its own label."""
    pictures = pack.module("drawing.pictures")
    picture = pictures.to_pil(torch.rand(64, 8192, 3))
    assert pictures.grid(picture, ["a"], ["b"], [[picture]]).width == 2 * 512 + 8


def test_a_picture_below_the_codecs_cell(drawn_world):
    with pytest.raises(ValueError, match="a picture of less than 8x8 pixels came; the drawn world's VAE"):
        drawn_world.latent(torch.rand(1, 7, 40, 3))


def test_more_pictures_than_memory_holds(small, execute, drawn_world):
    """A sentence before the first step, and nothing of that size is asked for."""
    many = ", ".join(f"{number / 1000:.3f}" for number in range(100))
    given = small(128, 128)
    with refused("Edit Sweep: 100 x 300 pictures of 128x128 come to .* million pixels; at most .* fit"):
        more = many + ", " + ", ".join(f"0.{number + 100}-1" for number in range(200))
        execute("BaretEditSweep", **given, vae=drawn_world.vae, eta_ranges=more, tau_sa=many)


def test_labels_without_end(execute):
    with refused("Labelled Grid: labels has a line of 100000 characters; at most 200 fit"):
        execute("BaretLabelledGrid", image_1=torch.rand(1, 24, 24, 3), labels="x" * 100_000)


# --- numbers and wires ------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(pack):
    return {node_id: node for node_id, node in pack.nodes.items() if node_id.startswith("Baret")}


def takes(node, kind):
    """Names of a node's inputs of one of the host's types."""
    return [each.id for each in node.define_schema().inputs if each.get_io_type() == kind]


def given_for(node, given):
    wanted = {each.id for each in node.define_schema().inputs}
    return {name: value for name, value in given.items() if name in wanted}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(nodes, execute, small, number):
    """JSON has NaN, and no range of the host's holds it back."""
    given = small(64, 64)
    seen = 0
    for node_id, node in nodes.items():
        for name in takes(node, "FLOAT"):
            others = {
                each.id: given.get(each.id) for each in node.define_schema().inputs if not hasattr(each, "default")
            }
            with refused(rf"{node.define_schema().display_name}: {name} is -?(nan|inf); a finite number fits"):
                execute(node_id, **{**others, **given_for(node, given), name: number})
            seen += 1
    assert seen > 30


@pytest.mark.parametrize("value", [5, "a path", None, {"a": 1}, [1, 2]])
def test_what_no_wire_carries(nodes, execute, small, value):
    """A program may write anything in a wire's place."""
    given = small(64, 64)
    seen = 0
    for node_id, node in nodes.items():
        for name in [*takes(node, "BARET_TRAJECTORY"), *takes(node, "BARET_EMBEDDINGS")]:
            with refused(
                f"{node.define_schema().display_name}: {name} is .*; connect an inversion node or Load Inversion"
            ):
                execute(node_id, **{**given_for(node, given), name: value})
            seen += 1
    assert seen > 15
