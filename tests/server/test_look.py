"""The nodes to look with, on the drawn world through the real server."""

import io

import comfy_server
import pytest
from PIL import Image

TTIS, MOVING, BAM = "BaretTTISInversion", "BaretTransitionEmbedding", "BaretBAMEdit"


@pytest.fixture
def graph(example):
    """The paper's template with all four nodes behind its stages."""
    graph = example("baret_paper")
    ttis, world, scene = graph.id(TTIS), graph.id("BaretWorldLoader"), graph.id("BaretWorldScene")
    text = graph[graph.inputs(TTIS)["positive"][0]]["inputs"]["text"]
    inversion = {"trajectory": [ttis, 0], "embeddings": [ttis, 1]}
    edited = {"trajectory": [ttis, 0], "embeddings": [graph.id(MOVING), 0]}
    model, clip, vae = {"model": [world, 0]}, {"clip": [world, 1]}, {"vae": [world, 2]}

    graph.add("BaretInversionReport", **inversion)

    dials = {name: graph.inputs(BAM)[name] for name in ("cfg", "passes", "max_resolution", "auto_mask")}
    grid = {"eta_ranges": "1, 0.8-0.1", "tau_sa": "0.25, 0.5", "tau_ca": "0.6"}
    graph.add("BaretEditSweep", **model, **vae, **inversion, **grid, **dials)

    dials = {"tau_sa": 0.3, "tau_ca": 0.6, "cfg": 7.5}
    where = {"words": "dog, lying", "start_percent": 0.0, "end_percent": 1.0, "resolutions": "coarse"}
    graph.add("BaretAttentionMaps", **model, **clip, **vae, **edited, text=text, **where, **dials)

    (decoded,) = [id for id in graph.ids("VAEDecode") if graph[id]["inputs"]["samples"][0] == graph.id(BAM)]
    graph.add("BaretEditMetrics", source=[scene, 0], edit=[decoded, 0], mask=[scene, 2], text="")
    return graph


LOOKS = ("BaretInversionReport", "BaretEditSweep", "BaretAttentionMaps", "BaretEditMetrics")


def test_each_shows_its_picture_in_the_node_and_is_cached(client, graph):
    run = client.run(graph)
    sizes = {}
    for node in LOOKS:
        (entry,) = run.outputs[graph.id(node)]["images"]
        assert entry["type"] == "temp"
        sizes[node] = Image.open(io.BytesIO(client.view(entry))).size
    assert sizes["BaretEditSweep"] == (388, 388) and sizes["BaretEditMetrics"][0] == 384
    again = client.run(graph)
    assert (again.executed, again.cached) == ([], set(graph))

    graph.inputs("BaretAttentionMaps")["words"] = "tree"
    graph.inputs("BaretEditSweep")["tau_sa"] = "0.25"
    run = client.run(graph)
    assert graph.id(TTIS) in run.cached
    assert {graph.id("BaretAttentionMaps"), graph.id("BaretEditSweep")} <= set(run.executed)


def test_a_sweep_shows_how_far_it_is(client, graph):
    graph.inputs("BaretEditSweep")["cfg"] = 6.0
    node = graph.id("BaretEditSweep")
    run = client.run(graph)
    values = [value for value, _ in run.progress(node)]
    assert values == sorted(values) and run.progress(node)[-1] == (6, 6)


@pytest.mark.parametrize(
    "node, name, value, sentence",
    [
        ("BaretAttentionMaps", "words", "cat", "Attention Maps: 'cat' is not in text; its words are: a blue dog lying"),
        ("BaretEditSweep", "eta_ranges", "0.8-", "Edit Sweep: eta_ranges has '0.8-'"),
        ("BaretEditMetrics", "clip", "world", "Edit Metrics: CLIPScore needs clip, clip_vision and text"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(client, graph, node, name, value, sentence):
    graph.inputs(node)[name] = [graph.id("BaretWorldLoader"), 1] if value == "world" else value
    with pytest.raises(comfy_server.ExecutionFailed) as caught:
        client.run(graph)
    assert caught.value.node_id == graph.id(node) and caught.value.message.startswith(sentence)
