"""The drawn world's CLIP, and what is built on CLIP: a direction between phrases, latents tuned until CLIP agrees."""

import json
from types import SimpleNamespace

import in_process
import pytest
import torch

HELD_OUT = 1_500_000_000  # seeds that no part of the drawn world was trained on
FACTS = {"animal": 0.55, "pose": 0.9, "colour": 0.95, "place": 0.95}
"""How often either CLIP sees them rightly, at least: dogs and cats differ in their heads alone."""
SETTINGS = {
    "StyleCLIP": {"steps": 40, "views": 0, "keep": 0.05},
    "VQGAN-CLIP": {"steps": 30, "views": 4, "strength": 0.5},
    "TediGAN": {"steps": 60, "views": 0},
}


@pytest.fixture(scope="module")
def scenes(pack):
    return pack.module("world.scenes")


@pytest.fixture(scope="module")
def own(pack, drawn_world):
    """Unit embeddings of pictures and of a text by the CLIP that comes with the pack."""
    return _spaces(pack.module("host.clip"), drawn_world.clip, drawn_world.clip_vision)


@pytest.fixture(scope="module")
def other(pack, drawn_world):
    """The same by a CLIP that was trained with another seed, on other scenes: nothing is tuned by it."""
    return _spaces(pack.module("host.clip"), *in_process.other_clip(pack))


def _spaces(host_clip, clip, vision):
    unit = torch.nn.functional.normalize

    def pictures(images):
        with torch.inference_mode():
            return unit(host_clip.image_features(vision, images), dim=-1)

    def text(written):
        with torch.inference_mode():
            return unit(host_clip.text_features(clip, written, host_clip.width_of(vision)), dim=-1)

    def fit(images, written):
        """Cosines of pictures and a text."""
        return pictures(images) @ text(written)[0]

    return SimpleNamespace(pictures=pictures, text=text, fit=fit)


def prompts(scenes, fact):
    """A text for each value of a fact, for either animal."""
    for words in scenes.WORDS[fact]:
        if fact == "animal":
            yield [f"a {words[0]}"]
        elif fact == "colour":
            yield [f"a {words[0]} dog", f"a {words[0]} cat"]
        else:
            yield [f"a dog {words[0]}", f"a cat {words[0]}"]


def seen(space, scenes, pictures, fact):
    """Which value of a fact the CLIP sees in each picture."""
    means = [torch.cat([space.text(text) for text in texts]).mean(0) for texts in prompts(scenes, fact)]
    means = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    return (space.pictures(pictures) @ means.T).argmax(1)


@pytest.mark.parametrize("fact", FACTS)
def test_the_drawn_worlds_clip_sees_what_is_drawn(scenes, own, other, fact):
    drawn = scenes.sample(HELD_OUT, 60)
    pictures = scenes.render(drawn)[0]
    truth = torch.tensor([getattr(scene, fact) for scene in drawn])
    for space in (own, other):
        assert (seen(space, scenes, pictures, fact) == truth).double().mean() > FACTS[fact]


def test_edit_metrics_measures_by_it(drawn_world, execute):
    """A picture fits its own caption better than that of another scene."""
    world, fits = drawn_world, []
    for seed in range(6):
        picture, caption, _ = execute("BaretWorldScene", seed=HELD_OUT + seed)
        _, another, _ = execute("BaretWorldScene", seed=HELD_OUT + seed + 1)
        for text in (caption, another):
            measured = execute(
                "BaretEditMetrics",
                source=picture,
                edit=picture,
                clip=world.clip,
                clip_vision=world.clip_vision,
                text=text,
            )
            fits.append(measured[4])
    own, others = torch.tensor(fits).view(-1, 2).unbind(1)
    assert (own > others).all() and own.mean() > others.mean() + 0.3


# --- a direction between phrases --------------------------------------------------------------------------------------


@pytest.fixture
def move(execute, drawn_world):
    def call(strength, phrase_from="dog standing", phrase_to="dog lying", **inputs):
        given = {"clip": drawn_world.clip, "phrase_from": phrase_from, "phrase_to": phrase_to, "strength": strength}
        return execute("BaretTextDirection", **{**given, **inputs})

    return call


def test_a_direction_moves_what_is_drawn_and_leaves_the_rest(move, drawn_world, scenes, own):
    """Standing dogs lie at strength 1, still of their colour and in their place; at 0 they stand."""
    import comfy.sample

    world, count = drawn_world, 4
    standing = [scenes.replace(scene, animal=0, pose=0) for scene in scenes.sample(HELD_OUT, count)]
    texts = [world.encode(scenes.plain_caption(scene)) for scene in standing]
    noise = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    empty, found = world.encode(""), {}
    for strength in (0.0, 1.0):
        with torch.inference_mode():
            moved = torch.cat([move(strength, conditioning=text)[0][0][0] for text in texts])
            latent = comfy.sample.sample(
                world.model,
                noise,
                6,
                4.0,
                "euler",
                "normal",
                [[moved, {}]],
                empty,
                torch.zeros_like(noise),
                disable_pbar=True,
            )
        pictures = world.decode({"samples": latent})
        found[strength] = {fact: seen(own, scenes, pictures, fact) for fact in FACTS}
    assert (found[0.0]["pose"] == 0).all() and (found[1.0]["pose"] == scenes.POSES.index("lying")).all()
    for fact in ("colour", "place"):
        truth = torch.tensor([getattr(scene, fact) for scene in standing])
        assert (found[1.0][fact] == truth).all()


def test_strength_0_changes_no_bit(move, drawn_world, execute):
    text = drawn_world.encode("a red dog standing")
    moved, _ = move(0.0, conditioning=text)
    assert torch.equal(moved[0][0], text[0][0]) and moved[0][1] == text[0][1]
    assert not torch.equal(move(0.1, conditioning=text)[0][0][0], text[0][0])


def test_unknown_words_are_those_of_the_phrases(move, drawn_world, pack, monkeypatch):
    """Under the node stands what was said last; the templates hold words of their own that the world does not know."""
    said = []
    monkeypatch.setattr(pack.module("host.world"), "remark", said.append)
    move(1.0, phrase_to="dog lying in space", conditioning=drawn_world.encode("a dog"))
    assert said[-1] == "Unknown words: space"


def test_what_is_not_connected_says_so(move, drawn_world):
    moved, embeddings = move(1.0, conditioning=drawn_world.encode("a dog"))
    assert moved[0][0].shape == (1, 32, 128)
    assert embeddings.message == "Text Direction: connect embeddings to get some."


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"conditioning": None}, "nothing is connected that could be moved"),
        ({"phrase_to": " "}, "phrase_to is empty; write a word or a phrase"),
        ({"phrase_to": "dog standing"}, "both phrases are 'dog standing', so there is no way between them"),
        ({"phrase_to": "zeppelin"}, "'zeppelin' is not in phrase_to"),
        ({"templates": "a {}\na photo"}, "templates has 'a photo'; write {} where the phrase stands"),
        ({"templates": " \n"}, "templates has 0 lines"),
    ],
)
def test_directions_that_are_none(move, drawn_world, given, sentence):
    with pytest.raises(ValueError, match=f"^Text Direction: {sentence}"):
        move(1.0, **{"conditioning": drawn_world.encode("a dog standing"), **given})


def test_a_text_of_another_clip_is_refused(move, text):
    with pytest.raises(ValueError, match="conditioning is 24 wide and the CLIP's texts are 128 wide; connect the CLIP"):
        move(1.0, conditioning=text(1))


# --- latents tuned by CLIP --------------------------------------------------------------------------------------------


@pytest.fixture
def optimise(execute, drawn_world):
    """CLIP Optimise of a scene, a few steps unless told otherwise; returns the latent's samples."""

    def call(latent, text="a red dog", **inputs):
        world = drawn_world
        given = {"vae": world.vae, "clip": world.clip, "clip_vision": world.clip_vision, "latent": latent, "text": text}
        return execute("BaretClipOptimise", **{**given, "steps": 2, "views": 2, **inputs})[0]["samples"]

    return call


@pytest.fixture
def scene(execute, drawn_world):
    def call(seed=HELD_OUT, **fixed):
        picture, caption, mask = execute("BaretWorldScene", seed=seed, **fixed)
        return SimpleNamespace(picture=picture, caption=caption, mask=mask, latent=drawn_world.latent(picture))

    return call


def fits(space, world, samples, text):
    return float(space.fit(world.decode({"samples": samples}), text))


@pytest.mark.parametrize("preset", ["StyleCLIP", "VQGAN-CLIP", "TediGAN"])
def test_another_clip_finds_that_it_fits_better(optimise, scene, drawn_world, own, other, preset):
    """A red animal is to be blue. The CLIP that judges has another seed and was trained on other scenes."""
    gained = []
    for seed in range(2):
        it, wanted = (scene(HELD_OUT + seed, colour=colour) for colour in ("red", "blue"))
        samples = optimise(it.latent, wanted.caption, preset=preset, **SETTINGS[preset])
        for space in (own, other):
            before, after = (fits(space, drawn_world, z, wanted.caption) for z in (it.latent["samples"], samples))
            gained.append(after - before)
    assert min(gained) > 0.05, gained


def test_a_negative_text_is_left(optimise, scene, drawn_world, other):
    it = scene(colour="red")
    samples = optimise(it.latent, "a dog", negative_text="a red dog", steps=20, views=4)
    assert fits(other, drawn_world, samples, "a red dog") < fits(other, drawn_world, it.latent["samples"], "a red dog")


@pytest.mark.parametrize("preset", ["StyleCLIP", "VQGAN-CLIP", "TediGAN"])
def test_no_strength_changes_no_bit(optimise, scene, preset):
    it = scene()
    assert torch.equal(optimise(it.latent, preset=preset, strength=0.0), it.latent["samples"])
    assert not torch.equal(optimise(it.latent, preset=preset), it.latent["samples"])


def test_the_same_seed_gives_the_same_bits(optimise, scene):
    it = scene()
    one, again, another = (optimise(it.latent, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, another)


def test_only_white_changes(optimise, scene):
    it, mask = scene(), torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    before, after = it.latent["samples"], optimise(it.latent, mask=mask)
    same = (after == before).all(1)[0]
    assert same[:, :7].all() and not same[:, 9:].any()


def test_pictures_of_a_batch_are_apart(optimise, scene):
    """Each as alone, up to how kernels round."""
    two = torch.cat([scene(HELD_OUT + n).latent["samples"] for n in range(2)])
    together = optimise({"samples": two}, preset="StyleCLIP", views=0, steps=6)
    for n in range(2):
        alone = optimise({"samples": two[n : n + 1]}, preset="StyleCLIP", views=0, steps=6)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=1e-3)


def test_other_keys_of_the_latent_stay(execute, drawn_world, scene):
    world, it = drawn_world, scene()
    given = {"vae": world.vae, "clip": world.clip, "clip_vision": world.clip_vision, "text": "a red dog", "steps": 1}
    (latent,) = execute("BaretClipOptimise", **given, latent={**it.latent, "batch_index": [3]})
    assert latent["batch_index"] == [3]


def test_pictures_of_other_sizes_fit(optimise, drawn_world):
    wide = torch.rand(1, 96, 200, 3)
    for views in (0, 2):
        samples = optimise(drawn_world.latent(wide), views=views)
        assert samples.shape == (1, 4, 12, 25) and torch.isfinite(samples).all()


def test_short_memory_computes_again_and_refuses_what_cannot_fit(optimise, scene, pack, drawn_world, monkeypatch):
    import comfy.model_management

    memory, world, it = pack.module("host.memory"), drawn_world, scene()
    shape = it.latent["samples"].shape
    all_kept, least = (
        memory.of_pictures(world.vae, world.clip_vision, shape, 2, recompute=again) for again in (False, True)
    )
    assert least < 0.7 * all_kept
    four = memory.of_pictures(world.vae, world.clip_vision, (4, *shape[1:]), 2, recompute=False)
    assert four > 3 * all_kept, "a picture of a batch takes what one takes"
    plenty = optimise(it.latent)

    def free(number):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: number)

    free((all_kept + least) / 2)
    torch.testing.assert_close(optimise(it.latent), plenty, rtol=0, atol=1e-4)
    free(least / 2)
    with pytest.raises(ValueError, match=r"CLIP Optimise: tuning 1 latent\(s\) of 16x16 with 2 view\(s\) each needs"):
        optimise(it.latent)


def test_cancel_ends_it(optimise, scene, host):
    import comfy.model_management

    it = scene()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        optimise(it.latent, steps=1000)
    optimise(it.latent, steps=1)


def test_models_are_left_as_they_were(optimise, scene, drawn_world, own):
    it, text = scene(), "a red dog"
    modules = (drawn_world.vae.first_stage_model, drawn_world.clip_vision.model)

    def state():
        forwards = [part for module in modules for part in module.modules() if "forward" in vars(part)]
        return forwards, fits(own, drawn_world, it.latent["samples"], text)

    before = state()
    optimise(it.latent)
    assert state() == before
    assert not any(weight.requires_grad for module in modules for weight in module.parameters())


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"text": " "}, "text is empty; write what the picture is to show"),
        ({"text": "a dog: 2000"}, "text holds 'a dog: 2000'; texts and numbers"),
        ({"latent": {"samples": torch.zeros(1, 16, 8, 8)}}, r"the latent is of shape \[1, 16, 8, 8\]; \[images,4,"),
        ({"latent": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "the latent holds NaN or infinity"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "the latent is empty, with nothing to begin at"),
        (
            {"latent": {"samples": torch.rand(1, 4, 8, 8), "noise_mask": torch.ones(1, 8, 8)}},
            "the latent carries a noise mask, which is not heeded here; take Set Latent Noise Mask out",
        ),
        ({"mask": torch.zeros(2, 8, 8)}, r"2 masks came for 1 image\(s\)"),
        ({"clip_vision": SimpleNamespace(model_type="dinov2")}, "clip_vision is a dinov2; texts are compared"),
    ],
)
def test_bad_input(optimise, scene, given, sentence):
    with pytest.raises(ValueError, match=f"^CLIP Optimise: {sentence}"):
        optimise(**{"latent": scene().latent, **given})


def test_texts_with_weights_are_read(pack):
    read = pack.module("nodes.written").read_prompts
    assert read("a red dog | snow: 0.5\na wall:-1 |", "text") == [("a red dog", 1.0), ("snow", 0.5), ("a wall", -1.0)]
    assert read("note: a dog", "text") == [("note: a dog", 1.0)]


@pytest.fixture(scope="module")
def transformer(host, tmp_path_factory):
    """The host's own CLIP vision model, small and with random weights."""
    import comfy.clip_vision

    config = {
        "model_type": "clip_vision_model",
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_act": "quick_gelu",
        "projection_dim": 16,
    }
    path = tmp_path_factory.mktemp("clip_vision") / "config.json"
    path.write_text(json.dumps(config))
    with torch.inference_mode():
        vision = comfy.clip_vision.ClipVisionModel(path)
        generator = torch.Generator().manual_seed(0)
        for weight in vision.model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return vision


def test_the_hosts_clip_is_differentiated_as_it_computes(transformer, drawn_world, pack):
    """Its layers change their input in place. Kept or computed again: the slope of the loss, by small steps."""
    by_clip, memory = pack.module("host.by_clip"), pack.module("host.memory")
    picture, along = torch.rand(1, 4, 4, 4), torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    slopes = []

    def loss(z, decode, encode):
        embedding, tokens = encode(decode(z))
        return embedding.square().sum() + tokens.square().sum()

    for again in (False, True):
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(memory.ByClip, "must_recompute", lambda *_, again=again: again)
            with by_clip.tunable(drawn_world.vae, transformer, picture.shape, 1) as (decode, encode, place):
                z = place(picture).requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(loss(z, decode, encode), z)
                ahead, behind = (loss(place(picture + h * along), decode, encode) for h in (0.01, -0.01))
        slopes.append(float((gradient * along).sum()))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-5)
    assert slopes[0] == pytest.approx(float(ahead - behind) / 0.02, rel=0.02)
