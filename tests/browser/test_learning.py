"""What a person finds without leaving ComfyUI: search, help, their own language."""

import re

import pytest

TTIS = "TTIS Inversion"
LIBRARY_SEARCH = re.compile(r"^Search( Nodes)?\.\.\.$")  # it was renamed after frontend 1.47
HELP = ".node-help-content :is(.markdown-content, .comfy-markdown-content)"  # the second from frontend 1.58 on
NODES = {"TTIS Inversion", "Transition Embedding", "BAM Edit"}


def open_help(page, title):
    """Click a node and the (i) above it; returns the panel's page once its pictures are there."""
    page.page.mouse.click(*page.place(title))
    page.page.get_by_test_id("info-button").click()
    content = page.page.locator(HELP).last
    content.get_by_role("heading").first.wait_for()
    page.wait("[...document.querySelectorAll('.node-help-content img')].every(i => i.complete && i.naturalWidth)")
    return content


@pytest.fixture
def in_chinese(page):
    """The page after choosing the language in the settings, and English again afterwards."""
    page.page.keyboard.press("Control+,")
    page.page.locator("[id='Comfy.Locale']").click()
    with page.page.expect_response(lambda response: "/settings/Comfy.Locale" in response.url):
        page.page.get_by_role("option", name="中文", exact=True).click()
    page.reload()
    yield page
    page.set("Comfy.Locale", "en")
    page.reload()


@pytest.mark.parametrize("words", ["edit", "inversion", "DDIM", "photo", "pose", "image editing"])
def test_searching_finds_the_nodes(page, words):
    """In the search box of the canvas, and in the node library."""
    results = page.search(words)
    for name in NODES:
        results.filter(has_text=name).first.wait_for()
    while results.count():  # a box that is still opening lets the key pass
        page.page.keyboard.press("Escape")
        page.page.wait_for_timeout(50)
    library = page.page.get_by_label("Node Library (n)")
    library.click()
    page.page.get_by_placeholder(LIBRARY_SEARCH).fill(words)
    for name in NODES:
        page.page.get_by_role("treeitem").get_by_text(name, exact=True).first.wait_for()
    library.click()


def test_the_help_panel_shows_the_page(page):
    page.open_template("baret_paper")
    text = open_help(page, TTIS).inner_text()
    assert text.startswith(TTIS) and "learning_rate" in text and "What can go wrong" in text


def test_the_nodes_speak_chinese(in_chinese):
    page = in_chinese
    page.open_template("baret_paper")
    assert page.ask("return app.graph.nodes.filter(n => n.type.startsWith('Baret')).map(n => n.getTitle())") == [
        "加载绘图世界",
        "Your picture",
        "过渡嵌入",
        "TTIS 反演",
        "BAM 编辑",
        "带标签网格",
    ]
    labels = page.ask(
        "return [...node('BAM 编辑').inputs, ...node('BAM 编辑').widgets].map(i => i.label ?? i.localized_name)"
    )
    assert {"模型", "轨迹", "嵌入", "tau_sa", "最大分辨率"} <= set(labels)
    text = open_help(page, "TTIS 反演").inner_text()
    assert text.startswith("TTIS 反演") and "learning_rate" in text
