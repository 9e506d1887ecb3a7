"""A workflow as Python describes it: nodes in columns and stages, joined by links. `canvas.py` writes it down."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True, eq=False)
class Node:
    """A node by its class.

    inputs: Links, Faces or values. download: the file it loads, for whom has it not. folded: only its title shows.
    room: height for the picture that it shows, if not the usual one. width: if not its column's. muted: it does not
    run until a person wakes it. inside: what a subgraph holds, whose Faces are then the inputs.
    """

    id: int
    type: str
    title: str | None
    inputs: dict
    download: dict | None = None
    folded: bool = False
    room: int | None = None
    width: int | None = None
    muted: bool = False
    inside: Blueprint | None = None

    def __getitem__(self, output: str) -> Link:
        return Link(self, output)

    def linked(self, name: str) -> bool:
        return isinstance(self.inputs.get(name), Link)


@dataclass(frozen=True)
class Link:
    """An output of a node, by the name the server gives it."""

    node: Node
    output: str


@dataclass(frozen=True)
class Face:
    """A socket or a dial on the outside of a subgraph, for one or several inputs within.

    value: where a dial stands, if not at the server's default.
    """

    name: str
    value: object = None


@dataclass
class Column:
    """Nodes of one width under each other; folded ones that follow each other lie side by side where that fits."""

    width: int
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Stage:
    """A group on the canvas: its nodes in columns under a title."""

    title: str
    columns: list[Column]


@dataclass
class App:
    """What the page without a canvas shows: (node, widget, label) to fill in, and nodes whose pictures it shows."""

    inputs: list[tuple[Node, str, str]]
    outputs: list[Node]


@dataclass
class Workflow:
    """name: of its files for programs. title: under which people find it. note: what to do, over all else.

    chinese: the note's last paragraph, as ComfyUI translates no workflow. first: the id of the first node, in a
    subgraph one that no node around it has, as the frontend gives new ids to such.
    """

    name: str
    title: str
    note: str
    chinese: str = ""
    stages: list[Stage] = field(default_factory=list)
    app: App | None = None
    first: int = 1

    def stage(self, title: str, width: int = 280) -> None:
        self.stages.append(Stage(title, [Column(width)]))

    def column(self, width: int = 280) -> None:
        """Go on in a new column of the newest stage."""
        self.stages[-1].columns.append(Column(width))

    def add(
        self,
        type: str,
        title: str | None = None,
        *,
        download: dict | None = None,
        folded: bool = False,
        room: int | None = None,
        width: int | None = None,
        muted: bool = False,
        **inputs,
    ) -> Node:
        """A node in the newest column. An input left out takes the server's default."""
        return self._put(Node(self._next_id(), type, title, inputs, download, folded, room, width, muted))

    def put_subgraph(self, blueprint: Blueprint, **inputs) -> Node:
        """A subgraph in the newest column, with what its Faces are given."""
        return self._put(Node(self._next_id(), blueprint.key, blueprint.workflow.title, inputs, inside=blueprint))

    def _next_id(self) -> int:
        return self.first + len(self.nodes())

    def _put(self, node: Node) -> Node:
        self.stages[-1].columns[-1].nodes.append(node)
        return node

    def nodes(self) -> list[Node]:
        """All nodes, in the order they were added in, as they are added to the newest column alone."""
        return [node for stage in self.stages for column in stage.columns for node in column.nodes]


@dataclass(frozen=True)
class Blueprint:
    """A workflow that the canvas offers as one node, a subgraph.

    faces: the names of its Faces, in the order they stand in. outputs: what comes out, by name.
    """

    workflow: Workflow
    faces: tuple[str, ...]
    outputs: dict[str, Link]
    description: str
    aliases: tuple[str, ...] = ()  # what it is found by as well

    @property
    def key(self) -> str:
        """The id of the subgraph, the same for the same title."""
        return fixed_uuid(f"comfyui-baret/subgraph/{self.workflow.title}")


@dataclass(frozen=True)
class Input:
    """One input of a node as the server's /object_info lists it."""

    name: str
    type: str
    options: dict
    optional: bool

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGETS

    def value(self, node: Node):
        """What the widget shows: the node's own value, else the server's default.

        A combo without a default shows its first entry, and nothing where it has no entries.
        """
        given = node.inputs.get(self.name)
        if isinstance(given, Face):
            given = given.value
        if given is not None and not isinstance(given, Link):
            return given
        if "default" in self.options:
            return self.options["default"]
        return self.options.get("options", [""])[0]


def fixed_uuid(name: str) -> str:
    """The same id for the same name, so that a file changes only where its content does."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def inputs_of(node: Node, info: dict) -> list[Input]:
    """The inputs that the server knows of a node, in its order. Raises ValueError where the node has others.

    info: the answer of /object_info.
    """
    described = info[node.type]
    found = []
    for section in ("required", "optional"):
        for name in described["input_order"].get(section, []):
            type, *rest = described["input"][section][name]
            options = dict(rest[0]) if rest else {}
            if isinstance(type, list):  # the older form of a combo
                type, options = "COMBO", {**options, "options": type}
            if type == "COMFY_AUTOGROW_V3":
                found += _grown(node, name, options)
            else:
                found.append(Input(name, type, options, section == "optional"))
    unknown = node.inputs.keys() - {entry.name for entry in found}
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return found


def _grown(node: Node, name: str, options: dict) -> list[Input]:
    """The sockets of an input that grows: those that are given, and a free one as the frontend adds."""
    template = options["template"]
    ((type, *_),) = template["input"]["required"].values()
    given = [key for key in node.inputs if key.startswith(f"{name}.")]
    return [Input(f"{name}.{template['prefix']}{number}", type, {}, True) for number in range(len(given) + 1)]


def slot_of(link: Link, info: dict) -> int:
    """The number of a link's output on its node."""
    if link.node.inside:
        return list(link.node.inside.outputs).index(link.output)
    return info[link.node.type]["output_name"].index(link.output)
