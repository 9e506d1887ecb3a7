"""Fine-tuning on one picture: Imagic, the LoRA of SINE and its guidance by two models."""

from types import SimpleNamespace

import pytest
import reach
import torch
import workflows

FEW = {"updates": 3, "learning_rate": 1e-2, "rank": 2, "seed": 5}


@pytest.fixture
def imagic(execute, text, picture):
    def call(model, **inputs):
        given = {"target": text(1), "latent": picture(), "text_updates": 3, "text_rate": 1e-2, **FEW}
        return execute("BaretImagic", model=model, **{**given, **inputs})

    return call


@pytest.fixture
def sampled(host, text, picture):
    """Stock sampling of a text on a model, from seeded noise."""

    def call(model, positive, cfg=3.0):
        (latent,) = host.nodes.common_ksampler(
            model, 3, 4, cfg, "euler", "ddim_uniform", positive, text(2), picture(), denoise=1.0
        )
        return latent["samples"]

    def in_host(*args, **kwargs):
        with torch.inference_mode():
            return call(*args, **kwargs)

    return in_host


def layers_with_functions(model):
    return [name for name, layer in model.model.named_modules() if getattr(layer, "weight_function", [])]


def test_no_update_changes_nothing(imagic, model, text, sampled):
    tuned_model, lora, tuned, target = imagic(model, text_updates=0, updates=0)
    assert torch.equal(tuned[0][0], text(1)[0][0]) and torch.equal(target[0][0], text(1)[0][0])
    assert all(not weight.any() for name, weight in lora.items() if name.endswith("lora_down.weight"))
    assert torch.equal(sampled(tuned_model, text(1)), sampled(model, text(1)))


def test_a_seed_gives_the_same_bits_and_another_others(imagic, model):
    first, again, other = (imagic(model, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first[2][0][0], again[2][0][0])
    assert first[1].keys() == again[1].keys() and all(torch.equal(first[1][name], again[1][name]) for name in again[1])
    assert not torch.equal(first[2][0][0], other[2][0][0])
    assert any(not torch.equal(first[1][name], other[1][name]) for name in other[1] if name.endswith("down.weight"))


def test_more_updates_draw_the_picture_better(imagic, model, text, picture, sampled):
    """From a text and a model that know nothing of it; without guidance, as it is tuned."""
    errors = []
    for updates in (0, 60):
        tuned_model, _, tuned, _ = imagic(model, text_updates=updates, updates=updates)
        errors.append(float((sampled(tuned_model, tuned, cfg=1.0) - picture()["samples"]).square().mean()))
    assert errors[1] < 0.5 * errors[0], errors


def test_the_lora_is_the_hosts_own(imagic, model, text, sampled, tmp_path):
    """Saved and loaded by the host's parts it gives the model that comes out."""
    import comfy.sd
    import comfy.utils
    import safetensors.torch

    tuned_model, lora, tuned, _ = imagic(model)
    safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
    read = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"))
    loaded, _ = comfy.sd.load_lora_for_models(model, None, read, 1.0, 0.0)
    out = sampled(tuned_model, tuned)
    assert torch.equal(sampled(loaded, tuned), out)
    assert not torch.equal(sampled(model, tuned), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bit_are_tuned_in_32(imagic, make_model, dtype):
    model = make_model(dtype=dtype)
    _, lora, tuned, _ = imagic(model)
    numbers = [tuned[0][0], *lora.values()]
    assert all(number.dtype == torch.float32 and torch.isfinite(number).all() for number in numbers)
    assert any(weight.any() for name, weight in lora.items() if name.endswith("lora_down.weight"))
    assert {weight.dtype for weight in model.model.diffusion_model.parameters()} == {dtype}


def test_blocks_computed_again_tune_the_same(imagic, model, pack, monkeypatch):
    kept = imagic(model)
    monkeypatch.setattr(pack.modules["host.memory"], "must_recompute", lambda *args: True)
    again = imagic(model)
    torch.testing.assert_close(again[2][0][0], kept[2][0][0], rtol=1e-4, atol=1e-4)
    for name, weight in kept[1].items():
        torch.testing.assert_close(again[1][name], weight, rtol=1e-3, atol=1e-3)


def test_memory_of_a_lora_is_counted(pack, model):
    """Of its own numbers, and of the copies of weights that it makes at each use."""
    memory, lora = pack.modules["host.memory"], pack.modules["host.lora"].Lora(model, rank=4, seed=0)
    numbers = sum(weight.numel() for weight in lora.parameters)
    weights = sum(weight.numel() for weight in model.model.diffusion_model.parameters() if weight.ndim > 1)
    without = memory.activations(model, 1, (4, 8, 12))
    with lora.on(model):
        extra = memory.activations(model, 1, (4, 8, 12)) - without
    assert 16 * numbers + 4 * weights < extra < 2 * (16 * numbers + 4 * weights)


def test_a_lora_that_is_moved_in_inference_mode_can_be_tuned(pack, model):
    """As nodes run; moved to another device, a card's, its numbers are new tensors."""
    lora = pack.modules["host.lora"].Lora(model, rank=4, seed=0)
    elsewhere = SimpleNamespace(model=model.model, load_device=torch.device("meta"))
    with torch.inference_mode(), lora.on(elsewhere):
        tuned = lora.parameters
        assert len(tuned) > 20 and all(weight.is_meta and not weight.is_inference() for weight in tuned)


@pytest.mark.parametrize("at", [1, 4])
def test_cancel_leaves_the_model_as_it_was(imagic, model, text, sampled, cancelling, at):
    """In the text's phase and in the LoRA's."""
    before = sampled(model, text(1))
    with cancelling(model, at=at):
        imagic(model)
    assert layers_with_functions(model) == []
    assert torch.equal(sampled(model, text(1)), before)


def test_what_does_not_fit_is_said(imagic, model, text, picture, make_model):
    with pytest.raises(ValueError, match="Imagic: the latent holds 2 pictures, and a model is fine-tuned on one"):
        imagic(model, latent=picture(images=2))
    with pytest.raises(ValueError, match="target is 32 wide and the model's text is 24 wide"):
        imagic(model, target=text(1, width=32))
    with pytest.raises(RuntimeError, match="NaN or infinity appeared in the fine-tuning.*lower the learning rate"):
        imagic(model, learning_rate=1e30)


# --- SINE -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guided(execute, text, picture, host):
    """Sampling by Model Guidance through a stock sampler, from seeded noise."""
    import comfy.samplers

    def call(model, tuned, positive=None, **inputs):
        given = {"positive": positive or text(1), "caption": text(7), "negative": text(2), "cfg": 3.0}
        (guider,) = execute("BaretModelGuidance", model=model, tuned=tuned, **{**given, **inputs})
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 4)
        noise, euler = picture(seed=3)["samples"], comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)

    return call


@pytest.fixture
def plain(host, text, picture):
    """The same by the host's own guidance."""
    import comfy.samplers

    def call(model, positive):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, text(2))
        guider.set_cfg(3.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 4)
        noise, euler = picture(seed=3)["samples"], comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)

    return call


@pytest.fixture
def one_image_lora(execute, text, picture):
    def call(model, **inputs):
        return execute("BaretOneImageLoRA", model=model, **{"caption": text(7), "latent": picture(), **FEW, **inputs})

    return call


def test_beta_one_and_an_empty_range_are_plain_guidance(guided, plain, one_image_lora, model, text):
    tuned, _ = one_image_lora(model)
    for given in ({"beta": 1.0}, {"start_percent": 1.0, "end_percent": 0.0}):
        assert torch.equal(guided(model, tuned, **given), plain(model, text(1)))


def test_beta_zero_is_the_tuned_model_from_the_plain_ones_negative(
    guided, plain, one_image_lora, model, make_model, text
):
    """A LoRA that changes nothing, and another module with the same weights: guidance by the caption."""
    tuned, _ = one_image_lora(model, updates=0)
    for other in (tuned, make_model()):
        out = guided(model, other, beta=0.0, end_percent=1.0)
        torch.testing.assert_close(out, plain(model, text(7)), rtol=1e-4, atol=1e-4)


class Once:
    """A sampler of the host's that asks the guider once, at one level, for the noise in ``x``."""

    def __init__(self, x, sigma):
        self.x, self.sigma = x, sigma

    def sample(self, guider, sigmas, extra_args, *args, **kwargs):
        clean = guider(self.x, torch.full([1], self.sigma), **extra_args)
        self.eps = (self.x.double() - clean.double()) / self.sigma
        return self.x


@pytest.mark.parametrize("time, both", [(999, True), (600, True), (400, False)])
@pytest.mark.parametrize("shared", [True, False], ids=["a LoRA on the same module", "another module"])
def test_guidance_is_the_published_blend(execute, one_image_lora, make_model, text, picture, shared, time, both):
    """``eps_u + w (beta eps(edit) + (1 - beta) eps_tuned(caption) - eps_u)`` in the open, on weights in float64."""
    import comfy.model_management

    model = make_model(dtype=torch.float64)
    other = one_image_lora(model, learning_rate=0.1)[0] if shared else make_model(seed=9, dtype=torch.float64)
    texts = {"positive": text(1), "caption": text(7), "negative": text(2)}
    given = {**texts, "cfg": 3.0, "beta": 0.3, "end_percent": 0.5}
    (guider,) = execute("BaretModelGuidance", model=model, tuned=other, **given)
    sigma = float(model.get_model_object("model_sampling").sigmas[time])
    x = picture(seed=3)["samples"] * sigma
    once = Once(x, sigma)
    with torch.inference_mode():
        guider.sample(torch.zeros_like(x), torch.zeros_like(x), once, torch.tensor([sigma, 0.0]), disable_pbar=True)

    def eps(model, role):
        comfy.model_management.load_models_gpu([model])
        scaled = x.double() / (1 + sigma**2) ** 0.5
        with torch.inference_mode():
            return model.model.diffusion_model(scaled, torch.tensor([time]), texts[role][0][0].double())

    cond, null = eps(model, "positive"), eps(model, "negative")
    if both:
        cond = 0.3 * cond + 0.7 * eps(other, "caption")
    wanted = null + 3.0 * (cond - null)
    # Weights that carry a LoRA are made in float32 by the host.
    tolerance = 1e-5 if shared else 1e-6
    torch.testing.assert_close(once.eps, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_both_models_are_as_they_were(guided, plain, one_image_lora, model, text, cancelling):
    tuned, _ = one_image_lora(model, learning_rate=0.1)
    before = plain(model, text(1)), plain(tuned, text(1))
    guided(model, tuned)
    with cancelling(model, at=3):
        guided(model, tuned)
    for each, out in zip((model, tuned), before):
        assert torch.equal(plain(each, text(1)), out)
    assert not torch.equal(*before)


def test_a_compiled_model_does_not_stand_in_for_another_module(guided, model, make_model, compiled):
    other = make_model(seed=9)
    wanted = guided(model, other)
    assert torch.equal(guided(compiled(model), other), wanted)


def test_patches_draw_what_a_larger_picture_is_made_of(one_image_lora, model, picture, counting):
    """An update sees a part of the size asked for; a picture that is smaller is seen whole."""
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda unet, given: sizes.append(given[0].shape[-2:])
    )
    one_image_lora(model, latent=picture(height=16, width=24), patch=96)
    one_image_lora(model, latent=picture(height=8, width=24), patch=96)
    handle.remove()
    assert sizes == [(12, 12)] * 3 + [(8, 12)] * 3


def test_models_that_do_not_fit_are_told(guided, one_image_lora, model, make_model, text):
    tuned, _ = one_image_lora(model)
    with pytest.raises(ValueError, match="Model Guidance: tuned does not carry the LoRAs that model carries"):
        guided(tuned, model)
    with pytest.raises(ValueError, match="tuned is the same model as model; connect what One-Image LoRA gives"):
        guided(model, model.clone())
    with pytest.raises(ValueError, match="use two models of one family"):
        guided(model, make_model(v_prediction=True))
    with pytest.raises(ValueError, match="caption is 32 wide and the model's text is 24 wide"):
        guided(model, tuned, caption=text(1, width=32))


# --- on the drawn world, at the templates' settings and on their scene ------------------------------------------------


@pytest.fixture(scope="module")
def scene(pack, drawn_world):
    """The templates' picture, a blue dog sitting in the snow, and its latent."""
    (scene,) = pack.module("world.scenes").sample(workflows.SCENE["seed"], 1)
    picture, mask = pack.module("world.scenes").render([scene])
    latent = drawn_world.latent(picture)
    return SimpleNamespace(scene=scene, latent=latent, picture=drawn_world.decode(latent), outside=mask < 0.001)


def poses_of(pack, scene, pictures):
    """The poses of the drawings that pictures are nearest to."""
    seen = reach.read(pack.module("world.scenes"), scene.scene, torch.cat(pictures))
    return [pack.module("world.scenes").WORDS["pose"][each.pose][0] for each in seen]


def test_imagic_gives_the_picture_back_and_then_the_text(pack, host, drawn_world, scene):
    target = drawn_world.encode(workflows.SHORT_TEXT)
    model, _, tuned, target = pack.call(
        "BaretImagic", model=drawn_world.model, target=target, latent=scene.latent, **workflows.IMAGIC
    )
    pictures, empty = [], {"samples": torch.zeros_like(scene.latent["samples"])}
    for eta in (0.0, 0.6, 1.0):
        with torch.inference_mode():
            (text,) = host.nodes.ConditioningAverage().addWeighted(target, tuned, eta)
            (latent,) = host.nodes.common_ksampler(
                model, 0, 20, workflows.IMAGIC_CFG, "euler", "ddim_uniform", text, drawn_world.encode(""), empty
            )
        pictures.append(drawn_world.decode(latent))
    assert poses_of(pack, scene, pictures) == ["sitting", "lying", "lying"]
    likeness = [float(pack.module("baret_ops.metrics").psnr(picture, scene.picture)) for picture in pictures]
    assert likeness[0] > 25 > likeness[1] > likeness[2], likeness


def test_sine_keeps_the_scene_better_than_sdedit(pack, host, drawn_world, scene):
    """Where the one and the other obey: at SDEdit's least strength that does."""
    import comfy.samplers

    model, text, null = drawn_world.model, drawn_world.encode(workflows.SHORT_TEXT), drawn_world.encode("")
    caption = drawn_world.encode("a dog sitting")
    tuned, _ = pack.call("BaretOneImageLoRA", model=model, caption=caption, latent=scene.latent, **workflows.SINE)
    given = {"positive": text, "caption": caption, "negative": null, **workflows.SINE_GUIDANCE}
    (guider,) = pack.call("BaretModelGuidance", model=model, tuned=tuned, **given)
    noise = torch.randn(scene.latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 20)
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        edit = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)
    edit = drawn_world.decode({"samples": edit})

    def kept(picture):
        return float(pack.module("baret_ops.metrics").psnr(picture, scene.picture, scene.outside))

    strengths = (0.6, 0.7, 0.8, 0.9)
    others = []
    for strength in strengths:
        with torch.inference_mode():
            (latent,) = host.nodes.common_ksampler(
                model, 0, 20, 7.5, "euler", "ddim_uniform", text, null, scene.latent, denoise=strength
            )
        others.append(drawn_world.decode(latent))
    ours, *theirs = poses_of(pack, scene, [edit, *others])
    assert ours == "lying" and "lying" in theirs
    assert kept(edit) > kept(others[theirs.index("lying")]) + 2
