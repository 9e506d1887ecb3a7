"""Who runs and who lends what to whom in one step of balanced attention (paper, Eq. 4 and 5)."""

import pytest

from baret_ops.attention import EDIT, RECONSTRUCTION, TRANSITION
from baret_ops.edits.plan import NEVER, Dials, Entry, plan_step

STEPS = 20


def plan(step, *dials, rigid=False, watched=False):
    return plan_step(step, [Entry(dials, rigid)], watched)


def roles(plan):
    return [process.role for process in plan.processes]


def test_an_edit_lends_layout_from_the_reconstruction_and_words_from_the_transition():
    found = plan(0, Dials(6, 12))
    assert roles(found) == [EDIT, TRANSITION, RECONSTRUCTION]
    assert found.self_from == (2, 1, 2), "Eq. 4: the edit takes Q and K of the reconstruction"
    assert found.cross_from == (1, 1, 2), "Eq. 5: the edit takes Q and K of the transition"
    assert found.looks_from is None
    assert found.guided == 2, "the reconstruction's path is known and needs no guidance"


@pytest.mark.parametrize(
    "step, expected",
    [
        (5, [EDIT, TRANSITION, RECONSTRUCTION]),
        (6, [EDIT, TRANSITION]),
        (11, [EDIT, TRANSITION]),
        (12, [EDIT]),
    ],
)
def test_a_lender_runs_only_while_it_lends(step, expected):
    found = plan(step, Dials(6, 12))
    assert roles(found) == expected
    assert (found.sharing(None, False) is None) == (expected == [EDIT])


def test_with_eta_one_the_reconstruction_stands_for_the_transition():
    found = plan(8, Dials(6, 12), rigid=True)
    assert roles(found) == [EDIT, RECONSTRUCTION]
    assert found.cross_from == (1, 1) and found.self_from is None


def test_looks_come_from_the_reconstruction_from_their_step_on():
    dials = Dials.of(STEPS, tau_sa=0.1, tau_ca=0.0, appearance=0.8)
    assert dials == Dials(2, 0, looks_from=4)
    assert plan(1, dials).looks_from is None and plan(1, dials).self_from == (1, 1)
    assert roles(plan(3, dials)) == [EDIT]
    late = plan(4, dials)
    assert roles(late) == [EDIT, RECONSTRUCTION]
    assert late.looks_from == (1, 1) and late.self_from is None
    assert Dials.of(STEPS, 0.0, 0.0).looks_from == NEVER


@pytest.mark.parametrize("name", ["tau_sa", "tau_ca", "appearance"])
def test_shares_outside_their_range_are_refused(name):
    given = {"tau_sa": 0.3, "tau_ca": 0.6, "appearance": 0.0, name: 1.5}
    with pytest.raises(ValueError, match=f"{name} is 1.5; it is a share of the steps"):
        Dials.of(STEPS, **given)


def test_edits_are_one_process_until_they_part():
    dials = (Dials(6, 12), Dials(8, 12), Dials(6, 12, looks_from=15))
    counts = [roles(plan(step, *dials)).count(EDIT) for step in (0, 5, 6, 14, 15)]
    assert counts == [1, 1, 2, 2, 3]


def test_entries_have_a_transition_each_and_one_reconstruction():
    entries = [
        Entry((Dials(6, 12),), rigid=False),
        Entry((Dials(6, 12),), rigid=True),
        Entry((Dials(0, 4),), rigid=False),
    ]
    found = plan_step(0, entries)
    assert roles(found) == [EDIT] * 3 + [TRANSITION] * 2 + [RECONSTRUCTION]
    assert found.self_from == (5, 5, 2, 3, 4, 5), "the third shares no self-attention"
    assert found.cross_from == (3, 5, 4, 3, 4, 5), "each its own transition; the rigid one the reconstruction"


def test_watching_runs_both_lenders_at_every_step():
    found = plan(19, Dials(0, 0), watched=True)
    assert roles(found) == [EDIT, TRANSITION, RECONSTRUCTION]
    assert found.places(RECONSTRUCTION) == {0: 2} and found.places(TRANSITION) == {0: 1}
    assert found.sharing(None, False) is None
