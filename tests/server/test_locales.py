"""The translations against the nodes' schemas."""

import re

import comfyui
import pytest

import locales

LANGUAGES = ["en", *locales.languages()]


def test_the_languages():
    assert {"en", "zh", "ja", "ko", "fr", "de", "es", "ru"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_phrase_is_translated_and_used(client, language):
    found = locales.gaps(client.object_info(), locales.languages()[language])
    assert found == {"missing": set(), "stale": set()}, "translate them in dev/phrases, then run: python dev/locales.py"


def test_are_what_the_schemas_and_phrases_make(client, installed):
    if installed.version != comfyui.DEFAULT_VERSION:
        pytest.skip("the files are made with the default version")
    committed = {path: path.read_text(encoding="utf-8") for path in locales.FOLDER.rglob("*.json")}
    assert committed == locales.files(client.object_info()), "run: python dev/locales.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_complete_as_the_server_hands_them_out(client, language):
    """Every node with every input and output, with a name and a tooltip that the frontend can show."""
    served = client._json("/i18n")[language]["nodeDefs"]
    for id, node in client.object_info().items():
        if not id.startswith("Baret"):
            continue
        given = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        told = served[id]
        assert set(told["inputs"]) == set(given)
        assert set(told["outputs"]) == {str(slot) for slot in range(len(node["output"]))}
        entries = [*told["inputs"].values(), *told["outputs"].values()]
        assert all(entry["name"] and entry["tooltip"] for entry in entries)
        shown = [told["display_name"], told["description"], *(entry["name"] for entry in entries)]
        assert not re.search(r"[{}@|]", "".join(shown)), "the frontend reads these as placeholders"

        texts = {"": (node["description"], told["description"])}
        for name, (_, options) in given.items():
            texts[name] = options["tooltip"], told["inputs"][name]["tooltip"]
        english = {name for name, (original, text) in texts.items() if text == original}
        assert english == (set(texts) if language == "en" else set())
