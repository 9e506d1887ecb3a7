"""The BAM loop against the plain way: all three processes sampled in full, every step, as the paper has it."""

import pytest
import torch

from baret_ops.edits.auto_mask import auto_mask
from baret_ops.edits.bam import Edits, advance, bam
from baret_ops.edits.plan import Dials
from baret_ops.edits.region import Region, change_of, otsu, renoised
from baret_ops.edits.sampling import injected_steps
from baret_ops.schedule import make_schedule
from baret_ops.values import Embeddings, ModelFamily, Trajectory

STEPS, B, TOKENS, WIDTH, W = 8, 2, 3, 4, 4.0


def mix(x, e, self_x, cross_x, cross_e, sigma):
    """A network with a kind of self- and cross-attention: 'queries and keys' of their rows, 'values' of its own."""
    z, self_z, cross_z = (t / (1 + sigma**2) ** 0.5 for t in (x, self_x, cross_x))
    own, lent = e.mean((1, 2))[:, None, None, None], cross_e.mean((1, 2))[:, None, None, None]
    return torch.tanh(z) + 0.3 * torch.sin(3 * self_z) * z + 0.5 * torch.sin(2 * cross_z + lent) * own


def edited(*given, **how):
    """The edit alone, without where it was let differ."""
    return bam(*given, **how)[0]


class Network:
    rows, images = 0, B

    def __call__(self, x, sigma, *, cond=None, uncond=None, sharing=None, hooks=None):
        out = []
        for e, conditional in ((cond, True), (uncond, False)):
            if e is None:
                out.append(None)
                continue
            self.rows += len(x)
            self_x, cross_x, cross_e = x.clone(), x.clone(), e.clone()
            if sharing is not None and (conditional or sharing.uncond):
                images = self.images or len(x) // sharing.processes
                assert len(x) == sharing.processes * images
                if sharing.self_from is not None:
                    self_x = x.unflatten(0, (-1, images))[list(sharing.self_from)].flatten(0, 1)
                if sharing.cross_from is not None:
                    lenders = list(sharing.cross_from)
                    cross_x = x.unflatten(0, (-1, images))[lenders].flatten(0, 1)
                    cross_e = e.unflatten(0, (-1, images))[lenders].flatten(0, 1)
            out.append(mix(x, e, self_x, cross_x, cross_e, sigma))
        return tuple(out)


def plain(trajectory, embeddings, tau_sa, tau_ca, both, mask=None):
    schedule, pivots = trajectory.schedule, trajectory.pivots
    edit = transition = pivots[0]
    for i in range(STEPS):
        sigma = float(schedule.sigmas[i])
        x_edit, x_tra, x_rec = (z * schedule.scale(i) for z in (edit, transition, trajectory.latents[i]))
        null, target = embeddings.negative_at(i), embeddings.target
        e_tra = embeddings.eta[i] * embeddings.tuned[i] + (1 - embeddings.eta[i]) * target
        self_x = x_rec if i < injected_steps(tau_sa, STEPS) else x_edit
        shares_cross = i < injected_steps(tau_ca, STEPS)
        cross_x, cross_e, cross_null = (x_tra, e_tra, null) if shares_cross else (x_edit, target, null)

        cond = mix(x_edit, target, self_x, cross_x, cross_e, sigma)
        uncond = mix(x_edit, null, self_x, cross_x, cross_null, sigma) if both else alone(x_edit, null, sigma)
        edit = guided_step(schedule, i, x_edit, cond, uncond)
        transition = guided_step(schedule, i, x_tra, alone(x_tra, e_tra, sigma), alone(x_tra, null, sigma))
        if mask is not None:
            edit = mask * edit + (1 - mask) * pivots[i + 1]
    return edit


def alone(x, e, sigma):
    """The network with attention of its own."""
    return mix(x, e, x, x, e, sigma)


def guided_step(schedule, i, x, cond, uncond):
    """One guided DDIM step, in VP form."""
    sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
    return (x + (sigma_next - sigma) * (uncond + W * (cond - uncond))) / schedule.scale(i + 1)


def inversion(eta, negatives=()):
    """A trajectory and embeddings with nothing in common but their shapes; the latents are the tuned text's."""
    generator = torch.Generator().manual_seed(0)
    schedule = make_schedule(torch.linspace(0.03, 8.0, 1000, dtype=torch.float64), STEPS)
    pivots = torch.randn(STEPS + 1, B, 2, 3, 4, generator=generator, dtype=torch.float64)
    tuned = torch.randn(STEPS, B, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    target, negative = torch.randn(2, B, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    if negatives:
        negative = torch.randn(*negatives, B, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    latents, network = [pivots[0]], Network()
    for i in range(STEPS):
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        x = latents[-1] * schedule.scale(i)
        cond, uncond = network(x, sigma, cond=tuned[i], uncond=negative[i] if negatives else negative)
        latents.append((x + (sigma_next - sigma) * (uncond + W * (cond - uncond))) / schedule.scale(i + 1))
    trajectory = Trajectory(pivots, torch.stack(latents), schedule, W, ModelFamily("epsilon", 2, WIDTH, 8.0, 1.0))
    zeros = torch.zeros(STEPS, B)
    return trajectory, Embeddings(tuned, target, negative, torch.ones(STEPS), zeros, zeros.long()).with_transition(*eta)


@pytest.mark.parametrize("eta", [(0.8, 0.1), (1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("taus", [(0.3, 0.6), (0.6, 0.3), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_plain_way(eta, taus, both, masked):
    trajectory, embeddings = inversion(eta)
    mask = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(1, 1, 3, 4) if masked else None
    got = edited(
        Network(), trajectory, embeddings, guidance_scale=W, tau_sa=taus[0], tau_ca=taus[1], uncond_too=both, mask=mask
    )
    torch.testing.assert_close(got, plain(trajectory, embeddings, *taus, both, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [(0.8, 0.1), (1.0, 1.0)])
@pytest.mark.parametrize("both", [False, True])
def test_a_negative_of_each_step(eta, both):
    trajectory, embeddings = inversion(eta, negatives=(STEPS,))
    got = edited(Network(), trajectory, embeddings, guidance_scale=W, uncond_too=both)
    torch.testing.assert_close(got, plain(trajectory, embeddings, 0.3, 0.6, both), rtol=1e-6, atol=1e-6)


def test_rigid_at_another_guidance_samples_the_transition():
    """The tuned latents are the transition only at the guidance they were tuned at."""
    trajectory, embeddings = inversion((1.0, 1.0))
    network = Network()
    edited(network, trajectory, embeddings, guidance_scale=W)
    assert network.rows == B * (round(0.6 * STEPS) + 2 * STEPS)
    network = Network()
    edited(network, trajectory, embeddings, guidance_scale=W + 1)
    assert network.rows == B * (injected_steps(0.3, STEPS) + 2 * injected_steps(0.6, STEPS) + 2 * STEPS)


def test_a_hard_mask_keeps_the_last_pivot_to_the_bit():
    trajectory, embeddings = inversion((0.8, 0.1))
    mask = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    mask[..., 2:] = 1.0
    got = edited(Network(), trajectory, embeddings, guidance_scale=W, mask=mask)
    assert torch.equal(got[..., :2], trajectory.pivots[-1][..., :2])
    assert torch.equal(
        edited(Network(), trajectory, embeddings, guidance_scale=W, mask=torch.ones_like(mask)),
        edited(Network(), trajectory, embeddings, guidance_scale=W),
    )


class TestAutoMask:
    """The mask found from the text: white where the target text and the tuned one predict different noise."""

    @staticmethod
    def where_text_acts(x, sigma, *, cond=None, uncond=None, sharing=None, hooks=None):
        """A network whose text matters in the last three columns; in pictures of seven rows in all but the first."""
        acts = (torch.arange(8) >= (1 if x.shape[-2] == 7 else 5)).to(x)
        return tuple(
            None if e is None else torch.tanh(x) + acts * e.mean((1, 2))[:, None, None, None] for e in (cond, uncond)
        )

    def inverted(self, asked, rows=8):
        """Two images of ``rows`` x8 cells; the first's tuned text is the target, the second's lies ``asked`` away."""
        schedule = make_schedule(torch.linspace(0.03, 8.0, 1000, dtype=torch.float64), STEPS)
        latents = [torch.randn(B, 2, rows, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
        target, negative = (
            torch.ones(B, TOKENS, WIDTH, dtype=torch.float64),
            torch.zeros(B, TOKENS, WIDTH, dtype=torch.float64),
        )
        tuned = (target - torch.tensor([0.0, asked], dtype=torch.float64)[:, None, None]).expand(STEPS, -1, -1, -1)
        for i in range(STEPS):
            sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
            x = latents[-1] * schedule.scale(i)
            cond, uncond = self.where_text_acts(x, sigma, cond=tuned[i], uncond=negative)
            latents.append((x + (sigma_next - sigma) * (uncond + W * (cond - uncond))) / schedule.scale(i + 1))
        trajectory = Trajectory(
            torch.randn(STEPS + 1, B, 2, rows, 8, dtype=torch.float64),
            torch.stack(latents),
            schedule,
            W,
            ModelFamily("epsilon", 2, WIDTH, 8.0, 1.0),
        )
        zeros = torch.zeros(STEPS, B)
        return trajectory, Embeddings(tuned, target, negative, torch.ones(STEPS), zeros, zeros.long())

    @pytest.mark.parametrize("asked, white", [(0.1, 0.0), (0.2, 0.5), (0.3, 1.0), (0.9, 1.0)])
    def test_rises_from_the_threshold_to_three_times_it(self, asked, white):
        mask = auto_mask(self.where_text_acts, *self.inverted(asked), threshold=0.1)
        assert mask.shape == (B, 1, 8, 8)
        torch.testing.assert_close(mask[0], torch.zeros_like(mask[0]))
        torch.testing.assert_close(mask[1, ..., 6:], torch.full_like(mask[1, ..., 6:], white))
        torch.testing.assert_close(mask[1, ..., :4], torch.zeros_like(mask[1, ..., :4]))

    def test_is_white_throughout_where_more_than_half_is_to_change(self):
        mask = auto_mask(self.where_text_acts, *self.inverted(0.9, rows=7), threshold=0.1)
        assert torch.equal(mask[1], torch.ones_like(mask[1])), "also in the column where the text does nothing"
        torch.testing.assert_close(mask[0], torch.zeros_like(mask[0]))

    def test_the_edit_keeps_the_pivots_outside_it_and_within_a_given_mask(self):
        trajectory, embeddings = self.inverted(0.9)
        free = edited(self.where_text_acts, trajectory, embeddings, guidance_scale=W, tau_sa=0.0, tau_ca=0.0)
        got = edited(
            self.where_text_acts, trajectory, embeddings, guidance_scale=W, tau_sa=0.0, tau_ca=0.0, auto_mask=0.1
        )
        assert torch.equal(got[0], trajectory.pivots[-1][0]) and torch.equal(
            got[1, ..., :4], trajectory.pivots[-1][1, ..., :4]
        )
        torch.testing.assert_close(got[1, ..., 6:], free[1, ..., 6:])
        none = edited(
            self.where_text_acts,
            trajectory,
            embeddings,
            guidance_scale=W,
            auto_mask=0.1,
            mask=torch.zeros(1, 1, 8, 8, dtype=torch.float64),
        )
        assert torch.equal(none, trajectory.pivots[-1])


def dials(taus):
    return [Dials.of(STEPS, *each) for each in taus]


class TestManyEdits:
    """Edits side by side: each is the one that runs alone, and what they have in common runs once."""

    TAUS = [(0.25, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 0.75), (1.0, 0.0)]
    ETAS = [(0.8, 0.1), (1.0, 1.0), (0.4, 0.0)]

    @pytest.mark.parametrize("both", [False, True])
    @pytest.mark.parametrize("halt", [0, 3, STEPS])
    def test_each_is_the_one_alone(self, both, halt):
        trajectory, embeddings = inversion((1.0, 1.0))
        mask = torch.linspace(0.2, 1, 12, dtype=torch.float64).reshape(1, 1, 3, 4)
        how = {"uncond_too": both, "guidance_scale": W}
        many = [Edits.begin(trajectory, embeddings.with_transition(*eta), dials(self.TAUS)) for eta in self.ETAS]
        within = {"region": Region(mask), **how}
        many = advance(Network(), trajectory, many, range(halt), **within)
        many = [advance(Network(), trajectory, [edits], range(halt, STEPS), **within)[0] for edits in many]
        for eta, edits in zip(self.ETAS, many):
            for taus, got in zip(self.TAUS, edits.results()):
                torch.testing.assert_close(
                    got,
                    edited(
                        Network(),
                        trajectory,
                        embeddings.with_transition(*eta),
                        tau_sa=taus[0],
                        tau_ca=taus[1],
                        mask=mask,
                        **how,
                    ),
                )

    def test_what_is_common_runs_once(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        many = [
            Edits.begin(trajectory, embeddings.with_transition(*eta), dials([(0.25, 0.5), (0.5, 0.5)]))
            for eta in ((0.8, 0.1), (0.6, 0.1))
        ]
        network = Network()
        advance(network, trajectory, many, range(STEPS), guidance_scale=W)
        # One reconstruction for half of the steps; for each eta a transition for half of them, and edits that are one
        # for a quarter.
        assert network.rows == B * (STEPS // 2 + 2 * 2 * (STEPS // 2 + STEPS // 4 + 2 * (3 * STEPS // 4)))

    def test_watching_runs_both_lenders_at_every_step(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        seen = []
        for each, guided in ((embeddings, 2), (embeddings.with_transition(1.0, 1.0), 1)):
            network = Network()
            got = edited(
                network,
                trajectory,
                each,
                guidance_scale=W,
                watch=lambda step, places: seen.append((step, *places.values())),
            )
            torch.testing.assert_close(got, edited(Network(), trajectory, each, guidance_scale=W))
            assert network.rows == B * STEPS * (2 * guided + 1)
            assert seen == [(step, guided, 1) for step in range(STEPS)]
            seen.clear()


class TestBeyondThePaper:
    """Looks, change mask and new noise: off they change nothing, on they do what they say."""

    def test_at_zero_they_change_nothing_to_the_bit(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        plain_way, mask = bam(Network(), trajectory, embeddings, guidance_scale=W)
        off = {"appearance": 0.0, "change_mask": 0.0, "renoise": 0.0, "seed": 5}
        assert torch.equal(edited(Network(), trajectory, embeddings, guidance_scale=W, **off), plain_way)
        assert torch.equal(mask, torch.ones_like(mask))

    @pytest.mark.parametrize("extra", [{"appearance": 1.0}, {"change_mask": 0.5}, {"renoise": 0.8}])
    def test_a_mask_of_zero_gives_the_picture_exactly(self, extra):
        trajectory, embeddings = inversion((0.8, 0.1))
        nothing = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
        got, mask = bam(Network(), trajectory, embeddings, guidance_scale=W, mask=nothing, **extra)
        assert torch.equal(got, trajectory.pivots[-1]) and not mask.any()

    def test_looks_cost_the_reconstruction_from_their_step_on(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        for both, lender in ((False, 1), (True, 2)):
            network = Network()
            how = {"tau_sa": 0.0, "tau_ca": 0.0, "guidance_scale": W, "uncond_too": both}
            bam(network, trajectory, embeddings, appearance=0.75, **how)
            assert network.rows == B * (2 * STEPS + lender * 6)

    def test_the_change_mask_keeps_the_picture_where_little_changes(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        free = edited(Network(), trajectory, embeddings, guidance_scale=W)
        change = change_of(free, trajectory.pivots[-1])
        most = float(change.max())
        none, mask = bam(Network(), trajectory, embeddings, guidance_scale=W, change_mask=100 * most)
        assert torch.equal(none, trajectory.pivots[-1]) and not mask.any()
        all_of_it, mask = bam(Network(), trajectory, embeddings, guidance_scale=W, change_mask=1e-9)
        torch.testing.assert_close(all_of_it, free)
        assert bool((mask == 1).all())

    def test_new_noise_comes_by_seed_and_only_where_the_picture_may_change(self):
        trajectory, embeddings = inversion((0.8, 0.1))
        half = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
        half[..., 2:] = 1.0
        start = renoised(trajectory.pivots[0], 0.8, half, seed=3)
        assert torch.equal(start[..., :2], trajectory.pivots[0][..., :2])
        assert not torch.isclose(start[..., 2:], trajectory.pivots[0][..., 2:]).any()
        assert torch.equal(start, renoised(trajectory.pivots[0], 0.8, half, seed=3))
        assert not torch.equal(start, renoised(trajectory.pivots[0], 0.8, half, seed=4))
        assert torch.equal(renoised(trajectory.pivots[0], 0.0, None, seed=3), trajectory.pivots[0])
        unit = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        mixed = renoised(unit, 0.8, None, seed=3)
        assert float(mixed.var()) == pytest.approx(1.0, abs=0.05), "it preserves variance"
        assert float((mixed * unit).mean()) == pytest.approx(0.2**0.5, abs=0.05)
        how = {"guidance_scale": W, "mask": half, "renoise": 0.8}
        first, again, other = (edited(Network(), trajectory, embeddings, seed=seed, **how) for seed in (3, 3, 4))
        assert torch.equal(first, again) and not torch.equal(first, other)


class TestOtsu:
    def test_parts_two_classes_image_by_image(self):
        values = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        values[:, :, :2] += torch.tensor([10.0, 2.0, 0.0])[:, None, None, None]
        found = otsu(values)
        assert found.shape == (3, 1, 1, 1)
        assert 1.0 < float(found[0]) < 10.0 and 1.0 < float(found[1]) < 2.0
        assert torch.equal((values > found)[:2], (torch.arange(6) < 2)[None, None, :, None].expand(2, 1, 6, 6))
        torch.testing.assert_close(otsu(7 * values), 7 * found, msg="it goes with the scale")

    def test_is_the_cut_of_the_largest_variance_between_classes(self):
        values = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        flat = values.flatten()

        def between(cut):
            low, high = flat[flat <= cut], flat[flat > cut]
            return len(low) * len(high) * float(low.mean() - high.mean()) ** 2

        best = max(between(float(cut)) for cut in flat.sort().values[:-1])
        assert between(float(otsu(values))) == pytest.approx(best)
