"""What a run costs, counted at the UNet: row-forwards, gradients, memory. Nothing here is timed."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture
def counted(model):
    """Counts of rows through the UNet, and of those that were to be differentiated."""
    seen = SimpleNamespace(rows=0, gradient_rows=0, calls=0)

    def count(module, args, kwargs):
        seen.rows += args[0].shape[0]
        seen.calls += 1
        seen.gradient_rows += args[0].shape[0] if torch.is_grad_enabled() and kwargs["context"].requires_grad else 0

    handle = model.model.diffusion_model.register_forward_pre_hook(count, with_kwargs=True)
    yield seen
    handle.remove()


def invert(execute, model, text, picture, **inputs):
    return execute(
        "BaretTTISInversion",
        **{"model": model, "positive": text(1), "negative": text(2), "latent": picture(), **inputs},
    )


def test_ttis_rows(counted, execute, model, text, picture):
    steps = 10
    _, embeddings, _ = invert(execute, model, text, picture, steps=steps, iterations=3, learning_rate=0.01)
    updates = int(embeddings.updates.sum())
    assert updates == 3 * steps
    assert counted.rows == steps + steps + updates + steps
    assert counted.gradient_rows == updates, "the last forward of a step needs no gradient"


def test_ttis_rows_of_a_batch_that_stops_early(counted, execute, model, text, picture):
    steps, latent = 6, picture(images=3)
    _, untuned, _ = invert(execute, model, text, picture, latent=latent, steps=steps, iterations=0)
    counted.rows = 0
    _, embeddings, _ = invert(
        execute,
        model,
        text,
        picture,
        latent=latent,
        steps=steps,
        iterations=4,
        learning_rate=0.01,
        stop_threshold=float(untuned.losses[2].median()),
        stop_growth=0.0,
    )
    assert 0 < int((embeddings.updates == 0).sum()) < embeddings.updates.numel()
    assert counted.rows == 3 * 2 * steps + int((embeddings.updates + 1).sum())


def test_bam_rows_at_the_defaults(counted, execute, model, text, picture):
    trajectory, embeddings, _ = invert(execute, model, text, picture, iterations=0)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    for each, inputs, rows in (
        (moving, {}, 15 + 2 * 30 + 2 * 50),
        (moving, {"passes": "both"}, 2 * 15 + 2 * 30 + 2 * 50),
        (moving, {"tau_sa": 0.0, "tau_ca": 0.0}, 2 * 50),
        (embeddings, {}, 30 + 2 * 50),
    ):
        counted.rows = counted.gradient_rows = 0
        execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=each, **inputs)
        assert counted.rows == rows <= 190
        assert counted.gradient_rows == 0


def test_tuning_leaves_no_second_copy_of_anything(execute, model, text, picture):
    def live():
        gc.collect()
        return sum(
            t.untyped_storage().nbytes() for t in {id(o): o for o in gc.get_objects() if torch.is_tensor(o)}.values()
        )

    invert(execute, model, text, picture, steps=4, iterations=2)
    before = live()
    invert(execute, model, text, picture, steps=4, iterations=2)
    weights = sum(w.nbytes for w in model.model.parameters())
    assert live() - before < 0.05 * weights


def test_tuning_holds_one_set_of_activations(execute, model, text, picture):
    """What is saved for backward is let go before the next forward saves its own, at early stops too."""
    kept, most = set(), []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(id(self))

        def __del__(self):
            kept.discard(id(self))

    def start(module, args):
        if torch.is_grad_enabled():
            most.append(len(kept))

    handle = model.model.diffusion_model.register_forward_pre_hook(start)
    try:
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            _, embeddings, _ = invert(
                execute, model, text, picture, steps=6, iterations=2, stop_threshold=0.02, learning_rate=0.01
            )
    finally:
        handle.remove()
    assert len(most) > 6
    assert max(most) == 0, f"{max(most)} tensors of an earlier forward were still held when the next began"


def test_no_attention_map_is_formed(execute, make_model, text, picture):
    from comfy.ldm.modules.attention import attention_pytorch

    model = make_model()
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: (
        attention_pytorch(*args, **kwargs)
    )
    latent = picture(height=10, width=10)
    tokens = {100, 25}
    maps = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if (
                    torch.is_tensor(each)
                    and each.ndim >= 3
                    and each.shape[-2] in tokens
                    and each.shape[-1] in tokens | {6}
                ):
                    maps.append((func, tuple(each.shape)))
            return out

    with Watch():
        trajectory, embeddings, _ = invert(execute, model, text, picture, latent=latent, steps=4, iterations=1)
        execute(
            "BaretBAMEdit",
            model=model,
            trajectory=trajectory,
            embeddings=embeddings.with_transition(0.8, 0.1),
            tau_sa=1.0,
            tau_ca=1.0,
        )
    assert maps == []
