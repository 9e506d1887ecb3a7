"""Memory of the tuning: what it is estimated at, and what is done where it is short.

Activations are computed again where they cannot all be kept, and what cannot fit is refused before it begins.
"""

import json
from pathlib import Path

import in_process
import pytest
import torch

STEPS = 4
COMMITTED = Path(in_process.__file__).parent / "benchmarks" / "cpu-sd15.json"


@pytest.fixture
def invert(execute, model, text, picture):
    def call(**inputs):
        return execute(
            "BaretTTISInversion",
            **{"model": model, "positive": text(1), "negative": text(2), "latent": picture(), "steps": STEPS, **inputs},
        )

    return call


@pytest.fixture
def free_memory(pack, monkeypatch):
    """Set what the host says is free, from what the estimates say is needed: a function of (all kept, recomputed)."""
    import comfy.model_management

    memory = pack.modules["host.memory"]

    def set_from(choose, model, rows, shape):
        everything = memory.activations(model, rows, shape)
        bytes_free = choose(everything, memory.activations(model, rows, shape, recompute=True))
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: bytes_free)

    return set_from


@pytest.fixture
def kept():
    """Runs ``call``; returns its result and the most bytes that backward was promised at once.

    What blocks that are computed again promise inside themselves does not count.
    """

    def run(call):
        now, most = 0, 0

        class Saved:
            def __init__(self, tensor):
                nonlocal now, most
                self.tensor = tensor
                now += tensor.nbytes
                most = max(most, now)

            def __del__(self):
                nonlocal now
                now -= self.tensor.nbytes

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            return call(), most

    return run


@pytest.mark.parametrize("images", [1, 2])
def test_short_memory_changes_nothing_but_the_cost(invert, model, picture, free_memory, kept, images):
    latent = picture(images=images)
    shape = latent["samples"].shape[1:]
    inputs = {"latent": latent, "iterations": 2}
    free_memory(lambda everything, least: everything + 1, model, images, shape)
    (_, wanted, _), all_bytes = kept(lambda: invert(**inputs))
    free_memory(lambda everything, least: (everything + least) / 2, model, images, shape)
    (_, found, _), least_bytes = kept(lambda: invert(**inputs))
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.tuned, wanted.tuned, rtol=1e-3, atol=1e-4)
    assert least_bytes < 0.5 * all_bytes
    assert not any("forward" in vars(part) for part in model.model.diffusion_model.modules()), (
        "the model is left as it was"
    )


def test_what_cannot_fit_is_refused_before_the_first_step(invert, model, picture, free_memory):
    rows = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(1))
    free_memory(lambda everything, least: least / 2, model, 1, picture()["samples"].shape[1:])
    sentence = (
        r"TTIS Inversion: tuning 1 picture\(s\) of 96x64 needs about .* GB beside the model and .* GB are free: "
        "use a smaller picture"
    )
    with pytest.raises(ValueError, match=sentence):
        invert()
    handle.remove()
    assert not rows


def test_a_large_picture_seen_in_patches_needs_what_a_patch_needs(execute, model, text, picture, free_memory):
    height, width, patch = 32, 48, 8
    free_memory(lambda everything, _: 3 * everything, model, 1, (4, patch, patch))
    given = {"model": model, "caption": text(1), "latent": picture(height=height, width=width), "updates": 1, "seed": 0}
    with pytest.raises(ValueError, match=f"of {8 * width}x{8 * height} needs about .* beside the model"):
        execute("BaretOneImageLoRA", **given)
    execute("BaretOneImageLoRA", **given, patch=8 * patch)


def test_a_failure_while_recomputing_leaves_the_model_clean(invert, model, picture, free_memory):
    shape = picture()["samples"].shape[1:]
    free_memory(lambda everything, least: (everything + least) / 2, model, 1, shape)

    def fail(module, args):
        if torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = model.model.diffusion_model.out.register_forward_pre_hook(fail)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="use a smaller picture"):
        invert()
    handle.remove()
    assert not any("forward" in vars(part) for part in model.model.diffusion_model.modules())
    invert()


@pytest.fixture(scope="module")
def sd15(host):
    """A MODEL of SD1.5's size without its weights."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    def make(dtype):
        config = comfy.supported_models.SD15({**in_process.SD15, "dtype": dtype})
        config.set_inference_dtype(dtype, None)
        base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="meta")
        return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))

    return make


def test_the_estimate_is_near_what_was_measured(pack, sd15):
    """Every committed row of tuning: SD1.5's size on a CPU, all activations kept and blocks computed again."""
    rows = [row for row in json.loads(COMMITTED.read_text())["memory"] if row["run"].startswith("TTIS")]
    assert len(rows) >= 2
    for row in rows:
        height, width = (int(side) for side in row["latent"].split("x"))
        model = sd15(getattr(torch, row["model"].split(", ")[1]))
        recompute = "computed again" in row["run"]
        found = pack.modules["host.memory"].activations(model, row["batch"], (4, height, width), recompute) / 1e6
        assert 1 / 1.3 < found / row["peak above rest, MB"] < 1.3, row


BUILD = ("channel_mult", "num_res_blocks", "transformer_depth")
"""What of a UNet's configuration says how it is built, whatever its width."""


class TestParts:
    """Each part of the estimate against what autograd keeps, in a narrower UNet of SD1.5's build."""

    LEVELS = {name: value for name, value in in_process.SD15.items() if name.startswith(BUILD)}
    SHAPE = (4, 16, 16)

    @pytest.fixture
    def keeps(self, execute, text):
        """The most bytes that autograd keeps at once beside the model's own weights, each only once."""

        def call(model, images=1, modules=(), **options):
            stored = [model.model, *modules]
            now, most = {}, [0]

            class Saved:
                def __init__(self, tensor):
                    self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
                    if self.key not in weights:
                        now[self.key] = (tensor.untyped_storage().nbytes(), now.get(self.key, (0, 0))[1] + 1)
                        most[0] = max(most[0], sum(size for size, _ in now.values()))

                def __del__(self):
                    size, times = now.pop(self.key, (0, 0))
                    if times > 1:
                        now[self.key] = (size, times - 1)

            weights = {weight.untyped_storage().data_ptr() for module in stored for weight in module.parameters()}
            latent = {"samples": torch.randn(images, *self.SHAPE, generator=torch.Generator().manual_seed(0))}
            inputs = {"positive": [[text(1)[0][0], options]], "negative": text(2), "latent": latent, "steps": 2}
            with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
                execute("BaretTTISInversion", model=model, **inputs)
            return most[0]

        return call

    @pytest.fixture
    def estimate(self, pack):
        def call(model, images=1, **how):
            return pack.modules["host.memory"].activations(model, images, self.SHAPE, **how)

        return call

    def test_activations(self, make_model, keeps, estimate):
        """By row: all that an estimate for two has over one."""
        model = differentiable(make_model(**self.LEVELS))
        more = keeps(model, 2) - keeps(model, 1)
        assert more / 1.3 < estimate(model, 2) - estimate(model, 1) < 2 * more

    def test_copies_of_cast_weights(self, make_model, keeps, estimate):
        """Of weights in fp8, which are cast to 16 bit at every use, autograd keeps the copies."""
        stored = differentiable(make_model(dtype=torch.bfloat16, **self.LEVELS))
        cast = differentiable(make_model(dtype=torch.float8_e4m3fn, cast=torch.bfloat16, **self.LEVELS))
        copies = keeps(cast) - keeps(stored)
        assert copies > 1.8 * sum(weight.numel() for weight in cast.model.diffusion_model.parameters())
        assert 1 / 1.3 < (estimate(cast) - estimate(stored)) / copies < 1.3
        assert estimate(cast, recompute=True) - estimate(stored, recompute=True) < 0.3 * copies


def differentiable(model):
    """The weights of a MODEL as they are after its first tuning: no inference tensors."""
    for part in model.model.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return model
