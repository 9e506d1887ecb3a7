"""Balanced attention inside the host's UNet, against explicit softmax(Q K^T) V on the projected tensors."""

import pytest
import torch

B = 2
BLOCKS = [("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(4))]


def plain_attention(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.fixture
def predict_in(pack, model):
    """Run ``loop(predict)`` on a model through the door to the host."""

    def call(loop, model=model, texts=6):
        run, values = pack.modules["host.run"], pack.modules["baret_ops.schedule"]
        schedule = values.make_schedule(model.get_model_object("model_sampling").sigmas, 4)
        text = torch.zeros(B, texts, 24)
        with torch.inference_mode():
            return run.sample(
                model,
                lambda predict, device: loop(predict),
                positive=(text, {}),
                negative=(text, {}),
                rows=3 * B,
                shape=(4, 8, 12),
                schedule=schedule,
            )

    return call


def explicit(model, sharing, labels):
    """A clone whose every attention computes its maps openly, with Q and K of the sharing's processes."""
    other = model.clone()

    def attention(lenders):
        def replace(q, k, v, extra):
            heads, passes = extra["n_heads"], extra["cond_or_uncond"]
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
            shares = lenders is not None and (sharing.max_tokens is None or q.shape[2] <= sharing.max_tokens)
            if shares:
                weights = weights.unflatten(0, (len(passes), -1, B))
                for chunk, label in enumerate(passes):
                    labels.append(label)
                    if label == 0 or sharing.uncond:
                        weights[chunk] = weights[chunk, list(lenders)]
                weights = weights.flatten(0, 2)
            return (weights @ v).transpose(1, 2).flatten(2)

        return replace

    for block in BLOCKS:
        other.set_model_attn1_replace(attention(sharing.self_from), *block)
        other.set_model_attn2_replace(attention(sharing.cross_from), *block)
    return other


@pytest.mark.parametrize("uncond", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 24])
@pytest.mark.parametrize("apart", [False, True])
def test_equals_explicit_attention(pack, model, predict_in, run_passes_apart, uncond, max_tokens, apart):
    if apart:
        run_passes_apart()
    sharing = pack.modules["baret_ops.attention"].Sharing(
        processes=3, self_from=(2, 1, 2), cross_from=(1, 1, 2), max_tokens=max_tokens, uncond=uncond
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * B, 4, 8, 12, generator=generator) * 5
    cond, uncond_text = torch.randn(2, 3 * B, 6, 24, generator=generator)

    shared = predict_in(lambda predict: predict(x, 5.0, cond=cond, uncond=uncond_text, sharing=sharing))
    labels = []
    wanted = predict_in(
        lambda predict: predict(x, 5.0, cond=cond, uncond=uncond_text), explicit(model, sharing, labels)
    )
    assert set(labels) == {0, 1}
    for got, want in zip(shared, wanted):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    plain = predict_in(lambda predict: predict(x, 5.0, cond=cond, uncond=uncond_text))
    edited = slice(0, B)
    assert (shared[0][edited] - plain[0][edited]).abs().max() > 1e-3
    # The lenders are as without sharing.
    torch.testing.assert_close(shared[0][B:], plain[0][B:], rtol=1e-4, atol=1e-5)
    differs = (shared[1][edited] - plain[1][edited]).abs().max() > 1e-3
    assert differs == uncond


def test_looks_of_one_serve_two(pack, model, predict_in):
    """Two processes take K and V of a third in self-attention, each with its own queries."""
    sharing = pack.modules["baret_ops.attention"].Sharing(processes=3, looks_from=(2, 2, 2))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * B, 4, 8, 12, generator=generator) * 5
    cond = torch.randn(3 * B, 6, 24, generator=generator)
    borrowing = model.clone()

    def borrow(q, k, v, extra):
        lent_k, lent_v = k[-B:].repeat(3, 1, 1), v[-B:].repeat(3, 1, 1)
        return plain_attention(q, lent_k, lent_v, extra["n_heads"])

    for block in BLOCKS:
        borrowing.set_model_attn1_replace(borrow, *block)
    got, _ = predict_in(lambda predict: predict(x, 5.0, cond=cond, sharing=sharing))
    wanted, _ = predict_in(lambda predict: predict(x, 5.0, cond=cond), borrowing)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    plain, _ = predict_in(lambda predict: predict(x, 5.0, cond=cond))
    assert (got[: 2 * B] - plain[: 2 * B]).abs().max() > 1e-3
    torch.testing.assert_close(got[-B:], plain[-B:], rtol=1e-4, atol=1e-5)


def test_the_negative_alone_keeps_its_label(pack, predict_in):
    """A pass that runs alone is still labelled as what it is, so that no patch takes the negative for the positive."""
    sharing = pack.modules["baret_ops.attention"].Sharing(processes=3, self_from=(2, 1, 2), cross_from=(1, 1, 2))
    x, text = torch.randn(3 * B, 4, 8, 12), torch.randn(3 * B, 6, 24)
    plain = predict_in(lambda predict: predict(x, 5.0, uncond=text))[1]
    assert torch.equal(predict_in(lambda predict: predict(x, 5.0, uncond=text, sharing=sharing))[1], plain)


def test_every_block_is_met_once_a_call(pack, model, execute, ttis, bam, monkeypatch):
    sharing = pack.modules["baret_ops.attention"].Sharing
    fired = {"share_self": [], "share_cross": []}

    def watched(share, seen):
        def call(self, n, *rest):
            seen.append(n.shape[1])
            return share(self, n, *rest)

        return call

    for name, seen in fired.items():
        monkeypatch.setattr(sharing, name, watched(getattr(sharing, name), seen))
    trajectory, embeddings, _ = ttis(model, steps=10, iterations=0)
    assert fired == {"share_self": [], "share_cross": []}
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    bam(model, trajectory, moving)
    # 7 transformer blocks: 3 see 96 tokens, 4 see 24. Three steps share self-attention, six cross-attention. While only
    # the cross-attention is shared both passes come in one call.
    for seen in fired.values():
        assert len(seen) == 6 * 7 and seen.count(96) == 6 * 3
