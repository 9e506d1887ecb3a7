"""The peers against independent references: diffusers' UNet and scheduler with the published algorithms, explicit maps and all, in float64.

Both sides have the same random weights. Ours is the core over the host's UNet with the door's own hooks; the host's sampling around it, which
computes in float32, is left out, so that agreement is to 1e-6 and better.
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="dev/test.py installs it")
from diffusers.models.attention_processor import AttnProcessor  # noqa: E402

STEPS, TOKENS, WIDTH, CFG = 8, 6, 24, 4.0
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
            ours.get_submodule(module)._parameters[leaf] = torch.nn.Parameter(
                weight.detach().clone().double(), requires_grad=False
            )
        theirs = (
            diffusers.UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                cross_attention_dim=WIDTH,
                attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock2D",) * 2,
                up_block_types=("CrossAttnUpBlock2D",) * 2,
            )
            .double()
            .requires_grad_(False)
        )
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
    from types import SimpleNamespace

    model, _ = unets
    module = lambda name: pack.modules[f"baret_ops.{name}"]  # noqa: E731
    alphas = alphas64()
    schedule = module("schedule").make_schedule(((1.0 - alphas) / alphas).sqrt(), STEPS)
    attention, run = pack.modules["host.attention"], pack.modules["host.run"]
    blocks = attention.blocks_of(model)
    times = {float(sigma): t for sigma, t in zip(schedule.sigmas, schedule.timesteps)}

    def predict(x, sigma, *, cond=None, uncond=None, sharing=None, hooks=None):
        texts = [(label, e) for label, e in ((1, uncond), (0, cond)) if e is not None]
        options = {"transformer_options": {"cond_or_uncond": [label for label, _ in texts]}}
        if sharing is not None:
            options = run._with_sharing(options, sharing)
        if hooks is not None:
            options["transformer_options"]["patches_replace"] = attention.replacements({}, hooks, blocks)
        rows = torch.cat([x / (1 + sigma**2) ** 0.5] * len(texts))
        eps = model.model.diffusion_model(
            rows,
            torch.full([len(rows)], times[sigma]),
            torch.cat([e for _, e in texts]),
            transformer_options=options["transformer_options"],
        )
        found = dict(zip([label for label, _ in texts], eps.chunk(len(texts))))
        return found.get(0), found.get(1)

    return SimpleNamespace(module=module, schedule=schedule, predict=predict)


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
        return core.module("inversions.tuning").ddim_inversion(core.predict, latent, texts[0], core.schedule)


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
        trajectory, _ = inversion_of(core, pivots, texts, pivots)
        latents = core.module("inversions.untuned").sample_source(core.predict, trajectory, texts[0], texts[2])
        return inversion_of(core, pivots, texts, latents)


def test_inversion_without_tuning(core, unets, scheduler, pivots, texts, inversion):
    """DDIM: guided sampling. Negative-prompt: the same with the text in the negative's place."""
    trajectory, _ = inversion
    z = w = pivots[0]
    for i, t in enumerate(scheduler.timesteps):
        z = guided_step(unets[1], scheduler, z, t, texts[0], texts[2])
        close(trajectory.latents[i + 1], z)
    latents = core.module("inversions.untuned").sample_source(core.predict, trajectory, texts[0], None)
    for i, t in enumerate(scheduler.timesteps):
        w = guided_step(unets[1], scheduler, w, t, texts[0], texts[0])
        close(latents[i + 1], w)


class Edited(AttnProcessor):
    """diffusers' attention with maps formed in the open, and a function that may change queries, keys, values or maps.

    Rows are those of the published code: unconditional source and edit, conditional source and edit.
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
    """Run source and edit together on diffusers' UNet; the edit's latents. ``before`` and ``change`` as Edited has them; both see ``.step``."""
    theirs = unets[1]
    trajectory, embeddings = inversion

    def run(before=None, change=None, start=trajectory.pivots[0]):
        order = sorted(theirs.attn_processors, key=lambda name: ["down", "mid_", "up_b"].index(name[:4]))
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


@pytest.mark.parametrize(("start", "first_block"), [(0, 0), (2, 3), (5, 6), (STEPS, 0)])
def test_masactrl(core, inversion, reference, start, first_block):
    def before(at, k, v):
        if not at.is_cross and at.step >= start and at.block >= first_block:
            k, v = (torch.cat([t[0:1], t[0:1], t[2:3], t[2:3]]) for t in (k, v))
        return k, v

    got = core.module("edits.masactrl").masactrl(
        core.predict, *inversion, guidance_scale=CFG, start_step=start, first_block=first_block
    )
    wanted = reference(before)
    close(got, wanted)
    if start < STEPS:
        assert (wanted - reference()).abs().max() > 1e-2, (
            "the borrowed content must make a difference for this to mean anything"
        )


def prompts(core, source, target):
    """Tokens of two texts of words of one letter each between a start and an end; the rest is padding."""
    Tokens = core.module("prompts").Tokens
    return [
        Tokens(("<", *words, *">" * (TOKENS - 1 - len(words))), tuple((w, (n + 1,)) for n, w in enumerate(words)))
        for words in (source, target)
    ]


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
    """The published controllers: AttentionReplace, AttentionRefine, AttentionReweight, and the shared self-attention maps."""
    p2p = core.module("edits.prompt_to_prompt")
    source, target = prompts(core, source, target)
    weights = torch.tensor(weights or [1.0] * TOKENS).double()
    shares = torch.tensor([0.5, 0.5, 0.25, 0.5, 0.5, 0.75]).double()
    matrix = getattr(p2p, kind)(source, target).double()

    if kind == "refine":
        partner = {"abxc": [0, 1, 2, None, 3, 4], "ac": [0, 1, 4, 5, 5, 5], "xabc": [0, None, 1, 2, 3, 4]}[
            "".join(w for w, _ in target.words)
        ]
        mapper, alphas = (
            torch.tensor([p or 0 for p in partner]),
            torch.tensor([float(p is not None) for p in partner]).double(),
        )

    def change(at, maps):
        source_maps, own = maps[2], maps[3]
        if at.is_cross:
            base = (
                source_maps @ torch.eye(TOKENS).double()
                if kind == "replace"
                else source_maps[..., mapper] * alphas + own * (1 - alphas)
            )
            on = (at.step < torch.floor(shares * STEPS + 0.5)).double()
            own = base * weights * on + own * (1 - on)
        elif at.step < self_share * STEPS and own.shape[-1] <= 24:
            own = source_maps
        return torch.cat([maps[:3], own[None]])

    cross = p2p.CrossEdit(matrix, shares, weights)
    got, _ = p2p.prompt_to_prompt(
        core.predict, *inversion, cross, guidance_scale=CFG, self_share=self_share, max_tokens=24
    )
    wanted = reference(change=change)
    close(got, wanted)
    assert (wanted - reference()).abs().max() > 1e-3


@pytest.mark.parametrize("stop", [(0.0, 0.0), (2.0, 0.05)])
def test_null_text_inversion(core, unets, scheduler, pivots, texts, stop):
    """The published loop: Adam, learning rate 1e-2 (1 - i/100) at 50 steps, test after the update, a full guided step with what was found."""
    inversion, rules = core.module("inversions.tuning"), core.module("inversions.step_rules")
    rate, iterations = 0.05, 4
    with torch.inference_mode(False):
        rule = rules.Adam(rate, decay=1 / (2 * STEPS), test_after=True)
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
            with torch.no_grad():
                cond = theirs(z, t, texts[0]).sample
            for j in range(iterations):
                uncond = theirs(z, t, null).sample
                landed = scheduler.step(uncond + CFG * (cond - uncond), t, z).prev_sample
                loss = torch.nn.functional.mse_loss(landed, pivots[i + 1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if loss.item() < stop[0] + stop[1] * i:
                    break
            counts.append(j + 1)
            with torch.no_grad():
                z = guided_step(theirs, scheduler, z, t, texts[0], null)
            close(got.embeddings[i], null.detach())
            close(got.latents[i + 1], z)
            close(got.losses[i], (z - pivots[i + 1]).square().flatten(1).mean(1))
    assert got.updates[:, 0].tolist() == counts
    assert (min(counts) < iterations) == (stop != (0.0, 0.0)) and (stop == (0.0, 0.0) or max(counts) > 1)
