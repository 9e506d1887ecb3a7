"""Together with what else is on a canvas: LoRA, ControlNet, IPAdapter-like patches, kernels, weight formats; and a clean model afterwards."""

import pytest
import torch

STEPS, CFG = 5, 3.0
MODULES = (
    "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "diffusion_model.out.2",
)


def close(a, b, relative=1e-5):
    torch.testing.assert_close(a, b, rtol=relative, atol=relative * float(b.abs().max()))


@pytest.fixture
def invert(execute, text, picture):
    def call(model, **inputs):
        given = {
            "positive": text(1),
            "negative": text(2),
            "latent": picture(),
            "steps": STEPS,
            "cfg": CFG,
            "learning_rate": 0.05,
            "iterations": 2,
        }
        return execute("BaretTTISInversion", model=model, **{**given, **inputs})

    return call


@pytest.fixture
def edit(execute):
    def call(model, trajectory, embeddings, **inputs):
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        return execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=moving, cfg=CFG, **inputs)[0][
            "samples"
        ]

    return call


@pytest.fixture
def plain(text):
    """Guided euler sampling with the host's sampler, from an inversion's noise or from a fixed one; ends in VP form."""
    import comfy.sample
    import comfy.samplers

    def call(model, trajectory=None, positive=None, negative=None, latent=None):
        if trajectory is not None:
            sigmas, end = trajectory.schedule.sigmas.float(), trajectory.schedule.scale(trajectory.schedule.steps)
            latent = trajectory.pivots[0] * trajectory.schedule.scale(0) / trajectory.family.latent_scale
        else:
            sigmas, end = torch.tensor([14.0, 5.0, 1.0, 0.1]), 1.0
            latent = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object("euler")
            return (
                comfy.sample.sample_custom(
                    model,
                    torch.zeros_like(latent),
                    CFG,
                    sampler,
                    sigmas,
                    positive or text(1),
                    negative or text(2),
                    latent,
                    disable_pbar=True,
                )
                / end
            )

    return call


@pytest.fixture(params=["all kept", "recomputed"])
def activations(request, monkeypatch, pack):
    """With memory for all activations of the tuning, and without."""
    if request.param == "recomputed":
        monkeypatch.setattr(pack.modules["host.memory"], "must_recompute", lambda *_: True)


def works(model, invert, edit, plain, relative=1e-5, **inputs):
    """The equalities that tell that a patch acts in every pass as it does in plain sampling, and that tuning learns through it."""
    texts = {key: inputs[key] for key in ("positive", "negative") if key in inputs}
    trajectory, untuned, reconstruction = invert(model, iterations=0, **inputs)
    close(reconstruction["samples"], plain(model, trajectory, **texts), relative)
    close(edit(model, trajectory, untuned), reconstruction["samples"], relative)
    trajectory, tuned, _ = invert(model, iterations=6, **inputs)
    assert tuned.losses.sum() < 0.9 * untuned.losses.sum()
    assert torch.isfinite(edit(model, trajectory, tuned)).all()
    return reconstruction["samples"]


def lora(strength=1.0):
    """LoRA weights by the host's key names, as a LoRA file of the SD1.5 family has them."""
    generator = torch.Generator().manual_seed(3)

    def pair(out, inner, kernel=()):
        return torch.randn(out, 2, *([1] * len(kernel)), generator=generator), torch.randn(
            2, inner, *kernel, generator=generator
        ) * strength / inner

    shapes = {MODULES[0]: (64, 24, ()), MODULES[1]: (32, 32, ()), MODULES[2]: (4, 32, (3, 3))}
    return {
        f"{name}.{part}.weight": w
        for name, shape in shapes.items()
        for part, w in zip(("lora_up", "lora_down"), pair(*shape))
    }


def test_lora(make_model, invert, edit, plain):
    import comfy.sd

    model = make_model()
    before = plain(model)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)
    assert (plain(patched) - before).abs().max() > 0.01, "the LoRA must act for this test to mean anything"
    close(works(patched, invert, edit, plain), works(patched, invert, edit, plain))
    assert torch.equal(plain(model), before)


def test_lora_on_the_text_by_hooks(make_model, invert, edit, plain, text):
    """A LoRA that the host patches in for the positive pass alone, and out again for the negative."""
    import comfy.hooks

    model = make_model()
    before = plain(model)
    hooks = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)
    positive = [[text(1)[0][0], {"hooks": hooks}]]
    out = works(model, invert, edit, plain, positive=positive)
    assert (out - invert(model, iterations=0)[2]["samples"]).abs().max() > 0.01
    assert torch.equal(plain(model), before)


def controlnet(images=1):
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {
        "image_size": 32,
        "in_channels": 4,
        "hint_channels": 3,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth_middle": 1,
        "context_dim": 24,
        "num_heads": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
    }
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**config, operations=comfy.ops.disable_weight_init, device="cpu")
        generator = torch.Generator().manual_seed(11)
        for weight in net.parameters():
            weight.copy_(
                torch.randn(weight.shape, generator=generator)
                * (0.5 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1)
            )
        control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
        hint = torch.rand(images, 3, 64, 96, generator=generator)
        return control.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))


@pytest.mark.usefixtures("activations")
def test_controlnet(make_model, invert, edit, plain, text):
    model = make_model()
    before = plain(model)
    control = controlnet()
    positive = [[text(1)[0][0], {"control": control, "control_apply_to_uncond": False}]]
    out = works(model, invert, edit, plain, positive=positive)
    assert (out - invert(model, iterations=0)[2]["samples"]).abs().max() > 0.01
    assert control.cond_hint is None, "the host's clean-up of ControlNets must have run"
    assert torch.equal(plain(model), before)


def test_controlnet_of_a_failed_run_is_cleaned(make_model, invert, text):
    model, control = make_model(), controlnet()
    handle = model.model.diffusion_model.register_forward_hook(lambda module, args, out: out * float("nan"))
    with pytest.raises(RuntimeError, match="NaN"):
        invert(model, positive=[[text(1)[0][0], {"control": control}]])
    handle.remove()
    assert control.cond_hint is None


def test_controlnet_with_a_hint_per_image_and_on_both_texts(make_model, invert, edit, plain, text, picture):
    """Images that stop early stay in the batch then, so that hints keep their images."""
    model, control = make_model(), controlnet(images=2)
    texts = {"positive": [[text(1)[0][0], {"control": control}]], "negative": [[text(2)[0][0], {"control": control}]]}
    latent = picture(images=2)
    works(model, invert, edit, plain, relative=1e-4, latent=latent, **texts)
    hints = control.cond_hint_original
    for order in ([0, 1], [1, 0]):  # either image is the one that stops first
        pair = control.copy().set_cond_hint(hints[order], 1.0, (0.0, 1.0))
        texts = {"positive": [[text(1)[0][0], {"control": pair}]], "negative": [[text(2)[0][0], {"control": pair}]]}
        pictures = {"samples": latent["samples"][order]}
        _, untuned, _ = invert(model, latent=pictures, iterations=0, **texts)
        rule = {"stop_threshold": float(untuned.losses[2].mean()), "stop_growth": 0.0}
        _, together, _ = invert(model, latent=pictures, **texts, **rule)
        assert (together.updates[:, 0] != together.updates[:, 1]).any()
        for row in range(2):
            one = control.copy().set_cond_hint(hints[order[row]][None], 1.0, (0.0, 1.0))
            single = {"positive": [[text(1)[0][0], {"control": one}]], "negative": [[text(2)[0][0], {"control": one}]]}
            _, alone, _ = invert(model, latent={"samples": pictures["samples"][row : row + 1]}, **single, **rule)
            assert torch.equal(together.updates[:, row], alone.updates[:, 0])
            close(together.losses[:, row], alone.losses[:, 0], 1e-3)


@pytest.mark.usefixtures("activations")
def test_ipadapter_like_attention_replacements(make_model, invert, edit, plain):
    """An attn2 replacement that adds attention to image tokens, other ones in the negative pass, by the host's labels."""
    from comfy.ldm.modules.attention import optimized_attention

    model = make_model().clone()
    tokens = {0: torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)), 1: torch.zeros(1, 3, 64)}
    labels = []

    def replace(q, k, v, extra):
        labels.append(tuple(extra["cond_or_uncond"]))
        rows = len(q) // len(extra["cond_or_uncond"])
        image = torch.cat([tokens[label].repeat(rows, 1, 1) for label in extra["cond_or_uncond"]])[..., : q.shape[-1]]
        return optimized_attention(q, k, v, extra["n_heads"]) + 0.7 * optimized_attention(
            q, image, image, extra["n_heads"]
        )

    for block in (("input", 1), ("middle", 0), ("output", 0)):
        model.set_model_attn2_replace(replace, *block)
    works(model, invert, edit, plain)
    assert {(0,), (1,)} <= set(labels) <= {(0,), (1,), (0, 1), (1, 0)}


@pytest.mark.usefixtures("activations")
def test_patch_lists_of_other_packs_compose(make_model, invert, edit, plain):
    model, fired = make_model().clone(), []

    def patch(n, context, value, extra):
        fired.append(extra["block"])
        return n * 1.1, context, value * 0.9

    model.set_model_attn1_patch(patch)
    model.set_model_attn2_patch(patch)
    works(model, invert, edit, plain)
    assert {("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 3)} <= set(fired)


@pytest.mark.usefixtures("activations")
def test_freeu(make_model, invert, edit, plain):
    from comfy_extras.nodes_freelunch import FreeU_V2

    model = make_model()
    (patched,) = FreeU_V2.execute(model, b1=1.3, b2=1.4, s1=0.9, s2=0.2).args
    works(patched, invert, edit, plain)


@pytest.mark.parametrize("kernel", ["attention_pytorch", "attention_split", "attention_sub_quad", "attention_basic"])
def test_attention_kernels_of_the_host(make_model, invert, edit, plain, monkeypatch, kernel):
    """--use-pytorch-cross-attention, --use-split-cross-attention and the others."""
    import comfy.ldm.modules.attention as attention

    model = make_model()
    trajectory, embeddings, _ = invert(model)
    wanted = edit(model, trajectory, embeddings)
    monkeypatch.setattr(attention, "optimized_attention", getattr(attention, kernel))
    works(model, invert, edit, plain, 1e-4)
    close(edit(model, trajectory, embeddings), wanted, 1e-4)


@pytest.mark.usefixtures("activations")
def test_a_kernel_without_backward(make_model, invert, edit):
    """SageAttention and the like sit in the override slot: they serve everywhere but under gradients, and stay in it."""
    from comfy.ldm.modules.attention import attention_pytorch

    model, used = make_model().clone(), []

    def inference_only(func, *args, **kwargs):
        used.append(torch.is_grad_enabled())
        return attention_pytorch(*[a.detach() if torch.is_tensor(a) else a for a in args], **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = inference_only
    trajectory, embeddings, _ = invert(model, iterations=6)
    _, untuned, _ = invert(model, iterations=0)
    assert embeddings.losses.sum() < 0.9 * untuned.losses.sum() and not used
    edit(model, trajectory, embeddings)
    assert used and not any(used)
    assert model.model_options["transformer_options"]["optimized_attention_override"] is inference_only


@pytest.mark.parametrize(
    "dtype, cast",
    [
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
    ],
)
def test_weight_formats(make_model, invert, edit, dtype, cast):
    model = make_model(dtype=dtype, cast=cast)
    _, untuned, _ = invert(model, iterations=0)
    trajectory, tuned, _ = invert(model, iterations=6)
    assert tuned.tuned.dtype == trajectory.latents.dtype == torch.float32
    assert tuned.losses.sum() < 0.9 * untuned.losses.sum()
    assert torch.isfinite(edit(model, trajectory, tuned)).all()
    assert {w.dtype for w in model.model.diffusion_model.parameters()} == {dtype}, (
        "the shared model keeps its weights' format"
    )


def test_half_precision_gradients_do_not_vanish(make_model, invert):
    """At a small loss float16 tunes as float32 does on the same weights: nothing underflows on the way back."""
    half = make_model(dtype=torch.float16)
    full = make_model()
    with torch.inference_mode():
        for to, source in zip(full.model.diffusion_model.parameters(), half.model.diffusion_model.parameters()):
            to.copy_(source.float())
    runs = [invert(model, iterations=4, learning_rate=1e-4, cfg=1.5) for model in (half, full)]
    moved = [(embeddings.tuned[0] - embeddings.target).flatten() for _, embeddings, _ in runs]
    assert float((moved[0] != 0).float().mean()) > 0.99
    assert float(torch.nn.functional.cosine_similarity(*moved, dim=0)) > 0.9


def test_cast_weights(make_model, invert, edit, plain):
    """Weights cast at each use, as lowvram and fp8 have it, with a LoRA applied on the way."""
    import comfy.sd

    model, _ = comfy.sd.load_lora_for_models(make_model(), None, lora(), 1.0, 0.0)
    whole = works(model, invert, edit, plain)
    casting, _ = comfy.sd.load_lora_for_models(make_model(), None, lora(), 1.0, 0.0)
    casting.force_cast_weights = True
    close(works(casting, invert, edit, plain), whole)
    assert any(getattr(m, "comfy_cast_weights", False) for m in casting.model.diffusion_model.modules())


def test_a_partly_loaded_model_is_refused_for_tuning_and_edits(make_model, invert, edit, monkeypatch):
    import comfy.model_management

    model = make_model()
    trajectory, embeddings, _ = invert(model)
    wanted = edit(model, trajectory, embeddings)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(
        type(model.model), "model_lowvram", property(lambda self: True, lambda self, value: None), raising=False
    )
    with pytest.raises(ValueError, match="TTIS Inversion: the tuning needs the whole model .* on the GPU"):
        invert(model)
    monkeypatch.undo()
    close(edit(model, trajectory, embeddings), wanted)


def test_compiled_models(make_model, invert, edit):
    """TorchCompileModel wraps the UNet for the time of a run; an eager backend shows that the wrapping does no harm."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = make_model()
    trajectory, embeddings, _ = invert(model)
    wanted = edit(model, trajectory, embeddings)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    again, tuned, _ = invert(compiled)
    close(again.latents, trajectory.latents, 1e-3)
    close(edit(compiled, trajectory, embeddings), wanted, 1e-4)


def test_gradients_through_in_place_changes_are_those_without(make_model, invert, text):
    """A patch that scales in place what backward still needs gives the run of the same patch that does not."""
    runs = []
    for in_place in (True, False):
        model = make_model().clone()

        def patch(h, hsp, options):
            if in_place:
                h[:, : h.shape[1] // 2] *= 1.3
                hsp *= 0.9
                return h, hsp
            return torch.cat([h[:, : h.shape[1] // 2] * 1.3, h[:, h.shape[1] // 2 :]], 1), hsp * 0.9

        model.set_model_output_block_patch(patch)
        runs.append(invert(model, iterations=6))
    close(runs[0][1].tuned, runs[1][1].tuned, 1e-4)
    close(runs[0][1].losses, runs[1][1].losses, 1e-4)


class TestPeers:
    """Inversion without tuning, prompt-to-prompt and MasaCtrl with the same: an edit to the same text is the source, an edit to another is one."""

    @pytest.fixture
    def peers(self, execute, clip, text, picture, plain):
        def call(model, options=None, acts=True, images=1):
            positive = [[text(1, tokens=12)[0][0], options or {}]]
            given = {
                "model": model,
                "positive": positive,
                "negative": text(2),
                "latent": picture(images=images),
                "steps": STEPS,
                "cfg": CFG,
            }
            trajectory, embeddings, reconstruction = execute("BaretInversion", **given, method="DDIM")
            close(reconstruction["samples"], plain(model, trajectory, positive=positive), 1e-4)
            direct = execute("BaretInversion", **given, method="direct")
            edits = []
            for written in ("1 a red dog", "3 a red cat"):
                common = {
                    "model": model,
                    "clip": clip,
                    "trajectory": trajectory,
                    "embeddings": embeddings,
                    "target_text": written,
                    "cfg": CFG,
                }
                words = {"source_text": "1 a red dog"}
                edits.append(execute("BaretPromptToPromptEdit", **common, **words, blend_words="red")[0]["samples"])
                edits.append(execute("BaretMasaCtrlEdit", **common, first_block=3, start_step=1)[0]["samples"])
                common.update(trajectory=direct[0], embeddings=direct[1])
                execute("BaretMasaCtrlEdit", **common, **words, first_block=3, start_step=1, foreground_words="red")
            for same in edits[:2]:
                close(same, reconstruction["samples"], 1e-4)
            for other in edits[2:]:
                assert torch.isfinite(other).all() and (other - reconstruction["samples"]).abs().max() > 1e-2
            return edits[2:]

        return call

    def test_lora(self, make_model, peers, plain):
        import comfy.sd

        model = make_model()
        before = plain(model)
        without = peers(model)
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)
        for a, b in zip(peers(patched), without):
            assert (a - b).abs().max() > 0.01
        assert torch.equal(plain(model), before), "and the model is as it was"

    def test_lora_on_the_text_by_hooks(self, make_model, peers, plain):
        import comfy.hooks

        model = make_model()
        before = plain(model)
        peers(model, {"hooks": comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)})
        assert torch.equal(plain(model), before)

    @pytest.mark.parametrize("images", [1, 2])
    def test_controlnet(self, make_model, peers, images):
        model, control = make_model(), controlnet(images)
        peers(model, {"control": control, "control_apply_to_uncond": False}, images=images)
        assert control.cond_hint is None

    def test_ipadapter_like_attention_replacements(self, make_model, peers):
        """Where another node has replaced attention, edits act through it and it acts in the edits."""
        from comfy.ldm.modules.attention import optimized_attention

        model = make_model()
        without = peers(model)
        image = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))

        def replace(q, k, v, extra):
            tokens = image.repeat(len(q), 1, 1)[..., : q.shape[-1]]
            return optimized_attention(q, k, v, extra["n_heads"]) + 0.7 * optimized_attention(
                q, tokens, tokens, extra["n_heads"]
            )

        patched = model.clone()
        for block in (("input", 1), ("middle", 0), ("output", 0)):
            patched.set_model_attn2_replace(replace, *block)
            patched.set_model_attn1_replace(
                lambda q, k, v, extra: optimized_attention(q, k, v, extra["n_heads"]), *block
            )
        for a, b in zip(peers(patched), without):
            assert (a - b).abs().max() > 0.01

    @pytest.mark.parametrize("kernel", ["attention_pytorch", "attention_split", "attention_basic"])
    def test_attention_kernels_of_the_host(self, make_model, peers, monkeypatch, kernel):
        import comfy.ldm.modules.attention as attention

        wanted = peers(make_model())
        for name in ("optimized_attention", "optimized_attention_masked"):
            monkeypatch.setattr(attention, name, getattr(attention, kernel))
        for got, want in zip(peers(make_model()), wanted):
            close(got, want, 1e-3)

    def test_half_precision(self, make_model, peers, execute, clip, text, picture):
        model = make_model(dtype=torch.bfloat16)
        trajectory, embeddings, _ = execute(
            "BaretInversion",
            model=model,
            positive=text(1, tokens=12),
            negative=text(2),
            latent=picture(),
            steps=STEPS,
            cfg=CFG,
        )
        common = {
            "model": model,
            "clip": clip,
            "trajectory": trajectory,
            "embeddings": embeddings,
            "target_text": "3 a red cat",
            "source_text": "1 a red dog",
            "cfg": CFG,
        }
        for edit in (
            execute("BaretPromptToPromptEdit", **common, blend_words="red", reweight="cat:2"),
            execute("BaretMasaCtrlEdit", **common, first_block=3, start_step=1, foreground_words="red"),
        ):
            assert torch.isfinite(edit[0]["samples"]).all()

    def test_cancelled_edits_leave_a_clean_model(self, make_model, peers, execute, clip, text, picture, plain):
        import comfy.model_management

        model = make_model()
        before, options = plain(model), str(model.model_options)
        trajectory, embeddings, _ = execute(
            "BaretInversion",
            model=model,
            positive=text(1, tokens=12),
            negative=text(2),
            latent=picture(),
            steps=STEPS,
            cfg=CFG,
        )
        common = {
            "model": model,
            "clip": clip,
            "trajectory": trajectory,
            "embeddings": embeddings,
            "target_text": "3 a red cat",
        }
        for node, inputs in (
            ("BaretPromptToPromptEdit", {"source_text": "1 a red dog"}),
            ("BaretMasaCtrlEdit", {"first_block": 3}),
        ):
            handle = model.model.diffusion_model.register_forward_pre_hook(
                lambda module, args: comfy.model_management.interrupt_current_processing()
            )
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                execute(node, **common, **inputs)
            handle.remove()
            assert (
                torch.equal(plain(model), before)
                and str(model.model_options) == options
                and model.model.current_patcher is None
            )


class TestAfterwards:
    """After any run the shared model is as it was: plain sampling before and after is bit-equal."""

    @pytest.fixture
    def shared(self, make_model, plain):
        model = make_model()
        before = plain(model)
        state = {name: weight.clone() for name, weight in model.model.state_dict().items()}
        options = str(model.model_options)
        yield model
        assert torch.equal(plain(model), before)
        assert all(torch.equal(weight, state[name]) for name, weight in model.model.state_dict().items())
        assert (
            str(model.model_options) == options
            and model.object_patches == {}
            and model.get_all_wrappers("prepare_sampling") == []
        )
        assert model.model.current_patcher is None

    def test_a_whole_run(self, shared, invert, edit):
        trajectory, embeddings, _ = invert(shared)
        edit(shared, trajectory, embeddings)

    @pytest.mark.parametrize("at", [0, 1, STEPS + 2, STEPS + 9])
    def test_a_cancelled_inversion(self, shared, invert, at):
        import comfy.model_management

        calls = []

        def interrupt(module, args):
            calls.append(1)
            if len(calls) == at + 1:
                comfy.model_management.interrupt_current_processing()

        handle = shared.model.diffusion_model.register_forward_pre_hook(interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            invert(shared)
        handle.remove()
        assert len(calls) == at + 1, "no further pass begins"
        fresh = invert(shared)
        assert torch.equal(fresh[0].latents, invert(shared)[0].latents)

    def test_a_cancelled_edit(self, shared, invert, edit):
        import comfy.model_management

        trajectory, embeddings, _ = invert(shared)
        wanted = edit(shared, trajectory, embeddings)
        handle = shared.model.diffusion_model.register_forward_pre_hook(
            lambda module, args: comfy.model_management.interrupt_current_processing()
        )
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            edit(shared, trajectory, embeddings)
        handle.remove()
        assert torch.equal(edit(shared, trajectory, embeddings), wanted)

    @pytest.mark.parametrize(
        "learning_rate, sentence",
        [(1e30, "TTIS Inversion: NaN or infinity appeared in the tuning at step 0 of 5 .* lower learning_rate")],
    )
    def test_a_failed_tuning(self, shared, invert, learning_rate, sentence):
        with pytest.raises(RuntimeError, match=sentence):
            handle = shared.model.diffusion_model.register_forward_hook(
                lambda module, args, out: (
                    out * torch.tensor(float("nan")) if args[1][0] < 900 and torch.is_grad_enabled() else out
                )
            )
            try:
                invert(shared, learning_rate=learning_rate)
            finally:
                handle.remove()

    def test_out_of_memory(self, shared, invert):
        def exhaust(module, args):
            if torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        handle = shared.model.diffusion_model.register_forward_pre_hook(exhaust)
        with pytest.raises(
            torch.cuda.OutOfMemoryError,
            match=r"out of memory with 1 latent\(s\) of 12x8 .* GB with the model.*use a smaller picture",
        ):
            invert(shared)
        handle.remove()


def test_inputs_are_not_changed(model, invert, edit, text, picture):
    latent, positive = picture(), text(1)
    copies = latent["samples"].clone(), positive[0][0].clone()
    trajectory, embeddings, _ = invert(model, latent=latent, positive=positive)
    kept = [
        value.clone()
        for value in (
            trajectory.pivots,
            trajectory.latents,
            embeddings.tuned,
            embeddings.target,
            embeddings.negative,
            embeddings.eta,
        )
    ]
    first = edit(model, trajectory, embeddings)
    assert torch.equal(edit(model, trajectory, embeddings), first)
    assert torch.equal(latent["samples"], copies[0]) and torch.equal(positive[0][0], copies[1]) and positive[0][1] == {}
    for before, after in zip(
        kept,
        (
            trajectory.pivots,
            trajectory.latents,
            embeddings.tuned,
            embeddings.target,
            embeddings.negative,
            embeddings.eta,
        ),
    ):
        assert torch.equal(before, after)


def test_results_lie_where_the_host_keeps_them_and_can_be_tuned_again(model, invert, edit):
    trajectory, embeddings, reconstruction = invert(model)
    for value in (trajectory.pivots, trajectory.latents, embeddings.tuned, reconstruction["samples"]):
        assert value.device.type == "cpu" and not value.requires_grad
    assert edit(model, trajectory, embeddings).shape == reconstruction["samples"].shape


def test_progress_and_previews(model, invert, edit, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, **kwargs: shown.append((value, total, preview is not None)),
    )
    import latent_preview

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    trajectory, embeddings, _ = invert(model)
    assert shown == [(i + 1, 2 * STEPS, True) for i in range(2 * STEPS)]
    shown.clear()
    edit(model, trajectory, embeddings)
    assert shown == [(i + 1, STEPS, True) for i in range(STEPS)]
