"""The true width and depth of SD1.5, once."""

import comfy_server
import stand_in


def test_an_edit_at_full_width_and_depth(client, example, installed, latent_of):
    full = stand_in.ensure(installed, "full")
    comfy_server.link(full, client.work / "models" / "checkpoints" / full.name)
    graph = example("baret_paper", photo=True)
    graph.inputs("CheckpointLoaderSimple")["ckpt_name"] = full.name
    graph.inputs("BaretTTISInversion").update(steps=2, iterations=1)
    scaling = graph.id("BaretFitPicture")
    graph[scaling] = {
        "class_type": "ImageScale",
        "inputs": {
            "image": graph[scaling]["inputs"]["image"],
            "upscale_method": "area",
            "width": 64,
            "height": 64,
            "crop": "disabled",
        },
    }
    log_before = len(client.log.read_text(errors="replace"))
    (reconstruction, edit), _ = latent_of(graph, (graph.id("BaretTTISInversion"), 2), (graph.id("BaretBAMEdit"), 0))
    for latent in (reconstruction, edit):
        assert latent.shape == (1, 4, 8, 8) and latent.isfinite().all()
    assert "missing" not in client.log.read_text(errors="replace")[log_before:].lower()  # the loader found every weight
