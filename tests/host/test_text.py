"""Words and their tokens through the host's own CLIP tokenizer and the drawn world's."""

import importlib
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def clip(host, tmp_path_factory):
    """As much of a CLIP as tokenizing needs, with a textual inversion of two vectors."""
    import comfy.sd1_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"emb_params": torch.randn(2, 768)}, folder / "mystyle.safetensors")
    tokenizer = comfy.sd1_clip.SD1Tokenizer(embedding_directory=str(folder))
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


@pytest.fixture
def text(pack):
    return importlib.import_module(f"{pack.root.__name__}.host.text")


def words(tokens):
    return dict(tokens.words)


def test_words_of_one_and_of_several_tokens(text, clip):
    tokens = text.read_tokens(clip, "a photo of a schnauzer, café")
    assert len(tokens.ids) == 77
    assert [word for word, _ in tokens.words] == ["a", "photo", "of", "a", "schnauzer", ",", "café"]
    assert len(words(tokens)["schnauzer"]) > 1
    positions = [position for _, places in tokens.words for position in places]
    every = list(range(1, len(positions) + 1))
    assert positions == every, "between the start and the end, every token belongs to one word"


def test_weights_change_no_word(text, clip):
    assert text.read_tokens(clip, "a (red:1.3) ((dog)), \\(here\\)") == text.read_tokens(clip, "a red dog, \\(here\\)")


def test_textual_inversions_are_words(text, clip):
    written = "a dog in the style of embedding:mystyle, (embedding:mystyle:1.2) embedding:missing"
    tokens = text.read_tokens(clip, written)
    assert [word for word, _ in tokens.words].count("embedding:mystyle") == 2
    assert len(tokens.find(text.read_tokens(clip, "embedding:mystyle"))) == 4
    assert not tokens.find(text.read_tokens(clip, "embedding:missing"))


def test_several_windows(text, clip):
    tokens = text.read_tokens(clip, "a very big dog " * 30 + "and a cat")
    assert len(tokens.ids) == 2 * 77
    (place,) = tokens.find(text.read_tokens(clip, "cat"))
    assert place > 77
    assert len(tokens.find(text.read_tokens(clip, "big dog"))) == 60


def test_a_missing_word_lists_those_there_are(text, clip):
    tokens = text.read_tokens(clip, "a red dog")
    with pytest.raises(ValueError, match="'horse' is not in target_text; its words are: a red dog."):
        text.find_word(clip, tokens, "horse", "target_text")
    with pytest.raises(ValueError, match="it has no words"):
        text.find_word(clip, text.read_tokens(clip, ""), "horse", "target_text")


def test_a_message_stays_short(text, clip):
    tokens = text.read_tokens(clip, " ".join(f"{number}" for number in range(300)))
    with pytest.raises(
        ValueError, match="'horsehorse.*'... \\(50000 characters\\) is not in target_text; its words"
    ) as caught:
        text.find_word(clip, tokens, "horse" * 10_000, "target_text")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "node, name",
    [
        ("BaretPromptToPromptEdit", "source_text"),
        ("BaretPromptToPromptEdit", "target_text"),
        ("BaretMasaCtrlEdit", "target_text"),
        ("BaretAttentionMaps", "text"),
    ],
)
@pytest.mark.parametrize(
    "written, sentence",
    [
        ("a," * 50_000, "{} has 100000 characters; at most 20000 fit: write a shorter text"),
        ("dog " * 4_900, "a text of 5248 tokens came; at most 4928 fit: write a shorter one"),
    ],
)
def test_texts_without_end(drawn_world, pack, execute, node, name, written, sentence):
    world = drawn_world
    picture, caption, _ = execute("BaretWorldScene", seed=1)
    text, latent = world.encode(caption), world.latent(picture)
    trajectory, embeddings, _ = execute(
        "BaretInversion", model=world.model, positive=text, negative=text, latent=latent, steps=2
    )
    texts = {"source_text": caption, "target_text": caption, "text": caption, "start_step": 0, "first_block": 1}
    needed = {"model": world.model, "clip": world.clip, "trajectory": trajectory, "embeddings": embeddings}
    given = {"vae": world.vae, **needed, **texts, name: written}
    wanted = {each.id for each in pack.nodes[node].define_schema().inputs}
    with pytest.raises(ValueError, match=f"^[-A-Za-z ]+: {sentence.format(name)}"):
        execute(node, **{each: value for each, value in given.items() if each in wanted})


def test_the_drawn_worlds_words(text, execute):
    clip = execute("BaretWorldLoader")[1]
    tokens = text.read_tokens(clip, "a blue dog lying in the snow, facing left")
    assert len(tokens.ids) == 32
    assert words(tokens)["dog"] == (3,)
    assert text.find_word(clip, tokens, "blue dog", "target_text") == (2, 3)
    assert [word for word, _ in tokens.words] == ["a", "blue", "dog", "lying", "in", "the", "snow", "facing", "left"]


def test_other_families_are_refused(text, host):
    import comfy.sdxl_clip

    tokenizer = comfy.sdxl_clip.SDXLTokenizer()
    with pytest.raises(ValueError, match="SD1.x or SD2.x checkpoint fits"):
        text.read_tokens(SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights), "a dog")
