"""Write the pack's translations from the nodes' schemas and the phrases of each language.

    python dev/locales.py     # writes locales/<language>/nodeDefs.json; says which phrases are missing or stale

English is what the schemas say. Any other language is a file `dev/phrases/<language>.json`: "names" of inputs and
outputs by their ids, and "texts" by the English. So a sentence that several nodes share is translated once, and one
whose English changes is missing until it is translated anew. Options of combos stay as they are: the frontend has no
place for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import comfyui

PHRASES = Path(__file__).resolve().parent / "phrases"
FOLDER = Path(__file__).resolve().parent.parent / "locales"
# Names that are the same everywhere.
SYMBOLS = {
    "beta",
    "cfg",
    "clip",
    "clip_score",
    "eta_end",
    "eta_start",
    "lora",
    "psnr",
    "ssim",
    "tau_ca",
    "tau_sa",
    "vae",
}


def languages() -> dict[str, dict]:
    """The phrases of every language but English."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(PHRASES.glob("*.json"))}


def _entries(node: dict) -> Iterator[tuple[str, str, str, str]]:
    """Each input and output of a node: "inputs" or "outputs", its key there, its name and its tooltip."""
    for section in ("required", "optional"):  # and not "hidden"
        for name in node["input_order"].get(section, []):
            yield "inputs", name, name, node["input"][section][name][1]["tooltip"]
    for number, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"])):
        yield "outputs", str(number), name, tooltip


def ours(info: dict) -> dict[str, dict]:
    return {id: node for id, node in sorted(info.items()) if id.startswith("Baret")}


def gaps(info: dict, phrases: dict) -> dict[str, set[str]]:
    """What is missing from the phrases of a language, and what in them is stale."""
    names, texts = set(), set()
    for node in ours(info).values():
        texts |= {node["display_name"], node["description"]}
        for _, _, name, tooltip in _entries(node):
            names.add(name)
            texts.add(tooltip)
    names -= SYMBOLS
    known = phrases["names"].keys() | phrases["texts"].keys()
    return {
        "missing": (names - phrases["names"].keys()) | (texts - phrases["texts"].keys()),
        "stale": known - names - texts,
    }


def definitions(info: dict, phrases: dict) -> dict[str, dict]:
    """The nodes as the frontend reads them; what has no phrase stays English."""

    def name_of(name):
        return phrases["names"].get(name, name)

    def text_of(text):
        return phrases["texts"].get(text, text)

    found = {}
    for id, node in ours(info).items():
        entry = found[id] = {
            "display_name": text_of(node["display_name"]),
            "description": text_of(node["description"]),
            "inputs": {},
            "outputs": {},
        }
        for side, key, name, tooltip in _entries(node):
            entry[side][key] = {"name": name_of(name), "tooltip": text_of(tooltip)}
    return found


def files(info: dict) -> dict[Path, str]:
    """Path -> text of everything in `locales/`."""
    made = {}
    for language, phrases in {"en": {"names": {}, "texts": {}}, **languages()}.items():
        text = json.dumps(definitions(info, phrases), indent=2, ensure_ascii=False)
        made[FOLDER / language / "nodeDefs.json"] = text + "\n"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pack's translations.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_server  # needs the host's interpreter

    with comfy_server.running(host) as client:
        info = client.object_info()
    for path, text in files(info).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    complaints = []
    for language, phrases in languages().items():
        for what, found in gaps(info, phrases).items():
            complaints += [f"{language}: {what}: {phrase}" for phrase in sorted(found)]
    sys.exit("\n".join(complaints) or None)


if __name__ == "__main__":
    main()
