"""TTIS, the transition and the stop rule on small analytic networks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baret_ops.edits.sampling import injected_steps
from baret_ops.inversions.ddim import ddim_inversion
from baret_ops.inversions.step_rules import Adam, Secant, SecantMemory
from baret_ops.inversions.tuning import StopRule, ttis
from baret_ops.predict import NotFinite
from baret_ops.schedule import make_schedule
from baret_ops.transition import blend, eta_schedule

STEPS, IMAGES, TOKENS, WIDTH = 5, 2, 3, 4


class Network:
    """eps(x, e) = a fixed linear map of x plus a nonlinear function of the text; counts its rows."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.of_x = torch.randn(16, 16, generator=generator, dtype=torch.float64).to(dtype) * 0.1
        self.of_text = torch.randn(TOKENS * WIDTH, 16, generator=generator, dtype=torch.float64).to(dtype) * 0.3
        self.cond_rows = self.uncond_rows = self.gradient_rows = 0

    def eps(self, x, sigma, e):
        z = x / (1 + sigma**2) ** 0.5
        return (torch.tanh(z.flatten(1) @ self.of_x) + torch.sin(e.to(x.dtype).flatten(1) @ self.of_text)).view_as(x)

    def __call__(self, x, sigma, *, cond=None, uncond=None, sharing=None):
        if cond is not None:
            self.cond_rows += len(x)
            self.gradient_rows += len(x) if torch.is_grad_enabled() and cond.requires_grad else 0
        self.uncond_rows += 0 if uncond is None else len(x)
        return tuple(None if e is None else self.eps(x, sigma, e) for e in (cond, uncond))


@pytest.fixture
def schedule():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1.0 - betas, 0)
    return make_schedule(((1.0 - alphas) / alphas).sqrt(), STEPS)


@pytest.fixture
def problem(schedule):
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(IMAGES, 1, 4, 4, generator=generator)
    target, negative = torch.randn(2, IMAGES, TOKENS, WIDTH, generator=generator)
    pivots = ddim_inversion(Network(), latent, target, schedule)
    return pivots, target, negative


def tune(network, problem, schedule, **changes):
    return ttis(
        network,
        *problem,
        schedule,
        **{"guidance_scale": 7.5, "rule": Adam(0.05), "iterations": 4, "stop": StopRule(0.0, 0.0), **changes},
    )


def test_inversion_costs_one_row_a_step(schedule):
    network = Network()
    ddim_inversion(network, torch.randn(IMAGES, 1, 4, 4), torch.zeros(IMAGES, TOKENS, WIDTH), schedule)
    assert (network.cond_rows, network.uncond_rows) == (STEPS * IMAGES, 0)
    network = Network()
    ddim_inversion(network, torch.randn(IMAGES, 1, 4, 4), torch.zeros(IMAGES, TOKENS, WIDTH), schedule, uncond=True)
    assert (network.cond_rows, network.uncond_rows) == (0, STEPS * IMAGES)


RULES = {"adam": Adam(0.05), "secant": Secant(), "secant_memory": SecantMemory()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.mark.parametrize(
    "rule, forwards", [(RULES["adam"], 1), (RULES["secant"], 1), (RULES["secant_memory"], 2)], ids=RULES
)
def test_cost_is_one_uncond_and_one_cond_and_an_updates_forwards(problem, schedule, rule, forwards):
    untuned = tune(Network(), problem, schedule, iterations=0)
    for stop in (StopRule(0.0, 0.0), StopRule(float(untuned.losses[2].mean()), 0.0)):
        network = Network()
        found = tune(network, problem, schedule, stop=stop, rule=rule)
        assert network.uncond_rows == STEPS * IMAGES
        assert network.cond_rows == int((forwards * found.updates + 1).sum())
        # The last forward of a step is never differentiated.
        assert network.gradient_rows <= int(found.updates.sum()) + int((found.updates < 4).sum())
    assert len(set(found.updates.flatten().tolist())) > 1, "images must stop at different times here"


@every_rule
def test_saved_embedding_is_the_one_that_made_the_latent(problem, schedule, rule):
    pivots, target, negative = problem
    found = tune(Network(), problem, schedule, rule=rule)
    network = Network()
    for i in range(STEPS):
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        x = found.latents[i] * schedule.scale(i)
        cond, uncond = network(x, sigma, cond=found.embeddings[i], uncond=negative)
        z = (x + (sigma_next - sigma) * (uncond + 7.5 * (cond - uncond))) / schedule.scale(i + 1)
        torch.testing.assert_close(z, found.latents[i + 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            (z - pivots[i + 1]).square().flatten(1).mean(1), found.losses[i], rtol=1e-4, atol=1e-9
        )


def test_adam_is_the_papers_loop(problem, schedule):
    """Against method.md written out: a fresh torch Adam a step over one image, the loss's mean, test before update."""
    pivots, target, negative = problem
    stop = StopRule(0.01, 0.002)
    found = tune(Network(), problem, schedule, stop=stop, rule=Adam(0.02))
    network = Network()
    for b in range(IMAGES):
        z, e = pivots[0, b : b + 1], target[b : b + 1].clone()
        for i in range(STEPS):
            sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
            x = z * schedule.scale(i)
            uncond = network.eps(x, sigma, negative[b : b + 1])
            e = e.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([e], lr=0.02)
            for j in range(5):
                eps = uncond + 7.5 * (network.eps(x, sigma, e) - uncond)
                z_next = (x + (sigma_next - sigma) * eps) / schedule.scale(i + 1)
                loss = (z_next - pivots[i + 1, b : b + 1]).square().mean()
                if loss <= 0.01 + 0.002 * i or j == 4:
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            assert found.updates[i, b] == j
            torch.testing.assert_close(found.embeddings[i, b], e[0].detach(), rtol=1e-4, atol=1e-5)
            z = z_next.detach()
            torch.testing.assert_close(found.latents[i + 1, b], z[0], rtol=1e-4, atol=1e-5)


def test_gradient_is_that_of_finite_differences(problem, schedule):
    """What a rule differentiates, coordinate by coordinate, in float64."""
    problem = tuple(value.double() for value in problem)

    class Checks(Adam):
        checked = 0

        def __call__(self, step, embedding, memory):
            rows = list(range(IMAGES))
            e = embedding.clone().requires_grad_()
            r = step.residual(e, rows, gradient=True)
            gradient = torch.autograd.grad(r, e, r.detach())[0] * 2 * step.weight / r[0].numel()
            loss = lambda e: step.losses(step.residual(e, rows, gradient=False)).sum()  # noqa: E731
            for place in ((0, 0, 0), (1, 1, 3), (1, 2, 2)):
                nudge = torch.zeros_like(embedding)
                nudge[place] = 1e-6
                assert float(gradient[place]) == pytest.approx(
                    float(loss(embedding + nudge) - loss(embedding - nudge)) / 2e-6, rel=1e-5
                )
                Checks.checked += 1
            return super().__call__(step, embedding, memory)

    tune(Network(torch.float64), problem, schedule, rule=Checks(0.05))
    assert Checks.checked == 3 * STEPS


class ThroughHalf(torch.autograd.Function):
    """Nothing on the way forward; float16 on the way back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().to(gradient.dtype)


def test_float16_on_the_way_back_loses_nothing(schedule, monkeypatch):
    """Gradients pass through float16, at an error well below the default threshold: Adam gets the float64 one."""
    import baret_ops.inversions.step_rules

    recorded = []

    class Recording(torch.optim.Adam):
        def step(self):
            recorded.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]))
            super().step()

    monkeypatch.setattr(baret_ops.inversions.step_rules.torch.optim, "Adam", Recording)
    generator = torch.Generator().manual_seed(2)
    of_text = torch.randn(TOKENS * WIDTH, 4 * 64 * 64, generator=generator) * 1e-2

    class Half(Network):
        def eps(self, x, sigma, e):
            out = (torch.sin(e.flatten(1)).to(of_text.dtype) @ of_text).view_as(x)
            return ThroughHalf.apply(out) if self.half else out

    target, negative = torch.randn(2, 1, TOKENS, WIDTH, generator=generator)
    latent = torch.randn(1, 4, 64, 64, generator=generator)
    network = Half()
    network.half = False
    pivots = ddim_inversion(network, latent, target, schedule)
    pivots[1] = ttis(
        network, pivots, target, negative, schedule, guidance_scale=7.5, rule=Adam(), iterations=0
    ).latents[1] + 1e-4 * torch.randn(latent.shape, generator=generator)
    for half in (True, False):
        network.half = half
        recorded.clear()
        ttis(
            network,
            pivots,
            target,
            negative,
            schedule,
            guidance_scale=7.5,
            rule=Adam(),
            iterations=1,
            stop=StopRule(0.0, 0.0),
        )
        if half:
            through_half = recorded[0]
    assert (through_half - recorded[0]).norm() < 0.01 * recorded[0].norm()
    sigma, sigma_next = float(schedule.sigmas[0]), float(schedule.sigmas[1])
    e = target.double().requires_grad_()
    of_text = of_text.double()
    x = pivots[0].double() * schedule.scale(0)
    uncond = network.eps(x, sigma, negative.double())
    z = (x + (sigma_next - sigma) * (uncond + 7.5 * (network.eps(x, sigma, e) - uncond))) / schedule.scale(1)
    (wanted,) = torch.autograd.grad((z - pivots[1].double()).square().mean(), e)
    assert (recorded[0].double() - wanted.flatten()).norm() < 0.01 * wanted.norm(), "and it is the gradient of the mean"


@every_rule
@pytest.mark.parametrize("skip_finished", [True, False])
def test_each_image_is_a_problem_of_its_own(problem, schedule, skip_finished, rule):
    pivots, target, negative = (
        value.double() for value in problem
    )  # in float32 a rule may turn rounding noise into another path
    problem, network = (pivots, target, negative), Network(torch.float64)
    stop = StopRule(float(tune(network, problem, schedule, iterations=0).losses[2].mean()), 0.0)
    together = tune(network, problem, schedule, stop=stop, skip_finished=skip_finished, rule=rule)
    assert len(set(together.updates.flatten().tolist())) > 1, "images must stop at different times here"
    for b in range(IMAGES):
        one = slice(b, b + 1)
        alone = tune(network, (pivots[:, one], target[one], negative[one]), schedule, stop=stop, rule=rule)
        assert torch.equal(together.updates[:, one], alone.updates)
        torch.testing.assert_close(together.latents[:, one], alone.latents, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.embeddings[:, one], alone.embeddings, rtol=1e-4, atol=1e-5)


def test_threshold_grows_with_the_step_and_stops_before_any_update(problem, schedule):
    found = tune(Network(), problem, schedule, stop=StopRule(1e9, 0.0))
    assert found.updates.sum() == 0 and torch.equal(found.embeddings, problem[1].expand_as(found.embeddings))
    assert StopRule()(0) == 1e-5 and StopRule()(49) == pytest.approx(1e-5 + 49 * 2e-5)


def test_nan_stops_the_run_and_says_where(problem, schedule):
    class Breaks(Network):
        def eps(self, x, sigma, e):
            return super().eps(x, sigma, e) * (float("nan") if sigma < 1.0 else 1.0)

    step = next(i for i in range(STEPS) if schedule.sigmas[i] < 1.0)
    with pytest.raises(NotFinite, match=f"in the tuning at step {step} of {STEPS}.*lower learning_rate"):
        tune(Breaks(), problem, schedule)
    with pytest.raises(NotFinite, match="in the inversion at step"):
        ddim_inversion(Breaks(), problem[0][-1], problem[1], schedule)
    with pytest.raises(NotFinite, match="in the tuning at step 0"):
        tune(Network(), problem, schedule, rule=Adam(float("inf")))


def test_eta_falls_linearly():
    eta = eta_schedule(0.8, 0.1, 50)
    torch.testing.assert_close(eta, torch.tensor([0.8 - 0.7 * i / 49 for i in range(50)]))
    tuned, target = torch.randn(2, 2, 3, 4)
    assert torch.equal(blend(tuned, target, 1.0), tuned) and torch.equal(blend(tuned, target, 0.0), target)
    torch.testing.assert_close(blend(tuned, target, 0.3), 0.3 * tuned + 0.7 * target)
    for bad in ((1.2, 0.1), (0.8, -0.1)):
        with pytest.raises(ValueError, match="lies from 0"):
            eta_schedule(*bad, 5)


@pytest.mark.parametrize(
    "tau, steps, wanted",
    [(0.3, 50, 15), (0.6, 50, 30), (0.25, 10, 3), (0.0, 50, 0), (1.0, 7, 7), (0.05, 10, 1), (0.04, 10, 0)],
)
def test_injected_steps_round_half_up(tau, steps, wanted):
    assert injected_steps(tau, steps) == wanted


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(ValueError, match="tau_sa is .* lies from 0"):
        injected_steps(tau, 50, "tau_sa")


def test_the_core_needs_no_host():
    """In a Python of its own, where nothing of the host or of the pack can be imported."""
    code = (
        "import importlib.util as u, pkgutil, sys; root = sys.argv[1];"
        "spec = u.spec_from_file_location('baret_ops', root + '/__init__.py', submodule_search_locations=[root]);"
        "sys.modules['baret_ops'] = u.module_from_spec(spec);"
        "[__import__(m.name) for m in pkgutil.walk_packages([root], 'baret_ops.')];"
        "assert 'baret_ops.edits.bam' in sys.modules;"
        "assert not {'comfy', 'nodes', 'folder_paths'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2] / "baret_ops"
    subprocess.run([sys.executable, "-I", "-c", code, str(root)], check=True)
