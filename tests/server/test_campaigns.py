"""The campaigns of `dev/campaign.py` that need a server, at a small size."""

import contextlib

import psutil
import pytest
from campaigns import served


@pytest.fixture(autouse=True)
def on_the_server_that_is_there(client, monkeypatch):
    words = str(client.work)
    (process,) = (child for child in psutil.Process().children() if words in child.cmdline())
    monkeypatch.setattr(served, "served", lambda host: contextlib.nullcontext((client, process)))


def test_inputs_that_nobody_would_choose(installed):
    report = served.prompts(installed, tries=30, seed=0)
    assert report.failures == []
    assert report.outcomes["rejected"] > 0 and report.outcomes["a sentence"] > 0


def test_two_clients_back_to_back(installed):
    report = served.soak(installed, tries=24, seed=0)
    assert report.failures == []
    assert report.outcomes["its own"] == 24
