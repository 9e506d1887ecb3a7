from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..baret_ops.direction import MOVED, directed, directed_embeddings, text_direction
from ..baret_ops.wording import quoted
from ..host import text
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked
from .written import read_templates

_TEMPLATES = """\
{}
a {}
a photo of a {}
a picture of a {}
a drawing of the {}
the {}
a good photo of the {}"""


class BaretTextDirection(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretTextDirection",
            display_name="Text Direction",
            category=CATEGORY,
            description="Moves a text from one phrase towards another by one number: the mean difference of the two "
            "phrases over several texts is added to it. Costs no pass of the model.",
            search_aliases=[*SEARCH_ALIASES, "StyleCLIP", "slider", "direction"],
            inputs=[
                inputs.clip(),
                io.String.Input("phrase_from", tooltip="What to move away from: what is there now, such as red dog."),
                io.String.Input("phrase_to", tooltip="What to move towards, such as blue dog."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far: 0 changes nothing, 1 is one whole difference of the phrases, below 0 goes the "
                    "other way. Useful: 0.5 to 2.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True, tooltip="A text to move, from CLIP Text Encode of the same CLIP."
                ),
                inputs.EmbeddingsWire.Input(
                    "embeddings",
                    optional=True,
                    tooltip="The texts of an inversion to move, from an inversion node or Transition Embedding.",
                ),
                io.Combo.Input(
                    "which",
                    options=list(MOVED),
                    default="target",
                    advanced=True,
                    tooltip="Which texts of embeddings are moved: the target that the edits are to reach, the tuned "
                    "ones that stand for the picture as it is (for Embeddings to Sampler), or both.",
                ),
                io.String.Input(
                    "templates",
                    default=_TEMPLATES,
                    multiline=True,
                    advanced=True,
                    tooltip="The texts over which the difference is averaged, one a line; {} is where a phrase stands.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", tooltip="The moved text, for any sampler or inversion."),
                inputs.EmbeddingsWire.Output("embeddings", tooltip="The moved embeddings, for the edits."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip,
        phrase_from,
        phrase_to,
        strength,
        conditioning=None,
        embeddings=None,
        which="target",
        templates=_TEMPLATES,
    ) -> io.NodeOutput:
        if conditioning is None and embeddings is None:
            raise ValueError("nothing is connected that could be moved; connect conditioning or embeddings.")
        name = cls.define_schema().display_name
        moved_text = ExecutionBlocker(f"{name}: connect a conditioning to get one.")
        moved_embeddings = ExecutionBlocker(f"{name}: connect embeddings to get some.")
        direction, window = _direction(clip, phrase_from, phrase_to, templates)
        if conditioning is not None:
            for entry, _ in conditioning:
                _require_width(entry, direction, "conditioning")
            moved_text = [[directed(entry, direction, strength, window), options] for entry, options in conditioning]
        if embeddings is not None:
            _require_width(embeddings.target, direction, "embeddings")
            moved_embeddings = directed_embeddings(embeddings, direction, strength, window, which)
        return io.NodeOutput(moved_text, moved_embeddings)


def _direction(clip, phrase_from: str, phrase_to: str, templates: str) -> tuple[Tensor, int]:
    """The direction ``[D]`` from one phrase to another, and how many tokens a window of the CLIP has.

    Raises ValueError for phrases that are empty, equal, or without a word that the CLIP knows.
    """
    phrases = {"phrase_to": phrase_to.strip(), "phrase_from": phrase_from.strip()}
    for name, phrase in phrases.items():
        text.require_length(phrase, name)
        if not phrase:
            raise ValueError(f"{name} is empty; write a word or a phrase.")
    if len(set(phrases.values())) == 1:
        raise ValueError(f"both phrases are {quoted(phrase_to.strip())}, so there is no way between them.")
    pairs = []
    for template in read_templates(templates, "templates"):
        to, of = (_tokens_of(clip, template.replace("{}", phrase), phrase, name) for name, phrase in phrases.items())
        pairs.append((to, of))
    text.say_unknown_words(clip, " ".join(phrases.values()))  # last: of these, not of the templates' own
    return text_direction(pairs), len(text.read_tokens(clip, "").ids)


def _tokens_of(clip, written: str, phrase: str, role: str) -> Tensor:
    """The embeddings ``[n,D]`` of the tokens that hold a phrase in a text."""
    places = text.find_word(clip, text.read_tokens(clip, written), phrase, role)
    ((encoded, _),) = text.encode(clip, written)
    return encoded[0, list(places)]


def _require_width(embedding: Tensor, direction: Tensor, role: str) -> None:
    if embedding.shape[-1] != len(direction):
        raise ValueError(
            f"{role} is {embedding.shape[-1]} wide and the CLIP's texts are {len(direction)} wide; connect the CLIP "
            "that it was encoded with."
        )
