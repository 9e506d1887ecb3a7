"""The world's MODEL, CLIP, VAE and CLIP_VISION for ComfyUI, from one file of weights: `load()`.

All are the host's own kinds: its UNet and `BaseModel` with a configuration like SD1.5's and 64 channels, its CLIP text
transformer with an embedding per known word, its `VAE` around the codec of `world/codec.py`, and its image encoder.
"""

import json
import logging
import numbers
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import safetensors
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..world.codec import Codec
from ..world.picture_encoder import CONFIG, PictureEncoder
from .remarks import remark

FORMAT = "1"  # changes when an old file no longer fits this code
WEIGHTS = Path(__file__).resolve().parents[1] / "world" / "world.safetensors"
WIDTH = 128  # of the text embeddings
WINDOW = 32  # tokens in one window of text, its start and end among them

UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": WIDTH,
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


def read(path=WEIGHTS):
    """Tensors and metadata (two dicts) of a weights file.

    Raises FileNotFoundError if there is none, ValueError if it is damaged, of another kind, or of another version than
    FORMAT.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The world's weights are missing: there is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy it anew from the pack.") from error
    version = metadata.get("baret_world")
    if version != FORMAT:
        found = "holds no BARET world" if version is None else f"is of version {version}"
        raise ValueError(f"{path} {found}, and this pack reads version {FORMAT}; use the file that came with the pack.")
    if missing := {"vocabulary", "latent_rgb"} - metadata.keys():
        raise ValueError(
            f"{path} lacks {' and '.join(sorted(missing))} in its metadata; use the file that came with the pack."
        )
    return tensors, metadata


def _part(tensors, prefix):
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_whole(path, part, weights, module):
    """Raise ValueError unless `weights` are those of `module`, by name and shape."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    if odd:
        raise ValueError(
            f"{path} does not fit: {len(odd)} tensors of its {part} are missing, too many or of another shape, "
            f"first {odd[0]}; use the file that came with the pack."
        )


class _Layers(comfy.ops.disable_weight_init):
    """The host's layers for a plan of a module, which has every tensor from the start.

    With the host's dynamic memory (the default on NVIDIA cards) its own linear layers and embeddings have none before
    their weights are loaded; it leaves alone those that load in their own way.
    """

    class Linear(comfy.ops.disable_weight_init.Linear):
        def _load_from_state_dict(self, *args, **kwargs):
            return super()._load_from_state_dict(*args, **kwargs)

    class Embedding(comfy.ops.disable_weight_init.Embedding):
        def _load_from_state_dict(self, *args, **kwargs):
            return super()._load_from_state_dict(*args, **kwargs)


# --- MODEL ------------------------------------------------------------------------------------------------------------


def neighbours(latents):
    """(b, 4, h, w) to (b, 36, h, w): each cell with the eight around it.

    From these a cell's colour can be told well enough for previews.
    """
    b, c, h, w = latents.shape
    around = torch.nn.functional.pad(latents, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.unfold(around, 3).view(b, 9 * c, h, w)


class Latents(comfy.latent_formats.LatentFormat):
    """Latents have unit variance as they are; `load_model` adds the factors for previews, which go with the weights."""

    latent_rgb_factors_reshape = staticmethod(neighbours)


class Config(comfy.supported_models.SD15):
    """SD1.5's configuration, smaller."""

    unet_config = UNET
    unet_extra_config = {}
    latent_format = Latents


def load_model(path=WEIGHTS, disable_dynamic=False):
    """The MODEL alone: a patcher of the host around its `BaseModel` (eps-prediction, SD1.5's schedule)."""
    tensors, metadata = read(path)
    weights = _part(tensors, "unet.")
    management = comfy.model_management
    device = management.get_torch_device()
    config = Config(UNET)
    factors, bias = json.loads(metadata["latent_rgb"])
    config.latent_format.latent_rgb_factors = factors
    config.latent_format.latent_rgb_factors_bias = bias
    parameters = sum(tensor.numel() for tensor in weights.values())
    dtype = management.unet_dtype(
        model_params=parameters,
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    plan = UNetModel(**config.unet_config, device="meta", operations=_Layers)
    _require_whole(path, "UNet", weights, plan)
    model = config.get_model(weights, "")
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (path,))
    return patcher


# --- CLIP -------------------------------------------------------------------------------------------------------------


class WordTokenizer:
    """Whole words of a fixed list to ids. Words it does not know, digits and punctuation vanish, so they do no harm."""

    START, END = 0, 1

    def __init__(self, words):
        self.ids = {"<start>": self.START, "<end>": self.END} | {word: i + 2 for i, word in enumerate(words)}

    @classmethod
    def from_pretrained(cls, words):
        """The host's way to make a tokenizer: here the "path" is the list of words itself."""
        return cls(words)

    def __call__(self, text, add_special_tokens=True, truncation=False, max_length=WINDOW, **_):
        """As CLIP's tokenizers are called: `text` is one or a list of them, and so is `input_ids`.

        What else they take (padding, kinds of tensors) is for other uses, and is not looked at.
        """
        if isinstance(text, (list, tuple)):
            each = [self(one, add_special_tokens, truncation, max_length)["input_ids"] for one in text]
            return {"input_ids": each}
        known = [self.ids[word] for word in re.findall("[a-z]+", text.lower()) if word in self.ids]
        room = max_length - 2 * add_special_tokens if truncation else len(known)
        ids = known[:room]
        return {"input_ids": [self.START, *ids, self.END] if add_special_tokens else ids}

    def get_vocab(self):
        return self.ids

    def decode(self, ids, skip_special_tokens=True):
        names = {i: word for word, i in self.ids.items()}
        return " ".join(names[int(i)] for i in ids if not skip_special_tokens or int(i) > self.END)

    def window(self, text):
        """The ids of one padded window, as a list of `WINDOW`; what does not fit is cut."""
        ids = self(text)["input_ids"][: WINDOW - 1]
        return ids + [self.END] * (WINDOW - len(ids))


class _Windows(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory, tokenizer_data):
        super().__init__(
            tokenizer_path=tokenizer_data["words"],
            tokenizer_class=WordTokenizer,  # pyright: ignore[reportArgumentType]: any that has its methods
            max_length=WINDOW,
            embedding_size=WIDTH,
            embedding_directory=embedding_directory,
        )


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The host's tokenizer (weights in brackets, several windows) over whole words."""

    def __init__(self, embedding_directory, tokenizer_data):
        super().__init__(embedding_directory, tokenizer_data, tokenizer=_Windows)
        self._words = frozenset(tokenizer_data["words"])

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        """As the host does; the node that encodes a text says which of its words are unknown."""
        if not return_word_ids and (words := re.findall("[a-z]+", text.lower())):
            unknown = dict.fromkeys(word for word in words if word not in self._words)
            remark(f"Unknown words: {', '.join(unknown)}" if unknown else "All words are known.")
        return super().tokenize_with_weights(text, return_word_ids, **kwargs)


class WordTextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text transformer, with an embedding for each known word instead of CLIP's 49,408."""

    def __init__(self, config, dtype, device, operations):
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )


def text_config(tokens):
    """The text transformer's configuration for a vocabulary of `tokens` ids."""
    return {
        "vocab_size": tokens,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_act": "gelu",
        "max_position_embeddings": WINDOW,
        "eos_token_id": WordTokenizer.END,
    }


class _WordClip(comfy.sd1_clip.SDClipModel):
    def __init__(self, tokens, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=WINDOW,
            textmodel_json_config=text_config(tokens),
            model_class=WordTextModel,
            special_tokens={"start": WordTokenizer.START, "end": WordTokenizer.END, "pad": WordTokenizer.END},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        self._tokens = tokens

    def process_tokens(self, tokens, device):
        """As the host does. Other nodes write ids of CLIP's own 49,408 in: those are no word here, and end the text.

        Raises ValueError for windows of another length, for which there are no positions.
        """
        for window in tokens:
            if len(window) != WINDOW:
                raise ValueError(
                    f"the drawn world's CLIP reads windows of {WINDOW} tokens and one of {len(window)} came; encode "
                    "the text with CLIP Text Encode."
                )
        return super().process_tokens([[self._known(token) for token in window] for window in tokens], device)

    def _known(self, token):
        """The id of a token, that of the end for an unknown one; an embedding in its place stays."""
        return token if not isinstance(token, numbers.Integral) or 0 <= int(token) < self._tokens else WordTokenizer.END


class TextModel(comfy.sd1_clip.SD1ClipModel):
    """The host's CLIP module `clip_l`, so that LoRAs find their keys; `tokens` is the size of the vocabulary."""

    def __init__(self, tokens, device="cpu", dtype=None, model_options=None):
        clip_model: Any = _WordClip  # the host asks for no more than a constructor like its own
        super().__init__(device, dtype, model_options or {}, clip_model=clip_model, tokens=tokens)


def load_clip(path=WEIGHTS, disable_dynamic=False):
    """The CLIP alone: embeddings (1, 32 * windows, 128)."""
    tensors, metadata = read(path)
    weights = _part(tensors, "text.")
    words = json.loads(metadata["vocabulary"])
    tokens = len(words) + 2  # the start and the end beside the words
    plan = WordTextModel(text_config(tokens), torch.float16, "meta", _Layers)
    _require_whole(path, "text side", weights, plan)
    target = comfy.supported_models_base.ClipTarget(Tokenizer, TextModel)
    target.params = {"tokens": tokens}
    clip = comfy.sd.CLIP(
        target,
        tokenizer_data={"words": words},
        parameters=sum(tensor.numel() for tensor in weights.values()),
        state_dict={f"clip_l.transformer.{name}": tensor for name, tensor in weights.items()},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_clip_patcher, (path,))
    return clip


def _clip_patcher(path, disable_dynamic=False):
    return load_clip(path, disable_dynamic).patcher


# --- VAE --------------------------------------------------------------------------------------------------------------


class CodecVAE(comfy.sd.VAE):
    """The host's VAE around the world's codec: pictures (b, h, w, 3) in 0..1 to latents (b, 4, h/8, w/8), and back.

    Sides that are no multiple of 8 are cropped as the host does. Tiled encoding and decoding are the host's.
    """

    def __init__(self, path, disable_dynamic=False):
        weights = _part(read(path)[0], "codec.")
        # The host knows no codec of this kind; its defaults are SD1.5's, which fit.
        with _without_log("No VAE weights detected"):
            super().__init__(sd={})
        management = comfy.model_management
        self.working_dtypes = [torch.float32]
        self.memory_used_encode = lambda shape, dtype: 300 * shape[2] * shape[3] * management.dtype_size(dtype)
        self.memory_used_decode = lambda shape, dtype: 300 * 64 * shape[2] * shape[3] * management.dtype_size(dtype)
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = Codec(comfy.ops.manual_cast).eval().requires_grad_(False).to(self.vae_dtype)
        management.archive_model_dtypes(self.first_stage_model)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        _require_whole(path, "codec", weights, self.first_stage_model)
        self.first_stage_model.load_state_dict(weights, assign=self.patcher.is_dynamic())
        self.model_size()


@contextmanager
def _without_log(text):
    """Within it, log records that hold `text` are dropped."""

    def is_wanted(record):
        return text not in record.getMessage()

    logging.getLogger().addFilter(is_wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_wanted)


def load_vae(path=WEIGHTS, disable_dynamic=False):
    """The VAE alone."""
    vae = CodecVAE(path, disable_dynamic)
    vae.patcher.cached_patcher_init = (_vae_patcher, (path,))
    return vae


def _vae_patcher(path, disable_dynamic=False):
    return load_vae(path, disable_dynamic).patcher


# --- CLIP_VISION ------------------------------------------------------------------------------------------------------


class WorldClipVision(comfy.clip_vision.ClipVisionModel):
    """The host's CLIP_VISION around the world's `PictureEncoder`."""

    def __init__(self, path):
        weights = _part(read(path)[0], "vision.")
        _require_whole(path, "picture side", weights, PictureEncoder(_Layers, device="meta"))
        management = comfy.model_management
        self.config = dict(CONFIG)
        self.image_size, self.model_type = CONFIG["image_size"], CONFIG["model_type"]
        self.image_mean, self.image_std = CONFIG["image_mean"], CONFIG["image_std"]
        self.return_all_hidden_states = False
        self.load_device, resting = management.text_encoder_device(), management.text_encoder_offload_device()
        self.dtype = management.text_encoder_dtype(self.load_device)
        self.model = PictureEncoder(comfy.ops.manual_cast, dtype=self.dtype, device=resting)
        self.model.eval().requires_grad_(False)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.model, load_device=self.load_device, offload_device=resting
        )
        self.load_sd(weights)


def load_clip_vision(path=WEIGHTS):
    """The CLIP_VISION alone: the image encoder that was trained with the CLIP's text projection."""
    return WorldClipVision(path)


def load(path=WEIGHTS):
    """`(model, clip, vae, clip_vision)` as the host's loaders give them; `read` says what raises."""
    return load_model(path), load_clip(path), load_vae(path), load_clip_vision(path)
