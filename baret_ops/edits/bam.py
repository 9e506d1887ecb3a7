"""The balanced attention module (BAM): sample the edit with attention from two other processes, one edit or many side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention import Hooks, Sharing
from ..inversions.tuning import OnStep
from ..predict import Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import auto_mask as find_mask
from .sampling import guided_step, injected_steps

Taus = tuple[int, int]
"""Numbers of steps, from the noisiest, with shared self- and with shared cross-attention."""

RECONSTRUCTION, TRANSITION = "reconstruction", "transition"


def transition_is_reconstruction(trajectory: Trajectory, embeddings: Embeddings, guidance_scale: float) -> bool:
    """Whether the transition repeats the reconstruction: eta 1 at the guidance that the reconstruction was made with."""
    return embeddings.is_rigid and (trajectory.is_direct or guidance_scale == trajectory.guidance_scale)


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits with one transition and different taus, on their way through the steps.

    taus: of each edit. transition: the transition's latent ``[B,C,h,w]``, VP form, as long as anything borrows from it.
    latents: the edits' by the taus they have followed so far. Edits that have followed the same ones are one until they part, so
    that N steps of many edits cost less than N times as many.
    """

    embeddings: Embeddings
    taus: tuple[Taus, ...]
    transition: Tensor
    latents: dict[Taus, Tensor]

    @classmethod
    def begin(cls, trajectory: Trajectory, embeddings: Embeddings, taus: Iterable[tuple[float, float]]) -> Edits:
        """Edits at the picture's noise, for pairs of ``(tau_sa, tau_ca)``. Raises ValueError for a misfit or a tau outside 0..1."""
        require_match(trajectory, embeddings)
        steps, start = trajectory.schedule.steps, trajectory.pivots[0]
        counts = tuple((injected_steps(sa, steps, "tau_sa"), injected_steps(ca, steps, "tau_ca")) for sa, ca in taus)
        return cls(embeddings, counts, start, {(0, 0): start})

    def to(self, device: torch.device) -> Edits:
        """These edits with their latents on a device."""
        return replace(
            self,
            transition=self.transition.to(device),
            latents={taus: latent.to(device) for taus, latent in self.latents.items()},
        )

    def followed(self, step: int) -> dict[Taus, None]:
        """The different taus that the edits have followed before a step, in the edits' order."""
        return dict.fromkeys((min(sa, step), min(ca, step)) for sa, ca in self.taus)

    def results(self) -> list[Tensor]:
        """The edited latents ``[B,C,h,w]`` after the last step, VP form, in the order of the taus."""
        return [self.latents[taus] for taus in self.taus]


@torch.no_grad()
def advance(
    predict: Predict,
    trajectory: Trajectory,
    many: list[Edits],
    steps: range,
    *,
    guidance_scale: float = 7.5,
    uncond_too: bool = False,
    max_tokens: int | None = None,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
    watch: Callable[[int, dict[str, int]], Hooks | None] | None = None,
) -> list[Edits]:
    """Take edits through ``steps`` side by side; see :func:`bam`. One reconstruction serves all, one transition all edits of an entry.

    on_step: reports the first edit. watch: called before each step with its number and the place of the reconstruction and
    of the first transition among the forward's processes (the first edit is 0); both then run at every step. Returns its hooks for the forward.
    Raises NotFinite.
    """
    schedule, images, device = trajectory.schedule, trajectory.images, trajectory.pivots.device
    many = [edits.to(device) for edits in many]
    rigid = [transition_is_reconstruction(trajectory, edits.embeddings, guidance_scale) for edits in many]
    mask = None if mask is None else mask.to(device)

    for i in steps:
        # The processes of this step, guided ones first: a lender that needs no guidance has no unconditional row.
        places = [(number, taus) for number, edits in enumerate(many) for taus in edits.followed(i + 1)]
        latents = [many[number].latents[min(sa, i), min(ca, i)] for number, (sa, ca) in places]
        texts = [many[number].embeddings.target.to(device) for number, _ in places]
        crossing = {number for number, (_, ca) in places if ca == i + 1}
        own = [number for number in range(len(many)) if not rigid[number] and (number in crossing or watch)]
        transitions = {number: len(latents) + place for place, number in enumerate(own)}
        latents += [many[number].transition for number in own]
        texts += [many[number].embeddings.transition(i).to(device) for number in own]
        guided = reconstruction = len(latents)
        sharing_self = any(sa == i + 1 for _, (sa, _) in places)
        if sharing_self or crossing - {*own} or watch:
            latents.append(trajectory.latents[i])
            texts.append(many[0].embeddings.tuned[i].to(device))
        lenders = range(len(places), len(latents))  # they keep what is theirs
        sharing = Sharing(
            processes=len(latents),
            self_from=(
                *(reconstruction if sa == i + 1 else place for place, (_, (sa, _)) in enumerate(places)),
                *lenders,
            )
            if sharing_self
            else None,
            cross_from=(
                *(
                    transitions.get(number, reconstruction) if ca == i + 1 else place
                    for place, (number, (_, ca)) in enumerate(places)
                ),
                *lenders,
            )
            if crossing
            else None,
            max_tokens=max_tokens,
            uncond=uncond_too,
        )
        how = {"sharing": sharing if sharing_self or crossing else None}
        if watch is not None:
            how["hooks"] = watch(i, {RECONSTRUCTION: reconstruction, TRANSITION: transitions.get(0, reconstruction)})

        x, sigma = torch.cat(latents) * schedule.scale(i), float(schedule.sigmas[i])
        cond = torch.cat(texts)
        negative = many[0].embeddings.negative_at(i).to(device)
        rows = guided * images
        if guided == len(latents) or uncond_too:
            eps_cond, eps_uncond = predict(x, sigma, cond=cond, uncond=negative.repeat(len(latents), 1, 1), **how)
        else:
            eps_cond, _ = predict(x, sigma, cond=cond, **how)
            _, eps_uncond = predict(x[:rows], sigma, uncond=negative.repeat(guided, 1, 1))
        z, denoised = guided_step(schedule, i, x[:rows], eps_cond[:rows], eps_uncond[:rows], guidance_scale)
        moved = z.split(images)
        edited = moved[: len(places)]
        if mask is not None:
            edited = [torch.lerp(trajectory.pivots[i + 1], edit, mask) for edit in edited]
        many = [
            replace(
                edits,
                transition=moved[transitions[number]] if number in transitions else edits.transition,
                latents={taus: edit for (owner, taus), edit in zip(places, edited) if owner == number},
            )
            for number, edits in enumerate(many)
        ]
        if on_step is not None:
            on_step(i, denoised[:images], edited[0])
    return many


def edit_mask(
    predict: Predict, trajectory: Trajectory, embeddings: Embeddings, mask: Tensor | None, auto_mask: float
) -> Tensor | None:
    """The given mask, multiplied with the one that is found from the text where ``auto_mask``, its threshold, is above 0 (:mod:`.auto_mask`)."""
    if not auto_mask:
        return mask
    found = find_mask(predict, trajectory, embeddings, auto_mask)
    return found if mask is None else mask.to(found.device) * found


def bam(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    *,
    tau_sa: float = 0.3,
    tau_ca: float = 0.6,
    mask: Tensor | None = None,
    auto_mask: float = 0.0,
    **how,
) -> Tensor:
    """Sample the edit (paper, Eq. 4 and 5).

    For the first ``tau_sa`` of the steps the edit's self-attention takes Q and K from the reconstruction, for the
    first ``tau_ca`` its cross-attention takes them from the transition; V stays its own. The reconstruction
    repeats what TTIS did, so it costs one conditional row-forward a step and only while it lends; the transition costs two
    while it lends, and none beside the reconstruction where it is the reconstruction (eta 1 at the tuned guidance).

    mask: ``[B,1,h,w]`` in 0..1; outside it the pivots are kept at every step. auto_mask: see :func:`edit_mask`.
    how: for :func:`advance`: guidance_scale; uncond_too: share in the unconditional pass as well; max_tokens: no sharing in
    blocks of more tokens; on_step; watch.
    Returns the edited latent ``[B,C,h,w]``, VP form. Raises ValueError for a misfit, NotFinite.
    """
    edits = Edits.begin(trajectory, embeddings, [(tau_sa, tau_ca)])
    mask = edit_mask(predict, trajectory, embeddings, mask, auto_mask)
    (edits,) = advance(predict, trajectory, [edits], range(trajectory.schedule.steps), mask=mask, **how)
    return edits.results()[0]
