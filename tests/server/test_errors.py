"""Bad input reaches the person as one sentence that names the node, and costs nothing but that run."""

import comfy_server
import pytest

TTIS, BAM = "BaretTTISInversion", "BaretBAMEdit"


def fails(client, graph, node):
    """Run a workflow that must fail in that node; returns the sentence."""
    with pytest.raises(comfy_server.ExecutionFailed) as caught:
        client.run(graph)
    assert caught.value.node_id == node
    return caught.value.message


def is_rejected(client, graph, node):
    """Queue a workflow that must be refused for that node; returns what the server says about it."""
    with pytest.raises(comfy_server.PromptRejected) as caught:
        client.run(graph)
    return " ".join(e["details"] for e in caught.value.errors[node])


@pytest.fixture
def graph(example):
    return example("baret_paper", photo=True)


def test_step_counts_that_differ(client, graph):
    other = graph.add(TTIS, **{**graph.inputs(TTIS), "steps": 3})
    graph.inputs("BaretTransitionEmbedding")["embeddings"] = [other, 1]
    message = fails(client, graph, graph.id(BAM))
    assert message.startswith("BAM Edit: ") and "3" in message and "4" in message and "steps" in message


def test_an_area_in_the_conditioning(client, graph):
    area = graph.add(
        "ConditioningSetArea", conditioning=graph.inputs(TTIS)["positive"], width=64, height=64, x=0, y=0, strength=1.0
    )
    graph.inputs(TTIS)["positive"] = [area, 0]
    message = fails(client, graph, graph.id(TTIS))
    assert message.startswith("TTIS Inversion: ") and "positive" in message and "area" in message


def test_several_prompts_at_once(client, graph):
    both = graph.add(
        "ConditioningCombine",
        conditioning_1=graph.inputs(TTIS)["positive"],
        conditioning_2=graph.inputs(TTIS)["negative"],
    )
    graph.inputs(TTIS)["positive"] = [both, 0]
    message = fails(client, graph, graph.id(TTIS))
    assert message.startswith("TTIS Inversion: ") and "2 prompts" in message


def test_a_latent_of_another_kind_of_model(client, graph):
    latent = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    graph.inputs(TTIS)["latent"] = [latent, 0]
    message = fails(client, graph, graph.id(TTIS))
    assert message.startswith("TTIS Inversion: ") and "16" in message and "VAE" in message


@pytest.mark.parametrize(
    "node, name, value",
    [
        (TTIS, "steps", 0),
        (TTIS, "learning_rate", -1.0),
        ("BaretTransitionEmbedding", "eta_start", 1.5),
        (BAM, "tau_ca", -0.1),
    ],
)
def test_numbers_out_of_range(client, graph, node, name, value):
    graph.inputs(node)[name] = value
    assert name in is_rejected(client, graph, graph.id(node))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "no such file.safetensors", "../../user/comfyui.db [output]"]
)
def test_a_file_that_leaves_the_folder_or_is_not_there(client, graph, name):
    loader = graph.add("BaretLoadInversion", file=name)
    graph.inputs(BAM)["trajectory"] = [loader, 0]
    assert "Load Inversion" in is_rejected(client, graph, loader)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0{}"],
    ids=["empty", "noise", "huge header", "foreign"],
)
def test_a_damaged_file(client, graph, content):
    (client.work / "input" / "damaged.safetensors").write_bytes(content)
    loader = graph.add("BaretLoadInversion", file="damaged.safetensors")
    graph.inputs(BAM)["trajectory"] = [loader, 0]
    assert fails(client, graph, loader).startswith("Load Inversion: ")


def test_a_name_that_leaves_the_output_folder(client, example):
    graph = example("baret_invert_once")
    graph.inputs("BaretSaveInversion")["filename_prefix"] = "../../escaped"
    assert fails(client, graph, graph.id("BaretSaveInversion")).startswith("Save Inversion: ")
    assert not list(client.work.parent.glob("escaped*"))
