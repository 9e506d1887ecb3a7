"""How one step of an inversion searches for its embedding: a rule is a pure callable, made once per run.

A step asks for the embedding ``e`` whose guided noise ``q(e)`` is the one that lands on the pivot. ``r = q(e) - goal``
is the residual, and the loss is a constant times ``mean(r**2)``. The paper takes a few fixed-rate Adam steps on the
loss. But ``r`` is nearly linear in ``e`` over the distances that matter, so a step *length* can be measured instead of
guessed (secant), and the directions measured at earlier levels stay useful, since the Jacobian changes slowly from
level to level (secant with memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TuningStep:
    """One step of an inversion over B images, as a rule sees it.

    predict: ``predict(e [A,T,D], rows)``: the guided noise ``[A,C,h,w]`` of the images ``rows`` with these embeddings.
    goal: ``[B,C,h,w]``, the guided noise that lands on the pivot.
    weight: ``loss = weight * mean(r**2)``, the mean squared distance to the pivot in VP form.
    threshold: an image whose loss is at most this is done.
    iterations: most updates an image.
    progress: share of the run's steps that lie behind, 0 at the first.
    """

    predict: Callable[[Tensor, list[int]], Tensor]
    goal: Tensor
    weight: float
    threshold: float
    iterations: int
    progress: float = 0.0

    def residual(self, embedding: Tensor, rows: list[int], gradient: bool) -> Tensor:
        """``r [A,C,h,w]`` of these embeddings; ``gradient`` says whether backward may follow."""
        with torch.set_grad_enabled(gradient):
            return self.predict(embedding, rows) - self.goal[rows]

    def losses(self, residual: Tensor) -> Tensor:
        """The loss of each image, ``[A]``."""
        return self.weight * residual.detach().square().flatten(1).mean(1)

    def unfinished(self, losses: Tensor) -> list[int]:
        """Which of ``losses [A]`` are neither done nor beyond help (not finite: the caller of the rule sees those)."""
        return [k for k, loss in enumerate(losses.tolist()) if self.threshold < loss < float("inf")]


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search.

    embedding: ``[B,T,D]``. residual: ``[B,C,h,w]``, that of the embedding. losses: ``[B]``. updates: ``[B]``, spent.
    memory: whatever the rule wants to be given at the next step.
    """

    embedding: Tensor
    residual: Tensor
    losses: Tensor
    updates: Tensor
    memory: Any = None


class StepRule(Protocol):
    def __call__(self, step: TuningStep, embedding: Tensor, memory: Any) -> Found:
        """Search from ``embedding [B,T,D]``; ``memory`` is the last step's, None at the first.

        The residual returned is that of the returned embedding: nothing is evaluated twice. The images are independent
        problems.
        """
        ...


# --- Adam, the paper's rule -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adam:
    """The paper's rule: a fresh Adam each step (default betas and eps), constant learning rate.

    fall: what share of the learning rate is gone at the end of the run, evenly over the steps.
    test_after: an image is done one update after the loss that is low enough, so that every step has one at least.
    Null-text inversion's rule is ``Adam(1e-2, fall=0.5, test_after=True)``: 1e-2 (1 - i / 100) at its 50 steps.
    """

    learning_rate: float = 1e-3
    fall: float = 0.0
    test_after: bool = False

    def __call__(self, step: TuningStep, embedding: Tensor, memory: None) -> Found:
        # One parameter per image: Adam skips a parameter without gradient, so a finished image stays as it is
        # while the others go on, and no image's moments see another's gradient.
        images = [row.clone().requires_grad_() for row in embedding.detach().split(1)]
        optimizer = torch.optim.Adam(images, lr=self.learning_rate * (1.0 - self.fall * step.progress))
        residual = torch.empty_like(step.goal)
        losses = embedding.new_zeros(len(images))
        updates = torch.zeros(len(images), dtype=torch.int64)

        active = list(range(len(images)))
        in_last_update: set[int] = set()
        for j in range(step.iterations + 1):
            with torch.enable_grad():
                trial = torch.cat([images[b] for b in active])
            may_go_on = j < step.iterations and not in_last_update.issuperset(active)
            r = step.residual(trial, active, gradient=may_go_on)
            residual[active], losses[active] = r.detach(), step.losses(r)

            going = [active[k] for k in step.unfinished(losses[active])]
            if self.test_after:
                done = set(active) - set(going)
                going = [b for b in active if b not in in_last_update and losses[b].isfinite()]
                in_last_update |= done
            if j == step.iterations or not going:
                break

            moving = [images[b] for b in going]
            gradients = torch.autograd.grad(r, moving, r.detach())
            # The sum over pixels went backward, and the mean is restored here: a mean's gradient lies below
            # float16's normal range.
            scale = 2 * step.weight / r[0].numel()
            optimizer.zero_grad(set_to_none=True)
            for image, gradient in zip(moving, gradients):
                image.grad = gradient * scale
            optimizer.step()
            active = going
            updates[active] += 1

        return Found(torch.cat(images).detach(), residual, losses, updates)


# --- measured step lengths --------------------------------------------------------------------------------------------


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image's row: ``[A,..], [A,..] -> [A]``."""
    return (a * b).flatten(1).sum(1)


def _times(factor: Tensor, rows: Tensor) -> Tensor:
    """Each image's row times its factor: ``[A], [A,..] -> [A,..]``."""
    return factor.view(-1, *[1] * (rows.ndim - 1)) * rows


def _limited(length: Tensor, embedding: Tensor, gradient: Tensor) -> Tensor:
    """A step length ``[A]``: ``0.01 |e| / |g|`` where none is known (NaN), and never more than ``0.1 |e| / |g|``."""
    scale = (_dot(embedding, embedding) / _dot(gradient, gradient)).sqrt()
    known = torch.where(length.isnan(), 0.01 * scale, length)
    return torch.minimum(known, 0.1 * scale)


def _measured(length: Tensor, used: Tensor, residual: Tensor, change: Tensor) -> Tensor:
    """The length ``[A]`` that would have been best where a step of length ``used`` changed ``residual`` by ``change``.

    Within 0.2 to 3 times what was used, unless nothing was known before (``length`` NaN).
    """
    best = -used * _dot(residual, change) / _dot(change, change)
    unbounded = length.isnan() & (best > 0)
    return torch.where(unbounded, best, best.clamp(0.2 * used, 3 * used))


@dataclass(eq=False)
class _Best:
    """The best point that a search has met: embedding ``[B,T,D]``, its residual ``[B,C,h,w]`` and losses ``[B]``."""

    embedding: Tensor
    residual: Tensor
    losses: Tensor

    def improve(self, step: TuningStep, rows: list[int], embedding: Tensor, residual: Tensor) -> list[int]:
        """Take over those of the images ``rows`` whose loss became less; return which."""
        found = step.losses(residual)
        better = (found < self.losses[rows]).nonzero().flatten().tolist()
        accepted = [rows[k] for k in better]
        self.embedding[accepted] = embedding[better]
        self.residual[accepted] = residual[better]
        self.losses[accepted] = found[better]
        return accepted


@dataclass(frozen=True)
class Secant:
    """Steepest descent whose step length was measured at the last update (no learning rate).

    An update goes along ``J^T r`` by the remembered length, and the change of the residual tells the length that would
    have been best, which is what is remembered. An update that makes the residual larger is taken back.
    Memory: the lengths ``[B]``, NaN where unknown.
    """

    def __call__(self, step: TuningStep, embedding: Tensor, memory: Tensor | None) -> Found:
        rows = accepted = active = list(range(len(embedding)))
        lengths = embedding.new_full([len(rows)], float("nan")) if memory is None else memory.clone()
        updates = torch.zeros(len(rows), dtype=torch.int64)
        trial = embedding.detach().clone().requires_grad_(step.iterations > 0)
        r = step.residual(trial, rows, gradient=step.iterations > 0)
        best = _Best(trial.detach().clone(), r.detach().clone(), step.losses(r))
        gradient = torch.zeros_like(best.embedding)

        for j in range(1, step.iterations + 1):
            active = [active[k] for k in step.unfinished(best.losses[active])]
            if not active:
                break
            # An image whose update was taken back has its gradient still.
            moved = [k for k, b in enumerate(rows) if b in accepted and b in active]
            if moved:
                gradient[[rows[k] for k in moved]] = torch.autograd.grad(r, trial, r.detach())[0][moved]
            del r, trial  # with their graph, before the next forward keeps its own

            rows, last = active, j == step.iterations
            used = _limited(lengths[rows], best.embedding[rows], gradient[rows])
            trial = (best.embedding[rows] - _times(used, gradient[rows])).requires_grad_(not last)
            r = step.residual(trial, rows, gradient=not last)
            lengths[rows] = _measured(lengths[rows], used, best.residual[rows], r.detach() - best.residual[rows])
            accepted = best.improve(step, rows, trial.detach(), r.detach())
            updates[rows] += 1

        return Found(best.embedding, best.residual, best.losses, updates, lengths)


# --- measured directions ----------------------------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]
"""A change of the embedding ``[T,D]`` and the change of the guided noise ``[C,h,w]`` that it made."""


@dataclass(frozen=True, eq=False)
class _Known:
    """What :class:`SecantMemory` has learnt about one image.

    pairs: what was measured, oldest first. damping: how much the pairs are mistrusted, a scalar tensor. length: the
    step length along a gradient, a scalar tensor, NaN where unknown.
    """

    pairs: tuple[Pair, ...]
    damping: Tensor
    length: Tensor

    def best_move(self, residual: Tensor, fresh: tuple[Pair, ...] = ()) -> Pair:
        """The step in the span of all pairs that shortens ``residual [C,h,w]`` most by least squares.

        Pairs of earlier levels are damped in proportion to their length (Levenberg-Marquardt), ``fresh`` ones are taken
        at their word. Returns the step and the change that it should make, zero without pairs.
        """
        pairs = self.pairs + fresh
        if not pairs:
            return torch.zeros([]), torch.zeros([])
        moves = torch.stack([move.flatten() for move, _ in pairs])
        changes = torch.stack([change.flatten() for _, change in pairs])
        gram = _on_cpu(changes @ changes.T)
        wanted = _on_cpu(changes @ residual.flatten())
        lengths = _on_cpu(moves.square().sum(1))
        trust = _on_cpu(self.damping) * gram.trace() / lengths.sum() * lengths
        trust[len(self.pairs) :] = 0
        jitter = 1e-6 * gram.trace()  # two pairs may say nearly the same
        shares = torch.linalg.solve(gram + torch.diag(trust + jitter), -wanted).to(moves)
        return (shares @ moves).view_as(pairs[0][0]), (shares @ changes).view_as(residual)

    def after(self, fresh: tuple[Pair, ...], kept: Tensor, length: Tensor, remembered: int) -> _Known:
        """With new pairs, and with the damping that the share ``kept`` of the promised decrease suggests."""
        distrust = torch.where(kept > 0.75, 0.5, torch.where(kept < 0.25, 3.0, 1.0))
        damping = (self.damping * distrust).clamp(0.01, 30.0)
        return _Known((self.pairs + fresh)[-remembered:], damping, length)


def _on_cpu(value: Tensor) -> Tensor:
    """A small value for the solver: on the CPU first, since not every device knows float64."""
    return value.cpu().double()


@dataclass(frozen=True)
class SecantMemory:
    """:class:`Secant` that remembers the last changes it measured, at this and at earlier levels.

    An update takes the least-squares step in the span of what is remembered, sends the residual this should leave
    backward, probes along that gradient, and solves again with the probe among the pairs; the best of start, probe and
    solution is kept. One backward and two forwards an update, where :class:`Secant` has one of each.
    remembered: most pairs an image. damping: how much pairs are mistrusted at first.
    Memory: a :class:`_Known` for each image.
    """

    remembered: int = 6
    damping: float = 0.3

    def __call__(self, step: TuningStep, embedding: Tensor, memory: tuple[_Known, ...] | None) -> Found:
        rows = active = list(range(len(embedding)))
        nothing = _Known((), embedding.new_tensor(self.damping), embedding.new_tensor(float("nan")))
        known = [nothing] * len(rows) if memory is None else list(memory)
        updates = torch.zeros(len(rows), dtype=torch.int64)
        trial = embedding.detach().clone().requires_grad_(step.iterations > 0)
        r = step.residual(trial, rows, gradient=step.iterations > 0)
        best = _Best(trial.detach().clone(), r.detach().clone(), step.losses(r))

        for j in range(1, step.iterations + 1):
            active = [active[k] for k in step.unfinished(best.losses[active])]
            if not active:
                break
            gradient, left = self._gradient(r, trial, rows, active, known, best)
            del r, trial  # with their graph, before the next forward keeps its own

            rows, last = active, j == step.iterations
            start, start_residual = best.embedding[rows], best.residual[rows]
            lengths = torch.stack([known[b].length for b in rows])
            used = _limited(lengths, start, gradient)
            probe = start - _times(used, gradient)
            probed = step.residual(probe, rows, gradient=False)
            lengths = _measured(lengths, used, left, probed - start_residual)

            probes: list[tuple[Pair, ...]] = [
                ((probe[k] - start[k], probed[k] - start_residual[k]),) for k in range(len(rows))
            ]
            solutions = [known[b].best_move(best.residual[b], probes[k]) for k, b in enumerate(rows)]
            moves = torch.stack([move for move, _ in solutions])
            promised = torch.stack([change for _, change in solutions])
            trial = (start + moves).requires_grad_(not last)
            r = step.residual(trial, rows, gradient=not last)
            solved = r.detach()

            before, after = _dot(start_residual, start_residual), _dot(solved, solved)
            hoped = _dot(start_residual + promised, start_residual + promised)
            kept = (before - after) / (before - hoped)
            for k, b in enumerate(rows):
                measured = (moves[k], solved[k] - start_residual[k])
                known[b] = known[b].after((*probes[k], measured), kept[k], lengths[k], self.remembered)
            best.improve(step, rows, probe, probed)
            best.improve(step, rows, trial.detach(), solved)
            updates[rows] += 1

        return Found(best.embedding, best.residual, best.losses, updates, tuple(known))

    @staticmethod
    def _gradient(
        r: Tensor, trial: Tensor, rows: list[int], active: list[int], known: list[_Known], best: _Best
    ) -> tuple[Tensor, Tensor]:
        """``J^T`` times the residual that the remembered pairs should leave, and that residual, of the active images.

        Backward goes through the last forward, even where another point was kept: the Jacobian is nearly the same
            there.
        """
        seed = torch.zeros_like(r)
        places = [rows.index(b) for b in active]
        for place, b in zip(places, active):
            _, promised = known[b].best_move(best.residual[b])
            seed[place] = best.residual[b] + promised.to(seed)
        (gradient,) = torch.autograd.grad(r, trial, seed)
        return gradient[places], seed[places]


# --- rules by name ----------------------------------------------------------------------------------------------------

Registry = dict[str, Callable[[float], StepRule]]

STEP_RULES: Registry = {
    "secant": lambda learning_rate: Secant(),
    "secant_memory": lambda learning_rate: SecantMemory(),
    "adam": Adam,
}
"""Rules by the name of the nodes' ``step_rule`` input, each made from the learning rate, which Adam alone uses."""

NULL_TEXT_RULES: Registry = {
    **STEP_RULES,
    "adam": lambda learning_rate: Adam(learning_rate, fall=0.5, test_after=True),
}
"""The same for null-text inversion, whose Adam is the published one."""
