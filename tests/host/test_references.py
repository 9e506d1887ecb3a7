"""The peers against independent references: diffusers' UNet and scheduler with the published algorithms, in float64.

The references form every attention map in the open. Both sides have the same random weights. Ours is the core over the
host's UNet with the door's own hooks; the host's sampling around it, which computes in float32, is left out, so that
agreement is to 1e-6 and better.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

diffusers = pytest.importorskip("diffusers", reason="dev/test.py installs it")
from diffusers.models.attention_processor import AttnProcessor  # noqa: E402

STEPS, TOKENS, WIDTH, CFG = 8, 6, 24, 4.0
UNCOND_EDIT, SOURCE, EDIT = 1, 2, 3
"""Rows of the references, as in the published code: unconditional source and edit, conditional source and edit."""
GRIDS = {96: (8, 12), 24: (4, 6)}
"""(h,w) of an attention's queries by their number; the smaller grid is the coarsest that several blocks have."""
COARSE = 24
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
BLOCKS = 7


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def unets(make_model):
    """The host's UNet and diffusers' with the same weights, in float64, and a check that they are one function."""
    import comfy.utils

    with torch.inference_mode(False):
        model = make_model(seed=3)
        ours = model.model.diffusion_model
        for name, weight in list(ours.named_parameters()):
            module, _, leaf = name.rpartition(".")
            exact = torch.nn.Parameter(weight.detach().clone().double(), requires_grad=False)
            ours.get_submodule(module)._parameters[leaf] = exact
        theirs = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        )
        theirs.double().requires_grad_(False)
        config = {
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "transformer_depth": [1, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1],
        }
        names = comfy.utils.unet_to_diffusers(config)
        state = ours.state_dict()
        theirs.load_state_dict({name: state[names[name]] for name in theirs.state_dict()})
        theirs.set_attn_processor(AttnProcessor())
        x, e, t = torch.randn(2, 4, 8, 12).double(), torch.randn(2, TOKENS, WIDTH).double(), torch.tensor([301, 301])
        torch.testing.assert_close(ours(x, t, e), theirs(x, t, e).sample, rtol=1e-10, atol=1e-10)
        yield model, theirs


def alphas64():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0)


@pytest.fixture(scope="module")
def scheduler():
    scheduler = diffusers.DDIMScheduler(**SD15)
    scheduler.alphas_cumprod = alphas64()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.fixture(scope="module")
def core(pack, unets):
    """The pack's core, the schedule, and the core's Predict over the host's UNet with the door's hooks."""
    model, _ = unets

    def module(name):
        return pack.modules[f"baret_ops.{name}"]

    alphas = alphas64()
    table = ((1.0 - alphas) / alphas).sqrt()
    schedule, every_time = (module("schedule").make_schedule(table, steps) for steps in (STEPS, len(table) - 1))
    attention, run = pack.modules["host.attention"], pack.modules["host.run"]
    blocks = attention.blocks_of(model)
    times = {float(sigma): t for t, sigma in enumerate(table)}

    def predict(x, sigma, *, cond=None, uncond=None, sharing=None, hooks=None):
        passes = {1: uncond, 0: cond}
        texts = {label: text for label, text in passes.items() if text is not None}
        options = {"transformer_options": {"cond_or_uncond": list(texts)}}
        if sharing is not None:
            options = run._with_sharing(options, sharing, len(x))
        if hooks is not None:
            options["transformer_options"]["patches_replace"] = attention.replacements({}, hooks, blocks, len(x))
        rows = torch.cat([x / (1 + sigma**2) ** 0.5] * len(texts))
        eps = model.model.diffusion_model(
            rows,
            torch.full([len(rows)], times[sigma]),
            torch.cat(list(texts.values())),
            transformer_options=options["transformer_options"],
        )
        found = dict(zip(texts, eps.chunk(len(texts))))
        return found.get(0), found.get(1)

    return SimpleNamespace(module=module, schedule=schedule, every_time=every_time, predict=predict)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 1, TOKENS, WIDTH, generator=generator).double()  # source, target, negative


@pytest.fixture(scope="module")
def latent():
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(6)).double()


@pytest.fixture(scope="module")
def pivots(core, latent, texts):
    with torch.inference_mode(False):
        return core.module("inversions.ddim").ddim_inversion(core.predict, latent, texts[0], core.schedule)


def guided_step(theirs, scheduler, z, t, text, null):
    """diffusers' pipeline: both passes in one batch, guidance, DDIMScheduler."""
    eps = theirs(torch.cat([z, z]), t, torch.cat([null, text])).sample
    uncond, cond = eps.chunk(2)
    return scheduler.step(uncond + CFG * (cond - uncond), t, z).prev_sample


def inversion_of(core, pivots, texts, latents, **changes):
    values = core.module("values")
    trajectory = values.Trajectory(
        pivots, latents, core.schedule, CFG, values.ModelFamily("epsilon", 4, WIDTH, 14.6, 0.18215)
    )
    zeros = torch.zeros(STEPS, 1)
    given = {
        "tuned": texts[0].expand(STEPS, -1, -1, -1),
        "target": texts[1],
        "negative": texts[2],
        "eta": torch.ones(STEPS),
        "losses": zeros,
        "updates": zeros.long(),
    }
    return trajectory, values.Embeddings(**{**given, **changes})


@pytest.fixture(scope="module")
def inversion(core, pivots, texts):
    """A trajectory of plain guided sampling, as BaretInversion's DDIM makes it, with the target text put in."""
    with torch.inference_mode(False):
        trajectory = sampled(core, pivots, texts, text_as_negative=False)
        return inversion_of(core, pivots, texts, trajectory.latents)


def sampled(core, pivots, texts, text_as_negative):
    """The trajectory of guided sampling of the source's text, with nothing tuned."""
    methods = core.module("inversions.methods")
    plain, _ = inversion_of(core, pivots, texts, pivots)
    problem = methods.Problem(pivots[-1], texts[0], texts[2], core.schedule, CFG, plain.family, {}, {})
    trajectory, _ = methods.SampledInversion(text_as_negative).invert(core.predict, problem)
    return trajectory


def test_inversion_without_tuning(core, unets, scheduler, pivots, texts, inversion):
    """DDIM: guided sampling. Negative-prompt: the same with the text in the negative's place."""
    trajectory, _ = inversion
    z = w = pivots[0]
    for i, t in enumerate(scheduler.timesteps):
        z = guided_step(unets[1], scheduler, z, t, texts[0], texts[2])
        close(trajectory.latents[i + 1], z)
    latents = sampled(core, pivots, texts, text_as_negative=True).latents
    for i, t in enumerate(scheduler.timesteps):
        w = guided_step(unets[1], scheduler, w, t, texts[0], texts[0])
        close(latents[i + 1], w)


class Edited(AttnProcessor):
    """diffusers' attention with maps formed in the open, and functions that may change keys and values, or maps.

    before: ``before(self, k, v)`` returns others. change: ``change(self, maps [4,heads,L,S])`` returns others.
    """

    def __init__(self, block, is_cross, before=None, change=None):
        super().__init__()
        self.block, self.is_cross, self.before, self.change = block, is_cross, before, change

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        q = attn.to_q(hidden_states)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        k, v = attn.to_k(source), attn.to_v(source)
        if self.before is not None:
            k, v = self.before(self, k, v)
        q, k, v = (attn.head_to_batch_dim(t) for t in (q, k, v))
        maps = (q @ k.transpose(1, 2) * attn.scale).softmax(-1)
        if self.change is not None:
            maps = self.change(self, maps.unflatten(0, (-1, attn.heads))).flatten(0, 1)
        return attn.to_out[0](attn.batch_to_head_dim(maps @ v))


@pytest.fixture
def reference(unets, scheduler, inversion):
    """Run source and edit together on diffusers' UNet; returns the edit's latents.

    ``before`` and ``change`` as Edited has them; what they are given says its ``block``, ``is_cross`` and ``step``.
    """
    theirs = unets[1]
    trajectory, embeddings = inversion

    def run(before=None, change=None, start=trajectory.pivots[0]):
        parts = ["down", "mid_", "up_b"]
        order = sorted(theirs.attn_processors, key=lambda name: parts.index(name[:4]))
        counts = {False: 0, True: 0}
        processors = {}
        for name in order:
            is_cross = "attn2" in name
            processors[name] = Edited(counts[is_cross], is_cross, before, change)
            counts[is_cross] += 1
        assert counts == {False: BLOCKS, True: BLOCKS}
        theirs.set_attn_processor(dict(processors))
        z = start.repeat(2, 1, 1, 1)
        for i, t in enumerate(scheduler.timesteps):
            for processor in processors.values():
                processor.step = i
            text = torch.cat([embeddings.negative_at(i)] * 2 + [embeddings.tuned[i], embeddings.target])
            eps = theirs(torch.cat([z, z]), t, text).sample
            uncond, cond = eps.chunk(2)
            z = scheduler.step(uncond + CFG * (cond - uncond), t, z).prev_sample
        theirs.set_attn_processor(AttnProcessor())
        return z[1:]

    return run


def borrows(start, first_block):
    """MasaCtrl's MutualSelfAttentionControl: in both passes the edit has the source's keys and values."""

    def before(at, k, v):
        if at.is_cross or at.step < start or at.block < first_block:
            return k, v
        sources = [0, 0, SOURCE, SOURCE]
        return k[sources], v[sources]

    return before


@pytest.mark.parametrize(("start", "first_block"), [(0, 0), (2, 3), (5, 6), (STEPS, 0)])
def test_masactrl(core, inversion, reference, start, first_block):
    got, _ = core.module("edits.masactrl").masactrl(
        core.predict, *inversion, guidance_scale=CFG, start_step=start, first_block=first_block
    )
    wanted = reference(borrows(start, first_block))
    close(got, wanted)
    if start < STEPS:
        assert (wanted - reference()).abs().max() > 1e-2, "the borrowed content must make a difference"


class TwoGrounds:
    """MasaCtrl's MutualSelfAttentionControlMaskAuto as a change of maps: foreground and background are kept apart.

    The published code forms two attentions of the edit over the source: one over the source's foreground, one over its
    background. It blends them by how much each place of the edit looks at the words. Both grounds come from
    cross-attention maps: averages over heads and coarse blocks, added up over the words' tokens, stretched to 0..1.

    As masactrl.py chooses otherwise than the published code, so does this: the maps are averages over all steps before,
    where the published code takes those blocks of the same step that have run; and they come to finer grids by bilinear
    interpolation, after the threshold, where the published code takes the nearest cell, before it.
    """

    def __init__(self, start, first_block, source_words, target_words, threshold):
        self.start, self.first_block, self.threshold = start, first_block, threshold
        self.words = {SOURCE: source_words, EDIT: target_words}
        self.looks = {SOURCE: [], EDIT: []}
        self.step, self.grounds = 0, None

    def __call__(self, at, maps):
        if at.step > self.step:  # the first attention of a new step: those before it are all seen
            self.step, self.grounds = at.step, self.find_grounds()
        if at.is_cross:
            if maps.shape[2] == COARSE:
                for row, looks in self.looks.items():
                    looks.append(maps[row].mean(0)[:, self.words[row]].sum(-1))
            return maps
        if self.grounds is None or at.step < self.start or at.block < self.first_block:
            return maps
        inside, belongs = (self.on_grid(ground, maps.shape[2]) for ground in self.grounds)
        maps = maps.clone()
        for row in (UNCOND_EDIT, EDIT):
            front = self.among(maps[row], inside > 0.5)
            back = self.among(maps[row], inside <= 0.5)
            maps[row] = belongs[:, None] * front + (1.0 - belongs[:, None]) * back
        return maps

    def find_grounds(self):
        """Where the source is foreground, 0 or 1, and how much the edit's places belong to it; each a coarse grid."""
        stretched = {}
        for row, looks in self.looks.items():
            mean = torch.stack(looks).mean(0)
            stretched[row] = (mean - mean.min()) / (mean.max() - mean.min())
        return (stretched[SOURCE] >= self.threshold).double(), stretched[EDIT]

    @staticmethod
    def on_grid(ground, places):
        fine = interpolate(ground.view(1, 1, *GRIDS[COARSE]), size=GRIDS[places], mode="bilinear")
        return fine.flatten()

    @staticmethod
    def among(maps, places):
        """Maps ``[heads,L,S]`` of attention over these places ``[S]`` alone: the others' logits are masked out."""
        logits = maps.log()
        return logits.masked_fill(~places, torch.finfo(maps.dtype).min).softmax(-1)


@pytest.mark.parametrize(
    ("start", "first_block", "source_words", "target_words", "threshold"),
    [
        (2, 3, [2], [2], 0.3),
        (2, 3, [2, 4], [3], 0.5),  # several tokens, and other ones in the two texts
        (0, 0, [2], [2], 0.5),  # without maps at the first step
        (5, 5, [1], [1], 0.1),
        (2, 3, [2], [2], 0.0),  # all of the source is foreground: its background has nothing to give but an average
    ],
)
def test_masactrl_with_a_foreground(
    core, inversion, reference, start, first_block, source_words, target_words, threshold
):
    masactrl = core.module("edits.masactrl")
    marks = torch.zeros(2, TOKENS)
    marks[0, source_words] = 1.0
    marks[1, target_words] = 1.0
    got, _ = masactrl.masactrl(
        core.predict,
        *inversion,
        guidance_scale=CFG,
        start_step=start,
        first_block=first_block,
        foreground=masactrl.Foreground(*marks, threshold),
    )
    before = borrows(start, first_block)
    wanted = reference(before, TwoGrounds(start, first_block, source_words, target_words, threshold))
    close(got, wanted)
    assert (wanted - reference(before)).abs().max() > 1e-2, "keeping the grounds apart must make a difference"


def prompts(core, source, target):
    """Tokens of two texts of words of one letter each between a start and an end; the rest is padding."""
    Tokens = core.module("prompts").Tokens

    def tokens(words):
        ends = ">" * (TOKENS - 1 - len(words))
        places = [(word, (place,)) for place, word in enumerate(words, 1)]
        return Tokens(("<", *words, *ends), tuple(places))

    return tokens(source), tokens(target)


REFINED = {"abxc": [0, 1, 2, None, 3, 4], "ac": [0, 1, 4, 5, 5, 5], "xabc": [0, None, 1, 2, 3, 4]}
"""AttentionRefine's mapper by target text: for each of its tokens the source's, None where it has none."""


@pytest.mark.parametrize("self_share", [0.0, 0.5])
@pytest.mark.parametrize(
    ("kind", "source", "target", "weights"),
    [
        ("replace", "abc", "axc", None),
        ("refine", "abc", "abxc", None),
        ("refine", "abxc", "ac", None),
        ("replace", "abc", "abc", [1, 1, 3.0, 1, 1, 1]),
        ("refine", "abc", "xabc", [1, 0.5, 1, 0, 1, 1]),
    ],
)
def test_prompt_to_prompt(core, inversion, reference, kind, source, target, weights, self_share):
    """The published controllers AttentionReplace, AttentionRefine and AttentionReweight; shared self-attention maps."""
    p2p = core.module("edits.prompt_to_prompt")
    partners = torch.tensor([-1 if partner is None else partner for partner in REFINED.get(target, [])])
    source, target = prompts(core, source, target)
    weights = torch.tensor(weights or [1.0] * TOKENS).double()
    shares = torch.tensor([0.5, 0.5, 0.25, 0.5, 0.5, 0.75]).double()
    alignment = p2p.replacement if kind == "replace" else p2p.refinement
    matrix = alignment(source, target).double()

    def replaced(lent, own):
        return lent @ torch.eye(TOKENS).double()

    def refined(lent, own):
        has_partner = (partners >= 0).double()
        return lent[..., partners.clamp_min(0)] * has_partner + own * (1 - has_partner)

    def change(at, maps):
        lent, own = maps[SOURCE], maps[EDIT]
        if at.is_cross:
            edited = (replaced if kind == "replace" else refined)(lent, own) * weights
            on = (at.step < torch.floor(shares * STEPS + 0.5)).double()
            own = edited * on + own * (1 - on)
        elif at.step < self_share * STEPS and own.shape[-1] <= 24:
            own = lent
        return torch.cat([maps[:EDIT], own[None]])

    cross = p2p.CrossEdit(matrix, shares, weights)
    got, _ = p2p.prompt_to_prompt(
        core.predict, *inversion, cross, guidance_scale=CFG, self_share=self_share, max_tokens=24
    )
    wanted = reference(change=change)
    close(got, wanted)
    assert (wanted - reference()).abs().max() > 1e-3


@pytest.mark.parametrize("stop", [(0.0, 0.0), (2.0, 0.05)])
def test_null_text_inversion(core, unets, scheduler, pivots, texts, stop):
    """The published loop: Adam, learning rate 1e-2 (1 - i/100) at 50 steps, test after the update.

    What was found then takes a full guided step.
    """
    inversion, rules = core.module("inversions.tuning"), core.module("inversions.step_rules")
    rate, iterations = 0.05, 4
    with torch.inference_mode(False):
        rule = rules.Adam(rate, fall=0.5, test_after=True)
        got = inversion.null_text(
            core.predict,
            pivots,
            texts[0],
            texts[2],
            core.schedule,
            guidance_scale=CFG,
            rule=rule,
            iterations=iterations,
            stop=inversion.StopRule(*stop),
        )

        theirs, z, null = unets[1], pivots[0], texts[2]
        counts = []
        for i, t in enumerate(scheduler.timesteps):
            null = null.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([null], lr=rate * (1 - i / (2 * STEPS)))
            updates = 0
            with torch.no_grad():
                cond = theirs(z, t, texts[0]).sample
            while updates < iterations:
                uncond = theirs(z, t, null).sample
                landed = scheduler.step(uncond + CFG * (cond - uncond), t, z).prev_sample
                loss = torch.nn.functional.mse_loss(landed, pivots[i + 1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                updates += 1
                if loss.item() < stop[0] + stop[1] * i:
                    break
            counts.append(updates)
            with torch.no_grad():
                z = guided_step(theirs, scheduler, z, t, texts[0], null)
            close(got.embeddings[i], null.detach())
            close(got.latents[i + 1], z)
            close(got.losses[i], (z - pivots[i + 1]).square().flatten(1).mean(1))
    assert got.updates[:, 0].tolist() == counts
    stops_early = stop != (0.0, 0.0)
    assert (min(counts) < iterations) == stops_early
    assert max(counts) > 1, "and some step has several updates"


# --- fine-tuning on one picture ---------------------------------------------------------------------------------------

UPDATES = 3


def drawn(seed, shape):
    """The times and noises of the updates, as the core's docstring says that they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(UPDATES):
        level = int(torch.randint(1000, (1,), generator=generator))
        yield 999 - level, torch.randn(shape, generator=generator, dtype=torch.float64)


def fine_tuned(predict, scheduler, z, tuned, rate, seed):
    """The published training loop: DDPM's noise, the mean squared error, one Adam; the losses. Tunes in place."""
    optimizer, losses = torch.optim.Adam(tuned, lr=rate), []
    for t, noise in drawn(seed, z.shape):
        noisy = scheduler.add_noise(z, noise, torch.tensor([t]))
        loss = torch.nn.functional.mse_loss(predict(noisy, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_imagic_tunes_the_text_as_published(core, unets, scheduler, texts, latent):
    _, theirs = unets
    how = core.module("fine_tuning").FineTuning(UPDATES, 1e-3)
    with torch.inference_mode(False):
        ours, text = (texts[1].clone().requires_grad_() for _ in range(2))
        losses = how(core.predict, latent, ours, core.every_time, [ours], torch.Generator().manual_seed(3))
        expected = fine_tuned(lambda x, t: theirs(x, t, text).sample, scheduler, latent, [text], 1e-3, seed=3)
    close(losses.double(), expected)
    close(ours.detach(), text.detach())
    assert (ours - texts[1]).abs().max() > 1e-3, "something has to move for this test to mean anything"


def test_a_lora_is_tuned_as_published(core, unets, scheduler, texts, latent, pack):
    """Against ``W + up @ down`` in the open in diffusers' UNet, with the same start."""
    import comfy.utils

    model, theirs = unets
    how = core.module("fine_tuning").FineTuning(UPDATES, 1e-2)
    config = {**model.model.model_config.unet_config, "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4}
    names = {host: name for name, host in comfy.utils.unet_to_diffusers(config).items()}
    with torch.inference_mode(False):
        lora = pack.modules["host.lora"].Lora(model, rank=2, seed=1)
        for adapter in lora._adapters.values():
            adapter.double()
        start = lora.weights(torch.device("cpu"))
        with lora.on(model):
            generator = torch.Generator().manual_seed(4)
            losses = how(core.predict, latent, texts[0].clone(), core.every_time, lora.parameters, generator)

        state = {name: weight.detach() for name, weight in theirs.state_dict().items()}
        factors = {
            key.removeprefix("diffusion_model."): start[key].clone().requires_grad_()
            for key in start
            if key.endswith(".weight")
        }

        def predict(x, t):
            changed = dict(state)
            for key in factors:
                if key.endswith("lora_up.weight"):
                    layer = key.removesuffix(".lora_up.weight")
                    name = names[f"{layer}.weight"]
                    change = factors[key] @ factors[f"{layer}.lora_down.weight"]
                    changed[name] = state[name] + change.reshape(state[name].shape)
            return torch.func.functional_call(theirs, changed, (x, t, texts[0])).sample

        expected = fine_tuned(predict, scheduler, latent, list(factors.values()), 1e-2, seed=4)
        found = lora.weights(torch.device("cpu"))
    close(losses.double(), expected)
    assert len(factors) == 2 * sum(weight.ndim > 1 for weight in state.values()), "every layer has its adapter"
    for key, factor in factors.items():
        torch.testing.assert_close(found[f"diffusion_model.{key}"], factor.detach(), rtol=1e-6, atol=1e-6 * 1e-2)
    assert float(losses[-1]) != float(losses[0])
