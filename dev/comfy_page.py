"""A headless Chromium on a running server: what the browser tests and the screenshots see ComfyUI with.

Playwright's Python package goes into a folder of its own in the cache, so that the host's environment stays as it is.
Chromium is the machine's own (`BARET_CHROMIUM` names another); where there is none, Debian's package is installed if
this runs as root, else Playwright's own download is tried.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfyui
import workflows
from comfy_server import PACK_NAME, PROBE

PLAYWRIGHT = "playwright==1.58.0"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
]
LIMIT = 60_000  # ms for anything on the page to come about
RUN_LIMIT = 300_000  # and for a run to end: a slow machine is no failure


class BrowserError(RuntimeError):
    """There is no browser to be had here; the message is one sentence that says why."""


def _playwright() -> Path:
    """The folder that Playwright imports from, filled on first use."""
    version = "{}.{}".format(*sys.version_info)
    folder = comfyui.cache_root() / f"{PLAYWRIGHT.replace('==', '-')}-python{version}"
    if not folder.is_dir():
        comfyui.say(f"installing {PLAYWRIGHT} into {folder}")
        with tempfile.TemporaryDirectory(dir=comfyui.cache_root()) as temporary:
            install = [sys.executable, "-m", "pip", "install", "--quiet"]
            result = _run([*install, "--target", f"{temporary}/new", PLAYWRIGHT])
            if result.returncode:
                raise BrowserError(f"{PLAYWRIGHT} could not be installed: {comfyui.last_line(result)}")
            Path(temporary, "new").rename(folder)  # it appears whole or not at all
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: the host's own packages come first
    return folder


def _chromium(packages: Path) -> str:
    """The path of a Chromium that starts."""
    tried = []
    for find in (_installed, _from_debian, lambda: _from_playwright(packages)):
        path, why = find()
        if path:
            return path
        tried.append(why)
    raise BrowserError(f"there is no Chromium: {'; '.join(tried)}.")


def _installed() -> tuple[str | None, str]:
    for name in filter(None, (os.environ.get("BARET_CHROMIUM"), *CHROMIUM)):
        path = shutil.which(name)
        if path and _run([path, "--version"]).returncode == 0:
            return path, ""
    return None, "none is installed"


def _from_debian() -> tuple[str | None, str]:
    if not (shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0):
        return None, "Debian's package can be installed by root alone (apt-get install chromium)"
    comfyui.say("installing Debian's chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-qq"], environment)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    result = _run([*install, "chromium", "fonts-liberation"], environment)
    if result.returncode:
        return None, f"apt-get says {comfyui.last_line(result)}"
    return _installed()[0], "Debian's package does not start"


def _from_playwright(packages: Path) -> tuple[str | None, str]:
    folder = comfyui.cache_root() / "browsers"
    environment = {**os.environ, "PYTHONPATH": str(packages), "PLAYWRIGHT_BROWSERS_PATH": str(folder)}
    result = _run([sys.executable, "-m", "playwright", "install", "chromium-headless-shell"], environment)
    for path in sorted(folder.glob("chromium*/*/*headless*shell*")):
        if os.access(path, os.X_OK) and _run([path, "--version"]).returncode == 0:
            return str(path), ""
    return None, f"Playwright's download failed ({comfyui.last_line(result)})"


def _run(command: list, environment: dict | None = None) -> subprocess.CompletedProcess:
    written = [str(part) for part in command]
    try:
        return subprocess.run(written, env=environment, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


@contextmanager
def running(url: str, width: int = 1600, height: int = 1000, sharpness: float = 1) -> Iterator[Page]:
    """Open ComfyUI in a browser that is closed afterwards. Raises BrowserError where there is none."""
    packages = _playwright()
    path = _chromium(packages)
    from playwright.sync_api import Error, sync_playwright

    playwright = sync_playwright().start()
    try:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        except Error as error:
            raise BrowserError(f"{path} does not start: {error.message.splitlines()[0]}") from None
        context = browser.new_context(
            viewport={"width": width, "height": height}, device_scale_factor=sharpness, locale="en-US"
        )
        context.set_default_timeout(LIMIT)
        yield Page(context.new_page(), url)
    finally:
        # A Ctrl-C while Playwright waits ends its loop, and a stop would wait for an answer that no loop hears.
        # The browser then ends with this process.
        if not playwright._dispatcher_fiber.dead:
            playwright.stop()


NODE = "title => app.graph.nodes.find(n => n.title === title)"

OPENED = """
    app.extensionManager.workflow.activeWorkflow.filename.startsWith(argument)
    && app.graph.nodes.length && !app.graph.nodes[0].ofTheWorkflowBefore
"""
"""Whether a template is the workflow on the canvas: one that is opened again gets a number after its name."""

TITLE_BAR = """
    const n = node(argument), { scale, offset } = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();
    const x = n.pos[0] + n.size[0] / 2, y = n.pos[1] - 15;
    return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
"""


class Page:
    """ComfyUI's page: what a person does there, under the names a person would use. `page` is Playwright's.

    `errors` collects what went wrong on the page and names the pack, or came from no known place: ComfyUI's own
    frontend logs a few errors on a fresh installation.
    """

    def __init__(self, page, url: str):
        self.page, self.url = page, url
        self.errors: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        tour = page.get_by_test_id("coach-landing")  # frontends after 1.47 offer one on the page without a canvas
        missing = page.locator(".comfy-missing-models")  # frontends before 1.47 tell so in a dialog over all
        page.add_locator_handler(tour.or_(missing).first, lambda: page.keyboard.press("Escape"))
        self.set("Comfy.TutorialCompleted", True)  # a first visit would open the template browser at a time of its own
        self.reload()

    def set(self, setting: str, value) -> None:
        """Change a setting of the user on the server; it counts from the next `reload` on."""
        self.page.request.post(
            f"{self.url}/api/settings/{setting}", data=json.dumps(value), headers={"Content-Type": "application/json"}
        )

    def _hear(self, message) -> None:
        """Note down an error that the page logs and that names the pack."""
        text, source = message.text, message.location.get("url", "")
        looked_up = "/docs/" in source and source.endswith(".md")  # first in the user's language, which may be missing
        ours = any(name in text + source for name in (PACK_NAME, "Baret", "BARET"))
        if message.type == "error" and ours and not looked_up:
            self.errors.append(f"{text} ({source})")

    def reload(self) -> None:
        """Open the page anew and wait until nodes can be used."""
        self.page.goto(self.url)
        self.page.wait_for_function("id => window.app?.graph && window.LiteGraph?.registered_node_types[id]", arg=PROBE)

    def ask(self, script: str, argument=None):
        """Evaluate JavaScript on the page, with `node(title)` to find a node of the canvas."""
        return self.page.evaluate(f"async argument => {{ const node = {NODE}; {script} }}", argument)

    def wait(self, condition: str, argument=None, limit: int = LIMIT) -> None:
        """Wait until a JavaScript expression is true; `node(title)` as in `ask`."""
        self.page.wait_for_function(
            f"argument => {{ const node = {NODE}; return ({condition}) }}", arg=argument, polling=50, timeout=limit
        )

    def open_template(self, name: str) -> None:
        """Click through the template browser to one of the pack's workflows, by its name in `workflows.py`.

        The browser draws its list anew after the choice of a pack, at a time of its own: a card that is replaced
        between the mouse's down and up takes no click. So the click is sent to the card at once.
        """
        self.ask("for (const n of app.graph.nodes) n.ofTheWorkflowBefore = true")
        self.page.locator(".templates-tab-button").click()
        self.page.get_by_role("dialog").get_by_text(PACK_NAME, exact=True).first.click()
        title = workflows.TITLES[name]
        self.page.get_by_test_id(f"template-workflow-{title}").dispatch_event("click")
        self.page.get_by_role("dialog").wait_for(state="detached")
        self.wait(OPENED, title)

    def toggle_app(self) -> None:
        """Go to the page without a canvas, or back."""
        self.ask("await app.extensionManager.command.execute('Comfy.ToggleLinear')")

    def search(self, words: str):
        """Empty the canvas, fill in its search box and return the results."""
        self.ask("app.graph.clear(); await app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        self.page.get_by_role("combobox").last.fill(words)
        return self.page.get_by_role("option")

    def middle(self) -> tuple[float, float]:
        """The middle of the canvas on the screen."""
        box = self.page.locator("#graph-canvas").bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def queue(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def pictures(self, title: str) -> list[list[int]]:
        """Wait for the pictures that a run puts into a node; returns their sizes."""
        loaded = "node(argument).imgs?.length && node(argument).imgs.every(i => i.complete && i.naturalWidth)"
        self.wait(loaded, title, RUN_LIMIT)
        return self.ask("return node(argument).imgs.map(i => [i.naturalWidth, i.naturalHeight])", title)

    def complaint(self, words: str | re.Pattern) -> str:
        """Wait until ComfyUI says these words about what is wrong, and read all of its details.

        The panel first opens with what it has; the report of the server follows. Frontends before 1.47 have a dialog.
        """
        details, dialog = self.page.get_by_test_id("error-overlay-see-errors"), self.page.locator(".comfy-error-report")
        details.or_(dialog).first.wait_for()
        if details.count():
            details.click()
        told = self.page.get_by_test_id("error-group-execution").or_(dialog).filter(has_text=words)
        told.wait_for()
        text = told.inner_text()
        if dialog.count():
            self.page.keyboard.press("Escape")
            dialog.wait_for(state="detached")
        return text

    def prompt(self) -> dict:
        """What the frontend would queue now, in API form."""
        return self.ask("return (await app.graphToPrompt()).output")

    def place(self, title: str) -> tuple[float, float]:
        """The middle of a node's title bar on the screen."""
        x, y = self.ask(TITLE_BAR, title)
        return x, y
