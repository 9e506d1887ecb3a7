"""The nodes as the host sees them, and as saved workflows know them."""

import inspect
import json
import os
import re
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).parent / "schemas.json"
RENEW = "BARET_RENEW_SCHEMAS"
WIDGETS = ("default", "min", "max", "step", "round", "options", "multiline", "control_after_generate", "advanced")
FOLDER_LISTS = {("BaretLoadInversion", "file")}  # inputs whose options are the files of a folder

ADVICE = f"""The contract of the nodes changed:
{{changes}}
Saved workflows name inputs by their ids and may hold the old values. If the change is meant, write it into CHANGELOG.md
under "Unreleased": what is new under "Added", what is different under "Changed", what is gone under "Removed", each
with what becomes of workflows that were saved before. Then write {SNAPSHOT.name} anew and commit both:
    {RENEW}=1 python dev/test.py tests/host/test_schemas.py
"""


def describe_input(node_id, entry):
    """What a workflow can know of an input: its id, type and whatever bounds or fills its widget."""
    found = {"id": entry.id, "type": entry.get_io_type()}
    if entry.optional:
        found["optional"] = True
    for name in WIDGETS:
        value = getattr(entry, name, None)
        is_folder = name == "options" and (node_id, entry.id) in FOLDER_LISTS
        if value is not None and not is_folder:
            found[name] = value
    return found


def describe(nodes):
    """The contract of node classes by their ids, as the snapshot holds it."""
    found = {}
    for node_id, node in sorted(nodes.items()):
        schema = node.define_schema()
        found[node_id] = {
            "output_node": schema.is_output_node,
            "inputs": [describe_input(node_id, entry) for entry in schema.inputs],
            "outputs": [{"id": entry.id, "type": entry.get_io_type()} for entry in schema.outputs],
        }
    return json.loads(json.dumps(found))


def to_text(contract):
    """The snapshot's file: an input or output a line, so that a change is a line."""
    blocks = []
    for node_id, node in contract.items():
        sides = []
        for side in ("inputs", "outputs"):
            entries = ",\n".join(f"      {json.dumps(entry)}" for entry in node[side])
            sides.append(f'    "{side}": [\n{entries}\n    ]' if entries else f'    "{side}": []')
        output_node = f'    "output_node": {json.dumps(node["output_node"])}'
        blocks.append(f'  "{node_id}": {{\n' + ",\n".join([output_node, *sides]) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def changes_of_entry(before, after):
    """What is different in an input or output, one phrase each."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name} was {json.dumps(before.get(name))} and is {json.dumps(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def changes_of_side(before, after):
    """What is different in a node's inputs, or in its outputs, one phrase each."""
    old, new = ({entry["id"]: entry for entry in side} for side in (before, after))
    found = [f"{name} is gone" for name in old if name not in new]
    found += [f"{name} is new" for name in new if name not in old]
    for name in (name for name in old if name in new):
        found += [f"{name}: {change}" for change in changes_of_entry(old[name], new[name])]
    if not found and list(old) != list(new):
        found.append(f"the order was {', '.join(old)} and is {', '.join(new)}")
    return found


def changes(before, after):
    """What is different between two contracts, a sentence each; empty when they are equal."""
    found = [f"{node_id} is gone" for node_id in before if node_id not in after]
    found += [f"{node_id} is new" for node_id in after if node_id not in before]
    for node_id in (node_id for node_id in before if node_id in after):
        old, new = before[node_id], after[node_id]
        for side in ("inputs", "outputs"):
            found += [f"{node_id}, {side}: {change}" for change in changes_of_side(old[side], new[side])]
        if old["output_node"] != new["output_node"]:
            found.append(f"{node_id}: output_node was {old['output_node']} and is {new['output_node']}")
    return found


def test_the_contract_is_kept(pack):
    contract = describe(pack.nodes)
    if os.environ.get(RENEW):
        SNAPSHOT.write_text(to_text(contract), encoding="utf-8", newline="\n")
        pytest.skip(f"{SNAPSHOT.name} was written anew; look at what changed in it, and commit it with CHANGELOG.md")
    found = changes(json.loads(SNAPSHOT.read_text(encoding="utf-8")), contract)
    assert not found, ADVICE.format(changes="\n".join(f"  - {change}" for change in found))


def test_the_snapshot_holds_every_node_and_is_written_as_the_command_does(pack):
    written = SNAPSHOT.read_text(encoding="utf-8")
    assert set(json.loads(written)) == {node.define_schema().node_id for node in pack.root.NODES}
    assert to_text(json.loads(written)) == written


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda node: node["inputs"].pop(3), "BaretBAMEdit, inputs: tau_sa is gone"),
        (lambda node: node["inputs"].append({"id": "x", "type": "INT"}), "BaretBAMEdit, inputs: x is new"),
        (lambda node: node["inputs"][3].update(max=2.0), "BaretBAMEdit, inputs: tau_sa: max was 1.0 and is 2.0"),
        (lambda node: node["inputs"][3].pop("min"), "BaretBAMEdit, inputs: tau_sa: min was 0.0 and is null"),
        (lambda node: node["inputs"][6]["options"].reverse(), "BaretBAMEdit, inputs: passes: options was"),
        (lambda node: node["inputs"].reverse(), "BaretBAMEdit, inputs: the order was model, trajectory"),
        (lambda node: node["outputs"][0].update(type="IMAGE"), 'BaretBAMEdit, outputs: edit: type was "LATENT"'),
        (lambda node: node.update(output_node=True), "BaretBAMEdit: output_node was False and is True"),
    ],
)
def test_a_change_is_named(pack, change, sentence):
    before, after = describe(pack.nodes), describe(pack.nodes)
    assert changes(before, after) == []
    change(after["BaretBAMEdit"])
    (found,) = changes(before, after)
    assert found.startswith(sentence)


def test_nodes_that_come_and_go_are_named(pack):
    contract = describe(pack.nodes)
    fewer = {node_id: node for node_id, node in contract.items() if node_id != "BaretWorldScene"}
    assert changes(contract, fewer) == ["BaretWorldScene is gone"]
    assert changes(fewer, contract) == ["BaretWorldScene is new"]


def test_schemas_and_execute_agree(pack):
    for node in pack.nodes.values():
        schema = node.define_schema()
        signature = inspect.signature(node.execute).parameters
        assert list(signature) == [entry.id for entry in schema.inputs]
        for entry in schema.inputs:
            if entry.optional or (entry.advanced and signature[entry.id].default is not inspect.Parameter.empty):
                assert signature[entry.id].default == getattr(entry, "default", None)
        schema.validate()


def test_everything_is_explained(pack):
    aliases = {"edit", "inversion", "DDIM", "prompt to prompt", "real image"}
    for node in pack.nodes.values():
        schema = node.define_schema()
        assert schema.category == "BARET"
        assert schema.description
        assert aliases <= set(schema.search_aliases)
        for entry in [*schema.inputs, *schema.outputs]:
            assert entry.tooltip and entry.tooltip.endswith("."), f"{schema.node_id}.{entry.id} has no tooltip"


def test_a_help_page_for_every_node(pack):
    folder = Path(pack.root.__file__).parent / pack.root.WEB_DIRECTORY / "docs"
    for node_id, node in pack.nodes.items():
        for page in (folder / f"{node_id}.md", folder / node_id / "zh.md"):
            text = page.read_text(encoding="utf-8")
            for entry in node.define_schema().inputs:
                assert f"`{entry.id}`" in text, f"{page} does not explain {entry.id}"


def test_help_pages_fit_the_panel(pack):
    """The panel cuts tables off at its usual width, and a link to another page leads nowhere in it."""
    pages = (Path(pack.root.__file__).parent / pack.root.WEB_DIRECTORY / "docs").rglob("*.md")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^\|", text, re.MULTILINE), f"{page} has a table"
        links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", text)
        assert all(link.startswith("https://") for link in links), f"{page} links to another page"


RANGE = re.compile(r"(?<![\d.])(\d[\d.]*) (?:to|到) (\d+(?:\.\d+)?)")


def useful_ranges(pack):
    """Node id, its name, input and the range that its tooltip calls useful."""
    for id, node in pack.nodes.items():
        schema = node.define_schema()
        for entry in schema.inputs:
            _, _, useful = entry.tooltip.partition("Useful: ")
            if found := RANGE.match(useful):
                yield id, schema.display_name, entry.id, found.groups()


def test_advice_is_the_same_everywhere(pack):
    """A range that the help pages or the README give for an input is the one in its tooltip."""
    root = Path(pack.root.__file__).parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    _, _, table = readme.partition("## What each number does")
    compared = 0
    for id, name, entry, useful in useful_ranges(pack):
        _, _, rows = table.partition(f"| {name} |")
        rows = re.split(r"^\| \w", rows, flags=re.MULTILINE)[0].splitlines()
        told = [line for line in rows if re.match(rf"[| ]*`{entry}`", line)]
        for page in (root / "web/docs" / f"{id}.md", root / "web/docs" / id / "zh.md"):
            lines = page.read_text(encoding="utf-8").splitlines()
            told += [line for line in lines if re.match(rf"- [^:：]*`{entry}`", line)]
        for line in told:
            ranges = RANGE.findall(line)
            assert not ranges or useful in ranges, f"{id}.{entry} is {' to '.join(useful)} in the tooltip: {line}"
            compared += bool(ranges)
    assert compared > 40


@pytest.mark.parametrize("given, bound", [("steps", 1), ("iterations", -1)])
def test_widgets_bound_what_can_be_typed(pack, given, bound):
    (entry,) = (entry for entry in pack.nodes["BaretTTISInversion"].define_schema().inputs if entry.id == given)
    assert entry.min > bound
