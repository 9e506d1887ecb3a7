"""What a person sees and does on the canvas."""

import re
import signal
import subprocess
import sys

import comfy_page
import pytest

TTIS, AUTO = "TTIS Inversion", "Auto Edit"


def shorten(page, **values):
    """Set widgets of TTIS Inversion to numbers for a test."""
    page.ask(
        "for (const w of node('TTIS Inversion').widgets) if (w.name in argument) w.value = argument[w.name]",
        {"steps": 3, "iterations": 1, **values},
    )


def test_an_edit_of_a_picture_of_ones_own(page, checkpoint, tmp_path):
    from PIL import Image

    Image.new("RGB", (160, 120), "orange").save(tmp_path / "orange sky.png")
    page.open_template("baret_edit_photo")
    with page.page.expect_file_chooser() as chooser:
        page.ask("node('Your picture').widgets.find(w => w.type === 'button').callback()")
    chooser.value.set_files(tmp_path / "orange sky.png")
    page.wait("node('Your picture').widgets[0].value === 'orange sky.png'")
    page.page.locator("textarea.comfy-multiline-input").filter(visible=True).first.fill("a red sky")
    assert page.ask("return node('Target text').widgets[0].value") == "a red sky"
    page.ask(
        "app.graph.nodes.find(n => n.type === 'CheckpointLoaderSimple').widgets[0].value = argument", checkpoint.name
    )
    page.ask(
        "app.graph.nodes.find(n => n.type === 'BaretFitPicture')"
        ".widgets.find(w => w.name === 'megapixels').value = 0.016"
    )
    shorten(page, steps=12)  # Auto Edit's first candidate is half of them: enough for its bar to be seen

    seen = page.ask("""
        const seen = window.seen = { progress: {}, previews: new Set(), bars: new Set() };
        app.api.addEventListener('progress', ({ detail }) => {
            (seen.progress[detail.node] ??= []).push(detail.value / detail.max);
        });
        app.api.addEventListener('b_preview_with_metadata', ({ detail }) => {
            seen.previews.add(detail.displayNodeId ?? detail.nodeId);
        });
        // The bar on the node itself, which the page draws at a time of its own after the message.
        const note_bars = () => app.graph.nodes.filter(n => n.progress > 0).forEach(n => seen.bars.add(n.title));
        setInterval(note_bars, 20);
        return Object.fromEntries(app.graph.nodes.map(n => [n.title, String(n.id)]));
    """)
    page.queue()
    page.page.get_by_text("Total:").first.wait_for()  # on the bar of the whole run
    assert page.pictures("Edit")[0][0] > 100
    moved, previews, bars = page.ask(
        "return [window.seen.progress, [...window.seen.previews].map(String), [...window.seen.bars]]"
    )
    assert {TTIS, AUTO} <= set(bars)
    for title in (TTIS, AUTO):
        assert (
            moved[seen[title]] == sorted(moved[seen[title]])
            and len(moved[seen[title]]) >= 4
            and moved[seen[title]][-1] == 1
        )
        assert seen[title] in previews
    (queued,) = page.ask(
        "return Object.values(await (await fetch('/api/history?max_items=1')).json()).map(entry => entry.prompt[2])"
    )
    assert {"orange sky.png", "a red sky"} <= {
        value for node in queued.values() for value in node["inputs"].values() if isinstance(value, str)
    }


def test_a_broken_link_is_said(page):
    page.open_template("baret_edit")
    shorten(page)
    page.ask("node('TTIS Inversion').disconnectInput(0); node('TTIS Inversion').disconnectInput(1)")
    page.queue()
    lines = page.complaint(re.compile("TTIS ?Inversion")).splitlines()
    for name in ("model", "positive"):  # the second form before frontend 1.47, below the node's id
        assert {f"TTIS Inversion - {name}", f"- Required input is missing: {name}"} & set(lines), name


def test_a_wrong_link_gets_our_sentence(page):
    page.open_template("baret_edit")
    shorten(page)
    page.ask("""
        const other = LiteGraph.createNode('EmptySD3LatentImage');
        app.graph.add(other);
        other.connect(0, node('TTIS Inversion'), node('TTIS Inversion').inputs.findIndex(i => i.name === 'latent'));
    """)
    page.queue()
    assert "encode a picture with the VAE of this checkpoint" in page.complaint("TTIS Inversion: the latent is")


def test_the_blueprint_is_an_edit_in_one_node(page):
    page.search("BARET Edit").filter(has_text="BARET Edit").first.click()
    page.page.mouse.move(*page.middle())
    page.page.mouse.click(*page.middle())
    page.wait("node('BARET Edit')")
    assert page.ask("return node('BARET Edit').widgets.map(w => [w.name, w.value])") == [
        ["text", ""],
        ["seed", 0],
        ["effort", 4],
        ["keep", 0.5],
        ["cfg", 7.5],
        ["steps", 50],
        ["iterations", 1],
        ["megapixels", 0.25],
    ]
    page.ask("""
        const add = type => { const added = LiteGraph.createNode(type); app.graph.add(added); return added };
        const edit = node('BARET Edit'), loader = add('BaretWorldLoader'), scene = add('BaretWorldScene');
        const into = name => edit.inputs.findIndex(i => i.name === name);
        ['model', 'clip', 'vae'].forEach((name, slot) => loader.connect(slot, edit, into(name)));
        scene.connect(0, edit, into('image'));
        edit.connect(0, add('PreviewImage'), 0);
        const values = { text: 'a blue cat', cfg: 5, steps: 3 };
        for (const w of edit.widgets) if (w.name in values) w.value = values[w.name];
    """)
    queued = {entry["class_type"]: entry["inputs"] for entry in page.prompt().values()}
    assert queued["BaretTTISInversion"]["cfg"] == queued["BaretAutoEdit"]["cfg"] == 5  # one dial for both
    page.queue()
    assert page.pictures("Preview Image") == [[128, 128]], "a small picture is not enlarged"


WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
sys.path[:0] = sys.argv[2:]
import comfy_page
with comfy_page.running(sys.argv[1]) as page:
    page.page.goto("about:blank")  # Playwright swallows a Ctrl-C that comes while it handles a message of a page
    print("open", flush=True)
    page.page.wait_for_timeout(600_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no Ctrl-C can be sent to one process there")
def test_ctrl_c_closes_the_browser(page):
    """A command that waits for the page, as these tests do, ends with it."""
    command = [sys.executable, "-c", WAITING, page.url, *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as waiting:
        assert waiting.stdout.readline() == "open\n"
        waiting.send_signal(signal.SIGINT)
        try:
            assert waiting.wait(comfy_page.LIMIT / 1000) != 0
        finally:
            waiting.kill()
