"""How a workflow is written: what the canvas opens, what POST /prompt takes, and the blueprint of a subgraph.

Input names, their order, defaults and output slots come from a running server (`info`, the answer of /object_info), so
that the files hold what the frontend itself would save.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from graph import Blueprint, Column, Face, Input, Link, Node, Workflow, fixed_uuid, inputs_of, slot_of

GAP = 20  # between columns, and between what lies under each other
TITLE_BAR = 30  # of a node; it lies above its position
GROWTH = 40  # under the nodes of a group, for what a run writes under them
FOLDED_WIDTH = 210  # of a folded node, as Nodes 2.0 shows it, and when it is opened
GROUP_TITLE, GROUP_FONT = 36, 28
TEXT_HEIGHT = 80  # of a text of several lines
MOST_WIDTH, MOST_HEIGHT = 1320, 736
"""What the frontend shows at 72 % in a window of 1280x720: it fits a template into three quarters of the window. Below
that its titles are smaller than 10 pixels, and below 57 % it draws no text at all."""
MUTED = 2  # a node's mode
INPUTS, OUTPUTS = -10, -20  # ids that the frontend gives to a subgraph's two sides

PICTURE_ROOM = {
    "LoadImage": 200,
    "PreviewImage": 210,
    "SaveImage": 210,
    "MaskPreview": 180,
    "BaretInversionReport": 250,
    "BaretEditSweep": 220,
    "BaretAttentionMaps": 220,
    "BaretAutoEdit": 34,
    "BaretTTISInversion": 24,
}
"""Height for the picture that a node shows, or for the words under it."""


def api_form(workflow: Workflow, info: dict) -> dict:
    """What POST /prompt takes, as the frontend's "Export (API)" writes it."""
    prompt = {}
    for node in (node for node in workflow.nodes() if not node.muted):
        for inner in node.inside.workflow.nodes() if node.inside else [node]:
            within = node if node.inside else None
            prompt[_queued_id(inner, within)] = _queued(inner, within, info)
    return prompt


def _queued_id(node: Node, within: Node | None) -> str:
    return f"{within.id}:{node.id}" if within else str(node.id)


def _queued(node: Node, within: Node | None, info: dict) -> dict:
    """A node as it is queued. within: the subgraph that it is in."""
    inputs = {}
    for entry in inputs_of(node, info):
        given, side = node.inputs.get(entry.name), within
        if isinstance(given, Face) and within:
            given, side = within.inputs.get(given.name, given), None
        if isinstance(given, Link):
            source = given.node
            if source.inside:  # what comes out of a subgraph comes out of a node in it
                given, side = source.inside.outputs[given.output], source
            inputs[entry.name] = [_queued_id(given.node, side), slot_of(given, info)]
        elif entry.is_widget:
            inputs[entry.name] = entry.value(node)
    title = node.title or info[node.type]["display_name"]
    return {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}


def ui_form(workflow: Workflow, info: dict) -> dict:
    """What the frontend opens and saves: nodes with places, links, groups and notes.

    Raises ValueError where it is larger than can be read as it opens.
    """
    nodes: dict[int, dict] = {}
    links: list[list] = []
    subgraphs: list[dict] = []
    sockets: dict[int, list[Input]] = {}
    for node in workflow.nodes():  # all of them before any link: one may come from a node that stands further down
        if node.inside:
            subgraph, faces, outputs = _subgraph(node.inside, info)
            subgraphs.append(subgraph)
            nodes[node.id] = _outside(node.inside, faces, outputs) | {"id": node.id, "inputs": []}
            sockets[node.id] = [Input(face.name, face.type, {}, optional=False) for face in faces]
        else:
            nodes[node.id] = _node(node, info)
            # A widget has a socket only where something is linked to it, or where it has a label of its own.
            shown = _labels(workflow, node).keys() | {name for name in node.inputs if node.linked(name)}
            entries = inputs_of(node, info)
            sockets[node.id] = [entry for entry in entries if not entry.is_widget or entry.name in shown]
    for node in workflow.nodes():
        labels = _labels(workflow, node)
        for slot, entry in enumerate(sockets[node.id]):
            given, number = node.inputs.get(entry.name), None
            if isinstance(given, Link):
                number, source = len(links) + 1, slot_of(given, info)
                links.append([number, given.node.id, source, node.id, slot, entry.type])
                nodes[given.node.id]["outputs"][source]["links"].append(number)
            label = {"label": labels[entry.name]} if entry.name in labels else {}
            nodes[node.id]["inputs"].append(_socket(entry, number) | label)
    groups, (width, height) = _place(workflow, nodes)
    takes_from = {id: [source for _, source, _, target, *_ in links if target == id] for id in nodes}
    for order, id in enumerate(TopologicalSorter(takes_from).static_order()):
        nodes[id]["order"] = order
    if width > MOST_WIDTH or height > MOST_HEIGHT:
        raise ValueError(
            f"{workflow.name} is {width} x {height}; up to {MOST_WIDTH} x {MOST_HEIGHT} can be read as it opens."
        )
    return {
        "id": fixed_uuid(f"comfyui-baret/{workflow.name}"),
        "revision": 0,
        "last_node_id": max(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": groups,
        "config": {},
        **({"definitions": {"subgraphs": subgraphs}} if subgraphs else {}),
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
    subgraph, faces, outputs = _subgraph(blueprint, info)
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outside(blueprint, faces, outputs)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": list(blueprint.aliases),
        },
    }


def _subgraph(blueprint: Blueprint, info: dict) -> tuple[dict, list[_Side], list[_Side]]:
    """What a subgraph is inside, and its two sides."""
    workflow, key = blueprint.workflow, blueprint.key
    nodes, links, faces, outputs = _inside(blueprint, info)
    groups, _ = _place(workflow, nodes)
    right = max(group["bounding"][0] + group["bounding"][2] for group in groups)
    written = {
        "id": key,
        "version": 1,
        "revision": 0,
        "config": {},
        "name": workflow.title,
        "description": blueprint.description,
        "category": "BARET",
        "state": {"lastGroupId": len(groups), "lastNodeId": max(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
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
    return written, faces, outputs


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


def _outside(blueprint: Blueprint, faces: list[_Side], outputs: list[_Side]) -> dict:
    """The one node that a subgraph is on the canvas."""
    inputs = []
    for face in faces:
        widget = {"widget": {"name": face.name}} if face.widget else {}
        inputs.append({"name": face.name, "type": face.type, "link": None, **widget})
    return {
        "id": 1,
        "type": blueprint.key,
        "pos": [0, 0],
        "size": [300, 60 + 26 * len(faces)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": blueprint.workflow.title,
        "inputs": inputs,
        "outputs": [{"name": side.name, "type": side.type, "links": []} for side in outputs],
        "properties": {"cnr_id": "comfyui-baret"},
        "widgets_values": [],
    }


# --- nodes and their places -----------------------------------------------------------------------------------------


def is_controlled(name: str, options: dict) -> bool:
    """Whether the frontend adds a widget to a number that changes it after each run: where asked, and to all seeds."""
    return bool(options.get("control_after_generate")) or name in ("seed", "noise_seed")


def _node(node: Node, info: dict) -> dict:
    """A node with its widgets and outputs, without a place and without inputs."""
    described, entries = info[node.type], inputs_of(node, info)
    widgets = [entry for entry in entries if entry.is_widget]
    height = max(_classic_height(widgets), _nodes_2_height(widgets))
    height += 20 * max(len(entries) - len(widgets), len(described["output"]))
    if not node.folded:
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
        "mode": MUTED if node.muted else 0,
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
        if is_controlled(entry.name, entry.options):
            values.append("fixed")  # so is what happens to a seed after a run
    return values


def _classic_height(entries: list[Input]) -> int:
    """What a node's widgets take on the classic canvas, with the node's edges."""
    rows = sum(1 + bool(e.options.get("image_upload")) + is_controlled(e.name, e.options) for e in entries)
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


def _place(workflow: Workflow, nodes: dict[int, dict]) -> tuple[list[dict], tuple[int, int]]:
    """Give every node its place and add the note to `nodes`; returns the groups, and width and height."""
    inner = sum(column.width + GAP for stage in workflow.stages for column in stage.columns)
    width = inner + GAP * (len(workflow.stages) - 1) - GAP
    note = _note(max(nodes) + 1, f"{workflow.note}\n\n{workflow.chinese}", width)
    top = note["size"][1] + GAP // 2 + GROUP_TITLE + TITLE_BAR
    groups, x, lowest = [], 0, 0
    for stage in workflow.stages:
        left, bottom = x, top
        for column in stage.columns:
            bottom = max(bottom, _place_column(column, nodes, x, top))
            x += column.width + GAP
        groups.append(_group(len(groups) + 1, stage.title, [left, top - TITLE_BAR, x - GAP, bottom + GROWTH]))
        x += GAP
    for node in nodes.values():
        lowest = max(lowest, node["pos"][1] + node["size"][1])  # a folded node counts as if it were opened
    nodes[note["id"]] = note
    return groups, (width, lowest + TITLE_BAR)


def _place_column(column: Column, nodes: dict[int, dict], x: int, top: int) -> int:
    """Give the nodes of a column their places under each other, the first at `top`; returns where the last one ends."""
    y = end = top
    for number, row in enumerate(_rows(column)):
        if number:
            y = end + TITLE_BAR + (GAP if _has_badge(row) or not row[0].folded else GAP // 2)
        for place, node in enumerate(row):
            nodes[node.id]["pos"] = [x + place * (FOLDED_WIDTH + GAP), y]
            nodes[node.id]["size"][0] = FOLDED_WIDTH if node.folded else node.width or column.width
        end = y if row[0].folded else y + nodes[row[0].id]["size"][1]
    return end


def _rows(column: Column) -> list[list[Node]]:
    """A column's nodes: folded ones that follow each other lie side by side, as many as fit, and others alone."""
    beside = (column.width + GAP) // (FOLDED_WIDTH + GAP)
    rows: list[list[Node]] = []
    for node in column.nodes:
        if rows and node.folded and rows[-1][-1].folded and len(rows[-1]) < beside:
            rows[-1].append(node)
        else:
            rows.append([node])
    return rows


def _has_badge(row: list[Node]) -> bool:
    """Whether the classic canvas writes the pack's name over the title of one of the nodes."""
    return any(node.type.startswith("Baret") for node in row)


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
        "size": [width, max(80, 30 + 25 * rows)],
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
    """How many letters wide a text is, without its marks of emphasis: Chinese characters count twice."""
    return sum(1 + (letter >= "\u2e80") for letter in text if letter != "*")
