"""An inversion through the output folder and back."""

TTIS, AUTO = "BaretTTISInversion", "BaretAutoEdit"


def test_a_loaded_inversion_makes_the_same_edit(client, example, latent_of):
    graph = example("baret_invert_once").without_pictures()
    graph.inputs("BaretSaveInversion")["filename_prefix"] = "baret/again"
    (direct,), run = latent_of(graph, (graph.id(AUTO), 0))
    saved = run.outputs[graph.id("BaretSaveInversion")]["files"][0]
    assert (client.work / "output" / saved["subfolder"] / saved["filename"]).is_file()

    ttis = graph.id(TTIS)
    loader = graph.add("BaretLoadInversion", file=f"{saved['subfolder']}/{saved['filename']} [output]")
    del graph[graph.id("BaretSaveInversion")], graph[ttis]
    for node in graph.values():
        for name, value in node["inputs"].items():
            if value in ([ttis, 0], [ttis, 1]):
                node["inputs"][name] = [loader, value[1]]
    (loaded,), run = latent_of(graph, (graph.id(AUTO), 0))
    assert loader in run.executed and ttis not in graph
    assert loaded.equal(direct)
