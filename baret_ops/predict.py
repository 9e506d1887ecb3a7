"""What the core asks of a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .attention import Hooks, Sharing


class Predict(Protocol):
    """A noise prediction network behind one call.

    Rows are process-major: with B images and P processes row ``p * B + b`` is image b of process p, so a
    batch of one process is simply its B rows.
    """

    def __call__(
        self,
        x: Tensor,
        sigma: float,
        *,
        cond: Tensor | None = None,
        uncond: Tensor | None = None,
        sharing: Sharing | None = None,
        hooks: Hooks | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Predict the noise in ``x`` at level ``sigma``.

        x: ``[R,C,h,w]`` in x-form. cond, uncond: ``[R,T,D]`` embeddings of the conditional and of the
        unconditional pass; a pass whose embedding is None is not run.
        sharing: attention to share between the rows of a pass. hooks: what stands in the place of attentions.
        Returns ``(eps_cond, eps_uncond)``, each ``[R,C,h,w]`` float32 or None. Differentiable in ``cond``
        and ``uncond`` where gradients are enabled.
        """
        ...
