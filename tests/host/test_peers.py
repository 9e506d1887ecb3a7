"""Null-text inversion, inversion without tuning, prompt-to-prompt and MasaCtrl as nodes.

Their invariants, costs, masks, combinations and bad input. The methods' own formulas: test_references.py.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import interpolate

STEPS, CFG = 10, 3.0
SOURCE, TARGET = "1 a red dog", "2 a red cat"
FOREGROUND = {"foreground_words": "dog, cat", "source_text": SOURCE}
THING = 4
"""The token of "dog" and of "cat" in these texts."""
BLOCKS = 7
GRIDS = {96: (8, 12), 24: (4, 6)}
"""(h,w) of the attentions' queries by their number."""
COARSE = 24
METHODS = ["direct", "negative-prompt", "DDIM"]


def close(a, b, relative=1e-5):
    torch.testing.assert_close(a, b, rtol=relative, atol=relative * float(b.abs().max()))


@pytest.fixture
def encode(clip):
    return lambda written: clip.encode_from_tokens_scheduled(clip.tokenize(written))


@pytest.fixture
def invert(execute, model, encode, text, picture):
    def call(method="DDIM", source=SOURCE, **inputs):
        given = {
            "model": model,
            "positive": encode(source),
            "negative": text(9),
            "latent": picture(),
            "steps": STEPS,
            "cfg": CFG,
            "method": method,
        }
        return execute("BaretInversion", **{**given, **inputs})

    return call


@pytest.fixture
def null_text(execute, model, encode, text, picture):
    def call(source=SOURCE, **inputs):
        given = {
            "model": model,
            "positive": encode(source),
            "negative": text(9),
            "latent": picture(),
            "steps": STEPS,
            "cfg": CFG,
            "iterations": 3,
            "learning_rate": 0.05,
        }
        return execute("BaretNullTextInversion", **{**given, **inputs})

    return call


@pytest.fixture
def p2p(execute, model, clip):
    def call(trajectory, embeddings, **inputs):
        given = {
            "model": model,
            "clip": clip,
            "trajectory": trajectory,
            "embeddings": embeddings,
            "source_text": SOURCE,
            "target_text": TARGET,
            "cfg": CFG,
        }
        edit, mask = execute("BaretPromptToPromptEdit", **{**given, **inputs})
        return edit["samples"], mask

    return call


@pytest.fixture
def masactrl(execute, model, clip):
    def call(trajectory, embeddings, **inputs):
        given = {
            "model": model,
            "clip": clip,
            "trajectory": trajectory,
            "embeddings": embeddings,
            "target_text": TARGET,
            "cfg": CFG,
            "first_block": 3,
            "start_step": 2,
        }
        return execute("BaretMasaCtrlEdit", **{**given, **inputs})[0]["samples"]

    return call


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention of one forward of the real UNet: what came to it before any patch, and what it gave in the end.

    block: 0 to 6. is_cross: or self-attention. passes: 0 for a conditional chunk of rows, 1 for an unconditional one.
    layer: the host's own, with its projections. hidden ``[R,L,d]``, context ``[R,S,d']``: what is projected to queries,
    and to keys and values. out ``[R,L,heads*d]``: what goes into the output's projection.
    """

    block: int
    is_cross: bool
    passes: list[int]
    layer: torch.nn.Module
    hidden: torch.Tensor
    context: torch.Tensor
    out: torch.Tensor

    def row(self, process, conditional=True):
        """The row of a process of one image, where every pass runs the edit, 0, and the source, 1."""
        return 2 * self.passes.index(0 if conditional else 1) + process

    def maps(self, row, keys_of=None):
        """``softmax(Q K^T / sqrt(d))`` of a row, over its own keys or another row's: ``[heads,L,S]``."""
        q = self._heads(self.layer.to_q(self.hidden[row]))
        k = self._heads(self.layer.to_k(self.context[row if keys_of is None else keys_of]))
        return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)

    def gives(self, maps, values_of):
        """The attention with these maps over the values of a row, ``[L,heads*d]``."""
        v = self._heads(self.layer.to_v(self.context[values_of]))
        return (maps @ v).transpose(0, 1).flatten(1)

    def _heads(self, projected):
        return projected.unflatten(-1, (self.layer.heads, -1)).transpose(0, 1)


@pytest.fixture
def attentions(model):
    """A list that fills with every :class:`Attention` of the shared model's UNet, in the order they run."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    seen = []
    unet = model.model.diffusion_model
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    assert len(blocks) == BLOCKS

    def watch(number, block):
        now = {}

        def begins(module, args, kwargs):
            now.update(context=kwargs["context"], passes=kwargs["transformer_options"]["cond_or_uncond"])

        def is_normalized(module, args, hidden):
            now["hidden"] = hidden

        def ends(is_cross, layer):
            def hook(module, args):
                hidden, context = now["hidden"], now["context"] if is_cross else now["hidden"]
                seen.append(Attention(number, is_cross, list(now["passes"]), layer, hidden, context, args[0]))

            return hook

        return [
            block.register_forward_pre_hook(begins, with_kwargs=True),
            block.norm1.register_forward_hook(is_normalized),
            block.attn1.to_out.register_forward_pre_hook(ends(False, block.attn1)),
            block.norm2.register_forward_hook(is_normalized),
            block.attn2.to_out.register_forward_pre_hook(ends(True, block.attn2)),
        ]

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            for handle in watch(number, block):
                stack.callback(handle.remove)
        yield seen


# --- inversion ---


@pytest.mark.parametrize("method", METHODS)
def test_what_an_inversion_gives(invert, encode, text, picture, method):
    trajectory, embeddings, reconstruction = invert(method)
    assert torch.equal(trajectory.pivots[-1], picture()["samples"] * 0.18215)
    assert torch.equal(embeddings.tuned, encode(SOURCE)[0][0].expand(STEPS, -1, -1, -1))
    assert torch.equal(embeddings.negative, encode(SOURCE)[0][0] if method == "negative-prompt" else text(9)[0][0])
    assert trajectory.is_direct == (method == "direct") and embeddings.is_rigid
    if method == "direct":
        close(reconstruction["samples"], picture()["samples"])
        assert not embeddings.losses.any()
    else:
        misses = (trajectory.latents[1:] - trajectory.pivots[1:]).square().flatten(2).mean(2)
        close(embeddings.losses, misses)
        close(reconstruction["samples"], trajectory.latents[-1] / 0.18215)


def test_ddim_is_ttis_without_updates(invert, ttis, model, encode, text):
    trajectory, _, _ = invert("DDIM")
    same, _, _ = ttis(model, positive=encode(SOURCE), negative=text(9), steps=STEPS, cfg=CFG, iterations=0)
    close(trajectory.latents, same.latents, 1e-4)


@pytest.mark.parametrize(("method", "rows"), zip(METHODS, (1, 2, 3)))
def test_rows_of_an_inversion(invert, counted, method, rows):
    invert(method)
    assert counted.rows == rows * STEPS


# --- null-text inversion ---


def test_null_text_without_updates_is_ddim(invert, null_text):
    trajectory, embeddings, _ = null_text(iterations=0)
    close(trajectory.latents, invert("DDIM")[0].latents, 1e-4)
    assert torch.equal(embeddings.negative, invert("DDIM")[1].negative.expand(STEPS, -1, -1, -1))


@pytest.mark.parametrize("step_rule", ["adam", "secant", "secant_memory"])
def test_null_text_tunes_the_negative_alone(null_text, invert, encode, step_rule):
    _, untuned, _ = invert("DDIM")
    trajectory, embeddings, reconstruction = null_text(step_rule=step_rule)
    assert torch.equal(embeddings.tuned, encode(SOURCE)[0][0].expand(STEPS, -1, -1, -1))
    assert embeddings.negative.shape == (STEPS, 1, 6, 24)
    assert embeddings.losses.sum() < 0.7 * untuned.losses.sum()
    close(reconstruction["samples"], trajectory.latents[-1] / 0.18215)


@pytest.mark.parametrize("stop", [0.0, 1e9])
def test_rows_of_null_text(null_text, counted, stop):
    """One of the inversion, one of the text, one before each update and one after the last.

    Every step updates at least once.
    """
    _, embeddings, _ = null_text(stop_threshold=stop)
    assert (embeddings.updates == (1 if stop else 3)).all()
    assert counted.rows == STEPS + STEPS + int((embeddings.updates + 1).sum())


def test_null_text_of_an_image_does_not_depend_on_its_batch(null_text, invert, picture):
    latent = picture(images=2)["samples"]
    _, untuned, _ = invert("DDIM", latent={"samples": latent})
    rule = {"iterations": 4, "stop_threshold": 0.4 * float(untuned.losses[2].mean()), "stop_growth": 0.0}
    together = null_text(latent={"samples": latent}, **rule)
    for row in range(2):
        alone = null_text(latent={"samples": latent[row : row + 1]}, **rule)
        assert torch.equal(together[1].updates[:, row], alone[1].updates[:, 0])
        close(together[0].latents[:, row], alone[0].latents[:, 0], 1e-3)
    assert (together[1].updates[:, 0] != together[1].updates[:, 1]).any()


def test_edits_of_null_text(null_text, p2p, masactrl, bam, execute, model, encode):
    trajectory, embeddings, reconstruction = null_text()
    close(p2p(trajectory, embeddings, target_text=SOURCE)[0], reconstruction["samples"], 1e-4)
    close(masactrl(trajectory, embeddings, target_text=SOURCE), reconstruction["samples"], 1e-4)
    close(bam(model, trajectory, embeddings, cfg=CFG, passes="both"), reconstruction["samples"], 1e-4)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=encode(TARGET))
    edits = bam(model, trajectory, moving, cfg=CFG), p2p(trajectory, embeddings)[0], masactrl(trajectory, embeddings)
    for edit in edits:
        assert torch.isfinite(edit).all() and (edit - reconstruction["samples"]).abs().max() > 1e-2


def test_null_text_through_stock_samplers_and_files(null_text, execute, stock_euler, model, host):
    """Each step's negative is active at its step alone; a file keeps them."""
    trajectory, embeddings, reconstruction = null_text()
    execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings, filename_prefix="peers/null")
    (file,) = (host.base / "output" / "peers").glob("null*")
    trajectory, embeddings = execute("BaretLoadInversion", file=f"peers/{file.name} [output]")
    positive, negative, sigmas, latent = execute(
        "BaretToSampler", embeddings=embeddings, trajectory=trajectory, process="reconstruction"
    )
    assert len(positive) == len(negative) == STEPS
    out = stock_euler(model, CFG, sigmas, positive, negative, latent["samples"])
    close(out / trajectory.schedule.scale(STEPS), reconstruction["samples"], 1e-4)


def test_bad_input_of_null_text(null_text, make_model):
    with pytest.raises(ValueError, match="Null-Text Inversion: steps is 1000; this model's schedule allows 2 to 999"):
        null_text(steps=1000)
    with pytest.raises(ValueError, match="Null-Text Inversion: the model takes 9 input channels"):
        null_text(model=make_model(in_channels=9))


# --- what must hold whatever the weights ---


@pytest.mark.parametrize("method", ["negative-prompt", "DDIM"])
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"alignment": "replace", "cross_share": 1.0, "self_share": 1.0},
        {"blend_words": "dog"},
        {"reweight": "dog:1, red:1"},
    ],
)
def test_the_same_text_gives_the_source(invert, p2p, masactrl, method, inputs):
    trajectory, embeddings, reconstruction = invert(method)
    close(p2p(trajectory, embeddings, target_text=SOURCE, **inputs)[0], reconstruction["samples"], 1e-4)
    if not inputs:
        close(masactrl(trajectory, embeddings, target_text=SOURCE), reconstruction["samples"], 1e-4)


def test_without_shares_an_edit_is_plain_guided_sampling(invert, p2p, masactrl, bam, execute, model, encode):
    trajectory, embeddings, _ = invert()
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=encode(TARGET))
    plain = bam(model, trajectory, moving, tau_sa=0.0, tau_ca=0.0, cfg=CFG)
    close(p2p(trajectory, embeddings, cross_share=0.0, self_share=0.0)[0], plain)
    close(masactrl(trajectory, embeddings, start_step=STEPS), plain)
    close(masactrl(trajectory, embeddings, start_step=STEPS, **FOREGROUND), plain)


def test_replace_with_full_shares_has_the_sources_maps(invert, p2p, attentions):
    """Seen at the attention itself: the edit looks where the source looks, in every block, and takes its own values."""
    trajectory, embeddings, _ = invert()
    attentions.clear()
    p2p(trajectory, embeddings, alignment="replace", cross_share=1.0, self_share=1.0, max_resolution=0)
    conditional = [each for each in attentions if 0 in each.passes]
    assert len(conditional) == STEPS * BLOCKS * 2
    own_would_differ = 0
    with torch.inference_mode():
        for each in conditional:
            edit, source = each.row(0), each.row(1)
            close(each.out[edit], each.gives(each.maps(source), values_of=edit))
            close(each.out[source], each.gives(each.maps(source), values_of=source))
            with_own_maps = each.gives(each.maps(edit), values_of=edit)
            own_would_differ += bool((each.out[edit] - with_own_maps).abs().max() > 1e-2)
    assert own_would_differ == STEPS * BLOCKS * 2 - 1, "both begin with one noise: there the first maps are alike"


def test_a_weight_of_one_changes_nothing_and_of_zero_takes_the_word_away(pack, invert, p2p, clip, monkeypatch):
    trajectory, embeddings, _ = invert()
    everything = {"alignment": "replace", "cross_share": 1.0}
    plain, _ = p2p(trajectory, embeddings, **everything)
    assert torch.equal(p2p(trajectory, embeddings, reweight="cat:1", **everything)[0], plain)
    silent, _ = p2p(trajectory, embeddings, reweight="cat:0", **everything)
    assert (silent - plain).abs().max() > 1e-3

    # Whatever stands at the word's token then: no difference. With its weight there is one.
    values = pack.modules["baret_ops.values"].Embeddings
    real = values.with_target

    def otherwise(self, target, options):
        target = target.clone()
        target[:, 4] += 10.0
        return real(self, target, options)

    monkeypatch.setattr(values, "with_target", otherwise)
    close(p2p(trajectory, embeddings, reweight="cat:0", **everything)[0], silent)
    assert (p2p(trajectory, embeddings, **everything)[0] - plain).abs().max() > 1e-3


def test_a_words_own_share(invert, p2p):
    trajectory, embeddings, _ = invert()
    everywhere_alike, _ = p2p(trajectory, embeddings)
    written_out, _ = p2p(trajectory, embeddings, word_shares="2:0.4, a:0.4, cat:0.4")
    assert torch.equal(written_out, everywhere_alike)
    shorter, _ = p2p(trajectory, embeddings, word_shares="a:0.1")
    assert (shorter - everywhere_alike).abs().max() > 1e-3


def test_a_repeated_image_gives_the_single_run_in_each_row(invert, p2p, masactrl, picture):
    latent = {"samples": picture()["samples"].repeat(3, 1, 1, 1)}
    alone, together = invert("direct")[:2], invert("direct", latent=latent)[:2]

    def results(inversion):
        edit, mask = p2p(*inversion, blend_words="cat")
        return edit, mask, masactrl(*inversion), masactrl(*inversion, **FOREGROUND)

    for one, three in zip(results(alone), results(together)):
        for row in range(3):
            close(three[row], one[0], 1e-4)


@pytest.mark.parametrize("foreground", [{}, FOREGROUND])
def test_cond_and_uncond_together_or_apart(invert, p2p, masactrl, run_passes_apart, foreground):
    inversion = invert()[:2]
    together = p2p(*inversion, blend_words="cat")[0], masactrl(*inversion, **foreground)
    run_passes_apart()
    close(p2p(*inversion, blend_words="cat")[0], together[0])
    close(masactrl(*inversion, **foreground), together[1])


# --- costs ---


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ({}, 3 * 6 + 2 * 4),  # self_share 0.6 outlasts cross_share 0.4
        ({"cross_share": 0.2, "self_share": 0.0}, 3 * 2 + 2 * 8),
        # refine: the new word has no partner, so that nothing is lent for its sake
        ({"cross_share": 0.2, "self_share": 0.0, "word_shares": "cat:0.3"}, 3 * 2 + 2 * 8),
        ({"cross_share": 0.0, "self_share": 0.0}, 2 * 10),
        ({"blend_words": "cat"}, 3 * 10),
    ],
)
def test_rows_of_prompt_to_prompt(invert, p2p, counted, inputs, rows):
    trajectory, embeddings, _ = invert("direct")
    counted.rows = 0
    p2p(trajectory, embeddings, **inputs)
    assert counted.rows == rows


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [({}, 2 * 2 + 4 * 8), ({"start_step": 10}, 2 * 10), ({"foreground_words": "cat", "source_text": SOURCE}, 4 * 10)],
)
def test_rows_of_masactrl(invert, masactrl, counted, inputs, rows):
    trajectory, embeddings, _ = invert("direct")
    counted.rows = 0
    masactrl(trajectory, embeddings, **inputs)
    assert counted.rows == rows


def test_no_map_is_formed_unless_words_are_looked_for(pack, invert, p2p, masactrl, monkeypatch):
    module = pack.modules["baret_ops.maps"]
    formed, real = [], module.word_maps
    monkeypatch.setattr(module, "word_maps", lambda *args: formed.append(1) or real(*args))
    inversion = invert("direct")[:2]
    p2p(*inversion, reweight="cat:2", word_shares="a:0.2")
    masactrl(*inversion)
    assert formed == []
    p2p(*inversion, blend_words="cat")
    assert len(formed) == STEPS * 4 * 3, "four blocks have the coarse grid; the edit's maps are of two parts"


# --- masks ---


@pytest.mark.parametrize("method", METHODS)
def test_local_blend_keeps_the_source_outside(invert, p2p, method):
    trajectory, embeddings, reconstruction = invert(method)
    edit, mask = p2p(trajectory, embeddings, blend_words="cat", blend_threshold=0.9)
    assert mask.shape == (1, 64, 96) and set(mask.unique().tolist()) == {0.0, 1.0}
    outside = mask[:, ::8, ::8] == 0
    for channel in range(4):
        close(edit[:, channel][outside], reconstruction["samples"][:, channel][outside])
    assert (edit - reconstruction["samples"]).abs().max() > 1e-2
    wide = p2p(trajectory, embeddings, blend_words="cat", blend_threshold=0.1)[1]
    assert wide.sum() > mask.sum()
    assert p2p(trajectory, embeddings)[1].min() == 1.0, "without words it may change everywhere"


def test_a_mask_keeps_the_pivots_outside(invert, p2p, masactrl, picture):
    trajectory, embeddings, _ = invert()
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1.0
    edit, changed = p2p(trajectory, embeddings, mask=mask)
    for each in (edit, masactrl(trajectory, embeddings, mask=mask)):
        close(each[..., :5], picture()["samples"][..., :5], 1e-6)
        assert (each[..., 7:] - picture()["samples"][..., 7:]).abs().mean() > 0.05
    assert changed[..., :40].max() == 0.0 and changed[..., 56:].min() == 1.0


@pytest.fixture
def edit_with_content(invert, masactrl, attentions, model):
    """MasaCtrl, with something added to what the source has to give: its values in the last block's self-attention.

    Call with the addition ``[96]`` by place. Returns what this attention gives to the edit at the last step, ``[96,d]``
    in each pass, and all attentions of the run.
    """
    from comfy.ldm.modules.attention import BasicTransformerBlock

    blocks = [m for m in model.model.diffusion_model.modules() if isinstance(m, BasicTransformerBlock)]
    last = blocks[-1].attn1
    inversion = invert("direct")[:2]

    @contextmanager
    def adding(content):
        forwards = 0

        def hook(module, args, values):
            nonlocal forwards
            forwards += 1
            if forwards < STEPS:
                return values
            with_content = values.clone()
            with_content[1::2] += content[:, None]  # in both passes the source follows the edit
            return with_content

        handle = last.to_v.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def call(content, **inputs):
        attentions.clear()
        with adding(content):
            masactrl(*inversion, **inputs)
        seen = list(attentions)
        (*_, at) = [each for each in seen if each.layer is last]
        return [at.out[at.row(0, conditional)] for conditional in (True, False)], seen

    return call


def looks_at_thing(seen, process):
    """How much the places of a process look at its thing, ``[4,6]`` in 0..1, over all steps but the last."""
    maps = [each.maps(each.row(process)) for each in seen if each.is_cross and each.hidden.shape[1] == COARSE]
    steps = torch.stack(maps).unflatten(0, (STEPS, -1))
    look = steps[:-1].mean((0, 1, 2))[:, THING].view(GRIDS[COARSE])
    return (look - look.min()) / (look.max() - look.min())


def on_fine_grid(look):
    return interpolate(look[None, None], size=GRIDS[96], mode="bilinear").flatten()


def test_foreground_takes_no_content_from_elsewhere(edit_with_content):
    """Content is put into places of the source, and seen again in the edit at the attention itself.

    What lies in the source's background reaches a place of the edit only by the share in which the place is background,
    and the other way round; without words it comes from anywhere.
    """
    words, threshold = {**FOREGROUND, "foreground_threshold": 0.5}, 0.5
    plain, seen = edit_with_content(torch.zeros(96), **words)
    with torch.inference_mode():
        shows_thing = (looks_at_thing(seen, process=1) >= threshold).float()
        thing = (on_fine_grid(shows_thing) > 0.5).float()
        belongs = on_fine_grid(looks_at_thing(seen, process=0))
    assert 0.1 < thing.mean() < 0.9, "the source has both grounds"

    for content, share in ((thing, belongs), (1.0 - thing, 1.0 - belongs)):
        shown, _ = edit_with_content(content, **words)
        for before, after in zip(plain, shown):
            close(after - before, share[:, None].expand_as(before), 1e-4)

    anywhere = edit_with_content(torch.zeros(96))[0], edit_with_content(1.0 - thing)[0]
    for before, after in zip(*anywhere):
        assert ((after - before) - (1.0 - belongs)[:, None]).abs().max() > 0.1


# --- on the same wires ---


@pytest.fixture(scope="module")
def exact_model(make_model):
    """The shared model's weights in float64: it predicts without rounding that could be seen in a latent."""
    return make_model(dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_bam_edits_any_inversion(invert, bam, execute, model, exact_model, encode, method):
    """An edit by the inversion's own embeddings is its reconstruction; an edit by another text is another picture."""
    # The equality is asserted in float64, where it holds to the last bit. In float32 no run is its own true value to
    # 1e-5: reconstruction and edit are 1.6e-5 to 2.3e-5 away from it, since the random model lets rounding grow (1e-7
    # in the noise becomes 3e-6 to 5e-6 in the result). Negative-prompt inversion has most of it: both passes have one
    # text there, and eps + w (eps - eps), of different rows, has 2 w - 1 = 5 times the rounding of the one forward
    # that the reconstruction takes.
    if method != "direct":
        trajectory, embeddings, reconstruction = invert(method, model=exact_model)
        close(bam(exact_model, trajectory, embeddings, cfg=CFG), reconstruction["samples"], 1e-6)
    trajectory, embeddings, reconstruction = invert(method)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=encode(TARGET))
    edit = bam(model, trajectory, moving, cfg=CFG)
    assert (edit - reconstruction["samples"]).abs().max() > 1e-2


def test_edits_of_a_tuned_text(ttis, model, encode, text, p2p, masactrl):
    trajectory, embeddings, reconstruction = ttis(
        model,
        positive=encode(TARGET),
        negative=text(9),
        steps=STEPS,
        cfg=CFG,
        iterations=2,
        learning_rate=0.05,
    )
    for each in (p2p(trajectory, embeddings, source_text=TARGET)[0], masactrl(trajectory, embeddings)):
        assert torch.isfinite(each).all() and (each - reconstruction["samples"]).abs().max() > 1e-3


def test_texts_of_other_lengths(invert, p2p, masactrl, execute, encode, text):
    """A target text that was repeated to a common length with the source's gives what it gives unrepeated."""
    trajectory, embeddings, _ = invert()
    twice = replace(embeddings, tuned=embeddings.tuned.repeat(1, 1, 2, 1), target=embeddings.target.repeat(1, 2, 1))
    for foreground in ({}, FOREGROUND):
        close(masactrl(trajectory, twice, **foreground), masactrl(trajectory, embeddings, **foreground))
    close(p2p(trajectory, twice, blend_words="cat")[0], p2p(trajectory, embeddings, blend_words="cat")[0])


def test_texts_of_several_windows(invert, p2p, masactrl):
    """A source of two windows, and an edit to one of one window and back: the words are found wherever they stand."""
    long = "5 a big red dog that runs over a meadow with flowers and a tree"
    trajectory, embeddings, reconstruction = invert("DDIM", source=long)
    assert embeddings.tuned.shape[2] == 24
    same, _ = p2p(trajectory, embeddings, source_text=long, target_text=long, blend_words="tree")
    close(same, reconstruction["samples"], 1e-4)
    short = p2p(trajectory, embeddings, source_text=long, blend_words="tree, cat", reweight="cat:2")[0]
    trajectory, embeddings, _ = invert("DDIM")
    longer = p2p(trajectory, embeddings, target_text=long, blend_words="tree", reweight="tree:2")[0]
    filled = masactrl(trajectory, embeddings, target_text=long, source_text=SOURCE, foreground_words="dog, tree")
    for edit in (short, longer, filled):
        assert torch.isfinite(edit).all() and (edit - reconstruction["samples"]).abs().max() > 1e-2


def test_progress_and_previews(invert, null_text, p2p, masactrl, monkeypatch):
    import latent_preview

    seen = []

    def preview(step, x0, x, total):
        seen.append((step, total, x0.shape))

    monkeypatch.setattr(latent_preview, "prepare_callback", lambda model, steps: preview)
    for method, total in zip(METHODS, (STEPS, 2 * STEPS, 2 * STEPS)):
        inversion = invert(method)[:2]
        assert seen == [(step, total, (1, 4, 8, 12)) for step in range(total)]
        seen.clear()
    null_text()
    assert [step for step, _, _ in seen] == list(range(2 * STEPS))
    for edit in (p2p, masactrl):
        seen.clear()
        edit(*inversion)
        assert seen == [(step, STEPS, (1, 4, 8, 12)) for step in range(STEPS)]


def test_stock_samplers_refuse_what_they_cannot_redraw(invert, execute):
    trajectory, embeddings, _ = invert("direct")
    inversion = {"embeddings": embeddings, "trajectory": trajectory}
    sentence = "Embeddings to Sampler: the trajectory is of direct inversion, which adds back .* choose process target"
    with pytest.raises(ValueError, match=sentence):
        execute("BaretToSampler", **inversion, process="reconstruction")
    _, _, sigmas, _ = execute("BaretToSampler", **inversion, process="target")
    assert sigmas.shape == (STEPS + 1,)


# --- bad input ---


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            {"source_text": "3 another text"},
            "Prompt-to-Prompt Edit: source_text is not the text that the picture was inverted with; "
            "write the same text",
        ),
        ({"reweight": "horse:2"}, "Prompt-to-Prompt Edit: 'horse' is not in target_text; its words are: 2 a red cat"),
        ({"reweight": "cat"}, "Prompt-to-Prompt Edit: reweight holds 'cat'; words and numbers such as"),
        ({"reweight": "cat:nan"}, "reweight holds 'cat:nan'"),
        ({"word_shares": "cat:2"}, "Prompt-to-Prompt Edit: cross_share is 2.0; it is a share of the steps"),
        ({"blend_words": "horse, cat"}, "Prompt-to-Prompt Edit: 'horse' of blend_words is in neither text"),
        (
            {"alignment": "replace", "target_text": "2 a cat"},
            "Prompt-to-Prompt Edit: source_text has 4 words and target_text 3, and replace exchanges them one for one",
        ),
        ({"self_share": 1.5}, "self_share is 1.5"),
        ({"mask": torch.ones(2, 64, 96)}, "Prompt-to-Prompt Edit: 2 masks came for 1 image"),
    ],
)
def test_bad_input_of_prompt_to_prompt(invert, p2p, inputs, sentence):
    trajectory, embeddings, _ = invert("direct")
    with pytest.raises(ValueError, match=sentence):
        p2p(trajectory, embeddings, **inputs)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            {"first_block": 10},
            "MasaCtrl Edit: first_block is 10 and this model has 7 transformer blocks, 0 to 6; its decoder begins at 3",
        ),
        ({"foreground_words": "dog", "source_text": "3 a dog"}, "MasaCtrl Edit: source_text is not the text"),
        (
            {"foreground_words": "horse", "source_text": SOURCE},
            "MasaCtrl Edit: 'horse' of foreground_words is in neither text",
        ),
    ],
)
def test_bad_input_of_masactrl(invert, masactrl, inputs, sentence):
    trajectory, embeddings, _ = invert("direct")
    with pytest.raises(ValueError, match=sentence):
        masactrl(trajectory, embeddings, **inputs)


def test_options_that_a_file_lost_are_asked_for(invert, p2p, masactrl):
    trajectory, embeddings, _ = invert("direct")
    for call in (p2p, masactrl):
        with pytest.raises(ValueError, match="were made with control on the conditioning"):
            call(trajectory, replace(embeddings, missing_positive=("control",)))
