"""The core's attention hooks as the host's ``patches_replace``, around what other nodes have put there."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

from ..baret_ops.attention import Hook, Hooks, Site

Block = tuple[str, int]


def unet_of(model) -> torch.nn.Module:
    """The UNet of a MODEL, without torch.compile's wrapper."""
    unet = getattr(model.model, "diffusion_model", None)
    return getattr(unet, "_orig_mod", unet)


def blocks_of(model) -> dict[Block, bool]:
    """The UNet's transformer blocks by the host's names, in the order they run, and whether each is on the coarsest grid that several have."""
    unet = unet_of(model)
    levels, level = {}, 0
    for place, blocks in (
        ("input", unet.input_blocks),
        ("middle", [unet.middle_block]),
        ("output", unet.output_blocks),
    ):
        for number, block in enumerate(blocks):
            level += any(isinstance(part, Downsample) for part in block)
            if any(isinstance(part, host_attention.SpatialTransformer) for part in block):
                levels[place, number] = level
            level -= any(isinstance(part, Upsample) for part in block)
    counts = list(levels.values())
    coarsest = max((level for level in counts if counts.count(level) > 1), default=max(counts))
    return {block: level == coarsest for block, level in levels.items()}


def replacements(transformer_options: Mapping, hooks: Hooks, blocks: dict[Block, bool]) -> dict:
    """``patches_replace`` of one call, with the hooks in every block. The hook's ``attend`` is another node's replacement where there is one."""
    replaced = dict(transformer_options.get("patches_replace", {}))
    for kind, hook in (("attn1", hooks.self_attention), ("attn2", hooks.cross_attention)):
        if hook is not None:
            others = replaced.get(kind, {})
            # Others' keys may name one of several transformers in a block, (place, number, index), and then win over the block's.
            replaced[kind] = {
                **others,
                **{
                    key: _replacement(hook, others.get(key), key, blocks)
                    for key in {*blocks, *(k for k in others if k[:2] in blocks)}
                },
            }
    return replaced


def _replacement(hook: Hook, other, key: tuple, blocks: dict[Block, bool]):
    number = list(blocks).index(key[:2])

    def replace(q, k, v, extra):
        def plain(q, k, v, mask=None):
            return host_attention.optimized_attention(
                q, k, v, extra["n_heads"], mask=mask, attn_precision=extra["attn_precision"], transformer_options=extra
            )

        site = Site(
            passes=[label == 0 for label in extra["cond_or_uncond"]],
            block=number,
            grid=tuple(extra["activations_shape"][-2:]),
            heads=extra["n_heads"],
            coarse=blocks[key[:2]],
            plain=plain,
        )
        attend = plain if other is None else lambda q, k, v: other(q, k, v, extra)
        return hook(attend, q, k, v, site)

    return replace
