"""A workflow in the form for programs, with the picture, the text and the settings of a row put into it by title."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import workflows
from rows import OWN_COLUMNS, Row

WORLD, PHOTO = "baret_edit", "baret_edit_photo"
WORLD_SIDE = 128  # pixels of the drawn world
PICTURE_TITLE, TEXT_TITLE = "Your picture", "Target text"
TEXT_INPUTS = ("text", "value", "string", "prompt")
SEEDS = ("seed", "noise_seed")

Place = tuple[str, str]
"""A node's id, and its input."""


class Workflow:
    """A workflow that is queued once for every row."""

    def __init__(self, prompt: dict, picture: str | Place | None = None, text: str | Place | None = None):
        """prompt: in API form.

        picture, text: where they go, a Place or "Title" or "Title.input"; None where it is to be found by itself.
        Raises ValueError, with what fits, where a title does not tell.
        """
        self.prompt = prompt
        self.titles = {id: node.get("_meta", {}).get("title") or node["class_type"] for id, node in prompt.items()}
        self.picture = picture if isinstance(picture, tuple) else self._place_of_picture(picture)
        self.text = text if isinstance(text, tuple) else self._place_of_text(text)
        self.hash = _digest(prompt)
        self._hashes: dict[frozenset, str] = {}  # of the workflow without some inputs

    # --- places -------------------------------------------------------------------------------------------------------

    def place(self, name: str, inputs: tuple[str, ...] = ()) -> Place:
        """The place that "Title.input" names, or "Title" with the first of `inputs` that the node has.

        Raises ValueError, with what there is, where no node or more than one is titled so, or it has no such input.
        """
        title, _, wanted = (name, "", "") if name in self.titles.values() else name.rpartition(".")
        found = [id for id, own in self.titles.items() if own == title]
        if not found:
            raise ValueError(f"{name}: no node is titled so; there are {', '.join(sorted(set(self.titles.values())))}")
        if len(found) > 1:
            raise ValueError(f"{name}: {len(found)} nodes are titled {title}; give them titles of their own")
        own = self.prompt[found[0]]["inputs"]
        literal = [key for key, value in own.items() if not isinstance(value, list)]
        for key in (wanted,) if wanted else inputs:
            if key in literal:
                return found[0], key
        raise ValueError(f"{name}: {title} has no such input to set; {', '.join(literal) or 'none'} can be set")

    def _place_of_picture(self, given: str | None) -> Place | None:
        if given:
            return self.place(given, ("image",))
        loaders = [id for id, node in self.prompt.items() if node["class_type"] == "LoadImage"]
        titled = [id for id in loaders if self.titles[id] == PICTURE_TITLE] or loaders
        return (titled[0], "image") if len(titled) == 1 else None

    def _place_of_text(self, given: str | None) -> Place | None:
        if given:
            return self.place(given, TEXT_INPUTS)
        if TEXT_TITLE in self.titles.values():
            return self.place(TEXT_TITLE, TEXT_INPUTS)
        texts = [
            (id, "text")
            for id, node in self.prompt.items()
            if node["class_type"] == "CLIPTextEncode" and isinstance(node["inputs"].get("text"), str)
        ]
        return texts[0] if len(texts) == 1 else None

    def require(self, columns: list[str], picture: bool, text: bool) -> list[str]:
        """Check that every column has a place; returns the columns that are of no use. Raises ValueError.

        picture, text: whether the rows have some.
        """
        if picture and self.picture is None:
            raise ValueError(
                "which node takes the picture cannot be told; give --picture-node with the title of a Load Image node"
            )
        if text and self.text is None:
            raise ValueError("which node takes the text cannot be told; give --text-node with its title")
        for name in columns:
            if "." in name:
                self.place(name)
        return [name for name in columns if "." not in name and name not in OWN_COLUMNS]

    # --- rows ---------------------------------------------------------------------------------------------------------

    def filled(self, row: Row, image: str | None) -> dict:
        """The workflow as it is queued for a row. image: the name of its picture in the server's input folder.

        Raises ValueError where a setting does not fit its input.
        """
        prompt = json.loads(json.dumps(self.prompt))
        for (id, name), value in self._values(row, image).items():
            prompt[id]["inputs"][name] = value
        return prompt

    def _values(self, row: Row, image: str | None) -> dict[Place, object]:
        """What a row puts where. Raises ValueError where a setting does not fit."""
        values: dict = {self.place(name): (name, value) for name, value in row.settings.items()}
        if self.picture and image is not None:
            values[self.picture] = ("image", image)
        if self.text and row.text is not None:
            values[self.text] = ("text", row.text)
        return {
            (id, name): _like(self.prompt[id]["inputs"][name], value, where)
            for (id, name), (where, value) in values.items()
        }

    def key(self, row: Row, picture: str) -> str:
        """What a row's result depends on, as one hash. picture: the hash of its picture, empty for none."""
        try:
            values = self._values(row, picture or None)
        except ValueError as error:
            return _digest(str(error))
        places = frozenset(values)
        if places not in self._hashes:
            rest = json.loads(json.dumps(self.prompt))
            for id, name in places:
                del rest[id]["inputs"][name]
            self._hashes[places] = _digest(rest)
        return _digest([self._hashes[places], sorted([*place, value] for place, value in values.items())])

    def seed(self, prompt: dict) -> int | None:
        """The first seed in a workflow as it was queued, in the order of its nodes; None where it has none."""
        for node in prompt.values():
            for name in SEEDS:
                if isinstance(node["inputs"].get(name), int):
                    return node["inputs"][name]
        return None

    def for_several(self, row: Row, images: list[str]) -> dict:
        """The workflow for several pictures in one batch, with the text and the settings of `row`."""
        prompt = self.filled(row, images[0])
        first, name = self.picture
        batch = [first, 0]
        for number, image in enumerate(images[1:], 2):
            loader, joined = f"picture {number}", f"pictures to {number}"
            prompt[loader] = {"class_type": "LoadImage", "inputs": {name: image}}
            prompt[joined] = {"class_type": "ImageBatch", "inputs": {"image1": batch, "image2": [loader, 0]}}
            batch = [joined, 0]
        for id, node in prompt.items():
            if not id.startswith("pictures to "):
                node["inputs"] = {key: batch if link == [first, 0] else link for key, link in node["inputs"].items()}
        return prompt

    @property
    def can_batch(self) -> bool:
        """Whether a LoadImage takes the picture."""
        return self.picture is not None and self.prompt[self.picture[0]]["class_type"] == "LoadImage"


def _digest(value) -> str:
    """A hash of a workflow, whatever its nodes are titled."""
    if isinstance(value, dict):
        value = {id: [node["class_type"], node["inputs"]] for id, node in value.items()}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _like(before, value, where: str):
    """A cell of a table as the type that an input has."""
    if isinstance(before, bool):
        if str(value).strip().lower() in ("true", "1", "yes"):
            return True
        if str(value).strip().lower() in ("false", "0", "no"):
            return False
        raise ValueError(f"{where} is {value!r}; true or false fits")
    try:
        if isinstance(before, int):
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else int(number)
        if isinstance(before, float):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        kind = "whole number" if isinstance(before, int) else "number"
        raise ValueError(f"{where} is {value!r}; a {kind} fits") from None
    return value if isinstance(value, str) else str(value)


# --- where workflows come from ----------------------------------------------------------------------------------------


def load(
    file: Path | None,
    checkpoint: Path | None = None,
    with_pictures: bool = True,
    picture: str | None = None,
    text: str | None = None,
) -> Workflow:
    """The workflow of a file, or the pack's own: the photo edit with a checkpoint, else the edit on the drawn world.

    with_pictures: whether rows have pictures; a Drawn Scene titled "Your picture" then makes room for them.
    Raises ValueError, with what fits.
    """
    prompt = _read(file) if file else workflows.example(PHOTO if checkpoint else WORLD)
    if checkpoint:
        loaders = [node for node in prompt.values() if node["class_type"] == "CheckpointLoaderSimple"]
        if not loaders:
            raise ValueError(f"--checkpoint is for a workflow with a Load Checkpoint node, and {file} has none")
        for node in loaders:
            node["inputs"]["ckpt_name"] = checkpoint.name
    scenes = [id for id, node in prompt.items() if node["class_type"] == "BaretWorldScene"]
    if with_pictures and not picture and len(scenes) == 1:
        _require_picture_alone(prompt, scenes[0])
        workflows.use_picture(prompt, "", WORLD_SIDE)
    return Workflow(prompt, picture, text)


def _read(file: Path) -> dict:
    try:
        prompt = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--workflow is {file}, which cannot be read: {error}") from None
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise ValueError(f"--workflow is {file}, a workflow for the canvas; save it with File > Export (API)")
    nodes = prompt.values() if isinstance(prompt, dict) else [None]
    if not all(map(_is_node, nodes)):
        raise ValueError(f"--workflow is {file}, which is no workflow; one from File > Export (API) fits")
    return prompt


def _is_node(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("inputs"), dict) and "class_type" in value


def _require_picture_alone(prompt: dict, scene: str) -> None:
    for node in prompt.values():
        for link in node["inputs"].values():
            if isinstance(link, list) and link[0] == scene and link[1] != 0:
                raise ValueError(
                    "this workflow takes more than the picture from Drawn Scene, which pictures of your own cannot "
                    "give; take one with a Load Image node"
                )
