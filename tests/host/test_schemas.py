"""The nodes as the host sees them."""

import inspect

import pytest

CONTRACT = {
    "BaretTTISInversion": (
        "model positive negative latent steps cfg iterations learning_rate stop_threshold stop_growth inversion_text step_rule",
        "trajectory embeddings reconstruction",
    ),
    "BaretTransitionEmbedding": ("embeddings eta_start eta_end positive", "embeddings"),
    "BaretBAMEdit": ("model trajectory embeddings tau_sa tau_ca cfg passes max_resolution mask auto_mask", "edit"),
    "BaretToSampler": ("embeddings trajectory process", "positive negative sigmas latent"),
    "BaretSaveInversion": ("trajectory embeddings filename_prefix", ""),
    "BaretLoadInversion": ("file", "trajectory embeddings"),
    "BaretLabelledGrid": (" ".join(f"image_{n}" for n in range(1, 10)) + " labels columns", "grid"),
    "BaretNullTextInversion": (
        "model positive negative latent steps cfg iterations step_rule learning_rate stop_threshold stop_growth",
        "trajectory embeddings reconstruction",
    ),
    "BaretInversion": ("model positive negative latent method steps cfg", "trajectory embeddings reconstruction"),
    "BaretPromptToPromptEdit": (
        "model clip trajectory embeddings source_text target_text alignment cross_share self_share cfg reweight blend_words blend_threshold "
        "blend_start word_shares max_resolution mask",
        "edit mask",
    ),
    "BaretMasaCtrlEdit": (
        "model clip trajectory embeddings target_text start_step first_block cfg foreground_words source_text foreground_threshold mask",
        "edit",
    ),
    "BaretInversionReport": ("trajectory embeddings", "report text"),
    "BaretEditMetrics": (
        "source edit mask clip_vision clip text",
        "captioned report psnr ssim clip_score psnr_inside ssim_inside psnr_outside ssim_outside",
    ),
    "BaretEditSweep": (
        "model trajectory embeddings vae eta_ranges tau_sa tau_ca cfg passes max_resolution mask auto_mask",
        "grid edits",
    ),
    "BaretAttentionMaps": (
        "model trajectory embeddings clip vae text words tau_sa tau_ca cfg start_percent end_percent resolutions",
        "maps masks report",
    ),
}
DEFAULTS = {
    "BaretTTISInversion": {
        "steps": 50,
        "cfg": 7.5,
        "iterations": 1,
        "learning_rate": 1e-3,
        "stop_threshold": 1e-5,
        "stop_growth": 2e-5,
        "inversion_text": "target",
        "step_rule": "secant",
    },
    "BaretNullTextInversion": {
        "steps": 50,
        "cfg": 7.5,
        "iterations": 10,
        "step_rule": "adam",
        "learning_rate": 1e-2,
        "stop_threshold": 1e-5,
        "stop_growth": 2e-5,
    },
    "BaretInversion": {"method": "direct", "steps": 50, "cfg": 7.5},
    "BaretPromptToPromptEdit": {
        "alignment": "refine",
        "cross_share": 0.4,
        "self_share": 0.6,
        "cfg": 7.5,
        "blend_threshold": 0.3,
        "blend_start": 0.2,
        "max_resolution": 32,
    },
    "BaretMasaCtrlEdit": {"start_step": 4, "first_block": 10, "cfg": 7.5, "foreground_threshold": 0.1},
    "BaretTransitionEmbedding": {"eta_start": 0.8, "eta_end": 0.1},
    "BaretBAMEdit": {
        "tau_sa": 0.3,
        "tau_ca": 0.6,
        "cfg": 7.5,
        "passes": "conditional",
        "max_resolution": 0,
        "auto_mask": 0.0,
    },
}


def test_ids_are_the_contract(pack):
    assert CONTRACT.keys() <= pack.nodes.keys()
    for node_id, (inputs, outputs) in CONTRACT.items():
        schema = pack.nodes[node_id].define_schema()
        assert [entry.id for entry in schema.inputs] == inputs.split()
        assert [entry.id for entry in schema.outputs] == outputs.split()
        defaults = {entry.id: entry.default for entry in schema.inputs if getattr(entry, "default", None) is not None}
        assert DEFAULTS.get(node_id, {}).items() <= defaults.items()


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
    for node in pack.nodes.values():
        schema = node.define_schema()
        assert (
            schema.category == "BARET"
            and schema.description
            and {"edit", "inversion", "DDIM", "prompt to prompt", "real image"} <= set(schema.search_aliases)
        )
        for entry in [*schema.inputs, *schema.outputs]:
            assert entry.tooltip and entry.tooltip.endswith("."), f"{schema.node_id}.{entry.id} has no tooltip"


def test_a_help_page_for_every_node(pack):
    from pathlib import Path

    folder = Path(pack.root.__file__).parent / pack.root.WEB_DIRECTORY / "docs"
    for node_id, node in pack.nodes.items():
        for page in (folder / f"{node_id}.md", folder / node_id / "zh.md"):
            text = page.read_text(encoding="utf-8")
            for entry in node.define_schema().inputs:
                assert f"`{entry.id}`" in text, f"{page} does not explain {entry.id}"


@pytest.mark.parametrize("given, bound", [("steps", 1), ("iterations", -1)])
def test_widgets_bound_what_can_be_typed(pack, given, bound):
    (entry,) = (entry for entry in pack.nodes["BaretTTISInversion"].define_schema().inputs if entry.id == given)
    assert entry.min > bound
