"""A workflow as Python describes it: nodes in columns and stages, joined by links. `canvas.py` writes it down."""

from __future__ import annotations

from dataclasses import dataclass, field

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True, eq=False)
class Node:
    """A node by its class.

    inputs: Links, Faces or values. download: the file it loads, for whom has it not. folded: only its title shows.
    room: height for the picture that it shows, if not the usual one. width: if not its column's.
    """

    id: int
    type: str
    title: str | None
    inputs: dict
    download: dict | None = None
    folded: bool = False
    room: int | None = None
    width: int | None = None

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
    """Nodes under each other, of one width."""

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

    chinese: the note's last paragraph, as ComfyUI translates no workflow.

    folded: nodes of which only the titles show, wherever they belong. They lie beside the note, in folded_columns, or
        at the right of the stages in one column where that is 0.
    """

    name: str
    title: str
    note: str
    chinese: str = ""
    stages: list[Stage] = field(default_factory=list)
    folded: list[Node] = field(default_factory=list)
    folded_columns: int = 3
    app: App | None = None

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
        **inputs,
    ) -> Node:
        """A node in the newest column, or a folded one. An input left out takes the server's default."""
        node = Node(len(self.nodes()) + 1, type, title, inputs, download, folded, room, width)
        (self.folded if folded else self.stages[-1].columns[-1].nodes).append(node)
        return node

    def nodes(self) -> list[Node]:
        """All nodes, in the order they were added in."""
        shown = [node for stage in self.stages for column in stage.columns for node in column.nodes]
        return sorted([*shown, *self.folded], key=lambda node: node.id)


@dataclass(frozen=True)
class Blueprint:
    """A workflow that the canvas offers as one node, a subgraph.

    faces: the names of its Faces, in the order they stand in. outputs: what comes out, by name.
    """

    workflow: Workflow
    faces: tuple[str, ...]
    outputs: dict[str, Link]
    description: str
    aliases: tuple[str, ...]  # what it is found by as well


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
            found.append(Input(name, type, options, section == "optional"))
    unknown = node.inputs.keys() - {entry.name for entry in found}
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return found


def slot_of(link: Link, info: dict) -> int:
    """The number of a link's output on its node."""
    return info[link.node.type]["output_name"].index(link.output)
