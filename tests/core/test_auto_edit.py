"""Auto Edit's parts: the judge, the regions, the choice, and what must hold whatever the model."""

import pytest
import torch

from baret_ops.attention import Sharing
from baret_ops.edits import auto_edit as module
from baret_ops.edits.auto_edit import (
    CANDIDATES,
    GUIDED,
    Candidate,
    auto_edit,
    choose,
    regions,
    reports,
    within,
)
from baret_ops.edits.judge import Answers, ask, levels_of

from .test_bam import STEPS, B, Network, W, inversion

NAN = float("nan")
NONE_OBEYS, ANY_OBEYS = -1e6, 1e6
"""Values of ``keep`` beyond its range: with the first no score is enough, with the second any is."""


def rows_of(candidate):
    """What a candidate costs one image: with both texts while there is guidance, and the reconstruction where it
    lends."""
    steps = range(candidate.first(STEPS), STEPS)
    lending = sum(within(candidate.layout, i, STEPS) or within(candidate.looks, i, STEPS) for i in steps)
    return len(steps) + sum(within((0.0, GUIDED), i, STEPS) for i in steps) + lending


class AnyNetwork(Network):
    """The network for batches of any size."""

    images = None


def answers(*obeyed, pictures=3):
    """Answers at a level for each number: how far the noise lies on the way from the tuned text to the target."""
    generator = torch.Generator().manual_seed(0)
    tuned, target = torch.randn(2, len(obeyed), 1, 4, 6, 6, generator=generator, dtype=torch.float64)
    way = torch.tensor(obeyed, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    every = (-1, pictures, -1, -1, -1)
    return Answers(torch.lerp(tuned, target, way), target.expand(every), tuned.expand(every))


class TestJudge:
    def test_measures_how_far_the_target_text_explains_a_picture(self):
        found = answers(0.0, 0.4, 1.0, 1.3).obeyed()
        wanted = torch.tensor([0.0, 0.4, 1.0, 1.3], dtype=torch.float64)
        torch.testing.assert_close(found, wanted[:, None].expand(4, 3))

    def test_goes_with_no_scale(self):
        given = answers(0.4, 0.9)
        doubled = Answers(2 * given.noise, 2 * given.target, 2 * given.tuned)
        torch.testing.assert_close(doubled.obeyed(), given.obeyed())

    def test_scores_the_way_from_the_source_and_no_level_alone(self):
        source = answers(0.2, -0.4, 0.0, 0.1)
        assert bool((source.score(source) == 0).all()), "the picture as it was"
        edit = answers(0.2 + 0.6, -0.4 + 1.0, 0.0 + 9.0, 0.1 - 9.0)
        torch.testing.assert_close(edit.score(source), torch.full([3], 0.8, dtype=torch.float64))

    def test_answers_about_some_pictures(self):
        found = answers(0.2, 0.9, pictures=3)
        assert torch.equal(found.of([2, 0]).obeyed(), found.obeyed()[:, [2, 0]])

    def test_asks_each_level_once_with_both_texts(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        schedule, pictures, network = trajectory.schedule, trajectory.pivots[-1], AnyNetwork()
        found = ask(network, schedule, embeddings, pictures, seed=3)
        assert network.rows == 2 * B * len(levels_of(schedule))
        again = ask(AnyNetwork(), schedule, embeddings, pictures, seed=3)
        other = ask(AnyNetwork(), schedule, embeddings, pictures, seed=4)
        assert torch.equal(found.noise, again.noise) and not torch.equal(found.noise, other.noise)


def test_regions_are_where_the_texts_differ_most():
    zeros = torch.zeros(2, 1, 1, 8, 8)
    target = zeros.clone()
    target[..., 6:] = 1.0  # the texts differ in the last two columns alone
    may_change, at_odds = regions(Answers(zeros, target, zeros))
    assert at_odds[0, 0, 0].tolist() == [0.0] * 6 + [1.0] * 2
    assert may_change[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4, "one cell wider than where the difference counts"
    target[..., 3:] = 1.0
    may_change, at_odds = regions(Answers(zeros, target, zeros))
    assert may_change.any() and not at_odds.any(), "another scene gets no fresh noise"
    target[..., :6] = 0.0
    may_change, at_odds = regions(Answers(zeros, target, zeros))
    weaker = regions(Answers(zeros, 0.01 * target, zeros))
    assert torch.equal(weaker[0], may_change) and torch.equal(weaker[1], at_odds)


@pytest.mark.parametrize("keep, chosen", [(0.0, [1, 1, 1, 0]), (0.5, [0, 1, 1, 0]), (1.0, [0, 0, 1, 0])])
def test_the_first_that_obeys(keep, chosen):
    scores = torch.tensor([[0.8, 0.5, -0.5, 0.0], [1.0, 1.06, 0.05, -0.1]])
    found, obeys = choose(scores, keep)
    assert found.tolist() == chosen
    assert obeys.any(0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("keep, chosen", [(0.0, [2, 2, 2, 1]), (0.5, [2, 1, 2, 1]), (1.0, [2, 1, 2, 1])])
def test_fresh_noise_counts_where_it_gains_enough(keep, chosen):
    assert [candidate.fresh for candidate in CANDIDATES] == [False, False, True, False]
    scores = torch.tensor([[0.0, 0.1, -0.5, 0.1], [-0.2, 0.55, -0.3, 0.15], [1.0, 0.75, 1.0, NAN]])
    found, obeys = choose(scores, keep)
    assert found.tolist() == chosen
    assert obeys[2, 0] and not obeys[2, 3], "what was not tried does not obey"


@pytest.fixture
def guided_everywhere(monkeypatch):
    """Guidance in every step, and no place that must stay."""

    def everywhere(source):
        free = torch.ones_like(source.difference())
        return free, free

    monkeypatch.setattr(module, "GUIDED", 1.0)
    monkeypatch.setattr(module, "regions", everywhere)


class TestAutoEdit:
    @pytest.mark.parametrize("effort", [1, 2, 3, 4])
    def test_rows_of_each_effort(self, effort):
        trajectory, embeddings = inversion((1.0, 1.0))
        network = AnyNetwork()
        found = auto_edit(
            network, trajectory.rows([0]), embeddings.rows([0]), guidance_scale=W, effort=effort, keep=NONE_OBEYS
        )
        judged = 2 * len(levels_of(trajectory.schedule))
        assert network.rows == judged + sum(rows_of(candidate) + judged for candidate in CANDIDATES[:effort])
        assert found.candidates.shape[:2] == (effort, 1) and not found.scores.isnan().any()

    def test_no_more_are_tried_than_are_needed(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        network = AnyNetwork()
        found = auto_edit(network, trajectory.rows([0]), embeddings.rows([0]), guidance_scale=W, keep=ANY_OBEYS)
        judged = 2 * len(levels_of(trajectory.schedule))
        assert network.rows == judged + rows_of(CANDIDATES[0]) + judged
        assert found.chosen.tolist() == [0] and found.scores[1:].isnan().all()
        assert torch.equal(found.candidates[1, 0], trajectory.pivots[-1][0])

    def test_a_late_start_is_the_picture_before_it(self, monkeypatch):
        """Without steps of its own, a candidate is the reconstruction."""
        monkeypatch.setattr(module, "CANDIDATES", (Candidate("never begun", begins=1.0),))
        trajectory, embeddings = inversion((1.0, 1.0))
        found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, effort=1)
        torch.testing.assert_close(found.candidates[0], trajectory.latents[-1])

    def test_guidance_leads_from_the_tuned_text_to_the_target(self, monkeypatch, guided_everywhere):
        """Without any, an edit follows the tuned text at every step."""
        monkeypatch.setattr(module, "CANDIDATES", (Candidate("unguided", guidance=0.0),))
        trajectory, embeddings = inversion((1.0, 1.0))
        found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, effort=1)
        network, z, schedule = AnyNetwork(), trajectory.latents[0], trajectory.schedule
        for i in range(STEPS):
            eps, _ = network(schedule.to_sampler(z, i), schedule.sigma(i), cond=embeddings.tuned[i])
            z = schedule.step(z, eps, i, i + 1)
        torch.testing.assert_close(found.edit, z)

    def test_the_reconstruction_lends_and_is_not_taken_for_the_edit(self, monkeypatch, guided_everywhere):
        """Begun elsewhere than the picture, an edit with lent layout follows the tuned text from its own latent."""
        monkeypatch.setattr(module, "CANDIDATES", (Candidate("lent", guidance=0.0, layout=(0.0, 1.0), fresh=True),))
        monkeypatch.setattr(module, "renoised", lambda latent, *_: 0.5 * latent)
        trajectory, embeddings = inversion((1.0, 1.0))
        found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, effort=1)
        network, z, schedule = AnyNetwork(), 0.5 * trajectory.latents[0], trajectory.schedule
        lent = Sharing(processes=2, self_from=(1, 1))
        for i in range(STEPS):
            x = schedule.to_sampler(torch.cat([z, trajectory.latents[i]]), i)
            eps, _ = network(x, schedule.sigma(i), cond=embeddings.tuned[i].repeat(2, 1, 1), sharing=lent)
            z = schedule.step(z, eps[:B], i, i + 1)
        torch.testing.assert_close(found.candidates[0], z)

    def test_each_image_is_decided_on_its_own(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        together = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W)
        for b in range(B):
            alone = auto_edit(AnyNetwork(), trajectory.rows([b]), embeddings.rows([b]), guidance_scale=W)
            torch.testing.assert_close(together.edit[b], alone.edit[0])
            torch.testing.assert_close(together.scores[:, b], alone.scores[:, 0], equal_nan=True)
        whole = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, regroup=False)
        torch.testing.assert_close(whole.edit, together.edit)
        torch.testing.assert_close(whole.scores, together.scores, equal_nan=True)

    def test_the_seed_is_the_try(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        first, again, other = (
            auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(first.edit, again.edit)
        assert not torch.equal(first.scores[:2], other.scores[:2])

    def test_candidates_are_shown_beside_earlier_ones(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        shown = []
        found = auto_edit(
            AnyNetwork(),
            trajectory.rows([0]),
            embeddings.rows([0]),
            guidance_scale=W,
            effort=2,
            keep=NONE_OBEYS,
            on_step=lambda i, clean, latents: shown.append((i, clean, latents)),
        )
        width = trajectory.pivots.shape[-1]
        late = STEPS - CANDIDATES[0].first(STEPS)
        assert [i for i, *_ in shown] == list(range(reports(2, STEPS))), "one bar for all"
        assert [clean.shape[-1] // width for _, clean, _ in shown] == [1] * late + [2] * STEPS
        _, _, last = shown[-1]
        assert torch.equal(last, torch.cat(list(found.candidates), -1))

    def test_the_bar_ends_where_no_further_candidate_is_needed(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        shown = []
        found = auto_edit(
            AnyNetwork(),
            trajectory.rows([0]),
            embeddings.rows([0]),
            guidance_scale=W,
            effort=3,
            keep=ANY_OBEYS,
            on_step=lambda i, clean, latents: shown.append((i, latents)),
        )
        late = STEPS - CANDIDATES[0].first(STEPS)
        assert [i for i, _ in shown] == [*range(late), reports(3, STEPS) - 1]
        assert torch.equal(shown[-1][1], found.candidates[0])

    def test_a_mask_of_zero_gives_the_picture_exactly(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        nothing = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
        found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, mask=nothing)
        assert torch.equal(found.edit, trajectory.pivots[-1]) and not found.mask.any()

    def test_the_report_says_what_was_taken_and_when_nothing_obeys(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        for keep in (0.0, 1.0):
            found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, keep=keep)
            lines = found.report().splitlines()
            assert len(lines) == B
            for line, chosen, good in zip(lines, found.chosen.tolist(), found.good.tolist()):
                assert f"taken: {found.names[chosen]}" in line
                assert ("the first that obeys" in line) == good

    def test_one_text_for_before_and_after_is_refused(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        (same,) = [embeddings.with_target(embeddings.tuned[0], {})]
        untuned = type(same)(**{**vars(same), "tuned": same.target.expand(STEPS, -1, -1, -1)})
        with pytest.raises(
            ValueError, match="the embeddings hold one text, .* TTIS Inversion and at least 1 iteration"
        ):
            auto_edit(AnyNetwork(), trajectory, untuned)

    def test_effort_is_bounded(self):
        trajectory, embeddings = inversion((1.0, 1.0))
        with pytest.raises(ValueError, match="effort is 9; a whole number of candidates from 1 to 4 fits"):
            auto_edit(AnyNetwork(), trajectory, embeddings, effort=9)
