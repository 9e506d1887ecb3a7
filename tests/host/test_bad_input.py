"""Bad input gets one sentence that names the node, what came, what fits and what to do."""

from dataclasses import replace

import pytest
import torch

STEPS = 4


@pytest.fixture
def invert(ttis, model):
    def call(**inputs):
        return ttis(**{"model": model, "steps": STEPS, "iterations": 1, **inputs})

    return call


@pytest.fixture
def edit(bam, model):
    def call(trajectory, embeddings, model=model, **inputs):
        return bam(model, trajectory, embeddings, **inputs)

    return call


@pytest.fixture
def save(execute, host):
    """Save Inversion under a name; returns the path of the first file of that name."""

    def call(name, trajectory, embeddings):
        execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings, filename_prefix=name)
        return host.base / "output" / f"{name}_00001_.safetensors"

    return call


def refused(sentence, error=ValueError):
    return pytest.raises(error, match=sentence)


def test_a_model_with_a_pooled_input(invert, make_model):
    import comfy.supported_models

    sdxl = make_model(num_classes="sequential", adm_in_channels=16, config=comfy.supported_models.SDXL)
    with refused("TTIS Inversion: the model is a BaseModel, which needs a pooled .* SD1.x or SD2.x .* fits"):
        invert(model=sdxl)


def test_an_inpainting_model(invert, make_model):
    with refused("TTIS Inversion: the model takes 9 input channels where a latent has 4: it is an inpainting"):
        invert(model=make_model(in_channels=9))


def test_a_model_that_is_no_unet(invert, make_model):
    flux = make_model()
    flux.model.diffusion_model = torch.nn.Linear(1, 1)
    with refused("TTIS Inversion: the model is a BaseModel, which is no UNet"):
        invert(model=flux)


def test_a_model_without_cross_attention(invert, make_model):
    without = {"transformer_depth": [0, 0], "transformer_depth_middle": -1, "transformer_depth_output": [0, 0, 0, 0]}
    with refused("without cross-attention to one text"):
        invert(model=make_model(**without))


def test_a_model_with_another_sampling(invert, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete

    sentence = (
        "the model samples by .*; a discrete schedule with epsilon or v prediction fits: remove the sampling patch"
    )
    for (patched,) in (
        ModelSamplingContinuousEDM().patch(model, "eps", 120.0, 0.002),
        ModelSamplingDiscrete().patch(model, "x0", False),
        ModelSamplingDiscrete().patch(model, "lcm", False),
    ):
        with refused(sentence):
            invert(model=patched)


@pytest.mark.parametrize(
    "conditioning, sentence",
    [
        (lambda text: [], "positive is an empty conditioning; connect a CLIP Text Encode"),
        (
            lambda text: text(1) + text(2),
            r"positive carries 2 prompts for 1 image\(s\).*remove Conditioning \(Combine\)",
        ),
        (
            lambda text: text(1, start_percent=0.0, end_percent=0.5) + text(2, start_percent=0.5, end_percent=1.0),
            "positive is limited to a timestep range, and one text serves all steps; write a prompt without a schedule",
        ),
        (lambda text: text(1, area=(4, 4, 0, 0)), "positive is limited to an area"),
        (lambda text: text(1, area=(4, 4, 0, 0)) + text(2, area=(4, 4, 4, 0)), "positive is limited to an area"),
        (lambda text: text(1, mask=torch.ones(1, 8, 8), mask_strength=1.0), "positive is limited to a mask"),
        (lambda text: text(1, start_percent=0.0, end_percent=0.5), "positive is limited to a timestep range"),
        (
            lambda text: text(1, width=32),
            "positive is 32 wide and the model's text is 24 wide; encode it with the CLIP of the same checkpoint",
        ),
        (lambda text: text(1, rows=3), r"positive holds 3 embeddings for 1 image\(s\)"),
        (lambda text: [[text(1)[0][0] * float("nan"), {}]], "positive holds NaN"),
        (lambda text: [[None, {}]], "positive carries no text embedding"),
    ],
)
def test_a_conditioning_that_is_not_one_prompt(invert, execute, text, conditioning, sentence):
    with refused("TTIS Inversion: " + sentence):
        invert(positive=conditioning(text))
    with refused("TTIS Inversion: " + sentence.replace("positive", "negative")):
        invert(negative=conditioning(text))
    with refused("Transition Embedding: " + sentence):
        execute("BaretTransitionEmbedding", embeddings=invert()[1], positive=conditioning(text))


def test_prompts_with_different_controlnets(invert, text, picture):
    with refused("the prompts of positive carry different ControlNets or hooks"):
        invert(positive=text(1, control=object()) + text(2), latent=picture(images=2))


@pytest.mark.parametrize("full_range", [{"start_percent": 0.0, "end_percent": 1.0}])
def test_a_range_that_is_the_whole_run_is_fine(invert, text, full_range):
    invert(positive=text(1, **full_range))


@pytest.mark.parametrize(
    "latent, sentence",
    [
        (torch.zeros(1, 16, 8, 8), r"the latent is of shape \[1, 16, 8, 8\]; \[images,4,height/8,width/8\] fits"),
        (torch.zeros(1, 4, 3, 8, 8), r"the latent is of shape \[1, 4, 3, 8, 8\]"),
        (torch.full((1, 4, 8, 8), float("nan")), "the latent holds NaN or infinity"),
    ],
)
def test_a_latent_that_does_not_fit(invert, latent, sentence):
    with refused("TTIS Inversion: " + sentence):
        invert(latent={"samples": latent})


def test_a_latent_with_a_noise_mask(invert, picture):
    masked = {**picture(), "noise_mask": torch.ones(1, 64, 96)}
    with refused("TTIS Inversion: the latent carries a noise mask, .* connect the mask to the mask input of the edit"):
        invert(latent=masked)


@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_a_schedule_that_does_not_exist(invert, steps):
    with refused(f"TTIS Inversion: steps is {steps}; this model's schedule allows 2 to 999"):
        invert(steps=steps)


def test_eta_and_tau_out_of_range(invert, edit, execute):
    trajectory, embeddings, _ = invert()
    for inputs in ({"eta_start": 1.5}, {"eta_end": -0.5}):
        with refused("Transition Embedding: eta_.* lies from 0 .* to 1"):
            execute("BaretTransitionEmbedding", embeddings=embeddings, **inputs)
    for name in ("tau_sa", "tau_ca"):
        with refused(f"BAM Edit: {name} is 2.0; .* lies from 0 .* to 1"):
            edit(trajectory, embeddings, **{name: 2.0})


def test_trajectory_and_embeddings_of_different_inversions(invert, edit, execute, make_model, text, picture):
    trajectory, embeddings, _ = invert()
    longer = invert(steps=STEPS + 1)
    pair = invert(latent=picture(images=2))
    wide = make_model(context_dim=32)
    other = invert(model=wide, positive=text(1, width=32), negative=text(2, width=32))

    def to_sampler(trajectory, embeddings):
        return execute("BaretToSampler", trajectory=trajectory, embeddings=embeddings)

    for call, node in ((edit, "BAM Edit"), (to_sampler, "Embeddings to Sampler")):
        sentence = "the trajectory has 4 steps and the embeddings have 5; connect both from the same TTIS Inversion"
        with refused(f"{node}: {sentence}"):
            call(trajectory, longer[1])
        with refused(f"{node}: the trajectory holds 1 image.* and the embeddings are for 2"):
            call(trajectory, pair[1])
        with refused(f"{node}: the trajectory is of a model with 24-wide text and the embeddings are 32 wide"):
            call(trajectory, other[1])
    with refused("Save Inversion: the trajectory has 4 steps and the embeddings have 5"):
        execute("BaretSaveInversion", trajectory=trajectory, embeddings=longer[1])


def test_a_trajectory_of_another_model(invert, edit, make_model, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    trajectory, embeddings, _ = invert()
    sentence = (
        "BAM Edit: the trajectory was made on an epsilon model .* and the model is an .*; "
        "use a model of the same family, or invert again"
    )
    for other in (make_model(context_dim=32), make_model(v_prediction=True)):
        with refused(sentence):
            edit(trajectory, embeddings, model=other)

    (zsnr,) = ModelSamplingDiscrete().patch(model, "eps", True)
    with refused("BAM Edit: the trajectory was made on an epsilon model"):
        edit(trajectory, embeddings, model=zsnr)

    schedule = trajectory.schedule
    other_levels = replace(trajectory, schedule=replace(schedule, sigmas=schedule.sigmas * 1.001))
    with refused("the trajectory's noise levels are not those of this model's schedule"):
        edit(other_levels, embeddings)


def test_masks_that_are_not_one_per_image(invert, edit):
    trajectory, embeddings, _ = invert()
    with refused(r"BAM Edit: 3 masks came for 1 image\(s\)"):
        edit(trajectory, embeddings, mask=torch.ones(3, 64, 96))


def test_a_wrapper_that_changes_the_batch(invert, edit, model):
    def with_every_row_twice(apply, args):
        conditioning = {**args["c"], "c_crossattn": args["c"]["c_crossattn"].repeat(2, 1, 1)}
        return apply(args["input"].repeat(2, 1, 1, 1), args["timestep"].repeat(2), **conditioning)[: len(args["input"])]

    trajectory, embeddings, _ = invert()
    other = model.clone()
    other.set_model_unet_function_wrapper(with_every_row_twice)
    with refused("BAM Edit: attention of .* rows came .* another patch on this model changes the batch size"):
        edit(trajectory, embeddings, model=other)


def test_nan_in_the_edit_says_where(invert, edit, model):
    def wrapper(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        return out * float("nan") if args["timestep"][0] < 1 else out

    trajectory, embeddings, _ = invert()
    broken = model.clone()
    broken.set_model_unet_function_wrapper(wrapper)
    with refused(r"BAM Edit: NaN or infinity appeared in the sampling at step \d of 4 \(time \d+\)", RuntimeError):
        edit(trajectory, embeddings, model=broken)


class TestFiles:
    def test_saved_and_loaded_edits_alike(self, invert, edit, save, execute):
        trajectory, embeddings, _ = invert()
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        first = save("mine/run", trajectory, moving)
        assert first.is_file()
        save("mine/run", trajectory, moving)
        assert first.with_name("run_00002_.safetensors").is_file(), "an earlier file is never written over"
        loaded = execute("BaretLoadInversion", file="mine/run_00001_.safetensors [output]")
        assert torch.equal(edit(*loaded), edit(trajectory, moving))

    def test_the_list_names_what_can_be_loaded(self, invert, save, execute, host, pack):
        loader = pack.nodes["BaretLoadInversion"]
        trajectory, embeddings, _ = invert()
        saved = save("listed", trajectory, embeddings)
        given = host.base / "input" / "given.safetensors"
        given.write_bytes(saved.read_bytes())
        names = {"given.safetensors", "listed_00001_.safetensors [output]"}
        assert names <= set(loader.define_schema().inputs[0].options)
        for name in names:
            assert loader.validate_inputs(file=name) is True
            execute("BaretLoadInversion", file=name)

        before = loader.fingerprint_inputs(file="given.safetensors")
        save("listed", trajectory, embeddings.with_transition(0.5, 0.5))
        saved.with_name("listed_00002_.safetensors").replace(given)
        after = loader.fingerprint_inputs(file="given.safetensors")
        assert after != before, "a file written anew is read anew"

    @pytest.mark.parametrize(
        "name",
        ["../secret.safetensors", "../../etc/passwd", "/etc/passwd", "a/../../b.safetensors [output]", "picture.png"],
    )
    def test_a_name_that_leaves_the_folder(self, pack, host, name):
        (host.base / "secret.safetensors").write_bytes(b"x")
        answer = pack.nodes["BaretLoadInversion"].validate_inputs(file=name)
        assert answer.startswith("Load Inversion: the file ") and "choose one from the list" in answer

    @pytest.mark.parametrize(
        "name",
        [
            5,
            0.5,
            True,
            ["a.safetensors"],
            {"a": 1},
            "a\0.safetensors",
            "\ud800.safetensors",
            "x" * 100_000,
            "circle",
            "",
        ],
        ids=lambda name: repr(name)[:20],
    )
    def test_what_is_no_name(self, pack, execute, host, name):
        circle = host.base / "input" / "circle"
        if not circle.is_symlink():
            circle.symlink_to(circle)
        answer = pack.nodes["BaretLoadInversion"].validate_inputs(file=name)
        assert answer.startswith("Load Inversion: the file ") and "choose one from the list" in answer
        assert len(answer) < 200
        with refused("^Load Inversion: the file "):
            execute("BaretLoadInversion", file=name)

    def test_no_name_at_all(self, pack, execute):
        """As the host asks before it runs the node that gives the name."""
        assert pack.nodes["BaretLoadInversion"].validate_inputs(file=None) is True
        with refused("^Load Inversion: the file is None; choose one from the list"):
            execute("BaretLoadInversion", file=None)

    def test_a_prefix_that_leaves_the_folder(self, invert, execute):
        trajectory, embeddings, _ = invert()
        with refused("Save Inversion: filename_prefix '../../out' leaves the output folder"):
            execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings, filename_prefix="../../out")

    @pytest.mark.parametrize(
        "prefix, sentence",
        [
            ("x" * 240, "'xxx.*cannot be written .*name too long.*use a short plain name"),
            ("x" * 100_000, "'xxx.*characters.* cannot be written .*name too long"),
            ("\ud800", r"cannot be written \(no file can have such a name\)"),
            ("a\0b", r"cannot be written \(no file can have such a name\)"),
            ("in_the_way/inversion", "filename_prefix 'in_the_way/inversion' cannot be a file in the output folder"),
            ("circle/inversion", "filename_prefix 'circle/inversion' cannot be a file in the output folder"),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_a_prefix_that_no_file_can_have(self, invert, execute, host, prefix, sentence):
        trajectory, embeddings, _ = invert()
        output = host.base / "output"
        (output / "in_the_way").write_bytes(b"")
        if not (output / "circle").is_symlink():
            (output / "circle").symlink_to(output / "circle")
        before = sorted(output.iterdir())
        with refused(f"^Save Inversion: .*{sentence}") as caught:
            execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings, filename_prefix=prefix)
        assert len(str(caught.value)) < 250 and str(host.base) not in str(caught.value)
        assert sorted(output.iterdir()) == before

    def test_two_servers_that_save_under_one_prefix(self, invert, execute, host, monkeypatch):
        """Both see the same files and choose the same name at the same moment."""
        trajectory, embeddings, _ = invert()
        output, choose = host.base / "output", host.folders.get_save_image_path
        others = output / "shared_00001_.safetensors"

        def chosen(*args):
            found = choose(*args)
            if not others.exists():
                others.write_bytes(b"the other server's")
            return found

        monkeypatch.setattr(host.folders, "get_save_image_path", chosen)
        execute("BaretSaveInversion", trajectory=trajectory, embeddings=embeddings, filename_prefix="shared")
        assert others.read_bytes() == b"the other server's"
        execute("BaretLoadInversion", file="shared_00002_.safetensors [output]")

    def test_a_file_that_is_not_there(self, pack):
        answer = pack.nodes["BaretLoadInversion"].validate_inputs(file="gone.safetensors")
        assert "does not exist; choose one from the list" in answer

    def test_a_truncated_file(self, invert, save, execute, host):
        trajectory, embeddings, _ = invert()
        whole = save("cut", trajectory, embeddings).read_bytes()
        (host.base / "input" / "cut.safetensors").write_bytes(whole[:-100])
        with refused("Load Inversion: cut.safetensors cannot be read as a safetensors file"):
            execute("BaretLoadInversion", file="cut.safetensors")

    def test_an_inversion_with_a_controlnet_asks_for_it(self, invert, edit, save, execute, text):
        trajectory, embeddings, _ = invert()
        save("controlled", trajectory, replace(embeddings, positive_options={"control": object()}))
        trajectory, embeddings = execute("BaretLoadInversion", file="controlled_00001_.safetensors [output]")
        sentence = (
            "BAM Edit: the embeddings were made with control on the conditioning, which a file cannot hold; connect"
        )
        with refused(sentence):
            edit(trajectory, embeddings)
        (again,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=text(1))
        edit(trajectory, again)


class TestAnotherPicture:
    """Embeddings of one picture on the trajectory of another: it runs, and a warning says so."""

    SENTENCE = "the trajectory is of another picture than the embeddings"

    @pytest.fixture
    def both(self, invert, picture):
        return [invert(latent=picture(seed)) for seed in (0, 1)]

    def test_an_edit_says_so(self, both, edit, caplog):
        (trajectory, *_), (_, embeddings, _) = both
        assert torch.isfinite(edit(trajectory, embeddings)).all()
        assert f"BAM Edit: {self.SENTENCE}" in caplog.text

    @pytest.mark.parametrize("kind", ["BaretSaveInversion", "BaretInversionReport", "BaretToSampler"])
    def test_so_do_the_other_nodes_that_take_both(self, both, execute, kind, caplog):
        (trajectory, *_), (_, embeddings, _) = both
        execute(kind, trajectory=trajectory, embeddings=embeddings)
        assert self.SENTENCE in caplog.text

    def test_a_batch_says_which_image(self, invert, edit, picture, caplog):
        batch = picture(0, images=3)
        other = {"samples": batch["samples"].clone()}
        other["samples"][1] += 1.0
        trajectory, _, _ = invert(latent=batch)
        _, embeddings, _ = invert(latent=other)
        edit(trajectory, embeddings)
        assert f"{self.SENTENCE} (image 2)" in caplog.text

    def test_of_one_picture_nothing_is_said(self, both, invert, edit, save, execute, text, caplog):
        trajectory, embeddings, _ = both[0]
        (moved,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=text(3))
        saved = save("one", trajectory, moved)
        loaded = execute("BaretLoadInversion", file=f"{saved.name} [output]")
        for pair in ((trajectory, moved), loaded, (loaded[0], moved)):
            edit(*pair)
        assert self.SENTENCE not in caplog.text

    def test_where_it_is_not_known_nothing_is_said(self, both, edit, caplog):
        (trajectory, *_), (_, embeddings, _) = both
        edit(trajectory, replace(embeddings, pictures=None))
        assert self.SENTENCE not in caplog.text
