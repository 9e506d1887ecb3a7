"""The schedule and the DDIM step against diffusers' schedulers, configured as SD1.5's."""

import pytest
import torch

from baret_ops.inversions.ddim import ddim_inversion
from baret_ops.schedule import Schedule, ddim_step, make_schedule

diffusers = pytest.importorskip("diffusers", reason="dev/test.py installs it")
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def alphas64():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0)


def table():
    alphas = alphas64()
    return ((1.0 - alphas) / alphas).sqrt()


def in_float64(scheduler):
    """diffusers accumulates its alphas in float32; whole paths are compared on the same ones."""
    scheduler.alphas_cumprod = alphas64()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if hasattr(scheduler, "initial_alpha_cumprod"):
        scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


@pytest.mark.parametrize("steps", [2, 4, 5, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_times_are_diffusers_where_steps_divide_the_table(steps):
    scheduler = diffusers.DDIMScheduler(**SD15, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    assert list(make_schedule(table(), steps).timesteps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [3, 7, 30, 143, 333, 999])
def test_other_step_counts_span_the_table(steps):
    schedule = make_schedule(table(), steps)
    assert schedule.steps == steps and schedule.timesteps[-1] == 1
    assert 1000 - 1000 / steps <= schedule.timesteps[0] <= 999
    gaps = [a - b for a, b in zip(schedule.timesteps, schedule.timesteps[1:])]
    assert max(gaps) - min(gaps) <= 1
    assert (schedule.sigmas[:-1] > schedule.sigmas[1:]).all() and schedule.sigmas[-1] == table()[0]


@pytest.mark.parametrize("steps", [-1, 0, 1, 1000])
def test_step_counts_without_a_schedule_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; this model's schedule allows 2 to 999"):
        make_schedule(table(), steps)


@pytest.mark.parametrize("step", [0, 1, 25, 49])
def test_single_steps_are_diffusers(step):
    """Both ways, in float32."""
    schedule = make_schedule(table(), 50)
    z, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
    forward = diffusers.DDIMScheduler(**SD15)
    forward.set_timesteps(50)
    wanted = forward.step(eps, schedule.timesteps[step], z).prev_sample
    sigma, sigma_next = (float(schedule.sigmas[k]) for k in (step, step + 1))
    got = ddim_step(z * schedule.scale(step), eps, sigma, sigma_next) / schedule.scale(step + 1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    backward = diffusers.DDIMInverseScheduler(**SD15)
    backward.set_timesteps(50)
    wanted = backward.step(eps, schedule.timesteps[step], z).prev_sample
    got = ddim_step(z * schedule.scale(step + 1), eps, sigma_next, sigma) / schedule.scale(step)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def network(z, t):
    """Some smooth noise prediction of a VP latent and a time."""
    return torch.tanh(z * (0.5 + t / 2000.0)) + 0.1 * z.roll(1, -1)


def test_whole_paths_are_diffusers():
    steps = 50
    schedule = make_schedule(table(), steps)
    times = {float(sigma): t for sigma, t in zip(schedule.sigmas, schedule.timesteps)}

    def predict(x, sigma, *, cond=None, uncond=None, sharing=None):
        return network(x / (1 + sigma**2) ** 0.5, times[sigma]), None

    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    path = [image]
    inverse = in_float64(diffusers.DDIMInverseScheduler(**SD15))
    inverse.set_timesteps(steps)
    for t in inverse.timesteps.tolist():
        path.append(inverse.step(network(path[-1], t), t, path[-1]).prev_sample)
    pivots = ddim_inversion(predict, image, torch.zeros(1, 1, 1), schedule)
    torch.testing.assert_close(pivots.flip(0), torch.stack(path), rtol=1e-10, atol=1e-10)

    z = pivots[0]
    scheduler = in_float64(diffusers.DDIMScheduler(**SD15))
    scheduler.set_timesteps(steps)
    wanted = z
    x = z * schedule.scale(0)
    for i, t in enumerate(schedule.timesteps):
        wanted = scheduler.step(network(wanted, t), t, wanted).prev_sample
        sigma, sigma_next = float(schedule.sigmas[i]), float(schedule.sigmas[i + 1])
        x = ddim_step(x, predict(x, sigma)[0], sigma, sigma_next)
    torch.testing.assert_close(x / schedule.scale(steps), wanted, rtol=1e-10, atol=1e-10)


def test_same_levels_sees_another_schedule():
    one, other = make_schedule(table(), 10), make_schedule(table(), 10)
    assert one.same_levels(other)
    assert not one.same_levels(make_schedule(table(), 5))
    assert not one.same_levels(Schedule(one.timesteps, one.sigmas * 1.01))
