"""An inversion through the output folder and back."""

TTIS, BAM = "BaretTTISInversion", "BaretBAMEdit"


def test_a_loaded_inversion_makes_the_same_edit(client, example, latent_of):
    graph = example("baret_invert_once").without_pictures()
    graph.inputs("BaretSaveInversion")["filename_prefix"] = "baret/again"
    (direct,), run = latent_of(graph, (graph.id(BAM), 0))
    saved = run.outputs[graph.id("BaretSaveInversion")]["files"][0]
    assert (client.work / "output" / saved["subfolder"] / saved["filename"]).is_file()

    graph = example("baret_edit_photo").without_pictures()
    loader = graph.add("BaretLoadInversion", file=f"{saved['subfolder']}/{saved['filename']} [output]")
    graph.inputs("BaretTransitionEmbedding")["embeddings"] = [loader, 1]
    graph.inputs(BAM)["trajectory"] = [loader, 0]
    del graph[graph.id(TTIS)]
    (loaded,), run = latent_of(graph, (graph.id(BAM), 0))
    assert loader in run.executed
    assert loaded.equal(direct)
