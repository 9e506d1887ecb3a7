"""What a person sees of the templates before pressing anything, and after pressing Run."""

from itertools import combinations

import pytest
import workflows

NAMES = list(workflows.TITLES)
LEAST = 10  # pixels, of a text that is meant to be read

# On the screen: the titles' font, the note's texts, and the corners of the pictures to come.
OPENED = """
    const { scale, offset } = app.canvas.ds, frame = app.canvas.canvas.getBoundingClientRect();
    const note = app.graph.nodes.find(n => n.type === 'MarkdownNote');
    const root = argument ? document.querySelector(`[data-node-id="${note.id}"] .comfy-markdown-content`)
                          : note.widgets[0].element.querySelector('.tiptap');
    const texts = [...root.querySelectorAll('h1, em, strong, p, li')].filter(e => e.textContent.trim());
    const fonts = texts.map(e => parseFloat(getComputedStyle(e).fontSize) * scale);
    const cut = Math.max(...texts.map(e => e.getBoundingClientRect().bottom)) - root.getBoundingClientRect().bottom;
    const isShown = e => e && (e.id === 'graph-canvas' || e.closest('[data-node-id]'));
    const covered = [];
    for (const n of app.graph.nodes.filter(n => ['PreviewImage', 'SaveImage'].includes(n.type) && !n.flags.collapsed)) {
        const [left, top, width, height] = n.boundingRect, head = 60;
        const source = app.graph.getNodeById(app.graph.links.get(n.inputs[0].link).origin_id);
        const square = Math.min(width, height - head);
        const wide = source.type === 'BaretLabelledGrid' ? Math.min(width, 1.8 * (height - head)) : square;
        for (const x of [left + (width - wide) / 2 + 8, left + (width + wide) / 2 - 8])
            for (const y of [top + head, top + height - 16]) {
                const at = [(x + offset[0]) * scale + frame.left, (y + offset[1]) * scale + frame.top];
                if (!isShown(document.elementFromPoint(...at))) covered.push([n.title, ...at]);
            }
    }
    return { title: 14 * scale, fonts, covered, cut };
"""


@pytest.fixture
def as_it_was(page):
    """The page of a first visit, without the panel that errors open; the usual window again after the test."""
    page.set("Comfy.RightSidePanel.IsOpen", False)
    page.reload()
    yield page
    page.page.set_viewport_size({"width": 1600, "height": 1000})
    page.set("Comfy.VueNodes.Enabled", False)
    page.reload()


def apart(a, b):
    """Whether two boxes (left, top, width, height) share no place."""
    beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
    above = a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
    return beside or above


def what_runs(graph):
    """A workflow in API form without what is only shown."""
    return {id: (node["class_type"], node["inputs"]) for id, node in graph.items()}


def opens_whole(page, name):
    """Every node is known, none lies over another, and what would be queued is what is committed for programs."""
    unknown = "return app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
    assert page.ask(unknown) == [], name
    assert not page.page.get_by_test_id("missing-node-card").count(), name

    # As large as the frontend makes them.
    boxes = page.ask("return app.graph.nodes.map(n => [n.title, ...n.boundingRect])")
    for (title, *box), (other, *other_box) in combinations(boxes, 2):
        assert apart(box, other_box), f"{name}: {title} lies over {other}"
    assert what_runs(page.prompt()) == what_runs(workflows.example(name)), name


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
@pytest.mark.parametrize("size", [(1280, 720), (1600, 1000)], ids=["1280x720", "1600x1000"])
def test_every_template_can_be_read_as_it_opens(as_it_was, size, nodes_2):
    """It is whole, no title or note has letters below 10 pixels, no note is cut, nothing lies over a picture to come.

    Whether it is whole is seen once, as another size or renderer reads the same file.
    """
    page = as_it_was
    page.page.set_viewport_size({"width": size[0], "height": size[1]})
    page.set("Comfy.VueNodes.Enabled", nodes_2)
    page.reload()
    for name in NAMES:
        page.open_template(name)
        note = "[data-node-id] .comfy-markdown-content h1" if nodes_2 else ".comfy-markdown .tiptap h1"
        page.page.locator(note).filter(visible=True).first.wait_for()
        page.page.wait_for_timeout(300)  # the canvas settles
        seen = page.ask(OPENED, nodes_2)
        assert seen["title"] >= LEAST, f"{name}: titles of {seen['title']:.1f} px"
        assert seen["fonts"] and min(seen["fonts"]) >= LEAST, f"{name}: a note of {min(seen['fonts']):.1f} px"
        assert seen["cut"] <= 1, f"{name}: the note is cut"
        assert seen["covered"] == [], name
        if size == (1280, 720) and not nodes_2:
            opens_whole(page, name)


def test_the_page_without_a_canvas(as_it_was):
    """The app's layout: a text, a picture, one button, and both pictures."""
    page = as_it_was
    page.open_template("baret_edit")
    page.toggle_app()
    asked = page.page.get_by_test_id("linear-widgets")
    asked.get_by_text("Short text").wait_for()
    asked.get_by_text("Which picture").wait_for()
    texts = asked.locator("textarea")  # before frontend 1.47 those of every node
    texts.nth([text.input_value() for text in texts.all()].index("a dog lying")).fill("a cat")
    icon, button = map(page.page.get_by_test_id, ("linear-run-button-icon", "linear-run-button"))
    (icon if icon.count() else button).first.click()  # before frontend 1.47 the button has no icon of its own
    shown = page.page.get_by_test_id("linear-outputs").locator("img")
    shown.nth(1).wait_for(timeout=300_000)
    assert page.ask("return node('Target text').widgets[0].value") == "a cat"
    page.toggle_app()


def test_nodes_say_what_came_of_them(page):
    """Under the nodes: the caption, the words that the model does not know, and what became of the candidates."""
    page.open_template("baret_edit")
    page.ask("node('Target text').widgets[0].value = 'an elephant lying in space'")
    page.ask("node('Your picture').widgets[0].value = 8")
    page.queue()
    page.pictures("Before and after")
    said = "node(argument).widgets.find(w => w.name === '$$node-text-preview')?.value"
    for title, words in (
        ("Your picture", "a purple dog"),
        ("Target text", "Unknown words: elephant, space"),
        ("TTIS Inversion", "Reconstruction"),
        ("Auto Edit", "candidates obey"),
    ):
        page.wait(f"{said}", title)
        assert words in page.ask(f"return {said}", title)


def test_templates_are_found(page):
    """In the dialog, by what a person would type."""
    page.page.locator(".templates-tab-button").click()
    dialog = page.page.get_by_role("dialog")
    for words, title in (
        ("baret", workflows.TITLES["baret_edit"]),
        ("photo", workflows.TITLES["baret_edit_photo"]),
        ("start here", workflows.TITLES["baret_edit"]),
        ("your photo", workflows.TITLES["baret_edit_photo"]),
    ):
        dialog.get_by_placeholder("Search").first.fill(words)
        dialog.get_by_test_id(f"template-workflow-{title}").wait_for()
    page.reload()


def test_wires_have_colours_of_their_own(page):
    page.open_template("baret_paper")
    colours = page.ask("""
        const ours = ['BARET_TRAJECTORY', 'BARET_EMBEDDINGS'];
        const style = getComputedStyle(document.documentElement);
        const image = app.canvas.default_connection_color_byType.IMAGE;
        return [[...ours.map(k => app.canvas.default_connection_color_byType[k]), image],
                [...ours.map(k => style.getPropertyValue(`--color-datatype-${k}`).trim()), image]];
    """)
    for renderer in colours:
        assert all(renderer) and len(set(renderer)) == 3
