"""The example workflows, as committed: they run, they are what dev/workflows.py makes, and both forms agree."""

import io
import json
from functools import partial
from itertools import combinations

import canvas
import comfy_server
import comfyui
import pytest
import workflows
from PIL import Image

TITLES = workflows.TITLES
NAMES = list(TITLES)


@pytest.mark.parametrize("name", NAMES)
def test_runs_to_images_and_is_cached_when_queued_again(client, companions, example, name):
    graph = example(name)
    log_before = len(client.log.read_text(errors="replace"))
    run = client.run(graph)
    assert set(run.executed) | run.cached == set(graph)
    pictures = graph.ids("SaveImage") + graph.ids("PreviewImage")
    assert pictures
    for id in pictures:
        for entry in run.outputs[id]["images"]:
            picture = Image.open(io.BytesIO(client.view(entry)))
            assert min(picture.size) >= 128
            greys = set(picture.convert("L").getdata())
            assert len(greys) > 8, "no plane of one colour, as NaN would make"

    log = client.log.read_text(errors="replace")[log_before:]
    assert "not loaded" not in log, "every weight of a LoRA found its place"
    again = client.run(graph)
    assert (again.executed, again.cached) == ([], set(graph))


def test_are_what_the_description_makes(client, installed):
    if installed.version != comfyui.DEFAULT_VERSION:
        pytest.skip(f"the files are made with ComfyUI {comfyui.DEFAULT_VERSION}; stock nodes differ between versions")
    made = workflows.files(client.object_info())
    committed = {
        path: path.read_text(encoding="utf-8")
        for folder in (workflows.FOLDER, workflows.BLUEPRINTS)
        for path in folder.rglob("*.json")
    }
    assert committed == made, "run: python dev/workflows.py"


def inputs_of(node, described, origin):
    """A node's inputs as the frontend reads them: its links, then the values of its widgets in the schema's order.

    origin: gives what a link comes from, as a queued workflow names it; None for a dial on the outside of a subgraph.
    """
    sockets = {entry["name"]: entry["link"] for entry in node["inputs"]}
    origins = {name: origin(link) for name, link in sockets.items() if link is not None}
    inputs = {name: source for name, source in origins.items() if source is not None}
    # A widget that became a socket keeps a value, which its link overrides.
    has_value = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    values = iter(node["widgets_values"])
    for section in ("required", "optional"):
        for name in described["input_order"].get(section, []):
            kind, *options = described["input"][section][name]
            if kind == "COMFY_AUTOGROW_V3" or (name in sockets and name not in has_value):
                continue
            inputs.setdefault(name, next(values))
            if options and options[0].get("image_upload"):
                assert next(values) == "image"
            if canvas.is_controlled(name, options[0] if options else {}):
                assert next(values) == "fixed"
    assert list(values) == []
    return inputs


def queued(nodes):
    return [node for node in nodes if node["type"] != "MarkdownNote" and node["mode"] != canvas.MUTED]


def read_by_the_frontend(ui, info):
    """What the form for people queues: id -> class and inputs. A node in a subgraph has both ids, with a colon."""
    subgraphs = {subgraph["id"]: subgraph for subgraph in ui.get("definitions", {}).get("subgraphs", [])}
    nodes = {node["id"]: node for node in ui["nodes"]}
    links = {link[0]: link[1:3] for link in ui["links"]}

    def inside(node, number):
        """The origin of a link in the subgraph that a node is."""
        (link,) = (link for link in subgraphs[node["type"]]["links"] if link["id"] == number)
        if link["origin_id"] == canvas.INPUTS:
            given = node["inputs"][link["origin_slot"]]["link"]
            return None if given is None else outside(given)
        return [f"{node['id']}:{link['origin_id']}", link["origin_slot"]]

    def outside(number):
        id, slot = links[number]
        subgraph = subgraphs.get(nodes[id]["type"])
        return inside(nodes[id], subgraph["outputs"][slot]["linkIds"][0]) if subgraph else [str(id), slot]

    read = {}
    for node in queued(nodes.values()):
        if node["type"] in subgraphs:
            origin = partial(inside, node)
            inner = {f"{node['id']}:{each['id']}": each for each in queued(subgraphs[node["type"]]["nodes"])}
        else:
            origin, inner = outside, {str(node["id"]): node}
        for id, each in inner.items():
            read[id] = (each["type"], inputs_of(each, info[each["type"]], origin))
    return read


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(client, name):
    """The form for people, read as the frontend reads it, queues what the form for programs says."""
    ui = json.loads((workflows.FOLDER / f"{TITLES[name]}.json").read_text(encoding="utf-8"))
    api = {id: (node["class_type"], node["inputs"]) for id, node in workflows.example(name).items()}
    info = client.object_info()
    given = [(kind, {name.split(".")[0] for name in inputs}) for kind, inputs in api.values()]  # of one that grows
    if any(names - inputs_named(info[kind]) for kind, names in given):
        pytest.skip("a stock node of this ComfyUI has other inputs than that of the version the files are made with")
    assert read_by_the_frontend(ui, info) == api


def inputs_named(described):
    return {name for names in described["input_order"].values() for name in names}


def apart(a, b):
    """Whether two boxes (left, top, right, bottom) share no place."""
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def box(x, y, width, height):
    return x, y, x + width, y + height


def holds(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


@pytest.mark.parametrize("name", NAMES)
def test_canvas_is_in_order(name):
    """Links name each other from both ends, ids are unique, and no two nodes lie over each other."""
    ui = json.loads((workflows.FOLDER / f"{TITLES[name]}.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in ui["nodes"]}
    assert len(nodes) == len(ui["nodes"]) and max(nodes) == ui["last_node_id"]
    assert [link[0] for link in ui["links"]] == list(range(1, ui["last_link_id"] + 1))
    for id, source, source_slot, target, target_slot, kind in ui["links"]:
        out, into = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert id in out["links"] and into["link"] == id and into["type"] == kind
        assert kind in (out["type"], "*"), "a node that previews anything takes any type"
        assert nodes[source]["order"] < nodes[target]["order"]
    title = 30
    opened = [n for n in ui["nodes"] if not n["flags"].get("collapsed")]
    boxes = [box(n["pos"][0], n["pos"][1] - title, n["size"][0], n["size"][1] + title) for n in opened]
    groups = [box(*group["bounding"]) for group in ui["groups"]]
    for one, other in combinations(boxes, 2):
        assert apart(one, other)
    for node, each in zip(opened, boxes):
        assert node["type"] == "MarkdownNote" or any(holds(group, each) for group in groups)


def test_stock_sampler_agrees_with_the_reconstruction(installed, example, latent_of):
    graph = example("baret_stock_sampler").without_pictures()
    (ours, stock), _ = latent_of(graph, (graph.id("BaretTTISInversion"), 2), (graph.id("SamplerCustomAdvanced"), 0))
    in_16_bit = comfy_server.accelerators(installed) > 0
    assert (ours - stock).norm() / ours.norm() < (1e-2 if in_16_bit else 1e-3)
