"""How a workflow is written: what the canvas opens, what POST /prompt takes, and the blueprint of a subgraph.

Input names, their order, defaults and output slots come from a running server (`info`, the answer of /object_info), so
that the files hold what the frontend itself would save.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from graph import Blueprint, Face, Input, Link, Node, Stage, Workflow, inputs_of, slot_of

COLUMN, GAP, TITLE = 300, 20, 70
INPUTS, OUTPUTS = -10, -20  # ids that the frontend gives to a subgraph's two sides

PICTURE_ROOM = {
    "LoadImage": 300,
    "PreviewImage": 210,
    "SaveImage": 210,
    "MaskPreview": 210,
    "BaretLabelledGrid": 210,
    "BaretInversionReport": 250,
    "BaretEditSweep": 300,
    "BaretAttentionMaps": 300,
}
"""Height for the picture that a node shows."""

LIVE = (
    "BaretTTISInversion",
    "BaretNullTextInversion",
    "BaretInversion",
    "BaretBAMEdit",
    "BaretAutoEdit",
    "BaretPromptToPromptEdit",
    "BaretMasaCtrlEdit",
    "KSampler",
)
"""Nodes that show what they work on while they run, and the height for it."""
LIVE_ROOM = 250


def api_form(workflow: Workflow, info: dict) -> dict:
    """What POST /prompt takes, as the frontend's "Export (API)" writes it."""
    prompt = {}
    for node in workflow.nodes():
        inputs = {}
        for entry in inputs_of(node, info):
            given = node.inputs.get(entry.name)
            if isinstance(given, Link):
                inputs[entry.name] = [str(given.node.id), slot_of(given, info)]
            elif entry.is_widget:
                inputs[entry.name] = entry.value(node)
        title = node.title or info[node.type]["display_name"]
        prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}
    return prompt


def ui_form(workflow: Workflow, info: dict) -> dict:
    """What the frontend opens and saves: nodes with places, links, groups and notes."""
    nodes: dict[int, dict] = {}
    links: list[list] = []
    for node in workflow.nodes():
        nodes[node.id] = _node(node, info)
        # A widget has a socket only where something is linked to it.
        sockets = [entry for entry in inputs_of(node, info) if not entry.is_widget or node.linked(entry.name)]
        for slot, entry in enumerate(sockets):
            given, number = node.inputs.get(entry.name), None
            if given is not None:
                number, source = len(links) + 1, slot_of(given, info)
                links.append([number, given.node.id, source, node.id, slot, entry.type])
                nodes[given.node.id]["outputs"][source]["links"].append(number)
            nodes[node.id]["inputs"].append(_socket(entry, number))
    groups = _place(workflow, nodes)
    return {
        "id": _uuid(f"comfyui-baret/{workflow.name}"),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [140, 110]}},
        "version": 0.4,
    }


# --- a subgraph -----------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """A socket or dial on the outside of a subgraph, as it is found while the inside is written."""

    name: str
    type: str = ""
    widget: bool = False
    links: list[int] = field(default_factory=list)


def blueprint_form(blueprint: Blueprint, info: dict) -> dict:
    """A subgraph as the frontend publishes it: one node whose inside is the workflow, with its Faces outside."""
    workflow = blueprint.workflow
    key = _uuid(f"comfyui-baret/subgraph/{workflow.name}")
    nodes, links, faces, outputs = _inside(blueprint, info)
    groups = _place(workflow, nodes)
    right = max(group["bounding"][0] + group["bounding"][2] for group in groups)
    subgraph = {
        "id": key,
        "version": 1,
        "revision": 0,
        "config": {},
        "name": workflow.name,
        "description": blueprint.description,
        "category": "BARET",
        "state": {"lastGroupId": len(groups), "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INPUTS, "bounding": [-220, 70, 120, 40 + 20 * len(faces)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 40, 70, 120, 40 + 20 * len(outputs)]},
        "inputs": [
            {"name": side.name, "linkIds": side.links, "type": side.type, **_spot(side, key, -180, row)}
            for row, side in enumerate(faces)
        ],
        "outputs": [
            {"name": side.name, "type": side.type, "linkIds": side.links, **_spot(side, key, right + 60, row)}
            for row, side in enumerate(outputs)
        ],
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": groups,
        "links": links,
        "extra": {},
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outside(workflow.name, key, faces, outputs)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": list(blueprint.aliases),
        },
    }


def _inside(blueprint: Blueprint, info: dict) -> tuple[dict[int, dict], list[dict], list[_Side], list[_Side]]:
    """The nodes and links within, and the two sides of the subgraph they are linked to."""
    nodes: dict[int, dict] = {}
    links: list[dict] = []
    faces = {name: _Side(name) for name in blueprint.faces}

    def connect(origin: int, slot: int, target: int, target_slot: int, type: str) -> int:
        number = len(links) + 1
        ends = {"origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": target_slot}
        links.append({"id": number, **ends, "type": type})
        if origin != INPUTS:
            nodes[origin]["outputs"][slot]["links"].append(number)
        return number

    for node in blueprint.workflow.nodes():
        nodes[node.id] = _node(node, info)
        sockets_first = sorted(inputs_of(node, info), key=lambda entry: entry.is_widget)  # as the frontend lists them
        for slot, entry in enumerate(sockets_first):
            given, number = node.inputs.get(entry.name), None
            if isinstance(given, Face):
                face = faces[given.name]
                face.type, face.widget = entry.type, entry.is_widget
                number = connect(INPUTS, list(faces).index(given.name), node.id, slot, entry.type)
                face.links.append(number)
            elif isinstance(given, Link):
                number = connect(given.node.id, slot_of(given, info), node.id, slot, entry.type)
            nodes[node.id]["inputs"].append(_socket(entry, number))
    outputs = []
    for slot, (name, link) in enumerate(blueprint.outputs.items()):
        source = slot_of(link, info)
        type = info[link.node.type]["output"][source]
        number = connect(link.node.id, source, OUTPUTS, slot, type)
        outputs.append(_Side(name, type, links=[number]))
    return nodes, links, list(faces.values()), outputs


def _spot(side: _Side, key: str, x: int, row: int) -> dict:
    """Id and place of one of a subgraph's sockets, seen from within."""
    return {"id": str(uuid.uuid5(uuid.UUID(key), side.name)), "pos": [x, 90 + 20 * row]}


def _outside(name: str, key: str, faces: list[_Side], outputs: list[_Side]) -> dict:
    """The one node that a subgraph is on the canvas."""
    inputs = []
    for face in faces:
        widget = {"widget": {"name": face.name}} if face.widget else {}
        inputs.append({"name": face.name, "type": face.type, "link": None, **widget})
    return {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [COLUMN, 60 + 26 * len(faces)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": name,
        "inputs": inputs,
        "outputs": [{"name": side.name, "type": side.type, "links": []} for side in outputs],
        "properties": {"cnr_id": "comfyui-baret"},
        "widgets_values": [],
    }


# --- nodes and their places -----------------------------------------------------------------------------------------


def _node(node: Node, info: dict) -> dict:
    """A node with its widgets and outputs, without a place and without inputs."""
    described, entries = info[node.type], inputs_of(node, info)
    widgets = [entry for entry in entries if entry.is_widget]
    values, height = _widgets(widgets, node)
    height += 24 * max(len(entries) - len(widgets), len(described["output"])) + 16
    height += PICTURE_ROOM.get(node.type, 0)
    if node.type in LIVE:
        height += LIVE_ROOM
    ours = described["python_module"].startswith("custom_nodes")
    properties = {"Node name for S&R": node.type, "cnr_id": "comfyui-baret" if ours else "comfy-core"}
    if node.download:
        properties["models"] = [node.download]
    outputs = zip(described["output_name"], described["output"])
    return {
        "id": node.id,
        "type": node.type,
        "pos": [],
        "size": [COLUMN, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": name, "type": type, "links": []} for name, type in outputs],
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        "widgets_values": values,
    }


def _widgets(entries: list[Input], node: Node) -> tuple[list, int]:
    """What a node's widgets show, and the height they take."""
    values, height = [], 0
    for entry in entries:
        values.append(entry.value(node))
        height += 120 if entry.options.get("multiline") else 26
        if entry.options.get("image_upload"):
            values.append("image")  # the upload button is a widget of its own
            height += 26
        if entry.options.get("control_after_generate"):
            values.append("fixed")  # so is what happens to a seed after a run
            height += 26
    return values, height


def _socket(entry: Input, link: int | None) -> dict:
    socket = {"name": entry.name, "type": entry.type, "link": link}
    if entry.is_widget:
        socket["widget"] = {"name": entry.name}
    elif entry.optional:
        socket["shape"] = 7
    return socket


def _place(workflow: Workflow, nodes: dict[int, dict]) -> list[dict]:
    """Give every node its place and order, add the notes to `nodes` and return the groups."""
    groups = []
    x = 0
    for stage in workflow.stages:
        width = len(stage.columns) * (COLUMN + GAP) - GAP
        note = _note(len(nodes) + 1, stage, width)
        nodes[note["id"]] = note
        note["pos"] = [x + GAP, TITLE]
        top = bottom = TITLE + note["size"][1] + 2 * GAP  # a node's title bar lies above its position
        for number, column in enumerate(stage.columns):
            y = top
            for node in column:
                nodes[node.id]["pos"] = [x + GAP + number * (COLUMN + GAP), y]
                y += nodes[node.id]["size"][1] + 2 * GAP
            bottom = max(bottom, y)
        groups.append(
            {
                "id": len(groups) + 1,
                "title": stage.title,
                "bounding": [x, 0, width + 2 * GAP, bottom - GAP],
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
        x += width + 3 * GAP
    for order, node in enumerate(nodes.values()):  # every node follows those it takes from
        node["order"] = order
    return groups


def _note(id: int, stage: Stage, width: int) -> dict:
    """The note of a stage. Its paragraphs and list items are wrapped in the source alone, so they are joined here."""
    text = re.sub(r"(?<!\n)\n(?![\n-])", " ", stage.note)
    lines = sum(1 + len(line) * 5 // width for line in text.split("\n"))  # a letter is about 5 wide
    return {
        "id": id,
        "type": "MarkdownNote",
        "pos": [],
        "size": [width, max(110, 60 + 14 * lines)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": stage.title,
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#000",
    }


def _uuid(name: str) -> str:
    """The same id for the same name, so that a file changes only where its content does."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
