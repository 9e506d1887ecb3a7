"""The secant rules on problems whose answer is known."""

from dataclasses import replace

import pytest
import torch

from baret_ops.inversions.step_rules import Adam, Secant, SecantMemory, TuningStep

SHAPE = (4, 6, 6)
RULES = {"secant": Secant(), "secant_memory": SecantMemory()}
secant_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_step(predict, images=1, iterations=1, threshold=0.0, goal=None, seed=1):
    """A step whose guided noise is ``predict(e)``, from ``[A,3,8]`` to ``[A,144]``."""
    rows = lambda e, _: predict(e.flatten(1)).view(len(e), *SHAPE)  # noqa: E731
    return TuningStep(
        rows,
        random(images, *SHAPE, seed=seed) if goal is None else goal,
        weight=0.5,
        threshold=threshold,
        iterations=iterations,
    )


def losses_at(step, embedding):
    return step.losses(step.residual(embedding, list(range(len(embedding))), gradient=False))


@secant_rules
def test_lands_exactly_where_one_length_serves_all_directions(rule):
    """q(e) = c * U e with orthonormal U: once the length is measured, one update lands, at later steps too."""
    basis = 3.0 * torch.linalg.qr(random(144, 24))[0].T
    network = lambda e: e @ basis  # noqa: E731
    embedding, memory = random(1, 3, 8, seed=2), None
    for i, iterations in enumerate((2, 1, 1)):
        near = embedding + 0.02 * random(1, 3, 8, seed=3 + i)
        step = make_step(network, iterations=iterations, goal=network(near.flatten(1)).view(1, *SHAPE))
        found = rule(step, embedding, memory)
        assert float(found.losses) < 1e-4 * float(losses_at(step, embedding)) and int(found.updates) <= iterations
        embedding, memory = found.embedding, found.memory


@secant_rules
@pytest.mark.parametrize("seed", range(5))
def test_never_ends_a_step_worse_than_it_began(rule, seed):
    """On a network that is anything but linear, from a remembered length that no longer fits."""
    weights = random(24, 144, seed=seed)
    embedding = random(2, 3, 8, seed=seed + 10)
    tame = rule(make_step(lambda e: 1e-3 * e @ weights, images=2, iterations=2), embedding, None)
    wild = make_step(lambda e: 5 * torch.sin(3 * e @ weights), images=2, iterations=4, seed=seed)
    start = losses_at(wild, embedding)
    found = rule(wild, embedding, tame.memory)
    assert (found.losses <= start).all()
    torch.testing.assert_close(losses_at(wild, found.embedding), found.losses)
    torch.testing.assert_close(wild.residual(found.embedding, [0, 1], gradient=False), found.residual)


def test_a_rejected_update_is_not_differentiated_again():
    """Its gradient is known: the next try only corrects the length."""
    weights, differentiated = random(24, 144), []

    class Counts(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            differentiated.append(1)
            return gradient

    embedding = random(1, 3, 8, seed=2)
    far = torch.full([1], 1e9, dtype=torch.float64)  # a remembered length that overshoots, as far as the limit lets it
    near = ((embedding + 0.001 * random(1, 3, 8, seed=3)).flatten(1) @ weights).view(1, *SHAPE)
    step = make_step(lambda e: Counts.apply(e) @ weights, iterations=6, goal=near)
    found = Secant()(step, embedding, far)
    assert found.losses < losses_at(step, embedding)
    assert len(differentiated) < int(found.updates) == 6


def test_a_graph_is_let_go_before_the_next_forward():
    """Also where the update was taken back, so that nothing went backward through it."""
    kept, held = set(), []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(id(self))

        def __del__(self):
            kept.discard(id(self))

    weights = random(24, 144)

    def network(e):
        if torch.is_grad_enabled():
            held.append(len(kept))
        return torch.sin(e @ weights)

    embedding = random(1, 3, 8, seed=2)
    far = torch.full([1], 1e9, dtype=torch.float64)  # a remembered length that overshoots, as far as the limit lets it
    near = network((embedding + 0.001 * random(1, 3, 8, seed=3)).flatten(1)).view(1, *SHAPE)
    held.clear()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for rule, memory in ((Secant(), far), (SecantMemory(), None)):
            rule(make_step(network, iterations=4, goal=near), embedding, memory)
    assert len(held) == 8
    assert max(held) == 0, f"{max(held)} tensors of an earlier forward were still held when the next began"


class NoFloat64(torch.Tensor):
    """A tensor of a device that knows no float64, as MPS."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.double or (function is torch.Tensor.to and torch.float64 in args):
            raise TypeError("Cannot convert a tensor to float64: the device does not support it.")
        out = super().__torch_function__(function, types, args, kwargs or {})
        return out.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else out


def test_memory_asks_no_float64_of_the_device():
    """Small systems are solved on the CPU, in float64 that not every device knows."""
    weights = random(24, 144).float()
    goal, start = random(1, *SHAPE, seed=1).float(), random(1, 3, 8, seed=2).float()
    ends = []
    for on_device in (lambda t: t, lambda t: t.as_subclass(NoFloat64)):
        step = make_step(lambda e: torch.tanh(e @ weights), iterations=3, goal=on_device(goal))
        ends.append(SecantMemory()(step, on_device(start), None).embedding.as_subclass(torch.Tensor))
    assert torch.equal(*ends)


def test_memory_lands_in_a_span_it_knows():
    """A network of rank 3 that does not change: after a few steps memory predicts it, and secant does not keep up."""
    weights = random(24, 3) @ torch.diag(torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)) @ random(3, 144, seed=1)
    ends = {}
    for name, rule in RULES.items():
        embedding, memory = random(1, 3, 8, seed=2), None
        for i in range(6):
            goal = (random(1, 24, seed=20 + i) @ weights).view(1, *SHAPE)
            found = rule(make_step(lambda e: e @ weights, goal=goal), embedding, memory)
            embedding, memory = found.embedding, found.memory
        ends[name] = float(found.losses)
    assert ends["secant_memory"] < 0.05 * ends["secant"]


def test_a_rule_changes_nothing_it_was_given():
    weights = random(24, 144)
    for rule in (*RULES.values(), Adam(0.01)):
        embedding, memory = random(2, 3, 8), None
        for _ in range(2):
            before, lengths = embedding.clone(), memory.clone() if torch.is_tensor(memory) else None
            found = rule(make_step(lambda e: torch.tanh(e @ weights), images=2, iterations=2), embedding, memory)
            again = rule(make_step(lambda e: torch.tanh(e @ weights), images=2, iterations=2), embedding, memory)
            assert torch.equal(embedding, before) and torch.equal(found.embedding, again.embedding)
            assert lengths is None or torch.equal(memory, lengths)
            embedding, memory = found.embedding, found.memory


@pytest.mark.parametrize("progress, share", [(0.0, 1.0), (0.5, 0.75), (0.98, 0.51)])
def test_adams_rate_falls_over_the_run(progress, share):
    """Adam's first step is as long as its rate: null-text inversion's 1e-2 (1 - i / 100) of 50 steps."""
    weights, start = random(24, 144), random(1, 3, 8, seed=2)
    step = replace(make_step(lambda e: e @ weights), progress=progress)
    found = Adam(1e-2, fall=0.5)(step, start, None)
    torch.testing.assert_close((found.embedding - start).abs(), torch.full_like(start, share * 1e-2), rtol=1e-4, atol=0)


def test_a_step_is_done_at_its_threshold():
    step = make_step(lambda e: e @ random(24, 144), images=3, threshold=0.5)
    losses = torch.tensor([0.5, 0.50001, 0.4, float("inf"), float("nan")])
    assert step.unfinished(losses) == [1], "neither what is done nor what is beyond help goes on"


def test_the_first_update_is_a_hundredth_of_the_embedding():
    """Where no length is known yet; later ones are measured."""
    weights, start = random(24, 144), random(1, 3, 8, seed=2)
    goal = 1e6 * random(1, *SHAPE, seed=1)  # so far away that the update is accepted whatever its length
    found = Secant()(make_step(lambda e: e @ weights, goal=goal), start, None)
    moved = float((found.embedding - start).norm() / start.norm())
    assert moved == pytest.approx(0.01, rel=1e-6)
