"""What a run costs, counted at the UNet: row-forwards, gradients, memory. Nothing here is timed."""

import gc

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def test_ttis_rows(counted, ttis, model):
    steps = 10
    _, embeddings, _ = ttis(model, steps=steps, iterations=3, learning_rate=0.01)
    updates = int(embeddings.updates.sum())
    assert updates == 3 * steps
    assert counted.rows == steps + steps + updates + steps
    assert counted.gradient_rows == updates, "the last forward of a step needs no gradient"


def test_ttis_rows_of_a_batch_that_stops_early(counted, ttis, model, picture):
    steps, latent = 6, picture(images=3)
    _, untuned, _ = ttis(model, latent=latent, steps=steps, iterations=0)
    stop = {"stop_threshold": float(untuned.losses[2].median()), "stop_growth": 0.0}
    counted.rows = 0
    _, embeddings, _ = ttis(model, latent=latent, steps=steps, iterations=4, learning_rate=0.01, **stop)
    assert 0 < int((embeddings.updates == 0).sum()) < embeddings.updates.numel()
    assert counted.rows == 3 * 2 * steps + int((embeddings.updates + 1).sum())


def test_bam_rows_at_the_defaults(counted, execute, ttis, bam, model):
    trajectory, embeddings, _ = ttis(model, iterations=0)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    for each, inputs, rows in (
        (moving, {}, 15 + 2 * 30 + 2 * 50),
        (moving, {"passes": "both"}, 2 * 15 + 2 * 30 + 2 * 50),
        (moving, {"tau_sa": 0.0, "tau_ca": 0.0}, 2 * 50),
        (embeddings, {}, 30 + 2 * 50),
    ):
        counted.rows = counted.gradient_rows = 0
        bam(model, trajectory, each, **inputs)
        assert counted.rows == rows <= 190
        assert counted.gradient_rows == 0


def bytes_in_tensors():
    """Of all tensors that are alive in this process."""
    gc.collect()
    tensors = {id(each): each for each in gc.get_objects() if torch.is_tensor(each)}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def test_tuning_leaves_no_second_copy_of_anything(ttis, model):
    ttis(model, steps=4, iterations=2)
    before = bytes_in_tensors()
    ttis(model, steps=4, iterations=2)
    weights = sum(w.nbytes for w in model.model.parameters())
    assert bytes_in_tensors() - before < 0.05 * weights


def test_tuning_holds_one_set_of_activations(ttis, model):
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
            ttis(model, steps=6, iterations=2, stop_threshold=0.02, learning_rate=0.01)
    finally:
        handle.remove()
    assert len(most) > 6
    assert max(most) == 0, f"{max(most)} tensors of an earlier forward were still held when the next began"


def test_no_attention_map_is_formed(ttis, bam, make_model, picture):
    from comfy.ldm.modules.attention import attention_pytorch

    def without_maps(func, *args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    model = make_model()
    model.model_options["transformer_options"]["optimized_attention_override"] = without_maps
    queries = {100, 25}  # of a picture of 10x10
    keys = queries | {6}
    maps = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(each) and each.ndim >= 3 and each.shape[-2] in queries and each.shape[-1] in keys:
                    maps.append((func, tuple(each.shape)))
            return out

    with Watch():
        trajectory, embeddings, _ = ttis(model, latent=picture(height=10, width=10), steps=4, iterations=1)
        bam(model, trajectory, embeddings.with_transition(0.8, 0.1), tau_sa=1.0, tau_ca=1.0)
    assert maps == []
