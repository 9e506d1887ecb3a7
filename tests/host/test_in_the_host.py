"""Together with what else is on a canvas, and a clean model afterwards.

LoRA, ControlNet, IPAdapter-like patches, FreeU, attention kernels, weight formats, compiled models.
"""

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
def invert(ttis):
    def call(model, **inputs):
        given = {"steps": STEPS, "cfg": CFG, "learning_rate": 0.05, "iterations": 2}
        return ttis(model, **{**given, **inputs})

    return call


@pytest.fixture
def edit(execute, bam):
    def call(model, trajectory, embeddings, **inputs):
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        return bam(model, trajectory, moving, cfg=CFG, **inputs)

    return call


@pytest.fixture
def plain(stock_euler, text):
    """Guided euler sampling with the host's sampler, from an inversion's noise or from a fixed one; ends in VP form."""

    def call(model, trajectory=None, positive=None, negative=None):
        if trajectory is None:
            sigmas, end = torch.tensor([14.0, 5.0, 1.0, 0.1]), 1.0
            latent = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
        else:
            schedule = trajectory.schedule
            sigmas, end = schedule.sigmas.float(), schedule.scale(schedule.steps)
            latent = trajectory.pivots[0] * schedule.scale(0) / trajectory.family.latent_scale
        return stock_euler(model, CFG, sigmas, positive or text(1), negative or text(2), latent) / end

    return call


@pytest.fixture(params=["all kept", "recomputed"])
def activations(request, monkeypatch, pack):
    """With memory for all activations of the tuning, and without."""
    if request.param == "recomputed":
        monkeypatch.setattr(pack.modules["host.memory"], "must_recompute", lambda *_: True)


def works(model, invert, edit, plain, relative=1e-5, **inputs):
    """The equalities that tell that a patch acts in every pass as in plain sampling; and tuning learns through it."""
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
    shapes = {MODULES[0]: (64, 24, ()), MODULES[1]: (32, 32, ()), MODULES[2]: (4, 32, (3, 3))}
    weights = {}
    for name, (out, inner, kernel) in shapes.items():
        ones = [1] * len(kernel)
        up = torch.randn(out, 2, *ones, generator=generator)
        down = torch.randn(2, inner, *kernel, generator=generator)
        weights[f"{name}.lora_up.weight"] = up
        weights[f"{name}.lora_down.weight"] = down * strength / inner
    return weights


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
            size = 0.1 if weight.ndim == 1 else 0.5 * weight[0].numel() ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
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


@pytest.fixture
def controlled(text):
    """The inputs ``positive`` and ``negative`` with a ControlNet on both."""

    def call(control):
        return {name: text(seed, control=control) for name, seed in (("positive", 1), ("negative", 2))}

    return call


def test_controlnet_with_a_hint_per_image_and_on_both_texts(make_model, invert, edit, plain, controlled, picture):
    """Images that stop early stay in the batch then, so that hints keep their images."""
    model, control = make_model(), controlnet(images=2)
    latent = picture(images=2)
    works(model, invert, edit, plain, relative=1e-4, latent=latent, **controlled(control))

    hints = control.cond_hint_original

    def with_hints(order):
        return controlled(control.copy().set_cond_hint(hints[order], 1.0, (0.0, 1.0)))

    for order in ([0, 1], [1, 0]):  # either image is the one that stops first
        pictures = latent["samples"][order]
        _, untuned, _ = invert(model, latent={"samples": pictures}, iterations=0, **with_hints(order))
        rule = {"stop_threshold": float(untuned.losses[2].mean()), "stop_growth": 0.0}
        _, together, _ = invert(model, latent={"samples": pictures}, **with_hints(order), **rule)
        assert (together.updates[:, 0] != together.updates[:, 1]).any()
        for row in range(2):
            single = {"samples": pictures[row : row + 1]}
            _, alone, _ = invert(model, latent=single, **with_hints([order[row]]), **rule)
            assert torch.equal(together.updates[:, row], alone.updates[:, 0])
            close(together.losses[:, row], alone.losses[:, 0], 1e-3)


@pytest.fixture
def attending_to_images():
    """An attention replacement as IPAdapter makes it: attention to image tokens is added to the attention that was."""
    from comfy.ldm.modules.attention import optimized_attention

    def make(tokens_of):
        """tokens_of: ``tokens_of(rows, labels)``: the image tokens ``[rows,3,64]`` of these rows."""

        def replace(q, k, v, extra):
            image = tokens_of(len(q), extra["cond_or_uncond"])[..., : q.shape[-1]]
            own = optimized_attention(q, k, v, extra["n_heads"])
            return own + 0.7 * optimized_attention(q, image, image, extra["n_heads"])

        return replace

    return make


IPADAPTER_BLOCKS = (("input", 1), ("middle", 0), ("output", 0))


@pytest.mark.usefixtures("activations")
def test_ipadapter_like_attention_replacements(make_model, invert, edit, plain, attending_to_images):
    """An attn2 replacement that adds attention to image tokens: other ones in the negative pass, by its label."""
    model = make_model().clone()
    tokens = {0: torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)), 1: torch.zeros(1, 3, 64)}
    seen = []

    def tokens_of(rows, labels):
        seen.append(tuple(labels))
        return torch.cat([tokens[label].repeat(rows // len(labels), 1, 1) for label in labels])

    for block in IPADAPTER_BLOCKS:
        model.set_model_attn2_replace(attending_to_images(tokens_of), *block)
    works(model, invert, edit, plain)
    assert {(0,), (1,)} <= set(seen) <= {(0,), (1,), (0, 1), (1, 0)}


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
    """SageAttention and the like sit in the override slot: they stay there, and serve but under gradients."""
    from comfy.ldm.modules.attention import attention_pytorch

    model, used = make_model().clone(), []

    def inference_only(func, *args, **kwargs):
        used.append(torch.is_grad_enabled())
        without_backward = [each.detach() if torch.is_tensor(each) else each for each in args]
        return attention_pytorch(*without_backward, **kwargs)

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
    formats = {weight.dtype for weight in model.model.diffusion_model.parameters()}
    assert formats == {dtype}, "the shared model keeps its weights' format"


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
    always_partly = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(type(model.model), "model_lowvram", always_partly, raising=False)
    with pytest.raises(ValueError, match="TTIS Inversion: the tuning needs the whole model .* on the GPU"):
        invert(model)
    monkeypatch.undo()
    close(edit(model, trajectory, embeddings), wanted)


def test_compiled_models(make_model, invert, edit, plain, compiled):
    """Once a stock sampler has run it, a compiled UNet no longer sees what is shared in its attentions."""
    model = make_model()
    trajectory, embeddings, _ = invert(model)
    wanted, sampled = edit(model, trajectory, embeddings), plain(model)
    fast = compiled(model)
    assert torch.equal(plain(fast), sampled)
    again, tuned, _ = invert(fast)
    assert torch.equal(again.latents, trajectory.latents) and torch.equal(tuned.tuned, embeddings.tuned)
    assert torch.equal(edit(fast, trajectory, embeddings), wanted)
    assert torch.equal(plain(fast), sampled)


def test_gradients_through_in_place_changes_are_those_without(make_model, invert, text):
    """A patch that scales in place what backward still needs gives the run of the same patch that does not."""

    def in_place(h, hsp, options):
        h[:, : h.shape[1] // 2] *= 1.3
        hsp *= 0.9
        return h, hsp

    def anew(h, hsp, options):
        first, second = h.split(h.shape[1] // 2, 1)
        return torch.cat([first * 1.3, second], 1), hsp * 0.9

    runs = []
    for patch in (in_place, anew):
        model = make_model().clone()
        model.set_model_output_block_patch(patch)
        _, embeddings, _ = invert(model, iterations=6)
        runs.append(embeddings)
    close(runs[0].tuned, runs[1].tuned, 1e-4)
    close(runs[0].losses, runs[1].losses, 1e-4)


class TestPeers:
    """Inversion without tuning, prompt-to-prompt and MasaCtrl with the same.

    An edit to the same text is the source, an edit to another text is another picture.
    """

    SAME, OTHER = "1 a red dog", "3 a red cat"

    @pytest.fixture
    def inverted(self, execute, text, picture):
        """Inversion of a random picture with the text SAME."""

        def call(model, options=None, images=1, method="direct"):
            return execute(
                "BaretInversion",
                model=model,
                positive=text(1, tokens=12, **(options or {})),
                negative=text(2),
                latent=picture(images=images),
                steps=STEPS,
                cfg=CFG,
                method=method,
            )

        return call

    @pytest.fixture
    def edited(self, execute, clip):
        """One of the edits by two texts; returns its latent."""

        def call(node, model, inversion, target_text, **inputs):
            trajectory, embeddings, _ = inversion
            wires = {"model": model, "clip": clip, "trajectory": trajectory, "embeddings": embeddings}
            return execute(node, **wires, target_text=target_text, cfg=CFG, **inputs)[0]["samples"]

        return call

    @pytest.fixture
    def peers(self, inverted, edited, text, plain):
        def call(model, options=None, images=1):
            sampled = inverted(model, options, images, method="DDIM")
            direct = inverted(model, options, images)
            trajectory, _, reconstruction = sampled
            positive = text(1, tokens=12, **(options or {}))
            close(reconstruction["samples"], plain(model, trajectory, positive=positive), 1e-4)

            source = {"source_text": self.SAME}
            borrowing = {"first_block": 3, "start_step": 1}

            def edits(written):
                edited("BaretMasaCtrlEdit", model, direct, written, **source, **borrowing, foreground_words="red")
                return (
                    edited("BaretPromptToPromptEdit", model, sampled, written, **source, blend_words="red"),
                    edited("BaretMasaCtrlEdit", model, sampled, written, **borrowing),
                )

            for same in edits(self.SAME):
                close(same, reconstruction["samples"], 1e-4)
            others = edits(self.OTHER)
            for other in others:
                assert torch.isfinite(other).all() and (other - reconstruction["samples"]).abs().max() > 1e-2
            return others

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

    def test_ipadapter_like_attention_replacements(self, make_model, peers, attending_to_images):
        """Where another node has replaced attention, edits act through it and it acts in the edits."""
        from comfy.ldm.modules.attention import optimized_attention

        model = make_model()
        without = peers(model)
        image = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))

        def like_the_hosts(q, k, v, extra):
            return optimized_attention(q, k, v, extra["n_heads"])

        patched = model.clone()
        for block in IPADAPTER_BLOCKS:
            to_image = attending_to_images(lambda rows, labels: image.repeat(rows, 1, 1))
            patched.set_model_attn2_replace(to_image, *block)
            patched.set_model_attn1_replace(like_the_hosts, *block)
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

    def test_half_precision(self, make_model, inverted, edited):
        model = make_model(dtype=torch.bfloat16)
        inversion = inverted(model)
        source = {"source_text": self.SAME}
        words = {"blend_words": "red", "reweight": "cat:2"}
        borrowing = {"first_block": 3, "start_step": 1, "foreground_words": "red"}
        for edit in (
            edited("BaretPromptToPromptEdit", model, inversion, self.OTHER, **source, **words),
            edited("BaretMasaCtrlEdit", model, inversion, self.OTHER, **source, **borrowing),
        ):
            assert torch.isfinite(edit).all()

    def test_cancelled_edits_leave_a_clean_model(self, make_model, inverted, edited, cancelling, plain):
        model = make_model()
        before, options = plain(model), str(model.model_options)
        inversion = inverted(model)
        for node, inputs in (
            ("BaretPromptToPromptEdit", {"source_text": self.SAME}),
            ("BaretMasaCtrlEdit", {"first_block": 3}),
        ):
            with cancelling(model):
                edited(node, model, inversion, self.OTHER, **inputs)
            assert torch.equal(plain(model), before)
            assert str(model.model_options) == options
            assert model.model.current_patcher is None


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
        assert str(model.model_options) == options
        assert model.object_patches == {}
        assert model.get_all_wrappers("prepare_sampling") == []
        assert model.model.current_patcher is None

    def test_a_whole_run(self, shared, invert, edit):
        trajectory, embeddings, _ = invert(shared)
        edit(shared, trajectory, embeddings)

    @pytest.mark.parametrize("at", [0, 1, STEPS + 2, STEPS + 9])
    def test_a_cancelled_inversion(self, shared, invert, cancelling, at):
        with cancelling(shared, at):
            invert(shared)
        fresh = invert(shared)
        assert torch.equal(fresh[0].latents, invert(shared)[0].latents)

    def test_a_cancelled_edit(self, shared, invert, edit, cancelling):
        trajectory, embeddings, _ = invert(shared)
        wanted = edit(shared, trajectory, embeddings)
        with cancelling(shared):
            edit(shared, trajectory, embeddings)
        assert torch.equal(edit(shared, trajectory, embeddings), wanted)

    @pytest.mark.parametrize(
        "learning_rate, sentence",
        [(1e30, "TTIS Inversion: NaN or infinity appeared in the tuning at step 0 of 5 .* lower learning_rate")],
    )
    def test_a_failed_tuning(self, shared, invert, learning_rate, sentence):
        def fail(module, args, out):
            in_tuning = torch.is_grad_enabled() and args[1][0] < 900
            return out * float("nan") if in_tuning else out

        handle = shared.model.diffusion_model.register_forward_hook(fail)
        try:
            with pytest.raises(RuntimeError, match=sentence):
                invert(shared, learning_rate=learning_rate)
        finally:
            handle.remove()

    def test_out_of_memory(self, shared, invert):
        def exhaust(module, args):
            if torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        handle = shared.model.diffusion_model.register_forward_pre_hook(exhaust)
        sentence = r"out of memory with 1 latent\(s\) of 12x8 .* GB with the model.*use a smaller picture"
        with pytest.raises(torch.cuda.OutOfMemoryError, match=sentence):
            invert(shared)
        handle.remove()


def test_inputs_are_not_changed(model, invert, edit, text, picture):
    latent, positive = picture(), text(1)
    latent_before, text_before = latent["samples"].clone(), positive[0][0].clone()
    trajectory, embeddings, _ = invert(model, latent=latent, positive=positive)

    def values():
        of_embeddings = [getattr(embeddings, name) for name in ("tuned", "target", "negative", "eta")]
        return [trajectory.pivots, trajectory.latents, *of_embeddings]

    values_before = [value.clone() for value in values()]
    first = edit(model, trajectory, embeddings)
    assert torch.equal(edit(model, trajectory, embeddings), first)
    assert torch.equal(latent["samples"], latent_before)
    assert torch.equal(positive[0][0], text_before) and positive[0][1] == {}
    for before, after in zip(values_before, values()):
        assert torch.equal(before, after)


def test_results_lie_where_the_host_keeps_them_and_can_be_tuned_again(model, invert, edit):
    trajectory, embeddings, reconstruction = invert(model)
    for value in (trajectory.pivots, trajectory.latents, embeddings.tuned, reconstruction["samples"]):
        assert value.device.type == "cpu" and not value.requires_grad
    assert edit(model, trajectory, embeddings).shape == reconstruction["samples"].shape


def test_progress_and_previews(model, invert, edit, monkeypatch):
    import comfy.utils
    import latent_preview

    shown = []

    def show(value, total, preview, **kwargs):
        shown.append((value, total, preview is not None))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", show)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    trajectory, embeddings, _ = invert(model)
    assert shown == [(i + 1, 2 * STEPS, True) for i in range(2 * STEPS)]
    shown.clear()
    edit(model, trajectory, embeddings)
    assert shown == [(i + 1, STEPS, True) for i in range(STEPS)]
