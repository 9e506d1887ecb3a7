"""The nodes to look with, inside the host: reports, metrics, sweeps, maps."""

import json
import re
import sys
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

STEPS = 10
SCENE = 14
TEXT = "a blue dog lying in the snow, in the middle, facing left, sun, tree"


@pytest.fixture(scope="module")
def world(pack, drawn_world):
    """The drawn world with one of its scenes inverted: picture, mask, trajectory, embeddings, and ``moving`` ones."""
    with torch.inference_mode():
        picture, _, mask = pack.nodes["BaretWorldScene"].execute(SCENE).args
        positive, negative = drawn_world.encode(TEXT), drawn_world.encode("")
        trajectory, embeddings, _ = (
            pack.nodes["BaretTTISInversion"]
            .execute(
                drawn_world.model,
                positive,
                negative,
                drawn_world.latent(picture),
                steps=STEPS,
                cfg=7.5,
                iterations=2,
                learning_rate=0.01,
            )
            .args
        )
        (moving,) = pack.nodes["BaretTransitionEmbedding"].execute(embeddings, 0.8, 0.1).args
    return SimpleNamespace(
        **vars(drawn_world),
        picture=picture,
        mask=mask,
        trajectory=trajectory,
        embeddings=embeddings,
        moving=moving,
    )


@pytest.fixture
def shown():
    """Values, totals and previews that reach the host's progress bar."""
    import comfy.utils

    seen = []
    before = comfy.utils.PROGRESS_BAR_HOOK

    def show(value, total, preview, node_id=None):
        seen.append((value, total, preview))

    comfy.utils.set_progress_bar_global_hook(show)
    yield seen
    comfy.utils.set_progress_bar_global_hook(before)


def colours(image):
    return len(torch.unique((image * 255).round().byte().flatten(0, -2), dim=0))


class TestInversionReport:
    def test_numbers_and_picture(self, execute, world):
        picture, text = execute("BaretInversionReport", trajectory=world.trajectory, embeddings=world.embeddings)
        assert picture.shape[0] == 1 and picture.shape[-1] == 3 and colours(picture) > 50
        losses, updates = world.embeddings.losses[:, 0], world.embeddings.updates[:, 0]
        error = (world.trajectory.latents[-1] - world.trajectory.pivots[-1]).square().mean()
        decibels = 10 * torch.log10(world.trajectory.pivots[-1].square().mean() / error)
        assert f"reconstruction {decibels:.1f} dB (loss {error:.3g}), {updates.sum()} updates, at most 2 a step" in text
        table = [line.split() for line in text.split("\n")[3:]]
        assert [int(row[0]) for row in table] == list(range(STEPS))
        assert [int(row[4]) for row in table] == updates.tolist()
        assert [float(row[3]) for row in table] == pytest.approx(losses.tolist(), rel=1e-3)
        assert [float(row[2]) for row in table] == pytest.approx([1e-5 + 2e-5 * i for i in range(STEPS)], rel=1e-2)

    def test_one_line_per_image(self, execute, ttis, model, picture):
        trajectory, embeddings, _ = ttis(model, latent=picture(images=10), steps=3, iterations=1)
        drawn, report = execute("BaretInversionReport", trajectory=trajectory, embeddings=embeddings)
        assert [line.split(":")[0] for line in report.split("\n")[:10]] == [f"picture {b}" for b in range(1, 11)]
        assert drawn.shape == execute("BaretInversionReport", trajectory=trajectory, embeddings=embeddings)[0].shape

    def test_of_a_file_without_thresholds_and_of_a_perfect_inversion(self, execute, world):
        old = replace(world.embeddings, thresholds=None)
        picture, text = execute("BaretInversionReport", trajectory=world.trajectory, embeddings=old)
        assert colours(picture) > 50 and "threshold" not in text
        perfect = replace(world.trajectory, latents=world.trajectory.pivots)
        lossless = replace(old, losses=0 * old.losses)
        _, text = execute("BaretInversionReport", trajectory=perfect, embeddings=lossless)
        assert "reconstruction inf dB" in text

    def test_without_the_plotting_library(self, execute, world, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        sentence = "Inversion Report: the picture is drawn with matplotlib, which cannot be imported .*requirements.txt"
        with pytest.raises(ValueError, match=sentence):
            execute("BaretInversionReport", trajectory=world.trajectory, embeddings=world.embeddings)


METRICS = [
    "captioned",
    "report",
    "psnr",
    "ssim",
    "clip_score",
    "psnr_inside",
    "ssim_inside",
    "psnr_outside",
    "ssim_outside",
]


@pytest.fixture
def measure(execute):
    """Edit Metrics; its outputs by name."""

    def call(**inputs):
        outputs = execute("BaretEditMetrics", **inputs)
        return SimpleNamespace(**dict(zip(METRICS, outputs)))

    return call


class TestEditMetrics:
    def test_inside_and_outside(self, measure, world):
        changed = world.picture * (1 - world.mask[..., None])
        got = measure(source=world.picture, edit=changed, mask=world.mask.round())
        assert got.psnr_inside < got.psnr < got.psnr_outside and got.ssim_inside < got.ssim < got.ssim_outside
        inside = world.mask.round() > 0
        error = (world.picture - changed).square().mean(-1)
        assert got.psnr_inside == pytest.approx(float(-10 * torch.log10(error[inside].mean())), abs=1e-3)
        assert got.clip_score != got.clip_score and "CLIPScore" not in got.report
        assert re.fullmatch(r"picture 1: PSNR [\d.]+ dB, SSIM [\d.]+, inside: PSNR .*, outside: PSNR .*", got.report)

    def test_without_a_mask_and_equal(self, measure, world):
        got = measure(source=world.picture, edit=world.picture)
        assert got.psnr == float("inf") and got.ssim == pytest.approx(1.0)
        assert all(getattr(got, name) != getattr(got, name) for name in METRICS[5:])

    def test_the_caption_lies_under_the_picture(self, measure, world):
        got = measure(source=world.picture, edit=world.picture)
        enlarged = got.captioned.shape[2] == 384 and got.captioned.shape[1] > 384
        assert enlarged, "a small picture is enlarged, so that the caption can be read"
        assert colours(got.captioned[:, 390:]) > 5
        wide = torch.rand(1, 64, 1000, 3)
        assert measure(source=wide, edit=wide).captioned.shape[2] == 1000

    def test_batches(self, measure, world):
        noisy = (world.picture + 0.1 * torch.randn(2, 128, 128, 3)).clamp(0, 1)
        together = measure(source=world.picture, edit=noisy, mask=world.mask)
        apart = [measure(source=world.picture, edit=each[None], mask=world.mask) for each in noisy]
        for name in ("psnr", "ssim", "psnr_inside", "ssim_outside"):
            assert getattr(together, name) == pytest.approx(sum(getattr(each, name) for each in apart) / 2, abs=1e-4)
        assert together.captioned.shape[0] == 2 and together.report.count("picture") == 2
        with pytest.raises(ValueError, match=r"Edit Metrics: 2 source pictures came for 3 edit\(s\)"):
            measure(source=noisy, edit=torch.rand(3, 128, 128, 3))

    def test_what_the_vae_cuts_off(self, measure, world, host):
        """The host's VAE crops a picture to multiples of 8; the rest is compared where it lies."""
        big = torch.rand(1, 133, 143, 3)
        codec = world.vae.first_stage_model
        encode, seen = codec.encode, []

        def watched(pixels, *rest, **named):
            seen.append(pixels)
            return encode(pixels, *rest, **named)

        codec.encode = watched
        try:
            world.latent(big)
        finally:
            del codec.encode
        kept = seen[0].movedim(1, -1).float()
        if kept.min() < 0:  # -1..1
            kept = (kept + 1) / 2
        assert kept.shape == (1, 128, 136, 3)
        assert measure(source=big, edit=kept, mask=torch.ones(1, 133, 143)).psnr > 100
        sentence = (
            "Edit Metrics: the source is 143x133 and the edit 128x128 pixels; "
            "connect the picture as it went into VAE Encode"
        )
        with pytest.raises(ValueError, match=sentence):
            measure(source=big, edit=torch.rand(1, 128, 128, 3))


class TestClipScore:
    """The host's own CLIP classes against transformers' on the same small weights, in the keys of real files."""

    WIDTH = 64
    LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "hidden_size": WIDTH}

    @pytest.fixture(scope="class")
    def peers(self):
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        torch.manual_seed(0)
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                **self.LAYERS, image_size=224, patch_size=32, hidden_act="quick_gelu", projection_dim=self.WIDTH
            )
        )
        text = CLIPTextModelWithProjection(CLIPTextConfig(**self.LAYERS, projection_dim=self.WIDTH, eos_token_id=49407))
        return vision.eval(), text.half().float().eval()  # the host holds the text side in 16 bit

    @pytest.fixture(scope="class")
    def models(self, host, peers, tmp_path_factory):
        """The host's vision model, and its loader of text models with or without their projection, on those weights."""
        import comfy.clip_vision
        import comfy.sd
        import comfy.sd1_clip
        from safetensors.torch import save_file

        def stored(peer):
            weights = {name: weight.detach().contiguous() for name, weight in peer.state_dict().items()}
            return {name: weight for name, weight in weights.items() if "position_ids" not in name}

        of_pictures, of_texts = map(stored, peers)
        config = {
            **self.LAYERS,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "num_channels": 3,
            "projection_dim": self.WIDTH,
            "model_type": "clip_vision_model",
        }
        about = tmp_path_factory.mktemp("clip_vision") / "config.json"
        about.write_text(json.dumps(config))
        with torch.inference_mode():
            vision = comfy.clip_vision.ClipVisionModel(about)
            assert vision.load_sd(of_pictures).missing_keys == []

        small = {
            **self.LAYERS,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
            "vocab_size": 49408,
        }
        make = comfy.sd1_clip.SDClipModel.__init__

        def make_small(self, **given):
            make(self, **{**given, "textmodel_json_config": small})

        def load(projection=True, name="clip_l.safetensors"):
            path = tmp_path_factory.mktemp("clip") / name
            weights = dict(of_texts)
            if not projection:
                del weights["text_projection.weight"]
            save = torch.save if path.suffix == ".pt" else save_file
            save(weights, path)
            with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(comfy.sd1_clip.SDClipModel, "__init__", make_small)
                return comfy.sd.load_clip([str(path)])

        return SimpleNamespace(vision=vision, load=load)

    def test_is_the_formula_on_the_same_weights(self, measure, models, peers, world):
        from comfy.clip_model import clip_preprocess

        clip, edits = models.load(), torch.cat([world.picture.flip(2), torch.rand(3, 128, 128, 3)])
        vision_peer, text_peer = peers
        scores = []
        for text in (TEXT, "a photo", "(red:1.3) cat on a wall"):
            got = measure(source=world.picture, edit=edits, clip=clip, clip_vision=models.vision, text=text)
            tokens = torch.tensor([[token for token, _ in clip.tokenize(text)["l"][0]]])
            with torch.no_grad():
                seen = vision_peer(clip_preprocess(edits).float()).image_embeds
                read = text_peer(tokens).text_embeds
            wanted = (2.5 * torch.cosine_similarity(seen, read)).clamp_min(0)
            assert got.clip_score == pytest.approx(float(wanted.mean()), abs=2e-4)
            written = [float(score) for score in re.findall(r"CLIPScore ([\d.]+) \(source", got.report)]
            assert written == pytest.approx(wanted.tolist(), abs=1e-3)
            scores += written
        assert len(set(scores)) > 3 and max(scores) > 0.05, "for this test to mean anything"

    def test_the_clip_is_left_as_it_was(self, measure, models, world):
        clip = models.load()
        before = clip.encode_from_tokens(clip.tokenize(TEXT), return_pooled=True)
        measure(source=world.picture, edit=world.picture, clip=clip, clip_vision=models.vision, text=TEXT)
        after = clip.encode_from_tokens(clip.tokenize(TEXT), return_pooled=True)
        assert all(torch.equal(a, b) for a, b in zip(before, after))

    @pytest.mark.parametrize("name", ["clip_l.safetensors", "clip_l.pt"])
    def test_a_clip_without_projection(self, measure, models, world, name):
        clip = models.load(projection=False, name=name)
        if getattr(clip.patcher, "cached_patcher_init", None) is None:
            pytest.skip("this host does not tell which file a CLIP is of")
        sentence = "Edit Metrics: the CLIP's file holds no text projection .*Load CLIP with clip_l.safetensors"
        with pytest.raises(ValueError, match=sentence):
            measure(source=world.picture, edit=world.picture, clip=clip, clip_vision=models.vision, text=TEXT)
        whole = models.load(name=name)
        assert measure(source=world.picture, edit=world.picture, clip=whole, clip_vision=models.vision, text=TEXT)

    def test_halves_of_different_clips(self, measure, models, world):
        sentence = (
            "the CLIP gives text 128 wide and the vision model's embeddings are 64 wide; "
            "connect the two halves of one CLIP"
        )
        with pytest.raises(ValueError, match=sentence):
            measure(source=world.picture, edit=world.picture, clip=world.clip, clip_vision=models.vision, text=TEXT)
        other = SimpleNamespace(model_type="siglip_vision_model")
        sentence = "clip_vision is a siglip_vision_model; texts are compared with pictures by a CLIP vision model"
        with pytest.raises(ValueError, match=sentence):
            measure(source=world.picture, edit=world.picture, clip=models.load(), clip_vision=other, text=TEXT)

    @pytest.mark.parametrize(
        "given, missing",
        [(("clip",), "clip_vision and text"), (("clip", "text"), "clip_vision"), (("clip_vision", "clip"), "text")],
    )
    def test_a_part_that_is_missing(self, measure, models, world, given, missing):
        whole = {"clip": world.clip, "clip_vision": models.vision, "text": TEXT}
        inputs = {name: whole[name] for name in given}
        sentence = f"Edit Metrics: CLIPScore needs clip, clip_vision and text, and {missing} came empty"
        with pytest.raises(ValueError, match=sentence):
            measure(source=world.picture, edit=world.picture, **inputs)


class TestEditSweep:
    ETAS = ((1.0, 1.0), (0.8, 0.1))

    @pytest.fixture
    def sweep(self, execute, world):
        def call(**inputs):
            given = {
                "model": world.model,
                "trajectory": world.trajectory,
                "embeddings": world.moving,
                "vae": world.vae,
                "eta_ranges": "1, 0.8-0.1",
                "tau_sa": "0.2, 0.5",
            }
            return execute("BaretEditSweep", **{**given, **inputs})

        return call

    @pytest.mark.parametrize(
        ("taus_sa", "taus_ca", "how"),
        [
            ((0.2, 0.5), (0.6, 0.3), {}),
            ((0.2, 0.5), (0.6,), {"passes": "both", "cfg": 3.0}),
            ((0.2, 0.5), (0.6,), {"mask": True, "auto_mask": 0.02}),
            ((0.0,), (0.6,), {}),
        ],
    )
    def test_each_cell_is_the_single_edit(self, sweep, execute, bam, world, taus_sa, taus_ca, how):
        if "mask" in how:
            how = {**how, "mask": world.mask}
        _, edits = sweep(**how, tau_sa=", ".join(map(str, taus_sa)), tau_ca=", ".join(map(str, taus_ca)))
        cells = iter(edits)
        for (start, end), tau_ca, tau_sa in product(self.ETAS, taus_ca, taus_sa):
            (moving,) = execute("BaretTransitionEmbedding", embeddings=world.embeddings, eta_start=start, eta_end=end)
            edit = bam(world.model, world.trajectory, moving, tau_sa=tau_sa, tau_ca=tau_ca, **how)
            torch.testing.assert_close(next(cells), world.decode({"samples": edit})[0], rtol=0, atol=1e-3)
        assert next(cells, None) is None

    def test_the_grid_holds_the_cells_and_the_source(self, sweep, world):
        grid, edits = sweep()
        side, gap = 128, 2
        assert grid.shape == (1, 3 * (side + gap) - gap, 3 * (side + gap) - gap, 3)
        for number, edit in enumerate(edits):
            row, column = 1 + number // 2, 1 + number % 2
            cell = grid[0, row * (side + gap) :, column * (side + gap) :][:side, :side]
            below = slice(32, None)  # its number stands above
            torch.testing.assert_close(cell[below], edit[below], rtol=0, atol=0.01)
        corner, label = grid[:, :side, :side], grid[:, :side, side + gap : 2 * side]
        assert colours(corner) > 100, "the source"
        assert colours(label) > 3

    def test_four_by_five_costs_little_more_than_ten_edits(self, sweep, bam, counting, world):
        with counting(world.model) as shared:
            sweep(eta_ranges="0.9-0.1, 0.8-0.1, 0.7-0.1, 0.6-0.1", tau_sa="0.1, 0.2, 0.3, 0.4, 0.5")
        with counting(world.model) as single:
            bam(world.model, world.trajectory, world.moving)
        # Five steps of one reconstruction. For each eta: six of the transition, one edit until the first tau, and then
        # one more with each.
        assert shared.rows == 5 + 4 * 2 * (6 + 1 + 2 + 3 + 4 + 5 + 5 * 5)
        assert shared.rows < 20 * single.rows * 0.6

    def test_a_big_grid_runs_in_parts(self, sweep, pack, monkeypatch, shown):
        _, whole = sweep(tau_sa="0.2")
        monkeypatch.setattr(pack.modules["nodes.sweep"], "_MOST_CELLS", 1)
        shown.clear()
        _, parts = sweep(tau_sa="0.2")
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)
        assert shown[-1][:2] == (2 * STEPS, 2 * STEPS), "the reconstruction runs once for each part"

    def test_progress_without_previews(self, sweep, shown):
        """The frontend would go on showing the last preview beside the grid, or in place of it."""
        sweep()
        values = [value for value, _, _ in shown]
        assert values == sorted(values) and shown[-1][:2] == (5 + 2 * 5, 5 + 2 * 5)
        assert not any(preview for _, _, preview in shown)

    def test_a_batch_makes_a_grid_each(self, execute, ttis, world, model, picture):
        trajectory, embeddings, _ = ttis(model, latent=picture(images=2), steps=4, iterations=1)

        def sweep_of(trajectory, embeddings):
            wires = {"model": model, "trajectory": trajectory, "embeddings": embeddings, "vae": world.vae}
            return execute("BaretEditSweep", **wires, eta_ranges="0.8-0.1", tau_sa="0.25, 0.5")

        both, edits = sweep_of(trajectory, embeddings)
        assert both.shape[0] == 2 and edits.shape[0] == 4
        for image in range(2):
            _, cells = sweep_of(trajectory.rows([image]), embeddings.rows([image]))
            torch.testing.assert_close(edits[2 * image : 2 * image + 2], cells, rtol=0, atol=1e-3)

    @pytest.fixture
    def lacking_control(self, world):
        return replace(world.embeddings, missing_positive=("control",))

    def test_what_does_not_fit(self, sweep, lacking_control):
        for inputs, sentence in (
            ({"eta_ranges": "high"}, "eta_ranges has 'high'; numbers from 0 to 1"),
            ({"tau_sa": ""}, "tau_sa is empty"),
            ({"tau_ca": "0.2, 7"}, "tau_ca has 7"),
            ({"embeddings": lacking_control}, "the embeddings were made with control"),
        ):
            with pytest.raises(ValueError, match="Edit Sweep: " + sentence):
                sweep(**inputs)


class TestAttentionMaps:
    @pytest.fixture
    def maps(self, execute, world):
        def call(**inputs):
            given = {
                "model": world.model,
                "trajectory": world.trajectory,
                "embeddings": world.moving,
                "clip": world.clip,
                "vae": world.vae,
                "text": TEXT,
            }
            return execute("BaretAttentionMaps", **{**given, **inputs})

        return call

    @staticmethod
    def numbers(report):
        """Means by word and process."""
        found = {}
        for line in report.split("\n"):
            word, means = re.fullmatch(r"picture 1, (.*) \(token .*?\): (.*)", line).groups()
            by_process = re.findall(r"(\w+) ([\d.]+) \(most", means)
            found[word] = {process: float(value) for process, value in by_process}
        return found

    def test_heat_is_where_the_thing_is(self, maps, world):
        sheet, masks, report = maps(words="dog")
        assert sheet.shape[-1] == 3 and masks.shape == (1, 128, 128) and float(masks.max()) <= 1.0
        inside = (masks * world.mask).sum() / world.mask.sum()
        outside = (masks * (1 - world.mask)).sum() / (1 - world.mask).sum()
        assert inside > 3 * outside, (inside, outside)

    @pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, 0.6)])
    def test_is_the_softmax_written_out(self, maps, world, pack, span):
        """The reconstruction's map of two tokens, from the model's own queries and keys at its latents and texts."""
        _, _, report = maps(words="blue dog", start_percent=span[0], end_percent=span[1])
        from comfy.ldm.modules.attention import optimized_attention

        model, run, found = world.model.clone(), pack.modules["host.run"], []

        def attention(q, k, v, extra):
            heads = extra["n_heads"]
            one, two = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
            weights = torch.softmax(one @ two.transpose(-1, -2) / one.shape[-1] ** 0.5, -1).mean(1)
            if tuple(extra["activations_shape"][-2:]) == (8, 8):
                found.append(weights[..., 2:4].sum(-1))
            return optimized_attention(q, k, v, heads)

        for number in range(8):
            model.set_model_attn2_replace(attention, "input", number)
            model.set_model_attn2_replace(attention, "output", number)
        model.set_model_attn2_replace(attention, "middle", 0)
        trajectory, embeddings = world.trajectory, world.moving
        steps = range(int(span[0] * STEPS + 0.5), int(span[1] * STEPS + 0.5))

        def loop(predict, device):
            for i in steps:
                predict(
                    trajectory.latents[i] * trajectory.schedule.scale(i),
                    float(trajectory.schedule.sigmas[i]),
                    cond=embeddings.tuned[i],
                )

        with torch.inference_mode():
            run.sample(
                model,
                loop,
                positive=(embeddings.target, {}),
                negative=(embeddings.negative, {}),
                rows=1,
                shape=trajectory.pivots.shape[2:],
                schedule=trajectory.schedule,
            )
        assert len(found) >= 2 * len(steps)
        wanted = float(torch.stack(found).mean())
        assert self.numbers(report)["blue dog"]["reconstruction"] == pytest.approx(wanted, abs=2e-4)

    def test_progress_without_previews(self, maps, shown):
        """The frontend would go on showing the last preview in place of the maps."""
        maps(words="dog")
        values = [value for value, _, _ in shown if value]
        assert values[-1] == STEPS
        assert not any(preview for _, _, preview in shown)

    def test_the_edit_looks_where_the_transition_does_while_it_borrows(self, maps):
        for tau_ca, same in ((1.0, True), (0.0, False)):
            numbers = self.numbers(maps(words="lying, tree", tau_ca=tau_ca)[2])
            assert all((n["edit"] == n["transition"]) == same for n in numbers.values())
            assert any(n["reconstruction"] != n["transition"] for n in numbers.values())

    def test_all_words_and_weighted_ones(self, maps):
        every = self.numbers(maps()[2])
        assert " ".join(every) == "a blue dog lying in the snow middle facing left sun tree"
        weighted = self.numbers(maps(words="(dog:1.4), sun")[2])
        assert weighted == {"dog": every["dog"], "sun": every["sun"]}

    def test_of_another_text_over_the_same_inversion(self, maps, execute, world):
        """A long text in Transition Embedding repeats the inversion's own; words are those of the new one."""
        long = "a blue cat lying in the snow, " + "in the middle, facing left, sun, tree, " * 4
        (moving,) = execute("BaretTransitionEmbedding", embeddings=world.embeddings, positive=world.encode(long))
        assert moving.target.shape[1] > world.embeddings.target.shape[1]
        assert list(self.numbers(maps(embeddings=moving, text=long, words="cat, sun")[2])) == ["cat", "sun"]
        (short,) = execute("BaretTransitionEmbedding", embeddings=moving, positive=[[world.embeddings.target, {}]])
        assert list(self.numbers(maps(embeddings=short, words="dog")[2])) == ["dog"]
        with pytest.raises(ValueError, match="text is not the target text"):
            maps(embeddings=moving)

    def test_of_a_rigid_edit(self, maps, world):
        numbers = self.numbers(maps(words="dog", embeddings=world.embeddings)[2])["dog"]
        assert numbers["transition"] == numbers["reconstruction"]

    def test_resolutions(self, maps):
        def mean_of(resolutions):
            _, _, report = maps(words="dog", resolutions=resolutions)
            return self.numbers(report)["dog"]["reconstruction"]

        fine, coarse, every = mean_of("16"), mean_of("8"), mean_of("all")
        assert fine != coarse and min(fine, coarse) < every < max(fine, coarse)
        assert mean_of("16, 8") == every

    @pytest.mark.parametrize(
        "inputs, sentence",
        [
            (
                {"words": "dog, cat"},
                "'cat' is not in text; its words are: a blue dog lying in the snow middle facing left sun tree",
            ),
            (
                {"text": "a red dog"},
                "text is not the target text of these embeddings; write the same text, with the same CLIP",
            ),
            (
                {"resolutions": "17"},
                "resolutions has '17' and the grids of this picture are 16x16, 8x8; name widths of these",
            ),
            ({"resolutions": "fine"}, "resolutions has 'fine'; coarse, all, or widths"),
            (
                {"start_percent": 0.5, "end_percent": 0.5},
                "start_percent 0.5 to end_percent 0.5 of 10 steps leaves none",
            ),
        ],
    )
    def test_what_does_not_fit(self, maps, inputs, sentence):
        with pytest.raises(ValueError, match="Attention Maps: " + sentence):
            maps(**inputs)

    def test_the_model_is_left_as_it_was(self, maps, bam, world):
        before = bam(world.model, world.trajectory, world.moving)
        maps(words="dog")
        with pytest.raises(ValueError):
            maps(words="dog", resolutions="17")
        assert torch.equal(bam(world.model, world.trajectory, world.moving), before)
        assert not world.model.model_options["transformer_options"].get("patches_replace")
