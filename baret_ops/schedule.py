"""The noise levels of a run, the two forms of a latent, and the deterministic DDIM step between levels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .schema import SCHEDULE, TIME, require_shapes
from .wording import shortened


@dataclass(frozen=True, eq=False)
class Schedule:
    """The N + 1 levels of a run, noisiest first, and the way between them.

    A latent is held in variance-preserving form, ``z``; models and samplers take ``x = z * sqrt(1 + sigma**2)``. The
    two forms meet here and nowhere else.

    timesteps: N >= 2 ints, the times ``t_i`` at which the model is asked, falling.
    sigmas: ``[N+1]`` float64 on the CPU, ``sigma**2 = (1 - alpha_bar) / alpha_bar``, falling; the last is the
        level of the clean latent.

    Raises ValueError for anything else.
    """

    timesteps: tuple[int, ...]
    sigmas: Tensor

    def __post_init__(self):
        for time in self.timesteps:
            TIME.require("a time of the schedule", time)
        falling = all(time > after for time, after in zip(self.timesteps, self.timesteps[1:]))
        if self.steps < 2 or not falling:
            raise ValueError(f"the schedule has the times {shortened(self.timesteps)}; two or more that fall fit.")
        require_shapes(SCHEDULE, {"sigmas": self.sigmas.shape}, {"M": self.steps + 1})
        SCHEDULE["sigmas"].require_numbers("sigmas", self.sigmas)
        if not bool((self.sigmas[:-1] > self.sigmas[1:]).all()):
            raise ValueError("sigmas do not fall from level to level; a noise level lower than the one before fits.")

    @property
    def steps(self) -> int:
        """N, the number of sampling steps."""
        return len(self.timesteps)

    def sigma(self, level: int) -> float:
        """The noise level's sigma."""
        return float(self.sigmas[level])

    def scale(self, level: int) -> float:
        """``sqrt(1 + sigma**2)``: what turns ``z`` into ``x`` at this level."""
        return float((1.0 + self.sigmas[level] ** 2).sqrt())

    def to_sampler(self, z: Tensor, level: int) -> Tensor:
        """``x`` of a latent ``z`` at a level: the form that models and samplers take."""
        return z * self.scale(level)

    def step(self, z: Tensor, eps: Tensor, level: int, to: int) -> Tensor:
        """One DDIM step (eta 0) from a level to another, either way, in VP form (Song et al. 2020, eq. 12).

        z, eps: ``[B,C,h,w]``, the latent at ``level`` and the noise predicted in it.
        """
        return ddim_step(self.to_sampler(z, level), eps, self.sigma(level), self.sigma(to)) / self.scale(to)

    def noise_between(self, z: Tensor, level: int, z_to: Tensor, to: int) -> Tensor:
        """The noise with which :meth:`step` leads from ``z`` at ``level`` to ``z_to`` at ``to``."""
        way = self.to_sampler(z_to, to) - self.to_sampler(z, level)
        return way / (self.sigma(to) - self.sigma(level))

    def clean(self, z: Tensor, eps: Tensor, level: int) -> Tensor:
        """The clean latent that a predicted noise stands for: ``x - sigma * eps``."""
        return self.to_sampler(z, level) - self.sigma(level) * eps

    def same_levels(self, other: Schedule) -> bool:
        """Whether another schedule has the same times and, up to rounding, the same sigmas."""
        if self.timesteps != other.timesteps:
            return False
        return bool(((self.sigmas - other.sigmas).abs() <= 1e-6 * self.sigmas).all())


def make_schedule(table: Tensor, steps: int) -> Schedule:
    """SD1.5's own spacing (leading, offset 1) over a discrete sigma table.

    ``t_i = 1 + T * (N - 1 - i) // N`` with T the table's length, ending at ``sigma(0)``. Where N divides
    1000 these are the times of diffusers' DDIMScheduler with ``steps_offset=1``.

    table: ``[T]`` sigmas of times 0 .. T-1, rising.
    Raises ValueError unless ``2 <= steps <= T - 1``.
    """
    times = len(table)
    if not 2 <= steps <= times - 1:
        raise ValueError(f"steps is {steps}; this model's schedule allows 2 to {times - 1}.")
    timesteps = tuple(1 + times * (steps - 1 - i) // steps for i in range(steps))
    return Schedule(timesteps, table.detach().double().cpu()[[*timesteps, 0]].clone())


def ddim_step(x: Tensor, eps: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One DDIM step (eta 0) in x-form, either way: ``x + (sigma_next - sigma) * eps`` (Song et al. 2020, eq. 12)."""
    return x + (sigma_next - sigma) * eps


def guide(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance, ``eps_uncond + w * (eps_cond - eps_uncond)`` (Ho & Salimans 2021)."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)
