"""ComfyUI's own page in a headless Chromium, on the same real server as the other tests."""

import comfy_page
import comfyui
import pytest


@pytest.fixture(scope="module")
def chromium(request, client, installed):
    """One page for all tests of a file: each opens the workflow it needs. Left open it would go on drawing."""
    if request.config.getoption("--no-browser"):
        pytest.skip("left out by --no-browser")
    if installed.version != comfyui.DEFAULT_VERSION:
        pytest.skip(f"written for the frontend of ComfyUI {comfyui.DEFAULT_VERSION}")
    try:
        with comfy_page.running(client.url) as page:
            yield page
    except comfy_page.BrowserError as error:
        pytest.skip(str(error))


@pytest.fixture
def page(chromium):
    """The page; a test after which it has logged an error of ours fails."""
    chromium.errors.clear()
    yield chromium
    assert chromium.errors == []
