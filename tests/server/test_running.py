"""What a person meets at the queue: caching, progress, Cancel, and a model that is left as it was."""

import time

import comfy_server
import pytest

TTIS, BAM = "BaretTTISInversion", "BaretBAMEdit"


def plain_sampling(graph_class, checkpoint):
    """A stock KSampler on the same checkpoint, with (node id, slot) of its latent."""
    graph = graph_class()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint.name)
    positive = graph.add("CLIPTextEncode", clip=[loader, 1], text="a dog")
    negative = graph.add("CLIPTextEncode", clip=[loader, 1], text="")
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    sampler = graph.add(
        "KSampler",
        model=[loader, 0],
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=[latent, 0],
        seed=7,
        steps=3,
        cfg=7.5,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    return graph, (sampler, 0)


def test_a_change_after_the_inversion_does_not_invert_again(client, example):
    graph = example("baret_paper", photo=True)
    client.run(graph)
    transition = "BaretTransitionEmbedding"
    changes = (
        (transition, "eta_start", 0.7),
        (transition, "eta_end", 0.2),
        (BAM, "tau_sa", 0.5),
        (BAM, "tau_ca", 0.5),
        (BAM, "cfg", 5.0),
    )
    for node, name, value in changes:
        graph.inputs(node)[name] = value
        run = client.run(graph)
        assert {graph.id(TTIS), graph.id("VAEEncode"), graph.id("CheckpointLoaderSimple")} <= run.cached, name
        assert {graph.id(node), graph.id(BAM), graph.id("SaveImage")} <= set(run.executed), name


def test_another_text_does_not_invert_again(client, example):
    graph = example("baret_invert_once")
    client.run(graph)
    second = graph.ids("CLIPTextEncode")[2]
    graph[second]["inputs"]["text"] = "a dog in the snow"
    run = client.run(graph)
    first, other = graph.ids("BaretAutoEdit")
    assert graph.id(TTIS) in run.cached and first in run.cached
    assert other in run.executed


def test_progress_and_previews_arrive(client, example):
    graph = example("baret_paper", photo=True)
    steps = graph.inputs(TTIS)["steps"] = 5
    run = client.run(graph)
    for node, total in ((graph.id(TTIS), 2 * steps), (graph.id(BAM), steps)):
        assert run.progress(node) == [(i + 1, total) for i in range(total)]
        previews = [p.image for p in run.previews if p.node_id == node]
        assert previews and all(image.startswith((b"\xff\xd8", b"\x89PNG")) for image in previews)


def cancel_in(client, graph, node, at=3):
    """Run, cancel when that node reports step `at`; returns the seconds from the request to the end of the run."""
    asked = []

    def on_event(event):
        if asked or not isinstance(event, dict) or event["type"] != "progress":
            return
        if event["data"]["node"] == node and event["data"]["value"] >= at:
            client.interrupt()
            asked.append(time.monotonic())

    with pytest.raises(comfy_server.Interrupted) as caught:
        client.run(graph, on_event)
    assert caught.value.node_id == node
    return time.monotonic() - asked[0]


def test_cancel_answers_fast_and_leaves_nothing_behind(client, example, checkpoint, latent_of):
    graph = example("baret_paper", photo=True).without_pictures()
    outputs = (graph.id(TTIS), 2), (graph.id(BAM), 0)
    stock, sampled = plain_sampling(type(graph), checkpoint)
    (stock_before,), _ = latent_of(stock, sampled)
    before, _ = latent_of(graph, *outputs)

    for node, steps, at in ((TTIS, 100, 3), (TTIS, 8, 10), (BAM, 8, 2)):  # in the inversion, the tuning, the edit
        cancelled = graph.copy()
        cancelled.inputs(TTIS)["steps"] = steps
        cancelled.add("SaveLatent", samples=[graph.id(BAM), 0], filename_prefix="latents/cancelled")
        assert cancel_in(client, cancelled, graph.id(node), at) < 3
        after, run = latent_of(graph, *outputs)
        assert graph.id(TTIS) in run.executed  # computed again, not remembered
        assert all(a.equal(b) for a, b in zip(before, after))

    (stock_after,), run = latent_of(stock, sampled)
    assert sampled[0] in run.executed
    assert stock_after.equal(stock_before)


def test_the_comfyui_tree_is_not_written_to(client, example, changed_files):
    client.run(example("baret_invert_once"))
    assert changed_files() == []
