"""The campaigns of `dev/campaign.py` that need a server, at a small size."""

from campaigns import served


def test_inputs_that_nobody_would_choose(installed):
    report = served.prompts(installed, tries=30, seed=0)
    assert report.failures == []
    assert report.outcomes["rejected"] > 0 and report.outcomes["a sentence"] > 0


def test_two_clients_back_to_back(installed):
    report = served.soak(installed, tries=24, seed=0)
    assert report.failures == []
    assert report.outcomes["its own"] == 24
