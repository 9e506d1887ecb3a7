"""Auto Edit's parts: the judge, the regions, the choice, and what must hold whatever the model."""

import pytest
import torch

from baret_ops.edits.auto_edit import CANDIDATES, CHOOSE_AT, LOOKS_FROM, OBEYED, auto_edit, choose, regions
from baret_ops.edits.judge import Answers, ask, levels_of

from .test_bam import STEPS, B, Network, W, inversion


def answers(obeyed, pictures=3, levels=2):
    """Answers whose noise lies ``obeyed`` of the way from the tuned text's prediction to the target's."""
    generator = torch.Generator().manual_seed(0)
    tuned, target = torch.randn(2, levels, 1, 4, 6, 6, generator=generator, dtype=torch.float64)
    noise = torch.lerp(tuned, target, obeyed)
    return Answers(noise, target.expand(-1, pictures, -1, -1, -1), tuned.expand(-1, pictures, -1, -1, -1))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 1.3])
def test_the_judge_measures_how_far_the_target_text_explains_a_picture(share):
    torch.testing.assert_close(answers(share).obeyed(), torch.full([3], share, dtype=torch.float64))


def test_the_judge_goes_with_no_scale():
    given = answers(0.4)
    doubled = Answers(2 * given.noise, 2 * given.target, 2 * given.tuned)
    torch.testing.assert_close(doubled.obeyed(), given.obeyed())


def test_the_judge_asks_each_level_once_with_both_texts():
    trajectory, embeddings = inversion((1.0, 1.0))
    network = Network()
    pictures = trajectory.pivots[-1].repeat(2, 1, 1, 1)
    found = ask(network, trajectory.schedule, embeddings, pictures, seed=3)
    assert network.rows == 2 * len(pictures) * len(levels_of(trajectory.schedule))
    assert found.target.shape[1] == 2 * B and torch.equal(found.target[:, :B], found.target[:, B:])
    again = ask(Network(), trajectory.schedule, embeddings, pictures, seed=3)
    other = ask(Network(), trajectory.schedule, embeddings, pictures, seed=4)
    assert torch.equal(found.noise, again.noise) and not torch.equal(found.noise, other.noise)


def test_regions_are_where_the_texts_differ_most():
    zeros = torch.zeros(2, 1, 1, 8, 8)
    target = zeros.clone()
    target[..., 6:] = 1.0  # the texts differ in the last two columns alone
    may, must = regions(Answers(zeros, target, zeros))
    assert must[0, 0, 0].tolist() == [0.0] * 6 + [1.0] * 2
    assert may[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4, "one cell wider than where the smoothed difference counts"
    halved = regions(Answers(zeros, 0.01 * target, zeros))
    assert torch.equal(halved[0], may) and torch.equal(halved[1], must)


@pytest.mark.parametrize(
    "keep, chosen",
    [(0.0, [2, 1, 0]), (0.5, [1, 1, 0]), (1.0, [0, 0, 0])],
)
def test_of_those_that_obey_the_one_that_changes_least(keep, chosen):
    obeyed = torch.tensor([[0.1, 0.0, -0.5], [0.6, 1.0, -0.9], [1.0, 0.2, -0.6]])
    changed = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    assert choose(obeyed, changed, keep).tolist() == chosen


@pytest.mark.parametrize("effort", [1, 2, 3, 4])
def test_rows_of_each_effort(effort):
    trajectory, embeddings = inversion((1.0, 1.0))
    trajectory, embeddings = trajectory.rows([0]), embeddings.rows([0])
    network = AnyNetwork()
    found = auto_edit(network, trajectory, embeddings, guidance_scale=W, effort=effort)
    levels, at = len(levels_of(trajectory.schedule)), round(CHOOSE_AT * STEPS)
    late = round(LOOKS_FROM * STEPS)
    lends = any(candidate.looks for candidate in CANDIDATES[:effort])
    before = 2 * effort * at + (2 * (at - late) if lends else 0)
    after = 2 * (STEPS - at) * (2 if CANDIDATES[int(found.chosen)].looks else 1)
    assert network.rows == 2 * levels + before + 2 * effort * levels + after
    assert found.candidates.shape[:2] == (effort, 1) and found.obeyed.shape == (effort, 1)


class AnyNetwork(Network):
    """The network for batches of any size."""

    images = None


def test_each_image_is_decided_on_its_own():
    trajectory, embeddings = inversion((1.0, 1.0))
    together = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W)
    for b in range(B):
        alone = auto_edit(AnyNetwork(), trajectory.rows([b]), embeddings.rows([b]), guidance_scale=W)
        torch.testing.assert_close(together.edit[b], alone.edit[0])
        torch.testing.assert_close(together.obeyed[:, b], alone.obeyed[:, 0])
    kept_together = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, regroup=False)
    torch.testing.assert_close(kept_together.edit, together.edit)


def test_the_seed_is_the_try():
    trajectory, embeddings = inversion((1.0, 1.0))
    first, again, other = (
        auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.edit, again.edit) and torch.equal(first.obeyed, again.obeyed)
    assert not torch.equal(first.obeyed, other.obeyed)


def test_a_mask_of_zero_gives_the_picture_exactly():
    trajectory, embeddings = inversion((1.0, 1.0))
    nothing = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W, mask=nothing)
    assert torch.equal(found.edit, trajectory.pivots[-1]) and not found.mask.any()


def test_the_report_says_what_was_taken_and_when_nothing_obeys():
    trajectory, embeddings = inversion((1.0, 1.0))
    found = auto_edit(AnyNetwork(), trajectory, embeddings, guidance_scale=W)
    lines = found.report().splitlines()
    assert len(lines) == B
    for b, line in enumerate(lines):
        good = int((found.obeyed[:, b] >= OBEYED).sum())
        assert line.startswith(f"picture {b + 1}: {good} of 3 candidates obey the text")
        assert found.names[int(found.chosen[b])] in line
        assert ("probably not what you asked for" in line) == (good == 0)


def test_effort_is_bounded():
    trajectory, embeddings = inversion((1.0, 1.0))
    with pytest.raises(ValueError, match="effort is 9; a whole number of candidates from 1 to 4 fits"):
        auto_edit(AnyNetwork(), trajectory, embeddings, effort=9)
