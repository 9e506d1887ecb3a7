"""Short memory: activations are computed again where they cannot all be kept, and what cannot fit is refused before it begins."""

import pytest
import torch

STEPS = 4


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
    """Set what the host says is free, from what the estimates say is needed: call with a function of (all kept, recomputed)."""
    import comfy.model_management

    gradients = pack.modules["host.gradients"]

    def set_from(choose, model, rows, shape):
        bytes_free = choose(
            gradients.activations(model, rows, shape), gradients.activations(model, rows, shape, recompute=True)
        )
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: bytes_free)

    return set_from


@pytest.fixture
def kept():
    """Runs ``call`` and returns what it returned, and the most bytes that backward was promised at once outside recomputed blocks."""

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
    forwards = []
    handle = model.model.diffusion_model.middle_block[0].in_layers.register_forward_hook(
        lambda *_: forwards.append(torch.is_grad_enabled())
    )
    (_, found, _), least_bytes = kept(lambda: invert(**inputs))
    handle.remove()
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
    with pytest.raises(
        ValueError,
        match=r"TTIS Inversion: tuning 1 picture\(s\) of 96x64 needs about .* GB beside the model and .* GB are free: use a smaller picture",
    ):
        invert()
    handle.remove()
    assert not rows


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
