"""The door to the host: models whose weights the host streams, other packs' code, the list of files, and errors."""

import contextlib
import importlib
import math
import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

STEPS, CFG, WIDTH = 4, 3.0, 128


def close(a, b, relative=1e-5):
    torch.testing.assert_close(a, b, rtol=relative, atol=relative * float(b.abs().max()))


def tensor_in_mode(buffer):
    """A tensor over a buffer's bytes; made in inference mode it is an inference tensor, as over a card's memory."""
    return torch.frombuffer(buffer, dtype=torch.uint8)


class Bar:
    """A card's memory for streamed weights, as comfy_aimdo's ModelVBAR gives it, in RAM. Nothing is ever evicted."""

    def __init__(self):
        self.size = 0

    def alloc(self, size):
        self.size += size
        return self, bytearray(size), size

    def prioritize(self):
        pass

    def loaded_size(self):
        return self.size

    def free_memory(self, size):
        return 0


class Buffer:
    """Pinned memory, of which there is none without a card."""

    def __init__(self, *args):
        self.size = 0

    def truncate(self, size, do_unregister=True):
        pass


@pytest.fixture
def streaming(pack, monkeypatch):
    """The host's own dynamic patcher, as on an NVIDIA card, with the card's memory in RAM.

    Loading, casting, residency and the copy for hooks are the host's code. Two things are stood in for: comfy_aimdo,
    which asks the driver for memory, and the test whether a weight lies on another device than the picture, which is
    told here by whether it is still the one that the loader made.
    """
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    from comfy.cli_args import args

    class Streaming(comfy.model_patcher.ModelPatcherDynamic):
        def __new__(cls, *args, **kwargs):
            return object.__new__(cls)

        def _vbar_get(self, create=False):
            if create:
                self.model.dynamic_vbars.setdefault(self.load_device, Bar())
            return self.model.dynamic_vbars.get(self.load_device)

        def load(self, *args, **kwargs):
            super().load(*args, **kwargs)
            for module in self.model.modules():
                if hasattr(module, "_v"):
                    module.streamed = module.weight

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Streaming)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(args, "disable_pinned_memory", True)
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", Buffer)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda memory: [1])
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda memory: None)
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda memory, device: tensor_in_mode(memory[1]))
    whole = comfy.ops.cast_bias_weight

    def cast_bias_weight(module, input=None, dtype=None, device=None, bias_dtype=None, offloadable=False, **kwargs):
        if getattr(module, "streamed", None) is not module.weight:
            return whole(module, input, dtype, device, bias_dtype, offloadable, **kwargs)
        if not hasattr(comfy.ops, "cast_modules_with_vbar"):
            pytest.skip("this ComfyUI streams weights in another way")
        if input is not None:  # an embedding gives none
            dtype, device = dtype or input.dtype, device or input.device
        comfy.ops.cast_modules_with_vbar([module], dtype, device, bias_dtype or dtype, False)
        weight, bias = comfy.ops.resolve_cast_module_with_vbar(
            module, dtype, device, bias_dtype or dtype, kwargs.get("compute_dtype"), kwargs.get("want_requant", False)
        )
        del module._prefetch
        return (weight, bias, None) if offloadable else (weight, bias)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_bias_weight)
    yield Streaming
    comfy.model_management.current_loaded_models.clear()


@pytest.fixture
def world(pack):
    return importlib.import_module(f"{pack.root.__name__}.host.world")


@pytest.fixture
def door(pack):
    return importlib.import_module(f"{pack.root.__name__}.host.gradients")


@pytest.fixture
def reads(world, monkeypatch):
    """The times at which the drawn world's file is read, as a list that grows."""
    times = []
    read = world.read

    def counted(path=world.WEIGHTS):
        times.append(path)
        return read(path)

    monkeypatch.setattr(world, "read", counted)
    return times


@pytest.fixture
def load(world):
    """The drawn world's MODEL as its loader gives it, in inference mode."""

    def call():
        with torch.inference_mode():
            return world.load_model()

    return call


@pytest.fixture
def invert(execute, text, picture):
    def call(model, **inputs):
        given = {
            "positive": text(1, width=WIDTH),
            "negative": text(2, width=WIDTH),
            "latent": picture(),
            "steps": STEPS,
            "cfg": CFG,
            "iterations": 2,
        }
        return execute("BaretTTISInversion", model=model, **{**given, **inputs})

    return call


@pytest.fixture
def plain(text):
    """Guided sampling with the host's euler, as a KSampler runs it."""
    import comfy.sample
    import comfy.samplers

    def call(model, positive=None):
        noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
        texts = positive or text(1, width=WIDTH), text(2, width=WIDTH)
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([14.0, 5.0, 1.0, 0.1])
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model, torch.zeros_like(noise), CFG, sampler, sigmas, *texts, noise, disable_pbar=True
            )

    return call


def control_net(width=WIDTH, channels=64):
    """The module of a ControlNet for the drawn world, with random weights, made and loaded as the host does."""
    import comfy.cldm.cldm
    import comfy.memory_management
    import comfy.ops

    config = {
        "image_size": 16,
        "in_channels": 4,
        "hint_channels": 3,
        "model_channels": channels,
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth_middle": 1,
        "context_dim": width,
        "num_heads": 2,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
    }
    generator = torch.Generator().manual_seed(11)

    def drawn(shape):
        spread = 0.5 * math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        return torch.randn(shape, generator=generator) * spread

    def make():
        return comfy.cldm.cldm.ControlNet(**config, operations=comfy.ops.disable_weight_init, device="cpu")

    with torch.inference_mode():
        with mock.patch.object(comfy.memory_management, "aimdo_enabled", False):  # all its tensors are there
            shapes = {name: weight.shape for name, weight in make().state_dict().items()}
        net = make()
        net.load_state_dict({name: drawn(shape) for name, shape in shapes.items()}, assign=True)
    return net


def hinted(control):
    hint = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(12))
    return control.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))


@pytest.fixture
def with_control(text):
    """A text with a ControlNet as the host loads one, and its module."""
    import comfy.controlnet

    def call():
        net = control_net()
        with torch.inference_mode():
            control = hinted(comfy.controlnet.ControlNet(net, load_device=torch.device("cpu")))
        return [[text(1, width=WIDTH)[0][0], {"control": control, "control_apply_to_uncond": False}]], net

    return call


def lora(model, beside=False):
    """A model with a LoRA in its weights, or beside its layers, as the host's bypass mode has it."""
    import comfy.sd

    generator = torch.Generator().manual_seed(3)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    up, down = torch.randn(128, 2, generator=generator), torch.randn(2, WIDTH, generator=generator) / WIDTH
    weights = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    load = comfy.sd.load_bypass_lora_for_models if beside else comfy.sd.load_lora_for_models
    return load(model, None, weights, 1.0, 0.0)[0]


def load_whole(monkeypatch):
    """From now on, have the host load models whole, as it does without dynamic memory."""
    import comfy.memory_management
    import comfy.model_patcher

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", False)


class TestStreamedModels:
    """What the host makes of models on NVIDIA cards."""

    def test_the_stand_in_streams(self, streaming, load, plain, door):
        """Samples as a model that is loaded whole does, from weights that stay resident as inference tensors."""
        model = load()
        got = plain(model)
        resident = [part._v_weight for part in model.model.modules() if hasattr(part, "_v_weight")]
        assert type(model) is streaming and len(resident) > 20
        assert all(weight.is_inference() for weight in resident)
        with door.loadable_whole(model) as whole:
            close(got, plain(whole), 1e-4)

    def test_a_run_queued_twice_reads_the_file_once(self, streaming, load, invert, reads):
        model = load()
        reads.clear()
        first = invert(model)
        again = invert(model)
        assert len(reads) == 1
        close(again[0].latents, first[0].latents)

    def test_another_lora_does_not_read_the_file_again(self, streaming, load, invert, reads):
        model = load()
        reads.clear()
        without = invert(model)[0].latents
        found = invert(lora(model))[0].latents
        assert len(reads) == 1
        assert (found - without).abs().max() > 1e-3, "the LoRA acts"
        close(invert(model)[0].latents, without)

    def test_tuning_finds_what_it_finds_on_a_whole_model(self, streaming, load, invert, plain, monkeypatch):
        model = lora(load())
        before = {name: weight for name, weight in model.model.named_parameters()}
        sampled = plain(model)
        found = invert(model)
        assert torch.equal(plain(model), sampled)
        assert before.keys() == dict(model.model.named_parameters()).keys()
        load_whole(monkeypatch)
        wanted = invert(lora(load()))
        close(found[0].latents, wanted[0].latents, 1e-4)
        close(found[1].tuned, wanted[1].tuned, 1e-3)

    def test_fine_tuning_and_two_models_work_as_on_whole_models(
        self, streaming, load, execute, text, picture, plain, monkeypatch
    ):
        import comfy.model_patcher
        import comfy.samplers

        def edited():
            model = load()
            caption = text(1, width=WIDTH)
            given = {"latent": picture(), "updates": 3, "learning_rate": 0.01, "rank": 2}
            tuned, lora = execute("BaretOneImageLoRA", model=model, caption=caption, **given)
            texts = {"positive": text(3, width=WIDTH), "caption": caption, "negative": text(2, width=WIDTH)}
            (guider,) = execute("BaretModelGuidance", model=model, tuned=tuned, cfg=CFG, end_percent=1.0, **texts)
            noise = picture(seed=3)["samples"]
            sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([14.0, 5.0, 1.0, 0.1])
            with torch.inference_mode():
                edit = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)
            return plain(model), lora, edit

        sampled, lora, edit = edited()
        load_whole(monkeypatch)
        sampled_whole, lora_whole, edit_whole = edited()
        close(sampled, sampled_whole, 1e-4)
        for name, weight in lora_whole.items():
            close(lora[name], weight, 1e-3)
        close(edit, edit_whole, 1e-3)

    def test_clip_tunes_a_latent_as_on_whole_models(self, streaming, world, execute, host, picture, monkeypatch):
        """Through the codec and the picture encoder, whose weights the host streams, and which are as before after."""
        import comfy.model_patcher

        def tuned(kind):
            # Not in inference mode: the door would clone the weights, and the stand-in take the clones for whole ones.
            _, clip, vae, vision = world.load()
            assert type(vae.patcher) is kind and type(vision.patcher) is kind

            def seen():
                with torch.inference_mode():
                    decoded = host.nodes.VAEDecode().decode(vae, picture())[0]
                    return vision.encode_image(decoded)["image_embeds"]

            before = seen()
            given = {"vae": vae, "clip": clip, "clip_vision": vision, "text": "a red dog", "steps": 3, "views": 2}
            (latent,) = execute("BaretClipOptimise", latent=picture(), **given)
            assert torch.equal(seen(), before)
            return latent["samples"]

        samples = tuned(streaming)
        load_whole(monkeypatch)
        assert not torch.equal(samples, picture()["samples"])
        close(samples, tuned(comfy.model_patcher.ModelPatcher), 1e-3)

    def test_the_whole_copy_leaves_the_device_after_the_run(self, streaming, load, invert):
        import comfy.model_management

        model = load()
        invert(model)
        copy = model.get_non_dynamic_delegate()
        assert copy.model is not model.model
        assert copy.loaded_size() == 0
        assert all(loaded is not copy.model for loaded in map(module_of, comfy.model_management.current_loaded_models))

    def test_a_loader_that_cannot_be_asked_again(self, streaming, load, invert):
        model = load()
        model.cached_patcher_init = None
        with pytest.raises(ValueError, match="TTIS Inversion: the model's loader cannot load it whole .* Load Check"):
            invert(model)

    def test_a_lora_beside_the_layers_would_not_reach_the_copy(self, streaming, load, invert):
        """It holds the layers of the model that it was loaded on."""
        with pytest.raises(
            ValueError, match="TTIS Inversion: the model carries a LoRA in bypass mode, which would not"
        ):
            invert(lora(load(), beside=True))

    @pytest.mark.parametrize("before", ["nothing", "a KSampler", "a tuning"])
    def test_a_controlnet(self, streaming, load, invert, plain, with_control, monkeypatch, before):
        """Whatever ran first, tuning through a streamed ControlNet finds what it finds through a whole one."""
        model, (positive, net) = load(), with_control()
        assert type(positive[0][1]["control"].control_model_wrapped) is streaming
        if before == "a KSampler":
            plain(model, positive)
            assert any(part._v_weight.is_inference() for part in net.modules() if hasattr(part, "_v_weight"))
        if before == "a tuning":
            invert(model, positive=positive)
        found = invert(model, positive=positive)
        assert streams(net), "the ControlNet is as it was"
        sampled = plain(model, positive)
        load_whole(monkeypatch)
        model, (positive, _) = load(), with_control()
        wanted = invert(model, positive=positive)
        close(found[0].latents, wanted[0].latents, 1e-4)
        close(found[1].tuned, wanted[1].tuned, 1e-3)
        close(sampled, plain(model, positive), 1e-4)

    def test_a_controlnet_that_is_applied_twice(self, streaming, load, invert, plain, with_control):
        """The host then names its patcher twice."""
        model, (positive, net) = load(), with_control()
        text, options = positive[0]
        again = hinted(options["control"]).set_previous_controlnet(options["control"])
        positive = [[text, {**options, "control": again}]]
        sampled = plain(model, positive)
        invert(model, positive=positive)
        assert streams(net)
        assert torch.equal(plain(model, positive), sampled)

    def test_a_failed_run_gives_a_controlnet_its_weights_back(self, streaming, load, invert, plain, with_control):
        model, (positive, net) = load(), with_control()
        sampled = plain(model, positive)
        handle = net.register_forward_pre_hook(fail_under_gradients)
        with pytest.raises(RuntimeError, match="on purpose"):
            invert(model, positive=positive)
        handle.remove()
        assert streams(net)
        assert torch.equal(plain(model, positive), sampled)

    def test_the_model_of_a_patch(self, streaming, load, invert, plain):
        """A patch that brings a model, as the host asks for them: by `models()`."""
        import comfy.ops

        with torch.inference_mode():
            mixing = comfy.ops.disable_weight_init.Linear(64, 64)
            weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)) / 8
            mixing.load_state_dict({"weight": weight, "bias": torch.zeros(64)})
        patcher = streaming(torch.nn.Sequential(mixing), torch.device("cpu"), torch.device("cpu"))

        class Patch:
            def models(self):
                return [patcher]

            def __call__(self, n, context, value, extra):
                return (n + 0.1 * mixing(n) if n.shape[-1] == 64 else n), context, value

        model = load()
        model.set_model_attn1_patch(Patch())
        plain(model)
        assert mixing._v_weight.is_inference()
        found = invert(model)
        assert torch.isfinite(found[1].tuned).all() and (found[1].tuned[0] != found[1].target).any()


def streams(module):
    """Whether a module's weights are those that its loader made, which the host streams from."""
    parts = [part for part in module.modules() if hasattr(part, "streamed")]
    return len(parts) > 5 and all(part.weight is part.streamed for part in parts)


def module_of(loaded):
    return None if loaded.real_model is None else loaded.real_model()


def fail_under_gradients(module, args):
    if torch.is_grad_enabled():
        raise RuntimeError("on purpose")


class TestControlNets:
    """What the host itself loads without a patcher, or calls without transformer options."""

    def test_a_control_lora_is_tuned_through(self, make_model, execute, text, picture):
        """A ControlNet that borrows the UNet's weights.

        The host makes its module anew for every run, in inference mode.
        """
        import comfy.controlnet

        model = make_model(model_channels=64, context_dim=WIDTH)
        own = ("input_hint_block.", "zero_convs.", "middle_block_out.")
        weights = {name: weight for name, weight in control_net().state_dict().items() if name.startswith(own)}
        control = hinted(comfy.controlnet.load_controlnet_state_dict({**weights, "lora_controlnet": torch.zeros(1)}))
        inputs = {"negative": text(2, width=WIDTH), "latent": picture(), "steps": STEPS, "cfg": CFG, "iterations": 2}
        bare = [[text(1, width=WIDTH)[0][0], {}]]
        hinted_text = [[text(1, width=WIDTH)[0][0], {"control": control, "control_apply_to_uncond": False}]]
        without = execute("BaretTTISInversion", model=model, positive=bare, **inputs)
        found = execute("BaretTTISInversion", model=model, positive=hinted_text, **inputs)
        untuned = execute("BaretTTISInversion", model=model, positive=hinted_text, **{**inputs, "iterations": 0})
        assert (found[0].latents - without[0].latents).abs().max() > 1e-3, "the ControlNet acts"
        assert found[1].losses.sum() < 0.9 * untuned[1].losses.sum()

    @pytest.mark.parametrize("recompute", [False, True])
    def test_a_kernel_without_backward_serves_no_controlnet_under_gradients(
        self, load, invert, with_control, monkeypatch, pack, recompute
    ):
        """The host hands a ControlNet no options, so that a kernel for inference would cut its gradient off unseen."""
        import comfy.ldm.modules.attention as attention

        def kernel(q, k, v, *args, **kwargs):
            return attention.attention_pytorch(q.detach(), k.detach(), v.detach(), *args, **kwargs)

        monkeypatch.setattr(pack.modules["host.memory"], "must_recompute", lambda *_: recompute)
        model, (positive, _) = load(), with_control()
        monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
        wanted = invert(model, positive=positive)[1].tuned
        monkeypatch.setattr(attention, "optimized_attention", attention.wrap_attn(kernel))
        found = invert(model, positive=positive)[1].tuned
        close(found, wanted, 1e-4)


class TestOtherCode:
    """Code of other packs in the forward, wherever it comes in, may change in place what backward still needs."""

    @pytest.fixture
    def tune(self, execute, text, picture):
        def call(model, **options):
            return execute(
                "BaretTTISInversion",
                model=model,
                positive=[[text(1)[0][0], options]],
                negative=text(2),
                latent=picture(),
                steps=STEPS,
                cfg=CFG,
                iterations=3,
                step_rule="adam",
                learning_rate=0.05,
            )[1].tuned

        return call

    @staticmethod
    def patch(in_place):
        """A patch that scales the skip connections, which backward still needs."""

        def call(h, skip, options):
            if in_place:
                skip *= 0.9
                return h, skip
            return h, skip * 0.9

        return {"patches": {"output_block_patch": [call]}}

    @staticmethod
    def by_function_wrapper(model, patch):
        def wrapper(apply_model, args):
            options = {**args["c"]["transformer_options"], **patch}
            return apply_model(args["input"], args["timestep"], **{**args["c"], "transformer_options": options})

        model.set_model_unet_function_wrapper(wrapper)

    @staticmethod
    def by_wrapper(model, patch):
        import comfy.patcher_extension

        def wrapper(executor, x, t, context, y, control, options, **kwargs):
            return executor(x, t, context, y, control, {**options, **patch}, **kwargs)

        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "another pack", wrapper)

    @staticmethod
    def by_hook(scope):
        def call(model, patch):
            import comfy.hooks

            hooks = comfy.hooks.HookGroup()
            hooks.add(comfy.hooks.TransformerOptionsHook(patch, getattr(comfy.hooks.EnumHookScope, scope)))
            return {"hooks": hooks}

        return call

    @staticmethod
    def by_object_patch(model, patch):
        """A module in the place of one of the UNet's."""
        (call,) = patch["patches"]["output_block_patch"]
        inner = model.get_model_object("diffusion_model.middle_block.1")

        class Replaced(type(inner)):
            def __init__(self):
                torch.nn.Module.__init__(self)
                self.inner = inner

            def forward(self, x, *args, **kwargs):
                out = self.inner(x, *args, **kwargs)
                return out + call(None, x, {})[1] * 0.1  # x is what the block's norm saved

        model.add_object_patch("diffusion_model.middle_block.1", Replaced())

    @pytest.mark.parametrize("recompute", [False, True])
    @pytest.mark.parametrize(
        "way", ["function wrapper", "wrapper", "hook of one text", "hook of all texts", "object patch"]
    )
    def test_changes_in_place_are_as_good_as_others(self, make_model, tune, monkeypatch, pack, way, recompute):
        bring = {
            "function wrapper": self.by_function_wrapper,
            "wrapper": self.by_wrapper,
            "hook of one text": self.by_hook("HookedOnly"),
            "hook of all texts": self.by_hook("AllConditioning"),
            "object patch": self.by_object_patch,
        }[way]
        monkeypatch.setattr(pack.modules["host.memory"], "must_recompute", lambda *_: recompute)
        found = []
        for in_place in (True, False):
            model = make_model().clone()
            options = bring(model, self.patch(in_place)) or {}
            found.append(tune(model, **options))
        close(found[0], found[1], 1e-4)
        assert (found[0] - tune(make_model())).abs().max() > 1e-3, "the patch acts"

    def test_a_hook_of_torch_inside_the_unet(self, make_model, tune):
        """It changes, after the fact, what the block before it gave: nothing forward, and nothing backward either."""
        model = make_model()
        wanted = tune(model)

        def spoil(module, args, out):
            args[0].mul_(0.5)

        handle = model.model.diffusion_model.middle_block[1].register_forward_hook(spoil)
        found = tune(model)
        handle.remove()
        close(found, wanted, 1e-4)


class TestBesideOthers:
    """What the wrappers of other packs see."""

    @pytest.fixture
    def seen(self):
        """Wrappers of each kind on a clone of a model, and the number of rows that each was shown."""
        import comfy.patcher_extension

        kinds, rows = comfy.patcher_extension.WrappersMP, {}

        def outer(executor, noise, latent, *args, **kwargs):
            rows.setdefault("outer", set()).update((len(noise), len(latent)))
            return executor(noise, latent, *args, **kwargs)

        def inner(executor, guider, sigmas, extra, callback, noise, latent, *args, **kwargs):
            rows.setdefault("inner", set()).update((len(noise), len(latent)))
            return executor(guider, sigmas, extra, callback, noise, latent, *args, **kwargs)

        def prepare(executor, model, shape, *args, **kwargs):
            rows.setdefault("prepared", set()).add(shape[0])
            return executor(model, shape, *args, **kwargs)

        def call(model):
            model = model.clone()
            for kind, wrapper in (
                (kinds.OUTER_SAMPLE, outer),
                (kinds.SAMPLER_SAMPLE, inner),
                (kinds.PREPARE_SAMPLING, prepare),
            ):
                model.add_wrapper_with_key(kind, "another pack", wrapper)
            return model, rows

        return call

    @pytest.mark.parametrize("images", [1, 2])
    def test_samplers_get_the_pictures_alone(self, make_model, execute, text, picture, seen, pack, images):
        model, rows = seen(make_model())
        inputs = {"positive": text(1), "negative": text(2), "latent": picture(images=images), "steps": STEPS}
        trajectory, embeddings, _ = execute("BaretTTISInversion", model=model, **inputs)
        (prepared,) = rows["prepared"]
        memory, shape = pack.modules["host.memory"], trajectory.pivots.shape[2:]
        enough = memory.activations(model, images, shape) + model.memory_required([2 * images, *shape])
        assert model.memory_required([2 * prepared, *shape]) >= enough, "the host frees what tuning needs"
        assert rows["outer"] == rows["inner"] == {images}
        rows.clear()
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=moving)
        assert rows["outer"] == rows["inner"] == {images}
        assert rows["prepared"] == {3 * images}, "the host frees memory for all processes at once"
        assert model.get_all_wrappers("prepare_sampling")[1:] == []


class TestListOfFiles:
    @pytest.fixture
    def folders(self, host, pack, tmp_path, monkeypatch):
        """Empty input and output folders."""
        for kind in ("input", "output"):
            (tmp_path / kind).mkdir()
            monkeypatch.setattr(host.folders, f"{kind}_directory", str(tmp_path / kind))
        return SimpleNamespace(input=tmp_path / "input", output=tmp_path / "output")

    @pytest.fixture
    def listed(self, pack):
        """What Load Inversion offers."""
        node = pack.nodes["BaretLoadInversion"]

        def call():
            (combo,) = node.define_schema().inputs
            return list(combo.options)

        return call

    @staticmethod
    def scans(monkeypatch):
        """The folders that are read, as a list that grows."""
        read, real = [], os.scandir

        def scandir(path="."):
            read.append(os.fspath(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        return read

    @staticmethod
    def fill(folder, *names):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    @staticmethod
    def long_ago(*folders):
        """As if nothing had been written there for a while."""
        for top in folders:
            for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
                os.utime(folder, (1e9, 1e9))

    def test_names_and_their_order(self, folders, listed):
        self.fill(folders.input, "b.safetensors", "a/c.safetensors", "a.safetensors", "picture.png")
        self.fill(folders.output, "baret/x_00002_.safetensors", "baret/x_00001_.safetensors")
        (folders.input / "no.safetensors").mkdir()
        assert listed() == [
            "a/c.safetensors",
            "a.safetensors",
            "b.safetensors",
            "baret/x_00001_.safetensors [output]",
            "baret/x_00002_.safetensors [output]",
        ]

    def test_what_cannot_be_loaded_is_left_out(self, folders, listed, pack, tmp_path):
        self.fill(folders.input, "mine.safetensors", ".safetensors", "folder.safetensors/x.png")
        self.fill(tmp_path, "outside.safetensors")
        links = {
            "inward": folders.input / "mine.safetensors",
            "outward": tmp_path / "outside.safetensors",
            "dangling": folders.input / "gone.safetensors",
            "circle": folders.input / "circle.safetensors",
        }
        for name, target in links.items():
            (folders.input / f"{name}.safetensors").symlink_to(target)
        os.mkfifo(folders.input / "pipe.safetensors")
        assert listed() == ["inward.safetensors", "mine.safetensors"]
        loader = pack.nodes["BaretLoadInversion"]
        for path in folders.input.iterdir():
            assert (loader.validate_inputs(path.name) is True) == (path.name in listed()), path.name

    def test_folders_are_read_once(self, folders, listed, monkeypatch):
        self.fill(folders.output, *(f"{i % 5}/{i}.safetensors" for i in range(200)))
        self.fill(folders.input, *(f"{i}.png" for i in range(200)))
        self.long_ago(folders.input, folders.output)
        first, read = listed(), self.scans(monkeypatch)
        assert len(first) == 200
        assert listed() == first
        assert read == []

    def test_one_that_changed_is_read_alone(self, folders, listed, monkeypatch):
        self.fill(folders.output, *(f"{i % 5}/{i}.safetensors" for i in range(20)))
        self.long_ago(folders.input, folders.output)
        before, read = listed(), self.scans(monkeypatch)
        self.fill(folders.output / "3", "new.safetensors")
        assert set(listed()) - set(before) == {"3/new.safetensors [output]"}
        assert read == [str(folders.output / "3")]

    def test_a_file_saved_a_moment_ago_appears_and_fits(self, folders, listed, pack, text, picture, execute, model):
        inputs = {"positive": text(1), "negative": text(2), "latent": picture(), "steps": 2, "iterations": 0}
        trajectory, embeddings, _ = execute("BaretTTISInversion", model=model, **inputs)
        known = listed()
        for _ in range(3):
            execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings)
            (new,) = set(listed()) - set(known)
            assert pack.nodes["BaretLoadInversion"].validate_inputs(new) is True
            known = listed()

    def test_a_file_appears_where_the_clock_of_the_disk_is_coarse(self, folders, listed):
        assert listed() == []
        then = folders.input.stat().st_mtime_ns
        self.fill(folders.input, "new.safetensors")
        os.utime(folders.input, ns=(then, then))
        assert listed() == ["new.safetensors"]

    def test_folders_that_go(self, folders, listed):
        self.fill(folders.input, "a/b/c.safetensors")
        self.long_ago(folders.input)
        assert listed() == ["a/b/c.safetensors"]
        (folders.input / "a/b/c.safetensors").unlink()
        (folders.input / "a/b").rmdir()
        assert listed() == []
        (folders.input / "a").rmdir()
        folders.input.rmdir()
        assert listed() == []


def accelerator_error():
    return torch.AcceleratorError("CUDA error: out of memory")


def allocator_error():
    return RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


class TestErrors:
    @pytest.mark.parametrize("raised", [torch.cuda.OutOfMemoryError, accelerator_error, allocator_error])
    def test_out_of_memory_names_the_node_and_the_sizes(self, make_model, execute, text, picture, raised):
        """Whatever the host takes for it, and what torch says on a CPU."""
        import comfy.model_management

        if raised is accelerator_error and not hasattr(comfy.model_management, "is_oom"):
            pytest.skip("this ComfyUI takes no other error of torch's for it")
        model = make_model()
        inputs = {"positive": text(1), "negative": text(2), "latent": picture(), "steps": 2}
        trajectory, embeddings, _ = execute("BaretTTISInversion", model=model, **inputs)

        def exhaust(module, args):
            raise raised()

        handle = model.model.diffusion_model.register_forward_pre_hook(exhaust)
        with handle_removed(handle):
            for node, given in (
                ("TTIS Inversion", lambda: execute("BaretTTISInversion", model=model, **inputs)),
                (
                    "BAM Edit",
                    lambda: execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=embeddings),
                ),
            ):
                sentence = (
                    rf"^{node}: out of memory with \d latent\(s\) of 12x8 in one forward .* use a smaller picture"
                )
                with pytest.raises(Exception, match=sentence) as caught:
                    given()
                assert isinstance(caught.value, comfy.model_management.OOM_EXCEPTION), "the host unloads models then"

    def test_running_out_elsewhere_names_the_node(self, pack):
        errors_of, node = pack.modules["nodes.common"].errors_of, pack.nodes["BaretSaveInversion"]
        sentence = "^Save Inversion: CUDA out of memory. Tried"
        with pytest.raises(torch.cuda.OutOfMemoryError, match=sentence), errors_of(node):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def test_errors_that_are_not_made_from_a_sentence(self, pack):
        class Own(ValueError):
            def __init__(self, name, value):
                super().__init__(f"{name} is {value}")

        errors_of, node = pack.modules["nodes.common"].errors_of, pack.nodes["BaretSaveInversion"]
        with pytest.raises(ValueError, match="^Save Inversion: 'utf-8' codec can't decode"), errors_of(node):
            b"\xff".decode("utf-8")
        with pytest.raises(ValueError, match="^Save Inversion: eta is 3$"), errors_of(node):
            raise Own("eta", 3)

    def test_other_errors_pass_as_they_are(self, pack):
        import comfy.model_management

        stopped = comfy.model_management.InterruptProcessingException()
        for error in (stopped, KeyError("x"), RuntimeError("y")):
            with (
                pytest.raises(type(error)) as caught,
                pack.modules["nodes.common"].errors_of(pack.nodes["BaretBAMEdit"]),
            ):
                raise error
            assert caught.value is error


@contextlib.contextmanager
def handle_removed(handle):
    try:
        yield
    finally:
        handle.remove()
