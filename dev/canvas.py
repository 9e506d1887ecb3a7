"""How a workflow is written: what the canvas opens, what POST /prompt takes, and the blueprint of a subgraph.

Input names, their order, defaults and output slots come from a running server (`info`, the answer of /object_info), so
that the files hold what the frontend itself would save.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from graph import Blueprint, Face, Input, Link, Node, Workflow, inputs_of, slot_of

GAP = 20  # between columns, and between what lies under each other
TITLE_BAR = 30  # of a node; it lies above its position
FOLDED_WIDTH, OPENED_WIDTH = 170, 210  # of a folded node: about its longest title, and what it has when it is opened
GROUP_TITLE, GROUP_FONT = 36, 28
TEXT_HEIGHT = 80  # of a text of several lines
MOST_WIDTH, MOST_HEIGHT = 1320, 736
"""What the frontend shows at 72 % in a window of 1280x720: it fits a template into three quarters of the window. Below
that its titles are smaller than 10 pixels, and below 57 % it draws no text at all."""
INPUTS, OUTPUTS = -10, -20  # ids that the frontend gives to a subgraph's two sides

PICTURE_ROOM = {
    "LoadImage": 200,
    "PreviewImage": 210,
    "SaveImage": 210,
    "MaskPreview": 180,
    "BaretInversionReport": 250,
    "BaretEditSweep": 220,
    "BaretAttentionMaps": 220,
}
"""Height for the picture that a node shows."""


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
        labels = _labels(workflow, node)
        # A widget has a socket only where something is linked to it, or where it has a label of its own.
        shown = labels.keys() | {name for name in node.inputs if node.linked(name)}
        sockets = [entry for entry in inputs_of(node, info) if not entry.is_widget or entry.name in shown]
        for slot, entry in enumerate(sockets):
            given, number = node.inputs.get(entry.name), None
            if isinstance(given, Link):
                number, source = len(links) + 1, slot_of(given, info)
                links.append([number, given.node.id, source, node.id, slot, entry.type])
                nodes[given.node.id]["outputs"][source]["links"].append(number)
            label = {"label": labels[entry.name]} if entry.name in labels else {}
            nodes[node.id]["inputs"].append(_socket(entry, number) | label)
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
        "extra": {"ds": {"scale": 0.72, "offset": [120, 150]}, **_app(workflow)},
        "version": 0.4,
    }


def _app(workflow: Workflow) -> dict:
    """The layout of the page without a canvas."""
    app = workflow.app
    if app is None:
        return {}
    inputs = [[node.id, widget] for node, widget, _ in app.inputs]
    return {"linearMode": False, "linearData": {"inputs": inputs, "outputs": [node.id for node in app.outputs]}}


def _labels(workflow: Workflow, node: Node) -> dict[str, str]:
    """What a node's widgets are called, where the page without a canvas calls them otherwise."""
    asked = workflow.app.inputs if workflow.app else []
    return {widget: label for owner, widget, label in asked if owner is node}


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
    key = _uuid(f"comfyui-baret/subgraph/{workflow.title}")
    nodes, links, faces, outputs = _inside(blueprint, info)
    groups = _place(workflow, nodes)
    right = max(group["bounding"][0] + group["bounding"][2] for group in groups)
    subgraph = {
        "id": key,
        "version": 1,
        "revision": 0,
        "config": {},
        "name": workflow.title,
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
        "nodes": [_outside(workflow.title, key, faces, outputs)],
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
        "size": [300, 60 + 26 * len(faces)],
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
    height = max(_classic_height(widgets), _nodes_2_height(widgets))
    height += 20 * max(len(entries) - len(widgets), len(described["output"]))
    height += PICTURE_ROOM.get(node.type, 0) if node.room is None else node.room
    ours = described["python_module"].startswith("custom_nodes")
    properties = {"Node name for S&R": node.type, "cnr_id": "comfyui-baret" if ours else "comfy-core"}
    if node.download:
        properties["models"] = [node.download]
    outputs = zip(described["output_name"], described["output"])
    return {
        "id": node.id,
        "type": node.type,
        "pos": [],
        "size": [0, height],
        "flags": {"collapsed": True} if node.folded else {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": name, "type": type, "links": []} for name, type in outputs],
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        "widgets_values": _values(widgets, node),
    }


def _values(entries: list[Input], node: Node) -> list:
    """What a node's widgets show."""
    values = []
    for entry in entries:
        values.append(entry.value(node))
        if entry.options.get("image_upload"):
            values.append("image")  # the upload button is a widget of its own
        if entry.options.get("control_after_generate"):
            values.append("fixed")  # so is what happens to a seed after a run
    return values


def _classic_height(entries: list[Input]) -> int:
    """What a node's widgets take on the classic canvas, with the node's edges."""
    rows = sum(1 + bool(e.options.get("image_upload")) + bool(e.options.get("control_after_generate")) for e in entries)
    texts = sum(bool(entry.options.get("multiline")) for entry in entries)
    return 24 * (rows - texts) + TEXT_HEIGHT * texts + 14


def _nodes_2_height(entries: list[Input]) -> int:
    """The same in Nodes 2.0, where advanced widgets are behind a button and the pack's name stands at the foot."""
    shown = [entry for entry in entries if not entry.options.get("advanced")]
    texts = sum(bool(entry.options.get("multiline")) for entry in shown)
    button = 24 if len(shown) < len(entries) else 0
    return 28 * (len(shown) - texts) + TEXT_HEIGHT * texts + 38 + button


def _socket(entry: Input, link: int | None) -> dict:
    socket = {"name": entry.name, "type": entry.type, "link": link}
    if entry.is_widget:
        socket["widget"] = {"name": entry.name}
    elif entry.optional:
        socket["shape"] = 7
    return socket


def _place(workflow: Workflow, nodes: dict[int, dict]) -> list[dict]:
    """Give every node its place and order, add the note to `nodes` and return the groups.

    Raises ValueError where that is larger than can be read as it opens.
    """
    inner = sum(column.width + GAP for stage in workflow.stages for column in stage.columns)
    width = inner + GAP * (len(workflow.stages) - 1) * 2 - GAP
    if not workflow.folded_columns:
        width += GAP + OPENED_WIDTH
    text = f"{workflow.note}\n\n{workflow.chinese}"
    note = _note(len(nodes) + 1, text, width - _folded_width(workflow))
    nodes[note["id"]] = note
    head = _place_folded(workflow, nodes, width, note["size"][1])
    top = head + GAP // 2 + GROUP_TITLE + TITLE_BAR
    groups, x, lowest = [], 0, 0
    for stage in workflow.stages:
        left, bottom = x, top
        for column in stage.columns:
            y = top
            for node in column.nodes:
                written = nodes[node.id]
                written["pos"], written["size"][0] = [x, y], node.width or column.width
                y += written["size"][1] + TITLE_BAR + GAP
            bottom = max(bottom, y - TITLE_BAR - GAP // 2)
            x += column.width + GAP
        groups.append(_group(len(groups) + 1, stage.title, [left, top - TITLE_BAR, x - GAP, bottom]))
        lowest = max(lowest, bottom)
        x += 2 * GAP
    height = lowest - GAP // 2  # of the nodes alone: a frame counts for nothing there
    for node in workflow.folded:  # but its height, were it opened, does
        height = max(height, nodes[node.id]["pos"][1] + nodes[node.id]["size"][1])
    height += TITLE_BAR
    if width > MOST_WIDTH or height > MOST_HEIGHT:
        raise ValueError(
            f"{workflow.name} is {width} x {height}; up to {MOST_WIDTH} x {MOST_HEIGHT} can be read as it opens."
        )
    for order, node in enumerate(nodes.values()):  # every node follows those it takes from
        node["order"] = order
    return groups


def _folded_width(workflow: Workflow) -> int:
    """What the folded nodes take from the note's width."""
    columns = workflow.folded_columns
    return (columns - 1) * FOLDED_WIDTH + OPENED_WIDTH + GAP if columns else 0


def _place_folded(workflow: Workflow, nodes: dict[int, dict], width: int, note: int) -> int:
    """Lay the folded nodes beside the note or, in a column of their own, beside the stages.

    Their wires run behind the nodes. Returns the lowest place of what lies over the stages.

    High up, because a folded node counts with its whole height where the frontend fits a workflow into the window. For
    the same reason a column of their own begins with the tallest.
    """
    columns, pitch = workflow.folded_columns, TITLE_BAR + GAP // 2
    folded = workflow.folded
    if columns:
        rows, left, first = -(-len(folded) // columns), width - _folded_width(workflow) + GAP, 0
    else:
        rows, left, first = len(folded), width - OPENED_WIDTH, note + GAP // 2 + TITLE_BAR
        folded = sorted(folded, key=lambda node: nodes[node.id]["size"][1], reverse=True)
    for number, node in enumerate(folded):
        column, row = divmod(number, rows)
        nodes[node.id]["pos"] = [left + column * FOLDED_WIDTH, first + row * pitch]
        nodes[node.id]["size"][0] = OPENED_WIDTH
    return max(note, (rows - 1) * pitch) if columns else note


def _group(id: int, title: str, box: list[int]) -> dict:
    """A frame with its title around a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    return {
        "id": id,
        "title": title,
        "bounding": [left - GAP // 2, top - GROUP_TITLE, right - left + GAP, bottom - top + GROUP_TITLE],
        "color": "#3f789e",
        "font_size": GROUP_FONT,
        "flags": {},
    }


def _note(id: int, text: str, width: int) -> dict:
    """The note, one heading with a line for each paragraph: the font of all else is too small as a template opens."""
    paragraphs = [paragraph.replace("\n", " ") for paragraph in text.strip().split("\n\n")]
    rows = sum(1 + _letters(paragraph) * 10 // width for paragraph in paragraphs)  # a letter is about 10 wide
    return {
        "id": id,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": [width, max(88, 30 + 25 * rows)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "What to do",
        "properties": {},
        "widgets_values": ["\\\n".join(paragraphs) + "\n==="],
        "color": "#432",
        "bgcolor": "#000",
    }


def _letters(text: str) -> int:
    """How many letters wide a text is: Chinese characters count twice."""
    return sum(1 + (letter >= "\u2e80") for letter in text)


def _uuid(name: str) -> str:
    """The same id for the same name, so that a file changes only where its content does."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
