"""Latents tuned by CLIP: the published losses and updates in double precision, and what holds whatever the weights."""

import math

import pytest
import torch

from baret_ops.edits.clip_loss import distances
from baret_ops.edits.clip_optimise import RECIPES, Recipe, optimise
from baret_ops.edits.cutouts import cutouts, homography
from baret_ops.predict import NotFinite

SIDE = 6
KIND = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=KIND)


class Nets:
    """A decoder from 2x3x3 latents to pictures of 6x6 pixels, and an encoder, both small, smooth and random."""

    side = SIDE

    def __init__(self):
        self.out, self.to_tokens, self.to_space = (
            random(18, 108, seed=1),
            random(108, 20, seed=2),
            random(20, 7, seed=3),
        )

    def decode(self, latents):
        return torch.sigmoid(latents.flatten(1) @ self.out / 4).view(-1, 3, SIDE, SIDE)

    def __call__(self, pictures):
        tokens = torch.tanh(pictures.flatten(1) @ self.to_tokens / 4)
        return tokens @ self.to_space, tokens.view(-1, 4, 5)


@pytest.fixture
def nets():
    return Nets()


def latents(images=1, seed=4):
    """Of unit deviation, so that the published numbers stand as they are."""
    z = random(images, 2, 3, 3, seed=seed)
    return z / z.flatten(1).std(1)[:, None, None, None]


TEXTS, WEIGHTS = random(2, 7, seed=5), torch.tensor([1.0, 0.5], dtype=KIND)


def run(nets, z, recipe, **given):
    return optimise(nets.decode, nets, z, TEXTS, WEIGHTS, recipe, **given)


def reference(nets, z0, loss_of, rates):
    """Adam as Kingma and Ba 2015 write it, on the latent itself; the losses before each update, and the latent."""
    z, m, v, losses = z0.clone(), 0.0, 0.0, []
    for t, rate in enumerate(rates, 1):
        z = z.detach().requires_grad_()
        loss = loss_of(z, t - 1)
        (gradient,) = torch.autograd.grad(loss, z)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        losses.append(loss.item())
        z = z.detach() - rate * step
    return torch.tensor(losses, dtype=KIND), z


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def with_steps(name, steps, **changes):
    return Recipe(**{**RECIPES[name].__dict__, "steps": steps, **changes})


def test_styleclip_is_its_published_loss_and_updates(nets):
    """1 - cos + 0.008 |z - z0|^2, Adam 0.1 that rises over 5 % and falls over the last 25 % of the updates."""
    z0, steps = latents(), 40

    def loss_of(z, _):
        seen = nets(nets.decode(z))[0]
        misfit = sum(w * (1 - cosine(seen[0], text)) for w, text in zip(WEIGHTS, TEXTS))
        return misfit + 0.008 * ((z0 - z) ** 2).sum()

    def rate(i):
        t = i / steps
        return 0.1 * (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.25))) * min(1, t / 0.05)

    losses, z = reference(nets, z0, loss_of, [rate(i) for i in range(steps)])
    got = run(nets, z0, with_steps("StyleCLIP", steps))
    torch.testing.assert_close(got.losses[:, 0], losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.latent, z, rtol=0, atol=1e-6)
    assert losses[-1] < losses[0] - 0.1, "for this test to mean anything"


def test_vqgan_clip_is_its_published_loss_and_updates(nets):
    """The mean over views of half the squared angle to each text, times its weight; Adam 0.1."""
    z0, steps, views = latents(), 12, 4
    generator = torch.Generator().manual_seed(9)

    def loss_of(z, _):
        seen = nets(cutouts(nets.decode(z), views, SIDE, generator))[0]
        return sum(w * (cosine(seen, text).arccos() ** 2 / 2).mean() for w, text in zip(WEIGHTS, TEXTS))

    losses, z = reference(nets, z0, loss_of, [0.1] * steps)
    got = run(nets, z0, with_steps("VQGAN-CLIP", steps, views=views), seed=9)
    torch.testing.assert_close(got.losses[:, 0], losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.latent, z, rtol=0, atol=1e-6)


def test_tedigan_is_its_published_loss_and_updates(nets):
    """The squared error of pixels, 2 (1 - cos), and what the encoder's tokens of unit length differ by; Adam 0.01."""
    z0, steps = latents(), 12
    picture = nets.decode(z0)
    tokens = nets(picture)[1][0]

    def loss_of(z, _):
        x = nets.decode(z)
        seen, now = nets(x)
        misfit = sum(w * (1 - cosine(seen[0], text)) for w, text in zip(WEIGHTS, TEXTS))
        looks = (2 - 2 * cosine(now[0], tokens)).mean()
        return ((x - picture) ** 2).mean() + 2 * misfit + RECIPES["TediGAN"].perceptual * looks

    losses, z = reference(nets, z0, loss_of, [0.01] * steps)
    got = run(nets, z0, with_steps("TediGAN", steps))
    torch.testing.assert_close(got.losses[:, 0], losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.latent, z, rtol=0, atol=1e-6)


def test_the_published_settings():
    style, vqgan, tedi = (RECIPES[name] for name in ("StyleCLIP", "VQGAN-CLIP", "TediGAN"))
    assert (style.steps, style.rate, style.latent, style.views) == (300, 0.1, 0.008, 0)
    assert (vqgan.steps, vqgan.rate, vqgan.views, vqgan.latent) == (500, 0.1, 32, 0)
    assert (tedi.steps, tedi.rate, tedi.clip, tedi.pixel) == (200, 0.01, 2.0, 1.0)


@pytest.mark.parametrize("name", RECIPES)
class TestWhatMustHold:
    def test_nothing_changes_without_updates_or_without_rate(self, nets, name):
        z = latents(2)
        assert torch.equal(run(nets, z, with_steps(name, 0)).latent, z)
        assert torch.equal(run(nets, z, with_steps(name, 3, rate=0.0)).latent, z)

    def test_images_of_a_batch_are_independent(self, nets, name):
        z = latents(3)
        together = run(nets, z, with_steps(name, 5))
        for b in range(3):
            alone = run(nets, z[b : b + 1], with_steps(name, 5))
            torch.testing.assert_close(together.latent[b : b + 1], alone.latent, rtol=0, atol=1e-9)
            torch.testing.assert_close(together.losses[:, b : b + 1], alone.losses, rtol=0, atol=1e-9)

    def test_the_deviation_of_a_latent_is_its_unit(self, nets, name):
        """A latent on another scale, decoded accordingly, moves as far in its own units."""
        z, scale = latents(), 5.5
        ours = run(nets, z, with_steps(name, 5))
        other = optimise(lambda x: nets.decode(x / scale), nets, scale * z, TEXTS, WEIGHTS, with_steps(name, 5))
        torch.testing.assert_close(other.latent, scale * ours.latent, rtol=0, atol=1e-9)

    def test_black_cells_of_a_mask_keep_their_bits(self, nets, name):
        z, mask = latents(), torch.zeros(1, 1, 3, 3, dtype=KIND)
        mask[..., 0] = 1
        got = run(nets, z, with_steps(name, 5), mask=mask).latent
        assert torch.equal(got[..., 1:], z[..., 1:]) and not torch.equal(got[..., 0], z[..., 0])

    def test_a_text_is_approached_and_one_with_a_negative_weight_is_left(self, nets, name):
        z = latents()
        for weight, sign in ((1.0, 1), (-1.0, -1)):
            text = torch.tensor([weight], dtype=KIND)
            got = optimise(nets.decode, nets, z, TEXTS[:1], text, with_steps(name, 60), keep=0.0).latent
            before, after = (cosine(nets(nets.decode(x))[0][0], TEXTS[0]) for x in (z, got))
            assert sign * (after - before) > 0.02

    def test_keep_holds_the_picture(self, nets, name):
        loose, firm = (run(nets, latents(), with_steps(name, 40), keep=keep).latent for keep in (0.0, 100.0))
        changed = [(z - latents()).norm() for z in (loose, firm)]
        if RECIPES[name].latent or RECIPES[name].pixel:
            assert changed[1] < 0.5 * changed[0]
        else:
            assert torch.equal(loose, firm), "there is nothing to hold"


def test_the_seed_is_the_views(nets):
    recipe = with_steps("VQGAN-CLIP", 3)
    one, again, other = (run(nets, latents(), recipe, seed=seed).latent for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_nan_is_told(nets):
    z = latents()
    z[0, 0, 0, 0] = math.nan
    with pytest.raises(NotFinite, match="at update 0 of 3: run the VAE and CLIP in float32"):
        run(nets, z, with_steps("StyleCLIP", 3))


def test_distances_are_angles():
    a, b = random(3, 7, seed=6), random(2, 7, seed=7)
    angle = cosine(a[:, None], b).arccos()
    torch.testing.assert_close(distances(a, b, "cosine"), 1 - angle.cos())
    torch.testing.assert_close(distances(a, b, "arc"), angle**2 / 2)
    assert distances(a, a, "arc").diagonal().abs().max() < 1e-12


class TestCutouts:
    def test_all_pictures_are_changed_alike(self):
        pictures = torch.rand(2, 3, 20, 14, dtype=KIND)
        both = cutouts(pictures, 5, 8, torch.Generator().manual_seed(1))
        alone = cutouts(pictures[1:], 5, 8, torch.Generator().manual_seed(1))
        assert both.shape == (10, 3, 8, 8)
        torch.testing.assert_close(both[1::2], alone, rtol=0, atol=1e-12)

    def test_they_differ_and_stay_recognisable(self):
        """On the mean over many views of a picture, black on its left and white on its right, that is still so."""
        picture = torch.zeros(1, 3, 32, 32)
        picture[..., 16:] = 1
        views = torch.cat([cutouts(picture, 32, 32, torch.Generator().manual_seed(seed)) for seed in range(8)])
        assert views.std(0).mean() > 0.1
        mean = views.mean((0, 1))
        assert mean[8:24, 4:12].mean() < 0.05 and mean[8:24, 20:28].mean() > 0.3

    def test_a_rectangle_of_a_tenth_to_two_fifths_is_erased_in_most(self):
        shares = []
        for seed in range(40):
            views = cutouts(torch.ones(1, 3, 40, 40), 64, 40, torch.Generator().manual_seed(seed))
            dark = (views.mean((0, 1)) < 0.1).double().mean()
            shares.append(float(dark))
        erased = [share for share in shares if share > 0.01]
        assert 0.5 < len(erased) / len(shares) < 0.9
        assert min(erased) > 0.05 and max(erased) < 0.45

    def test_four_points_find_their_images(self):
        points, images = random(2, 4, 2, seed=8), random(2, 4, 2, seed=9)
        placed = torch.cat([points, torch.ones(2, 4, 1, dtype=KIND)], -1) @ homography(points, images).transpose(1, 2)
        torch.testing.assert_close(placed[..., :2] / placed[..., 2:], images)

    def test_gradients_reach_the_picture(self):
        picture = torch.rand(1, 3, 8, 8, dtype=KIND, requires_grad=True)
        cutouts(picture, 4, 8, torch.Generator()).sum().backward()
        assert (picture.grad != 0).double().mean() > 0.5
