"""Text Layer on the drawn world: what CLIP paints over a picture, and what becomes of the picture under it."""

from types import SimpleNamespace

import in_process
import pytest
import torch

HELD_OUT = 1_500_000_100  # seeds that no part of the drawn world was trained on


@pytest.fixture
def scene(execute):
    def call(seed=HELD_OUT, **fixed):
        picture, caption, mask = execute("BaretWorldScene", seed=seed, **fixed)
        return SimpleNamespace(picture=picture, caption=caption, mask=mask)

    return call


@pytest.fixture
def paint(execute, drawn_world):
    """Text Layer, a few steps of a small network unless told otherwise; returns its three outputs."""

    def call(image, text="red dog", **inputs):
        world = drawn_world
        given = {"clip": world.clip, "clip_vision": world.clip_vision, "image": image, "text": text}
        return execute("BaretTextLayer", **{**given, "steps": 2, "views": 2, "channels": 8, **inputs})

    return call


@pytest.fixture(scope="module")
def other(pack, drawn_world):
    """A CLIP that was trained with another seed, on other scenes: nothing is tuned by it."""
    return in_process.other_clip(pack)


def test_another_clip_finds_that_it_fits_better(paint, scene, pack, other):
    """A red animal is to be blue, from where it stands; another CLIP judges, and most of the rest is left alone.

    By the cosine: a CLIPScore is 0 for all that are below it, and processors round differently.
    """
    features = pack.module("host.clip")
    for seed in range(2):
        it, wanted = (scene(HELD_OUT + seed, colour=colour) for colour in ("red", "blue"))
        animal = wanted.caption.split()[2]
        edited, _, alpha = paint(
            it.picture,
            f"blue {animal}",
            text_before=f"red {animal}",
            start_mask=it.mask,
            steps=60,
            views=4,
            channels=16,
        )
        shown = features.image_features(other[1], torch.cat([it.picture, edited]))
        said = features.text_features(other[0], f"a blue {animal}", shown.shape[-1])
        before, after = torch.cosine_similarity(shown, said).tolist()
        assert after > before + 0.15, (seed, before, after)
        inside, outside = alpha[it.mask == 1].mean(), alpha[it.mask == 0].mean()
        assert inside > 0.6 and outside < 0.4 and inside > 2 * outside, (seed, inside, outside)


def test_stock_compositing_gives_the_picture(paint, scene, host):
    """The layer over the picture by its alpha, as ImageCompositeMasked puts it: to what 32 bits hold."""
    from comfy_extras.nodes_mask import composite

    it = scene()
    edited, layer, alpha = paint(it.picture)
    under, over = (picture.movedim(-1, 1).clone() for picture in (it.picture, layer))
    composed = composite(under, over, 0, 0, alpha, 1, False).movedim(1, -1)
    torch.testing.assert_close(composed, edited, rtol=0, atol=1e-6)
    assert layer.shape == it.picture.shape and alpha.shape == it.picture.shape[:3]


def test_no_steps_change_no_bit(paint, scene):
    it = scene()
    edited, layer, alpha = paint(it.picture, steps=0)
    assert torch.equal(edited, it.picture) and torch.equal(layer, it.picture) and not alpha.any()
    assert not torch.equal(paint(it.picture)[0], it.picture)


def test_the_same_seed_gives_the_same_bits(paint, scene):
    it = scene()
    one, again, another = (paint(it.picture, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, another)


def test_pictures_of_a_batch_are_apart(paint, scene):
    """Each as alone, with its own mask, to the bit."""
    scenes = [scene(HELD_OUT + n) for n in range(2)]
    pictures, masks = (torch.cat([getattr(it, name) for it in scenes]) for name in ("picture", "mask"))
    together = paint(pictures, start_mask=masks)
    for n, it in enumerate(scenes):
        for ours, alone in zip(together, paint(it.picture, start_mask=it.mask)):
            assert torch.equal(ours[n : n + 1], alone)


def test_pictures_of_other_sizes_fit(paint):
    for size in ((8, 8), (96, 200), (200, 61)):
        edited, layer, alpha = paint(torch.rand(1, *size, 3))
        assert edited.shape == layer.shape == (1, *size, 3) and alpha.shape == (1, *size)


def test_grey_pictures_and_small_masks_fit(paint):
    edited, *_ = paint(torch.rand(1, 64, 64, 1), start_mask=torch.ones(1, 8, 8))
    assert edited.shape == (1, 64, 64, 3)


def test_the_clip_is_left_as_it_was(paint, scene, drawn_world):
    it, module = scene(), drawn_world.clip_vision.model
    before = [part for part in module.modules() if "forward" in vars(part)]
    first = drawn_world.clip_vision.encode_image(it.picture)["image_embeds"]
    paint(it.picture)
    assert [part for part in module.modules() if "forward" in vars(part)] == before
    assert torch.equal(drawn_world.clip_vision.encode_image(it.picture)["image_embeds"], first)
    assert not any(weight.requires_grad for weight in module.parameters())


def test_cancel_ends_it(paint, scene, host):
    import comfy.model_management

    it = scene()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paint(it.picture, steps=10_000)
    paint(it.picture, steps=1)


def test_it_is_refused_before_the_first_update_where_memory_is_short(paint, scene, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 1e6)
    with pytest.raises(ValueError, match=r"^Text Layer: tuning a layer of 128x128 with 2 view\(s\) needs about"):
        paint(scene().picture)


def test_a_failed_allocation_is_said_with_the_nodes_name(paint, scene, monkeypatch, drawn_world):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(type(drawn_world.clip_vision.model), "forward", full)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="^Text Layer: out of memory with a layer of 128x128"):
            paint(scene().picture)


def test_the_estimate_holds_what_the_network_keeps(pack):
    """Counted over the network at two widths: the estimate is above it, and not by far."""
    memory = pack.module("host.memory")
    network_of = pack.module("baret_ops.edits.layer_generator").LayerGenerator
    for channels in (16, 64):
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.inference_mode(False):
            network = network_of(128, channels, seed=0)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                painted = network(torch.rand(1, 3, 128, 128))
        weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
        counted = sum(size for place, size in kept.items() if place not in weights)
        reckoned = memory.PAINTED * channels * 128**2 * 4 / 2.44  # of one of an update's two looks
        assert painted.shape == (1, 4, 128, 128)
        assert 0.85 * reckoned < counted < 1.1 * reckoned
        assert sum(weight.numel() for weight in network.parameters()) < memory.OF_A_NETWORK * channels**2


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"text": " "}, "text is empty; write what the picture is to show"),
        ({"text": "x" * 30_000}, "text has 30000 characters"),
        ({"image": torch.zeros(1, 4, 64, 3)}, "the picture is 64x4; 8x8 pixels are the least"),
        ({"image": torch.zeros(0, 64, 64, 3)}, r"image is of shape \[0, 64, 64, 3\]"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "image holds NaN or infinity"),
        ({"start_mask": torch.zeros(2, 64, 64)}, r"2 masks came for 1 image\(s\)"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"clip_vision": SimpleNamespace(model_type="dinov2")}, "clip_vision is a dinov2; texts are compared"),
    ],
)
def test_bad_input(paint, given, sentence):
    with pytest.raises(ValueError, match=f"^Text Layer: {sentence}"):
        paint(**{"image": torch.rand(1, 64, 64, 3), **given})
