"""The core's attention hooks as the host's ``patches_replace``, around what other nodes have put there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_patcher
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ..baret_ops.attention import Hook, Hooks, Site, require_rows, require_tokens

Block = tuple[str, int]


def unet_of(model) -> Any:
    """The UNet of a MODEL, without torch.compile's wrapper."""
    unet = getattr(model.model, "diffusion_model", None)
    return getattr(unet, "_orig_mod", unet)


def uncompiled(options: dict) -> dict:
    """Model options without the wrapper that puts torch.compile's UNet in the place of the UNet.

    The host's node has the compiler overlook the transformer options, so that a compiled UNet goes on with the
    attention of the run that it was compiled in, whatever is shared or replaced in a later one.
    """
    options = comfy.model_patcher.create_model_options_clone(options)
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(COMPILE_KEY, None)
    return options


def blocks_of(model) -> dict[Block, bool]:
    """The UNet's transformer blocks by the host's names, in the order they run.

    The value says whether a block is on the coarsest grid that several blocks have.
    """
    levels = _levels(unet_of(model))
    counts = list(levels.values())
    shared = [level for level in counts if counts.count(level) > 1]
    coarsest = max(shared or counts)
    return {block: level == coarsest for block, level in levels.items()}


def _levels(unet: torch.nn.Module) -> dict[Block, int]:
    """The UNet's transformer blocks, and how often the grid was halved before each."""
    places = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    levels, level = {}, 0
    for place, blocks in places.items():
        for number, block in enumerate(blocks):
            level += _has(block, Downsample)
            if _has(block, host_attention.SpatialTransformer):
                levels[place, number] = level
            level -= _has(block, Upsample)
    return levels


def _has(block: Iterable[torch.nn.Module], kind: type[torch.nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in block)


def replacements(transformer_options: Mapping, hooks: Hooks, blocks: dict[Block, bool], rows: int) -> dict:
    """``patches_replace`` of one call, with the hooks in every block; rows: of a pass.

    The hook's ``attend`` is another node's replacement where there is one.
    """
    replaced = dict(transformer_options.get("patches_replace", {}))
    for kind, hook in (("attn1", hooks.self_attention), ("attn2", hooks.cross_attention)):
        if hook is None:
            continue
        others = replaced.get(kind, {})
        # Others may name one of several transformers in a block, (place, number, index); it then wins over the block.
        keys = {*blocks, *(key for key in others if key[:2] in blocks)}
        ours = {key: _replacement(hook, others.get(key), key, blocks, rows) for key in keys}
        replaced[kind] = {**others, **ours}
    return replaced


def _replacement(hook: Hook, other, key: tuple, blocks: dict[Block, bool], rows: int):
    """The host's form of a hook at one place. other: what another node has put there, or None."""
    number = list(blocks).index(key[:2])

    def replace(q, k, v, extra):
        def plain(q, k, v, mask=None):
            return host_attention.optimized_attention(
                q, k, v, extra["n_heads"], mask=mask, attn_precision=extra["attn_precision"], transformer_options=extra
            )

        def others(q, k, v):
            return other(q, k, v, extra)

        height, width = extra["activations_shape"][-2:]
        require_rows(len(q), extra["cond_or_uncond"], rows)
        require_tokens(q.shape[1], (height, width))
        site = Site(
            passes=[label == 0 for label in extra["cond_or_uncond"]],
            block=number,
            grid=(height, width),
            heads=extra["n_heads"],
            coarse=blocks[key[:2]],
            plain=plain,
        )
        return hook(plain if other is None else others, q, k, v, site)

    return replace
