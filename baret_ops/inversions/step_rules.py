"""How one step of an inversion searches for its embedding: a rule is a pure callable, made once per run.

A step asks for the embedding ``e`` whose guided noise ``q(e)`` is the one that lands on the pivot. ``r = q(e) - goal`` is
the residual, and the loss is a constant times ``mean(r**2)``. The paper takes a few fixed-rate Adam steps on the loss. But ``r`` is nearly
linear in ``e`` over the distances that matter, so a step *length* can be measured instead of guessed (secant), and the directions
measured at earlier levels stay useful, since the Jacobian changes slowly from level to level (secant with memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """One step of an inversion over B images, as a rule sees it.

    predict: ``predict(e [A,T,D], rows)``: the guided noise ``[A,C,h,w]`` of the images ``rows`` with these embeddings.
    goal: ``[B,C,h,w]``, the guided noise that lands on the pivot.
    weight: ``loss = weight * mean(r**2)``, the mean squared distance to the pivot in VP form.
    threshold: an image whose loss is at most this is done. iterations: most updates an image.
    """

    predict: Callable[[Tensor, list[int]], Tensor]
    goal: Tensor
    weight: float
    threshold: float
    iterations: int

    def residual(self, embedding: Tensor, rows: list[int], gradient: bool) -> Tensor:
        """``r [A,C,h,w]`` of these embeddings; ``gradient`` says whether backward may follow."""
        with torch.set_grad_enabled(gradient):
            return self.predict(embedding, rows) - self.goal[rows]

    def losses(self, residual: Tensor) -> Tensor:
        return self.weight * residual.detach().square().flatten(1).mean(1)

    def unfinished(self, losses: Tensor) -> list[int]:
        """Which of ``losses [A]`` are neither done nor beyond help (not finite: the caller of the rule sees those)."""
        return [k for k, loss in enumerate(losses.tolist()) if self.threshold < loss < float("inf")]


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search: ``embedding [B,T,D]``, its ``residual [B,C,h,w]``, ``losses [B]``, the ``updates [B]`` spent, and ``memory``,
    whatever the rule wants to be given at the next step."""

    embedding: Tensor
    residual: Tensor
    losses: Tensor
    updates: Tensor
    memory: Any = None


class StepRule(Protocol):
    def __call__(self, step: Step, embedding: Tensor, memory: Any) -> Found:
        """Search from ``embedding [B,T,D]``; ``memory`` is the last step's, None at the first.

        The residual returned is that of the returned embedding: nothing is evaluated twice. The images are independent problems.
        """
        ...


@dataclass(frozen=True)
class Adam:
    """The paper's rule: a fresh Adam each step (default betas and eps), constant learning rate.

    decay: what share of the learning rate each step takes away. test_after: an image is done one update after the loss that is low enough, so that
    every step has one at least. Null-text inversion's rule is ``Adam(1e-2, 1 / (2 * N), True)`` (1e-2 (1 - i / 100) at its 50 steps).
    Memory: the number of steps so far.
    """

    learning_rate: float = 1e-3
    decay: float = 0.0
    test_after: bool = False

    def __call__(self, step: Step, embedding: Tensor, memory: int | None) -> Found:
        number = memory or 0
        # One parameter per image: Adam skips a parameter without gradient, so a finished image stays as it is
        # while the others go on, and no image's moments see another's gradient.
        images = [row.clone().requires_grad_() for row in embedding.detach().split(1)]
        optimizer = torch.optim.Adam(images, lr=self.learning_rate * (1.0 - self.decay * number))
        residual = torch.empty_like(step.goal)
        losses = embedding.new_zeros(len(images))
        updates = torch.zeros(len(images), dtype=torch.int64)

        active, last = list(range(len(images))), set()
        for j in range(step.iterations + 1):
            with torch.enable_grad():
                trial = torch.cat([images[b] for b in active])
            r = step.residual(trial, active, gradient=j < step.iterations and not last.issuperset(active))
            residual[active], losses[active] = r.detach(), step.losses(r)
            going = step.unfinished(losses[active])
            if self.test_after:
                done, going = (
                    {*active} - {active[k] for k in going},
                    [k for k, b in enumerate(active) if b not in last and losses[b].isfinite()],
                )
                last |= done
            if j == step.iterations or not going:
                break
            moving = [images[active[k]] for k in going]
            gradients = torch.autograd.grad(r, moving, r.detach())
            # The sum over pixels went backward, and the mean is restored here: a mean's gradient lies below float16's normal range.
            scale = 2 * step.weight / r[0].numel()
            optimizer.zero_grad(set_to_none=True)
            for image, gradient in zip(moving, gradients):
                image.grad = gradient * scale
            optimizer.step()
            active = [active[k] for k in going]
            updates[active] += 1

        return Found(torch.cat(images).detach(), residual, losses, updates, number + 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image's row: ``[A,..], [A,..] -> [A]``."""
    return (a * b).flatten(1).sum(1)


def _times(factor: Tensor, rows: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (rows.ndim - 1)) * rows


def _limited(length: Tensor, embedding: Tensor, gradient: Tensor) -> Tensor:
    """A step length ``[A]``: ``0.01 |e| / |g|`` where none is known yet (NaN), and never more than ``0.1 |e| / |g|``."""
    scale = (_dot(embedding, embedding) / _dot(gradient, gradient)).sqrt()
    return torch.minimum(torch.where(length.isnan(), 0.01 * scale, length), 0.1 * scale)


def _measured(length: Tensor, used: Tensor, residual: Tensor, change: Tensor) -> Tensor:
    """The length ``[A]`` that would have been best where a step of length ``used`` changed ``residual`` by ``change``; within 0.2 to 3 times
    what was used, unless nothing was known before (``length`` NaN)."""
    best = -used * _dot(residual, change) / _dot(change, change)
    return torch.where(length.isnan() & (best > 0), best, best.clamp(0.2 * used, 3 * used))


@dataclass(frozen=True)
class Secant:
    """Steepest descent whose step length was measured at the last update (no learning rate).

    An update goes along ``J^T r`` by the remembered length, and the change of the residual tells the length that would have been best, which is
    what is remembered. An update that makes the residual larger is taken back. Memory: the lengths ``[B]``, NaN where unknown.
    """

    def __call__(self, step: Step, embedding: Tensor, memory: Tensor | None) -> Found:
        rows = accepted = active = list(range(len(embedding)))
        lengths = embedding.new_full([len(rows)], float("nan")) if memory is None else memory.clone()
        updates = torch.zeros(len(rows), dtype=torch.int64)
        trial = embedding.detach().clone().requires_grad_(step.iterations > 0)
        r = step.residual(trial, rows, gradient=step.iterations > 0)
        embedding, gradient = trial.detach().clone(), torch.zeros_like(trial)
        residual, losses = r.detach().clone(), step.losses(r)

        for j in range(1, step.iterations + 1):
            active = [active[k] for k in step.unfinished(losses[active])]
            if not active:
                break
            moved = [k for k, b in enumerate(rows) if b in accepted and b in active]
            if moved:  # one that was taken back has its gradient still
                gradient[[rows[k] for k in moved]] = torch.autograd.grad(r, trial, r.detach())[0][moved]
            rows, last = active, j == step.iterations
            used = _limited(lengths[rows], embedding[rows], gradient[rows])
            trial = (embedding[rows] - _times(used, gradient[rows])).requires_grad_(not last)
            r = step.residual(trial, rows, gradient=not last)
            lengths[rows] = _measured(lengths[rows], used, residual[rows], r.detach() - residual[rows])
            found = step.losses(r)
            better = (found < losses[rows]).nonzero().flatten().tolist()
            accepted = [rows[k] for k in better]
            embedding[accepted], residual[accepted], losses[accepted] = (
                trial.detach()[better],
                r.detach()[better],
                found[better],
            )
            updates[rows] += 1

        return Found(embedding, residual, losses, updates, lengths)


@dataclass(frozen=True, eq=False)
class _Known:
    """What :class:`SecantMemory` has learnt about one image: pairs of a change of the embedding ``[T,D]`` and the change of the guided noise
    ``[C,h,w]`` it made, how much the pairs are mistrusted, and the step length along a gradient (scalars; the length NaN where unknown)."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    damping: Tensor
    length: Tensor

    def solve(self, residual: Tensor, fresh: tuple[tuple[Tensor, Tensor], ...] = ()) -> tuple[Tensor, Tensor]:
        """The step in the span of all pairs that shortens ``residual [C,h,w]`` most by least squares, and the change it should make.

        Pairs of earlier levels are damped in proportion to their length (Levenberg-Marquardt), ``fresh`` ones are taken at their word.
        """
        pairs = self.pairs + fresh
        if not pairs:
            return torch.zeros([]), torch.zeros([])
        moves, changes = (torch.stack([pair[k].flatten() for pair in pairs]) for k in (0, 1))
        # Small systems are solved on the CPU: not every device knows float64.
        gram, wanted, lengths = (
            part.double().cpu() for part in (changes @ changes.T, changes @ residual.flatten(), moves.square().sum(1))
        )
        trust = self.damping.double().cpu() * gram.trace() / lengths.sum() * lengths
        trust[len(self.pairs) :] = 0
        jitter = 1e-6 * gram.trace()  # two pairs may say nearly the same
        shares = torch.linalg.solve(gram + torch.diag(trust + jitter), -wanted).to(moves)
        return (shares @ moves).view_as(pairs[0][0]), (shares @ changes).view_as(residual)


@dataclass(frozen=True)
class SecantMemory:
    """:class:`Secant` that remembers the last ``keep`` changes it measured, at this and at earlier levels.

    An update takes the least-squares step in the span of what is remembered, sends the residual this should leave backward, probes along that
    gradient, and solves again with the probe among the pairs; the best of start, probe and solution is kept. One backward and two forwards an
    update, where :class:`Secant` has one of each. Memory: a :class:`_Known` for each image.
    """

    keep: int = 6
    damping: float = 0.3

    def __call__(self, step: Step, embedding: Tensor, memory: tuple[_Known, ...] | None) -> Found:
        rows = active = list(range(len(embedding)))
        unknown = _Known((), embedding.new_tensor(self.damping), embedding.new_tensor(float("nan")))
        known = [unknown] * len(rows) if memory is None else list(memory)
        updates = torch.zeros(len(rows), dtype=torch.int64)
        trial = embedding.detach().clone().requires_grad_(step.iterations > 0)
        r = step.residual(trial, rows, gradient=step.iterations > 0)
        embedding, residual, losses = trial.detach().clone(), r.detach().clone(), step.losses(r)

        for j in range(1, step.iterations + 1):
            active = [active[k] for k in step.unfinished(losses[active])]
            if not active:
                break
            # Backward goes through the last forward, even where another point was kept: the Jacobian is nearly the same there.
            seed, places = torch.zeros_like(r), [rows.index(b) for b in active]
            for place, b in zip(places, active):
                seed[place] = residual[b] + known[b].solve(residual[b])[1].to(residual)
            gradient, seed = torch.autograd.grad(r, trial, seed)[0][places], seed[places]
            rows, last = active, j == step.iterations
            start, start_residual = embedding[rows], residual[rows]

            lengths = torch.stack([known[b].length for b in rows])
            used = _limited(lengths, start, gradient)
            probe = start - _times(used, gradient)
            probed = step.residual(probe, rows, gradient=False)
            lengths = _measured(lengths, used, seed, probed - start_residual)
            fresh = [((move, change),) for move, change in zip(probe - start, probed - start_residual)]
            moves, changes = (
                torch.stack(part) for part in zip(*(known[b].solve(residual[b], fresh[k]) for k, b in enumerate(rows)))
            )

            trial = (start + moves).requires_grad_(not last)
            r = step.residual(trial, rows, gradient=not last)
            solved = r.detach()
            # How much of the promised decrease came says how far the pairs can be trusted.
            squares = [_dot(value, value) for value in (start_residual, solved, start_residual + changes)]
            kept = (squares[0] - squares[1]) / (squares[0] - squares[2])
            for k, b in enumerate(rows):
                damping = known[b].damping * torch.where(kept[k] > 0.75, 0.5, torch.where(kept[k] < 0.25, 3.0, 1.0))
                pairs = known[b].pairs + fresh[k] + ((moves[k], solved[k] - start_residual[k]),)
                known[b] = _Known(pairs[-self.keep :], damping.clamp(0.01, 30.0), lengths[k])
            for e, residuals in ((probe, probed), (trial.detach(), solved)):
                found = step.losses(residuals)
                better = (found < losses[rows]).nonzero().flatten().tolist()
                accepted = [rows[k] for k in better]
                embedding[accepted], residual[accepted], losses[accepted] = e[better], residuals[better], found[better]
            updates[rows] += 1

        return Found(embedding, residual, losses, updates, tuple(known))


STEP_RULES: dict[str, Callable[[float], StepRule]] = {
    "secant": lambda learning_rate: Secant(),
    "secant_memory": lambda learning_rate: SecantMemory(),
    "adam": Adam,
}
"""Rules by the name of the node's ``step_rule`` input, each made from the learning rate, which only the paper's uses."""
