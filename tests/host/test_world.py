"""The drawn world: it is a MODEL, CLIP and VAE like any other, and edits on it do what their text says."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch


def psnr(a, b, where=None):
    error = (a - b).square().mean(-1)
    error = error.mean() if where is None else (error * where).sum() / where.sum()
    return float(-10 * torch.log10(error))


def done_of(edit, codec, ideal, where):
    """0 where the edit is still the source (as its codec gives it), 1 where it is the ideal."""
    return float(
        ((edit - codec) * (ideal - codec) * where[..., None]).sum()
        / ((ideal - codec).square() * where[..., None]).sum()
    )


def reloaded(model):
    """The model anew from disk, as the host's clones of another kind (non-dynamic, deep) get it."""
    load, arguments = model.cached_patcher_init
    return load(*arguments)


@pytest.fixture(scope="module")
def world(pack, host):
    with torch.inference_mode():
        model, clip, vae = pack.nodes["BaretWorldLoader"].execute().args

    def encode(text):
        with torch.inference_mode():
            return host.nodes.CLIPTextEncode().encode(clip, text)[0]

    def decode(latent):
        with torch.inference_mode():
            return host.nodes.VAEDecode().decode(vae, latent)[0]

    def latent(picture):
        with torch.inference_mode():
            return host.nodes.VAEEncode().encode(vae, picture)[0]

    return SimpleNamespace(model=model, clip=clip, vae=vae, encode=encode, decode=decode, latent=latent)


@pytest.fixture
def scene(execute):
    return lambda seed, **fixed: execute("BaretWorldScene", seed=seed, **fixed)


@pytest.fixture
def invert(world, execute):
    def call(picture, text, model=None, **inputs):
        given = {
            "model": model or world.model,
            "positive": world.encode(text),
            "negative": world.encode(""),
            "latent": world.latent(picture),
        }
        return execute("BaretTTISInversion", **{**given, **inputs})

    return call


def test_the_codec_keeps_pictures_of_any_size(world, scene):
    picture, _, _ = scene(7)
    assert psnr(world.decode(world.latent(picture)), picture) > 30
    wide = torch.cat([picture, scene(8)[0]], 2)
    assert world.latent(wide)["samples"].shape == (1, 4, 16, 32)
    assert psnr(world.decode(world.latent(wide)), wide) > 28


def test_pictures_of_other_sizes_are_inverted_and_edited(world, invert, execute):
    picture = torch.rand(1, 99, 137, 3)
    assert world.decode(world.latent(picture)).shape == (1, 96, 136, 3), (
        "sides that are no multiple of 8 are cropped, as the host does"
    )
    trajectory, embeddings, _ = invert(picture, "a red dog", steps=2, iterations=1)
    edit, _ = execute("BaretBAMEdit", model=world.model, trajectory=trajectory, embeddings=embeddings, auto_mask=0.01)
    assert edit["samples"].shape == (1, 4, 12, 17) and torch.isfinite(edit["samples"]).all()


def test_a_text_longer_than_a_window_is_inverted_with(invert, scene):
    picture, caption, _ = scene(3)
    trajectory, embeddings, _ = invert(picture, ", ".join([caption] * 5), steps=2, iterations=1)
    assert (
        embeddings.tuned.shape[2] > 32
        and embeddings.tuned.shape[2] % 32 == 0
        and torch.isfinite(trajectory.latents).all()
    )


def test_bfloat16_does_what_float32_does(world, invert, scene, execute):
    """On trained weights: reconstructions as good, and edits whose difference nobody sees (40 dB is 2 in 255)."""
    half = reloaded(world.model)
    with torch.inference_mode():
        half.model.diffusion_model.to(torch.bfloat16).dtype = torch.bfloat16
        half.model.model_config.set_inference_dtype(torch.bfloat16, None)
        half.model.manual_cast_dtype = None
    gained, between = [], []
    for seed, colour in ((14, "red"), (8, "pink")):
        picture, _, _ = scene(seed)
        _, text, _ = scene(seed, colour=colour)
        codec, found = world.decode(world.latent(picture)), []
        for model in (world.model, half):
            trajectory, embeddings, reconstruction = invert(picture, text, model=model, steps=20)
            edit, _ = execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=embeddings)
            found.append((psnr(world.decode(reconstruction), codec), world.decode(edit)))
        gained.append(found[1][0] - found[0][0])
        between.append(psnr(found[0][1], found[1][1]))
    assert half.model.get_dtype_inference() == torch.bfloat16
    assert abs(sum(gained) / 2) < 1.0, gained
    assert sum(between) / 2 > 35, between


def test_stock_text_nodes_work(world):
    plain = world.encode("a red dog")[0][0]
    assert plain.shape[-1] == 128 and torch.isfinite(plain).all()
    assert not torch.equal(plain, world.encode("a (red:1.5) dog")[0][0]), "weights in brackets act"
    assert torch.equal(plain, world.encode("a red qwertyuiop dog")[0][0]), "unknown words do no harm"
    assert world.encode("a red dog, " * 40)[0][0].shape[1] > plain.shape[1], "a long text takes several windows"


def test_stock_sampling_lora_and_clones_work(world, host):
    import comfy.sd

    def sample(model):
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        with torch.inference_mode():
            return host.nodes.KSampler().sample(
                model, 1, 4, 4.0, "euler", "normal", world.encode("a red dog"), world.encode(""), latent, 1.0
            )[0]["samples"]

    before = sample(world.model)
    assert torch.equal(sample(reloaded(world.model)), before), "a reload from disk is the same model"
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q"
    lora = {f"{name}.lora_up.weight": torch.randn(128, 2), f"{name}.lora_down.weight": torch.randn(2, 128)}
    patched, _ = comfy.sd.load_lora_for_models(world.model, None, lora, 1.0, 0.0)
    assert not torch.equal(sample(patched), before) and torch.equal(sample(world.model), before)


def test_a_scene_is_its_seed(scene, execute):
    picture, caption, mask = scene(3)
    assert torch.equal(picture, scene(3)[0]) and picture.shape == (1, 128, 128, 3) and mask.shape == (1, 128, 128)
    other, text, _ = scene(3, colour="pink")
    assert "pink" in text and text.replace("pink", caption.split()[1]) == caption
    assert psnr(other, picture, 1 - mask) > 40, "all else stays as it is"
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"Drawn Scene: seed is {seed}; a whole number from 0"):
            scene(seed)


@pytest.fixture
def broken(pack, tmp_path):
    """The world's module for loading, and where a damaged file of weights may lie."""
    return import_module(pack.root.__name__ + ".host.world"), tmp_path / "world.safetensors"


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda b: b[: len(b) // 2], "damaged or cut short"),
        (lambda b: b.replace(b'"baret_world":"1"', b'"baret_world":"9"'), "version 9"),
    ],
)
def test_weights_that_do_not_fit_are_refused(broken, damage, sentence):
    model, path = broken
    path.write_bytes(damage(model.WEIGHTS.read_bytes()))
    with pytest.raises(ValueError, match=sentence):
        model.load(path)


@pytest.mark.parametrize(
    "part, name",
    [
        ("UNet", "unet.out.2.weight"),
        ("text side", "text.text_model.final_layer_norm.bias"),
        ("codec", "codec.decoder.0.bias"),
    ],
)
@pytest.mark.parametrize("change", ["lacks", "has another shape of", "has more than"])
def test_weights_that_are_not_whole_are_refused(broken, part, name, change):
    from safetensors.torch import save_file

    model, path = broken
    tensors, metadata = model.read()
    tensor = tensors[name] if change == "has more than" else tensors.pop(name)
    if change != "lacks":
        tensors[name if change == "has another shape of" else name + "2"] = torch.cat([tensor, tensor])
    save_file(tensors, path, metadata)
    with pytest.raises(
        ValueError,
        match=f"1 tensors of its {part} are missing, too many or of another shape, first .*; use the file that came",
    ):
        model.load(path)


def test_weights_without_their_metadata_are_refused(broken):
    from safetensors.torch import save_file

    model, path = broken
    tensors, _ = model.read()
    for metadata, sentence in (
        ({}, "holds no BARET world"),
        ({"baret_world": model.FORMAT, "latent_rgb": "[]"}, "lacks vocabulary in its metadata"),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=sentence):
            model.load(path)
    with pytest.raises(FileNotFoundError, match="weights are missing: there is no file"):
        model.load(path.with_name("none.safetensors"))


class TestEdits:
    """On drawn scenes whose ideal result can be drawn too. Means over scenes, with margin to what was measured."""

    COLOURS = [(8, {"colour": "pink"}), (12, {"colour": "red"}), (14, {"colour": "pink"})]
    POSES = [(1, {"pose": "sitting"}), (12, {"pose": "sitting"}), (14, {"pose": "lying"})]

    @pytest.fixture(scope="class")
    def run(self, pack, world):
        """Invert a scene with the caption of its change, once; edit with given dials; pictures of all that matters."""
        done = {}

        def call(seed, change, model=None, **dials):
            model = model or world.model
            nodes = {name.removeprefix("Baret"): node.execute for name, node in pack.nodes.items()}
            with torch.inference_mode():
                source, _, mask = nodes["WorldScene"](seed).args
                target, text, target_mask = nodes["WorldScene"](seed, **change).args
                key = (seed, text, id(model))
                if key not in done:
                    positive, negative, latent = world.encode(text), world.encode(""), world.latent(source)
                    done[key] = nodes["TTISInversion"](model, positive, negative, latent, steps=25, cfg=7.5).args
                trajectory, embeddings, reconstruction = done[key]
                eta = dials.pop("eta", (0.4, 0.0))  # what the evidence chose for poses on this world
                (blended,) = nodes["TransitionEmbedding"](embeddings, *eta).args
                (edit,) = nodes["BAMEdit"](
                    model, trajectory, blended, **{"tau_sa": 0.3, "tau_ca": 0.6, "cfg": 7.5, **dials}
                ).args
            codec = world.decode(world.latent(source))
            ideal = world.decode(world.latent(target))
            either = torch.maximum(mask, target_mask)
            edit, reconstruction = world.decode(edit), world.decode(reconstruction)
            return SimpleNamespace(
                codec=codec,
                edit=edit,
                reconstruction=reconstruction,
                done=done_of(edit, codec, ideal, either),
                outside=psnr(edit, codec, 1 - either),
            )

        return call

    @pytest.fixture(scope="class")
    def untrained(self, world):
        """The world's model with the weights of every layer shuffled: what a test of editing must fail on."""
        model = reloaded(world.model)
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(0)
            for weight in model.model.diffusion_model.parameters():
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape))
        return model

    @staticmethod
    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def test_ttis_reconstructs(self, run, world, pack):
        gains = []
        for seed, change in self.POSES:
            tuned = run(seed, change)
            with torch.inference_mode():
                source, _, _ = pack.nodes["BaretWorldScene"].execute(seed).args
                _, text, _ = pack.nodes["BaretWorldScene"].execute(seed, **change).args
                inputs = world.model, world.encode(text), world.encode(""), world.latent(source)
                untuned = pack.nodes["BaretTTISInversion"].execute(*inputs, steps=25, cfg=7.5, iterations=0).args[2]
            gains.append(psnr(tuned.reconstruction, tuned.codec) - psnr(world.decode(untuned), tuned.codec))
        assert self.mean(gains) > 15, f"TTIS must beat guided DDIM by 15 dB: {gains}"

    def test_a_colour_edit_changes_the_colour_and_keeps_the_rest(self, run):
        runs = [run(seed, change, eta=(1.0, 1.0)) for seed, change in self.COLOURS]
        assert self.mean(r.done for r in runs) > 0.8, [r.done for r in runs]
        assert self.mean(r.outside for r in runs) > 23, [r.outside for r in runs]

    def test_a_pose_edit_changes_the_pose_and_keeps_the_rest(self, run):
        runs = [run(seed, change) for seed, change in self.POSES]
        assert self.mean(r.done for r in runs) > 0.6, [r.done for r in runs]
        assert self.mean(r.outside for r in runs) > 22, [r.outside for r in runs]

    def test_eta_one_keeps_the_pose(self, run):
        rigid = self.mean(run(seed, change, eta=(1.0, 1.0)).done for seed, change in self.POSES)
        moving = self.mean(run(seed, change).done for seed, change in self.POSES)
        assert rigid < 0.3 < moving - 0.2, (rigid, moving)

    def test_more_self_attention_keeps_more(self, run):
        kept = [
            self.mean(psnr((r := run(seed, change, tau_sa=tau)).edit, r.codec) for seed, change in self.POSES)
            for tau in (0.0, 0.3, 1.0)
        ]
        assert kept[0] < kept[1] < kept[2], kept

    def test_a_mask_from_the_text_keeps_more_and_changes_as_much(self, run):
        pairs = [
            (run(seed, change, eta=(1.0, 1.0)), run(seed, change, eta=(1.0, 1.0), auto_mask=0.01))
            for seed, change in self.COLOURS
        ]
        assert self.mean(masked.outside - free.outside for free, masked in pairs) > 1.5, [
            (free.outside, masked.outside) for free, masked in pairs
        ]
        assert self.mean(masked.done - free.done for free, masked in pairs) > -0.1, [
            (free.done, masked.done) for free, masked in pairs
        ]

    def test_outside_a_mask_the_picture_is_the_codecs(self, run):
        mask = torch.zeros(1, 128, 128)
        mask[:, 64:] = 1.0
        masked = run(*self.COLOURS[0], mask=mask)
        assert psnr(masked.edit[:, :48], masked.codec[:, :48]) > 60

    def test_none_of_it_holds_on_an_untrained_model(self, run, untrained):
        colours = [run(seed, change, model=untrained, eta=(1.0, 1.0)) for seed, change in self.COLOURS[:1]]
        poses = [run(seed, change, model=untrained) for seed, change in self.POSES[:1]]
        for runs in (colours, poses):
            assert not (self.mean(r.done for r in runs) > 0.5 and self.mean(r.outside for r in runs) > 20)


class TestPeers:
    """What each of the other methods is for, on scenes of its kind."""

    SWAPS = [(14, {"animal": "cat"}), (21, {"colour": "blue"})]
    POSES = [(14, {"pose": "lying"}), (21, {"pose": "sitting"})]

    @pytest.fixture
    def edited(self, world, scene, execute):
        def call(seed, change, node, inversion="BaretInversion", inverted=None, **inputs):
            (source, caption, mask), (target, text, target_mask) = scene(seed), scene(seed, **change)
            given = {
                "model": world.model,
                "positive": world.encode(caption),
                "negative": world.encode(""),
                "latent": world.latent(source),
                "steps": 25,
                **(inverted or {}),
            }
            trajectory, embeddings, _ = execute(inversion, **given)
            inputs = {name: caption if value == "caption" else value for name, value in inputs.items()}
            out = execute(
                node,
                model=world.model,
                clip=world.clip,
                trajectory=trajectory,
                embeddings=embeddings,
                target_text=text,
                **inputs,
            )
            codec, either = world.decode(world.latent(source)), torch.maximum(mask, target_mask)
            edit = world.decode(out[0])
            return SimpleNamespace(
                done=done_of(edit, codec, world.decode(world.latent(target)), either),
                outside=psnr(edit, codec, 1 - either),
                animal=mask,
                changed=out[-1],
            )

        return call

    @staticmethod
    def means(runs):
        return sum(run.done for run in runs) / len(runs), sum(run.outside for run in runs) / len(runs)

    def test_null_text_reconstructs(self, world, scene, execute):
        source, caption, _ = scene(14)
        given = {
            "model": world.model,
            "positive": world.encode(caption),
            "negative": world.encode(""),
            "latent": world.latent(source),
            "steps": 25,
        }
        codec = world.decode(given["latent"])
        tuned = execute("BaretNullTextInversion", **given, step_rule="secant", iterations=1)[2]
        plain, prompt, direct = (
            execute("BaretInversion", **given, method=method)[2] for method in ("DDIM", "negative-prompt", "direct")
        )
        decibels = [psnr(world.decode(each), codec) for each in (plain, prompt, tuned, direct)]
        assert decibels[2] > decibels[0] + 5 and decibels[1] > decibels[0] + 5 and decibels[3] > 60, decibels

    def test_prompt_to_prompt_exchanges_a_word_and_keeps_the_rest(self, edited):
        free = [edited(*swap, "BaretPromptToPromptEdit", source_text="caption") for swap in self.SWAPS]
        done, outside = self.means(free)
        assert done > 0.6 and outside > 24, (done, outside)

        blended = [
            edited(*swap, "BaretPromptToPromptEdit", source_text="caption", blend_words="dog") for swap in self.SWAPS
        ]
        for run in blended:
            assert (run.changed * run.animal).sum() > 0.9 * run.animal.sum(), "the mask covers the animal"
            assert run.changed.mean() < 0.6, "and not the picture"
        assert self.means(blended)[0] > done - 0.1 and self.means(blended)[1] > outside, (
            self.means(blended),
            done,
            outside,
        )

    @pytest.mark.parametrize("foreground", [{}, {"foreground_words": "dog", "source_text": "caption"}])
    def test_masactrl_changes_the_pose_and_keeps_the_rest(self, edited, foreground):
        done, outside = self.means(
            [edited(*pose, "BaretMasaCtrlEdit", start_step=2, first_block=5, **foreground) for pose in self.POSES]
        )
        assert done > 0.6 and outside > 22, (done, outside)
