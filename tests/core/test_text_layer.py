"""Text2LIVE's layer: the published losses and updates in double precision, and what holds whatever the weights."""

import math
from dataclasses import replace

import pytest
import torch

from baret_ops.edits import text_layer
from baret_ops.edits.cutouts import cutouts
from baret_ops.edits.layer_generator import LayerGenerator
from baret_ops.edits.text_layer import LayerTexts, Painting, paint_layer
from baret_ops.predict import NotFinite

SIDE = 16
KIND = torch.float64
SMALL = Painting(steps=3, views=4, channels=8)
ALONE = replace(SMALL, composition=0.0, screen=0.0, structure=0.0, sparsity=0.0, bootstrap=0.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=KIND)


class Eye:
    """A picture encoder, small, smooth and random."""

    side = SIDE
    to_tokens, to_space = random(3 * SIDE**2, 20, seed=2), random(20, 7, seed=3)

    def __call__(self, pictures):
        tokens = torch.tanh(pictures.flatten(1) @ self.to_tokens / 8)
        return tokens @ self.to_space, tokens.view(-1, 4, 5)


PICTURE = random(1, 3, SIDE, SIDE, seed=1).sigmoid()
MASK = torch.zeros(1, 1, SIDE, SIDE, dtype=KIND)
MASK[..., : SIDE // 2] = 1
TEXTS = LayerTexts(random(3, 7, seed=5), random(2, 7, seed=6), random(3, 7, seed=7))


def paint(how, texts=TEXTS, picture=PICTURE, **given):
    return paint_layer(Eye(), picture, texts, how, **given)


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def squared_angle(a, b):
    """Half of it: what ``2 arcsin(|a - b| / 2)^2`` of unit vectors is."""
    return cosine(a, b).arccos() ** 2 / 2


def published(layer, picture, mask, generator, share):
    """The sum of the published losses with its weights, term by term."""
    colours, alpha = layer[:, :3], layer[:, 3:]
    green = torch.tensor([0.0, 177 / 255, 64 / 255], dtype=KIND).view(1, 3, 1, 1)
    edited, screened = alpha * colours + (1 - alpha) * picture, alpha * colours + (1 - alpha) * green
    eye = Eye()
    views = [eye(view)[0] for view in cutouts(torch.cat([edited, screened, picture]), 4, SIDE, generator).split(3)]
    composition = screen = 0.0
    for on_picture, on_screen, before in views:
        for asked, was in zip(TEXTS.asked, TEXTS.before):
            way = 1 - cosine(on_picture - before, asked - was)
            composition += (squared_angle(on_picture, asked) + way) / (len(views) * 3)
        for text in TEXTS.layer:
            screen += squared_angle(on_screen, text) / (len(views) * 2)
    now, then = ([[cosine(a, b) for a in tokens] for b in tokens] for tokens in (eye(edited)[1][0], eye(picture)[1][0]))
    structure = sum((now[i][j] - then[i][j]) ** 2 for i in range(4) for j in range(4)) / 16
    covered = alpha.mean() + ((torch.sigmoid(5 * alpha) - 0.5) * 2).mean()
    start = ((alpha - mask) ** 2).mean()
    return composition + screen + 2 * structure + 6 * 0.01 * covered + 10 * share * start


def test_it_is_the_published_loss_and_updates(monkeypatch):
    """Adam as Kingma and Ba 2015 write it, at the published rate. Every update sees the picture as it is."""
    monkeypatch.setattr(text_layer, "_example", lambda sources, generator: sources)
    network = LayerGenerator(SIDE, SMALL.channels, seed=9).to(KIND)
    weights, generator = list(network.parameters()), torch.Generator().manual_seed(9)
    moments, losses = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights], []
    for t in range(1, SMALL.steps + 1):
        seen = 2 if t == 1 else 1  # the whole picture beside the example, every 75 updates
        share = 1 - t / SMALL.steps
        loss = sum(published(network(PICTURE), PICTURE, MASK, generator, share) for _ in range(seen)) / seen
        gradients = torch.autograd.grad(loss, weights)
        losses.append(loss.item())
        for i, (weight, gradient) in enumerate(zip(weights, gradients)):
            m, v = moments[i]
            moments[i] = m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            weight.data -= 0.0025 * 0.99 ** (t - 1) * step
    got = paint(SMALL, mask=MASK, seed=9)
    torch.testing.assert_close(got.losses, torch.tensor(losses, dtype=KIND), rtol=0, atol=1e-6)
    painted = network(PICTURE).detach()
    torch.testing.assert_close(torch.cat([got.colours, got.alpha], 1), painted, rtol=0, atol=1e-6)


def test_the_published_settings():
    how = Painting()
    assert (how.composition, how.screen, how.structure, how.sparsity, how.bootstrap) == (1, 1, 2, 6 * 0.01, 10)
    assert (how.steps, how.rate, how.rate_at(1), how.rate_at(999)) == (1000, 0.0025, 0.99 * 0.0025, 1e-5)
    assert (how.views, how.channels) == (16, 128)


def test_what_is_shown_is_the_whole_picture_under_the_layer():
    shown = []
    layer = paint(SMALL, on_step=lambda step, painted: shown.append((step, painted())))
    assert [step for step, _ in shown] == [0, 1, 2]
    assert torch.equal(shown[-1][1], layer.over(PICTURE)) and not torch.equal(shown[0][1], shown[1][1])


def test_no_update_leaves_the_picture():
    layer = paint(replace(SMALL, steps=0))
    assert not layer.alpha.any() and torch.equal(layer.over(PICTURE), PICTURE) and len(layer.losses) == 0


def test_where_alpha_is_0_the_picture_keeps_its_bits():
    layer = text_layer.Layer(1 - PICTURE, MASK)
    assert torch.equal(layer.over(PICTURE)[..., SIDE // 2 :], PICTURE[..., SIDE // 2 :])
    assert torch.equal(layer.over(PICTURE)[..., : SIDE // 2], layer.colours[..., : SIDE // 2])


def test_the_layer_begins_at_the_mask():
    layer = paint(replace(ALONE, steps=60, rate=0.02, bootstrap=10.0), mask=MASK)
    inside, outside = layer.alpha[MASK == 1].mean(), layer.alpha[MASK == 0].mean()
    assert inside > 0.8 and outside < 0.2


def test_sparsity_makes_the_layer_small():
    how = replace(ALONE, steps=40, rate=0.02, screen=1.0)
    loose, firm = (paint(replace(how, sparsity=weight)).alpha.mean() for weight in (0.0, 5.0))
    assert firm < 0.5 * loose


def test_structure_holds_what_is_alike():
    def change(weight):
        edited = paint(replace(SMALL, steps=40, structure=weight)).over(PICTURE)
        now, then = (text_layer.self_similarity(Eye()(x)[1]) for x in (edited, PICTURE))
        return (now - then).square().mean()

    assert change(100.0) < 0.5 * change(0.0)


def test_both_texts_are_approached():
    """The picture's by composition and the layer's by the screen, each with nothing else that counts."""
    green = torch.tensor(text_layer.SCREEN, dtype=KIND).view(1, 3, 1, 1)
    texts = replace(TEXTS, before=None)
    for weight, under, aim in (("composition", PICTURE, texts.asked), ("screen", green, texts.layer)):
        before, after = (
            squared_angle(Eye()(paint(replace(ALONE, steps=steps, **{weight: 1.0}), texts).over(under))[0], aim).mean()
            for steps in (1, 60)
        )
        assert after < before - 0.05


def test_the_seed_is_all_that_is_random():
    one, again, other = (paint(SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.colours, again.colours) and torch.equal(one.alpha, again.alpha)
    assert not torch.equal(one.colours, other.colours)
    state = torch.get_rng_state()
    paint(SMALL)
    assert torch.equal(torch.get_rng_state(), state), "the generator that everyone shares"


def test_examples_are_parts_of_the_picture_and_its_mask():
    """A mask that is one of the picture's channels stays so, whatever is cut, turned over and scaled."""
    generator, sizes = torch.Generator().manual_seed(0), set()
    sources = torch.cat([PICTURE, PICTURE[:, :1]], 1)
    for _ in range(40):
        example = text_layer._example(sources, generator)
        assert torch.equal(example[:, 0], example[:, 3])
        sizes.add(tuple(example.shape[-2:]))
    assert min(map(min, sizes)) >= math.floor(0.85 * round(0.8 * SIDE)) and max(map(max, sizes)) <= round(1.2 * SIDE)
    assert len(sizes) > 10


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (33, 9), (130, 70)])
def test_a_layer_is_of_the_pictures_size(size):
    layer = paint(replace(SMALL, steps=2), picture=random(1, 3, *size).sigmoid())
    assert layer.colours.shape == (1, 3, *size) and layer.alpha.shape == (1, 1, *size)
    assert layer.alpha.min() >= 0 and layer.alpha.max() <= 1


def test_nan_is_told():
    with pytest.raises(NotFinite, match="at update 0 of 3"):
        paint(SMALL, picture=PICTURE * math.nan)
