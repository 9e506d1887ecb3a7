"""Beside other packs: small stand-ins, written from what those packs say that they do, on the model or by hooks."""

from types import SimpleNamespace

import pytest
import torch

STEPS, CFG = 4, 3.0


@pytest.fixture
def inverted(ttis, model):
    """Trajectory and moving embeddings of a picture, inverted on the plain model."""
    return ttis(model, steps=STEPS, iterations=1, cfg=CFG, step_rule="adam", learning_rate=0.05)[:2]


@pytest.fixture
def edit(execute, bam, inverted):
    """BAM Edit of that picture on a model, sharing in every step."""

    def call(model, **inputs):
        trajectory, embeddings = inverted
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        given = {"tau_sa": 1.0, "tau_ca": 1.0, "cfg": CFG}
        return bam(model, trajectory, moving, **{**given, **inputs})

    return call


def difference(a, b):
    return float((a - b).norm() / b.norm())


# --- patches that came before ours ------------------------------------------------------------------------------------


def merging(model, share=0.5):
    """As ToMe: half of the tokens of self-attention are merged into their likes before it, and copied back behind it.

    Which ones are alike is read from the queries' input, and the same for keys and values.
    """
    merged = model.clone()
    ways = []

    def merge(n, context, value, extra):
        half = n.shape[1] // 2
        kept, moved = n[:, :half], n[:, half:]
        unit = torch.nn.functional.normalize
        nearest = (unit(moved, dim=-1) @ unit(kept, dim=-1).transpose(1, 2)).argmax(-1)
        ways.append(nearest)
        return tuple(_merged(each, nearest, half) for each in (n, context, value))

    def unmerge(out, extra):
        nearest = ways.pop()
        return torch.cat([out, out.gather(1, nearest[..., None].expand(-1, -1, out.shape[-1]))], 1)

    merged.set_model_attn1_patch(merge)
    merged.set_model_attn1_output_patch(unmerge)
    return merged


def _merged(tokens, nearest, half):
    places = nearest[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens[:, :half].scatter_reduce(1, places, tokens[:, half:], "mean")


def tiling(model):
    """As HyperTile: self-attention sees the upper and the lower half of the picture as pictures of their own."""
    tiled = model.clone()

    def cut(n, context, value, extra):
        return tuple(each.unflatten(1, (2, -1)).flatten(0, 1) for each in (n, context, value))

    def join(out, extra):
        return out.unflatten(0, (-1, 2)).flatten(1, 2)

    tiled.set_model_attn1_patch(cut)
    tiled.set_model_attn1_output_patch(join)
    return tiled


def with_a_region(model, by_hooks=False):
    """As attention couple: rows of a region are added to cross-attention's, and left out again behind it.

    The region is empty, so that nothing may change.
    """
    regional = model.clone()

    def add(n, context, value, extra):
        return tuple(torch.cat([each, each.flip(0)]) for each in (n, context, value))

    def leave_out(out, extra):
        return out[: len(out) // 2]

    if by_hooks:
        return regional, {"attn2_patch": [add], "attn2_output_patch": [leave_out]}
    regional.set_model_attn2_patch(add)
    regional.set_model_attn2_output_patch(leave_out)
    return regional


def test_merged_tokens(model, edit):
    """With all of self-attention borrowed, the edit's layout is the reconstruction's, merged or not."""
    plain, merged, own = edit(model), edit(merging(model)), edit(merging(model), tau_sa=0.0)
    cost = difference(own, edit(model, tau_sa=0.0))
    assert 0 < difference(merged, plain) < 3 * cost, "no more than merging costs without sharing"


def test_merged_tokens_are_shared_as_they_were_before(pack, model, predict_like):
    """The borrower's row is the lender's in all but its values, whatever is done to rows afterwards."""
    sharing = pack.modules["baret_ops.attention"].Sharing(processes=2, self_from=(1, 1), looks_from=(1, 1))
    x = torch.randn(1, 4, 8, 12).repeat(2, 1, 1, 1) * 5
    text = torch.randn(1, 6, 24).repeat(2, 1, 1)
    x[0] += 1
    for other in (merging(model), tiling(model)):
        alone = predict_like(other, x.flip(0), text, sharing)
        shared = predict_like(other, x, text, sharing)
        assert torch.isfinite(shared).all() and not torch.equal(shared[0], alone[0])
        torch.testing.assert_close(shared[1], predict_like(other, x, text, None)[1], rtol=1e-4, atol=1e-4)


@pytest.fixture
def predict_like(pack):
    """A conditional forward of a model through the door to the host."""

    def call(model, x, text, sharing):
        run, schedules = pack.modules["host.run"], pack.modules["baret_ops.schedule"]
        schedule = schedules.make_schedule(model.get_model_object("model_sampling").sigmas, 4)

        def loop(predict, device):
            return predict(x, 5.0, cond=text, sharing=sharing)[0]

        needed = {"rows": len(x), "shape": tuple(x.shape[1:]), "schedule": schedule}
        with torch.inference_mode():
            return run.sample(model, loop, positive=(text, {}), negative=(text, {}), **needed)

    return call


def test_tiled_attention(model, edit):
    tiled = tiling(model)
    plain, shared = edit(tiled, tau_sa=0.0), edit(tiled)
    assert torch.isfinite(shared).all() and difference(shared, plain) > 1e-3


def test_a_region_that_is_empty(model, edit):
    torch.testing.assert_close(edit(with_a_region(model)), edit(model), rtol=1e-4, atol=1e-4)


def test_a_region_that_comes_by_hooks(model, ttis, text, execute, bam):
    """Hooks' patches are put behind those of the model, when the forward begins."""
    import comfy.hooks

    _, patches = with_a_region(model, by_hooks=True)
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook({"patches": patches}))
    results = []
    for hooks in (None, group):
        options = {} if hooks is None else {"hooks": hooks}
        positive = [[text(1)[0][0], options]]
        trajectory, embeddings, _ = ttis(model, steps=STEPS, iterations=0, cfg=CFG, positive=positive)
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        results.append(bam(model, trajectory, moving, tau_sa=1.0, tau_ca=1.0, cfg=CFG))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# --- tiles of the picture ---------------------------------------------------------------------------------------------


def tiles(model, together):
    """As TiledDiffusion: the left and the right half of the picture go through the UNet apart, or in one batch."""
    tiled = model.clone()

    def wrapper(apply, args):
        x, time, conditioning = args["input"], args["timestep"], args["c"]
        halves = x.chunk(2, -1)
        with torch.inference_mode():
            if not together:
                return torch.cat([apply(half, time, **conditioning) for half in halves], -1)
            both = {**conditioning, "c_crossattn": conditioning["c_crossattn"].repeat(2, 1, 1)}
            return torch.cat(apply(torch.cat(halves), time.repeat(2), **both).chunk(2), -1)

    tiled.set_model_unet_function_wrapper(wrapper)
    return tiled


def test_tiles_one_after_another(model, edit):
    """Each tile is a picture of its own, of as many rows as asked for."""
    assert torch.isfinite(edit(tiles(model, together=False))).all()


@pytest.mark.parametrize("inputs", [{}, {"tau_sa": 0.0}, {"tau_ca": 0.0}])
def test_tiles_in_one_batch_are_refused(model, edit, inputs):
    """Their rows divide evenly into processes, and are others' rows."""
    with pytest.raises(ValueError, match="BAM Edit: attention of .* rows came where .* changes the batch size"):
        edit(tiles(model, together=True), **inputs)


def test_a_wrapper_without_gradients_is_refused_for_tuning(model, ttis):
    for step_rule in ("adam", "secant", "secant_memory"):
        with pytest.raises(
            ValueError, match="TTIS Inversion: the model's prediction cannot be followed back to the text"
        ):
            ttis(tiles(model, together=False), steps=STEPS, iterations=1, step_rule=step_rule)
    ttis(tiles(model, together=False), steps=STEPS, iterations=0)


@pytest.mark.parametrize("change", [merging, tiling])
def test_attention_that_is_looked_into_is_the_pictures(model, change, drawn_world, execute):
    """MasaCtrl's foreground needs a place for each token."""
    world = drawn_world
    picture, caption, _ = execute("BaretWorldScene", seed=1)
    text, latent = world.encode(caption), world.latent(picture)
    trajectory, embeddings, _ = execute(
        "BaretInversion", model=world.model, positive=text, negative=text, latent=latent, steps=2
    )
    with pytest.raises(ValueError, match="MasaCtrl Edit: attention of .* came where .* expected"):
        execute(
            "BaretMasaCtrlEdit",
            model=change(world.model),
            clip=world.clip,
            trajectory=trajectory,
            embeddings=embeddings,
            target_text=caption,
            start_step=0,
            first_block=0,
            foreground_words="",
        )


# --- LoRAs beside the layers ------------------------------------------------------------------------------------------


@pytest.fixture
def lora_file(host, tmp_path, monkeypatch):
    """The name of a LoRA file for the attention and the convolutions of the small model, in the host's folder."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    weights = {}
    shapes = {
        "input_blocks_1_1_transformer_blocks_0_attn2_to_k": (32, 24),
        "middle_block_1_transformer_blocks_0_attn1_to_q": (64, 64),
        "input_blocks_1_0_in_layers_2": (32, 32, 3, 3),
    }
    for name, (outputs, inputs, *kernel) in shapes.items():
        up, down = (outputs, 4, *[1 for _ in kernel]), (4, inputs, *kernel)
        for part, shape in (("up", up), ("down", down)):
            weights[f"lora_unet_{name}.lora_{part}.weight"] = 0.3 * torch.randn(shape, generator=generator)
    save_file(weights, tmp_path / "a.safetensors")
    monkeypatch.setitem(host.folders.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return "a.safetensors"


@pytest.fixture
def with_lora(host, lora_file):
    """A model with that LoRA, by one of the host's loaders."""
    from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly

    def call(model, beside):
        loader = LoraLoaderBypassModelOnly if beside else host.nodes.LoraLoaderModelOnly
        with torch.inference_mode():
            return loader().load_lora_model_only(model, lora_file, 1.0)[0]

    return call


def inputs_of(model):
    """What of a MODEL's layers another loader could have changed."""
    modules = dict(model.model.named_modules())
    ran = [name for name, part in modules.items() if "Bypass" in type(getattr(part.forward, "__self__", None)).__name__]
    return ran, {name: weight.detach().clone() for name, weight in model.model.state_dict().items()}


@pytest.mark.parametrize("step_rule", ["adam", "secant"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_lora_beside_the_layers_is_tuned_through(make_model, ttis, with_lora, step_rule, twice):
    """As through the same LoRA in the weights; twice: one on the other, as two loaders in a row."""
    found, settings = [], {"steps": STEPS, "iterations": 2, "learning_rate": 0.05, "step_rule": step_rule}
    for beside in (True, False):
        plain = make_model()
        before = inputs_of(plain)
        patched = with_lora(plain, beside)
        if twice:
            patched = with_lora(patched, False)
        trajectory, embeddings, _ = ttis(patched, **settings)
        without = ttis(plain, **settings)[0]
        assert difference(trajectory.latents, without.latents) > 1e-2, "the LoRA acts"
        found.append((trajectory.latents, embeddings.tuned))
        again = ttis(patched, **settings)[0]
        assert torch.equal(again.latents, trajectory.latents)
        ttis(make_model(), **settings)
        patched.detach()
        ran, weights = inputs_of(plain)
        assert ran == before[0] == []
        assert all(torch.equal(weight, before[1][name]) for name, weight in weights.items())
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)


# --- what goes by steps -----------------------------------------------------------------------------------------------


@pytest.fixture
def by_keyframes(host):
    """A conditioning's hooks: a LoRA whose strength goes by the host's own keyframes."""
    import comfy.hooks
    from comfy_extras.nodes_hooks import CreateHookKeyframe, SetHookKeyframes

    def call(*strengths):
        hooks, keyframes = comfy.hooks.create_hook_lora({}, 1.0, 0.0), None
        for place, strength in enumerate(strengths):
            (keyframes,) = CreateHookKeyframe().create_hook_keyframe(strength, place / len(strengths), keyframes)
        return SetHookKeyframes().set_hook_keyframes(hooks, keyframes)[0]

    return call


def test_keyframes_of_hooks_are_refused(model, ttis, text, by_keyframes):
    sentence = "TTIS Inversion: {} carries a LoRA hook with keyframes, which only move forward"
    for role in ("positive", "negative"):
        with pytest.raises(ValueError, match=sentence.format(role)):
            ttis(model, steps=STEPS, **{role: text(1, hooks=by_keyframes(0.2, 1.0))})
    ttis(model, steps=STEPS, iterations=0, positive=text(1, hooks=by_keyframes(0.5, 0.5)))


def test_keyframes_of_a_controlnet_are_refused(model, ttis, text):
    """As Advanced-ControlNet, in whose ControlNets the first keyframe is always there."""
    from comfy.controlnet import ControlBase

    class Advanced(ControlBase):
        def __init__(self, keyframes):
            super().__init__()
            self.timestep_keyframes = SimpleNamespace(keyframes=keyframes)

        def get_control(self, *args):
            return None

        def get_models(self):
            return []

        def copy(self):
            return self

    sentence = "TTIS Inversion: positive carries a ControlNet with keyframes, which only move forward"
    with pytest.raises(ValueError, match=sentence):
        ttis(model, steps=STEPS, positive=text(1, control=Advanced([1, 2])))
    ttis(model, steps=STEPS, iterations=0, positive=text(1, control=Advanced([1])))


def test_a_cache_of_steps_is_refused(model, ttis, edit):
    from comfy_extras.nodes_easycache import EasyCacheNode

    (cached,) = EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args
    with pytest.raises(ValueError, match="TTIS Inversion: the model leaves steps out .* remove EasyCache"):
        ttis(cached, steps=STEPS, iterations=0)
    with pytest.raises(ValueError, match="BAM Edit: the model leaves steps out .* remove EasyCache"):
        edit(cached)


# --- what changes guidance --------------------------------------------------------------------------------------------


def test_a_cache_around_guidance_changes_nothing(model, ttis, edit):
    """LazyCache stands around the host's guidance, which these nodes do themselves."""
    from comfy_extras.nodes_easycache import LazyCacheNode

    (cached,) = LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args
    settings = {"steps": STEPS, "iterations": 0}
    assert torch.equal(ttis(cached, **settings)[0].latents, ttis(model, **settings)[0].latents)
    assert torch.equal(edit(cached), edit(model))


def test_guidance_in_attention_acts_where_both_passes_share_a_forward(model, ttis, edit, run_passes_apart):
    """NAGuidance: never in an inversion, nor while an edit borrows; in an edit's other steps while memory allows."""
    nag = pytest.importorskip("comfy_extras.nodes_nag")
    (guided,) = nag.NAGuidance.execute(model, 5.0, 0.5, 1.5).args
    settings = {"steps": STEPS, "iterations": 1}
    assert difference(ttis(guided, **settings)[0].latents, ttis(model, **settings)[0].latents) < 1e-4
    assert difference(edit(guided), edit(model)) < 1e-4
    none = {"tau_sa": 0.0, "tau_ca": 0.0}
    assert difference(edit(guided, **none), edit(model, **none)) > 1e-3
    run_passes_apart()
    assert difference(edit(guided, **none), edit(model, **none)) < 1e-4


# --- other shapes of the UNet -----------------------------------------------------------------------------------------


def with_a_coarser_middle(model):
    """As RAUNet: one block's output is halved in size, and doubled again when the decoder comes back to it."""
    coarse = model.clone()
    scale = torch.nn.functional.interpolate

    def halve(h, options):
        return scale(h, scale_factor=0.5, mode="area") if options["block"] == ("input", 2) else h

    def double(h, skip, options):
        return (scale(h, size=skip.shape[-2:], mode="bilinear"), skip) if h.shape[-2:] != skip.shape[-2:] else (h, skip)

    coarse.set_model_input_block_patch_after_skip(halve)
    coarse.set_model_output_block_patch(double)
    return coarse


def test_a_coarser_grid_in_the_middle(model, ttis, edit):
    coarse = with_a_coarser_middle(model)
    settings = {"steps": STEPS, "iterations": 1, "step_rule": "adam", "learning_rate": 0.05}
    found = ttis(coarse, **settings)[0]
    assert torch.isfinite(found.latents).all()
    assert difference(found.latents, ttis(model, **settings)[0].latents) > 1e-3, "it acts"
    shared, apart = edit(coarse), edit(coarse, tau_sa=0.0, tau_ca=0.0)
    assert torch.isfinite(shared).all() and difference(shared, apart) > 1e-3
