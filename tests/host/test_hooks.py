"""Hooks in the place of attention, inside the host's UNet: what they see, what they change, whom they leave alone."""

import pytest
import torch

B, PROCESSES, TOKENS = 2, 2, 6
ROWS = B * PROCESSES
BLOCKS = 7


@pytest.fixture
def predict_in(pack, model):
    def call(loop, model=model):
        run, values = pack.modules["host.run"], pack.modules["baret_ops.schedule"]
        schedule = values.make_schedule(model.get_model_object("model_sampling").sigmas, 4)
        text = torch.zeros(B, TOKENS, 24)
        with torch.inference_mode():
            return run.sample(
                model,
                lambda predict, device: loop(predict),
                positive=(text, {}),
                negative=(text, {}),
                rows=ROWS,
                shape=(4, 8, 12),
                schedule=schedule,
            )

    return call


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, ROWS, TOKENS, 24, generator=generator)
    return torch.randn(ROWS, 4, 8, 12, generator=generator) * 5, cond, uncond


@pytest.fixture
def call(pack, predict_in, inputs):
    x, cond, uncond = inputs

    def call(self_attention=None, cross_attention=None, **where):
        hooks = pack.modules["baret_ops.attention"].Hooks(self_attention, cross_attention)
        return predict_in(lambda predict: predict(x, 5.0, cond=cond, uncond=uncond, hooks=hooks), **where)

    return call


def look(seen):
    def hook(attend, q, k, v, site):
        seen.append((site, q, k, v))
        return attend(q, k, v)

    return hook


@pytest.mark.parametrize("apart", [False, True])
def test_looking_changes_nothing_and_meets_every_block_once(call, predict_in, inputs, monkeypatch, apart):
    import comfy.model_patcher

    if apart:
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    x, cond, uncond = inputs
    plain = predict_in(lambda predict: predict(x, 5.0, cond=cond, uncond=uncond))
    selfs, crosses = [], []
    for got, want in zip(call(look(selfs), look(crosses)), plain):
        assert torch.equal(got, want)
    for seen in (selfs, crosses):
        forwards = 2 if apart else 1
        assert [site.block for site, *_ in seen] == list(range(BLOCKS)) * forwards
        assert {tuple(site.passes) for site, *_ in seen} == ({(True,), (False,)} if apart else {(False, True)})
        assert [site.grid for site, *_ in seen][:BLOCKS] == [(8, 12), (4, 6), (4, 6), (4, 6), (4, 6), (8, 12), (8, 12)]
        assert [site.coarse for site, *_ in seen][:BLOCKS] == [False, True, True, True, True, False, False]
        assert all(q.shape[1] == site.grid[0] * site.grid[1] and site.heads == 4 for site, q, _, _ in seen)
    assert all(k.shape[1] == TOKENS for _, _, k, _ in crosses)
    assert all(k.shape[1] == q.shape[1] for _, q, k, _ in selfs)


def test_coarse_blocks_of_sd15(pack, make_model):
    """The middle block's 8x8 grid is its own alone: the maps of 16x16 are taken."""
    model = make_model(
        channel_mult=[1, 1, 1, 1],
        num_res_blocks=[2] * 4,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
    )
    blocks = pack.modules["host.attention"].blocks_of(model)
    assert len(blocks) == 16
    assert [number for number, coarse in enumerate(blocks.values()) if coarse] == [4, 5, 7, 8, 9]


def test_a_hook_changes_its_attention(call):
    """Zero in the place of the conditional rows' cross-attention: words have no say there, all else is as it was."""

    def silence(attend, q, k, v, site):
        out = attend(q, k, v)
        for process in range(PROCESSES):
            if (rows := site.rows(len(q), PROCESSES, process)) is not None:
                out[rows] = 0.0
        return out

    plain, silent = call(), call(None, silence)
    assert (plain[0] - silent[0]).abs().max() > 1e-3
    torch.testing.assert_close(silent[1], plain[1])


def test_others_replacements_run_inside(call, model, inputs):
    """As IPAdapter does it: a function in attn2's place, for a block or one transformer of it, adds to attention."""
    from comfy.ldm.modules.attention import optimized_attention

    fired = []

    def adding(name):
        def replace(q, k, v, extra):
            fired.append(name)
            return optimized_attention(q, k, v, extra["n_heads"]) + 0.5

        return replace

    other = model.clone()
    other.set_model_attn2_replace(adding("block"), "middle", 0)
    other.set_model_attn2_replace(adding("one"), "output", 1, 0)
    seen = []
    got = call(None, look(seen), model=other)
    assert fired == ["block", "one"] and len(seen) == BLOCKS
    for a, b in zip(got, call(model=other)):
        torch.testing.assert_close(a, b)
    assert (got[0] - call()[0]).abs().max() > 1e-3
    assert other.model_options["transformer_options"]["patches_replace"]["attn2"].keys() == {
        ("middle", 0),
        ("output", 1, 0),
    }, "the model is as it was"


def test_the_kernel_of_another_node_serves(call, model):
    other = model.clone()
    used = []
    other.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: (
        used.append(1) or func(*args, **kwargs)
    )
    seen = []
    call(look(seen), look(seen), model=other)
    assert len(used) == len(seen) == 2 * BLOCKS


def test_plain_takes_a_mask(call):
    """Keys that are masked out have no influence."""

    def compare(attend, q, k, v, site):
        mask = torch.zeros(len(q), 1, k.shape[1])
        mask[:, :, 2:] = torch.finfo(q.dtype).min
        torch.testing.assert_close(
            site.plain(q, k, v, mask=mask), site.plain(q, k[:, :2], v[:, :2]), rtol=1e-4, atol=1e-5
        )
        return attend(q, k, v)

    call(compare, compare)
