"""The balanced attention module (BAM): edits with attention from two other processes, one or many side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention import EDIT, RECONSTRUCTION, TRANSITION, Hooks
from ..predict import OnStep, Predict
from ..values import Embeddings, Trajectory, require_match
from .auto_mask import edit_mask, noise_difference
from .plan import Dials, Entry, Plan, Process, distinct, plan_step
from .region import EVERYWHERE, Region, dilated, otsu, renoised, whole
from .sampling import guided_step

Watch = Callable[[int, dict[str, int]], Hooks | None]
"""``watch(i, places)``, called before each step with the places of the reconstruction and of the first transition among
the forward's processes (the first edit is 0); both then run at every step. Returns its hooks for the forward."""


def transition_is_reconstruction(trajectory: Trajectory, embeddings: Embeddings, guidance_scale: float) -> bool:
    """Whether the transition repeats the reconstruction: eta 1, and the guidance that it was made at."""
    same_guidance = trajectory.is_direct or guidance_scale == trajectory.guidance_scale
    return embeddings.is_rigid and same_guidance


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits with one transition and different dials, on their way through the steps.

    dials: of each edit.
    transition: the transition's latent ``[B,C,h,w]``, VP form, as long as anything borrows from it.
    latents: the edits' by the dials they have followed so far. Edits that have followed the same ones are one until
        they part, so that N steps of many edits cost less than N times as many.
    masks: where each was let differ at its last step, ``[1 or B,1,h,w]`` in 0..1, None everywhere.
    """

    embeddings: Embeddings
    dials: tuple[Dials, ...]
    transition: Tensor
    latents: dict[Dials, Tensor]
    masks: dict[Dials, Tensor | None]

    @classmethod
    def begin(
        cls,
        trajectory: Trajectory,
        embeddings: Embeddings,
        dials: Iterable[Dials],
        start: Tensor | None = None,
    ) -> Edits:
        """Edits at the picture's noise, or at ``start [B,C,h,w]`` in its place. Raises ValueError for a misfit."""
        require_match(trajectory, embeddings)
        dials, noise = tuple(dials), trajectory.pivots[0]
        latents = dict.fromkeys(distinct(dials, 0), noise if start is None else start)
        return cls(embeddings, dials, noise, latents, masks=dict.fromkeys(latents))

    def to(self, device: torch.device) -> Edits:
        """These edits with their tensors on a device."""
        return replace(
            self,
            embeddings=self.embeddings.to(device),
            transition=self.transition.to(device),
            latents={dials: latent.to(device) for dials, latent in self.latents.items()},
        )

    def results(self) -> list[Tensor]:
        """The edited latents ``[B,C,h,w]`` after the last step, VP form, in the order of the dials."""
        return [self.latents[dials] for dials in self.dials]


@torch.no_grad()
def advance(
    predict: Predict,
    trajectory: Trajectory,
    many: list[Edits],
    steps: range,
    *,
    guidance_scale: float = 7.5,
    region: Region = EVERYWHERE,
    uncond_too: bool = False,
    max_tokens: int | None = None,
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> list[Edits]:
    """Take edits through ``steps`` side by side; see :func:`bam` and :func:`.plan.plan_step`.

    guidance_scale: w of all edits and their transitions. region: where they may differ from the picture.
    on_step: reports the edits side by side, from left to right. watch: see :data:`Watch`. Raises NotFinite.
    """
    schedule, images, device = trajectory.schedule, trajectory.images, trajectory.pivots.device
    many, region = [edits.to(device) for edits in many], region.to(device)
    entries = [
        Entry(edits.dials, transition_is_reconstruction(trajectory, edits.embeddings, guidance_scale)) for edits in many
    ]
    for i in steps:
        plan = plan_step(i, entries, watched=watch is not None)
        z = torch.cat([_latent_of(process, i, many, trajectory) for process in plan.processes])
        texts = torch.cat([_text_of(process, i, many) for process in plan.processes])
        negative = many[0].embeddings.negative_at(i)
        hooks = None if watch is None else watch(i, _watched(plan))

        x, sigma, rows = schedule.to_sampler(z, i), schedule.sigma(i), plan.guided * images
        how = {"sharing": plan.sharing(max_tokens, uncond_too), "hooks": hooks}
        if uncond_too or plan.guided == len(plan.processes):
            negatives = negative.repeat(len(plan.processes), 1, 1)
            eps_cond, eps_uncond = predict(x, sigma, cond=texts, uncond=negatives, **how)
        else:
            # What only lends has no unconditional row.
            eps_cond, _ = predict(x, sigma, cond=texts, **how)
            _, eps_uncond = predict(x[:rows], sigma, uncond=negative.repeat(plan.guided, 1, 1))
        arrived, clean = guided_step(schedule, i, z[:rows], eps_cond[:rows], eps_uncond[:rows], guidance_scale)

        moved = _Moved(list(arrived.split(images)), list(clean.split(images)), [None] * plan.guided)
        for place, process in enumerate(plan.processes):
            if process.role == EDIT:
                moved.keep_outside(region, place, i, trajectory)
        many = [moved.of(number, edits, plan) for number, edits in enumerate(many)]
        if on_step is not None:
            edits = sum(process.role == EDIT for process in plan.processes)
            on_step(i, torch.cat(moved.clean[:edits], -1), torch.cat(moved.latents[:edits], -1))
    return many


@dataclass(eq=False)
class _Moved:
    """Where the guided processes of a plan have arrived: latents, predicted clean latents and the edits' masks."""

    latents: list[Tensor]
    clean: list[Tensor]
    masks: list[Tensor | None]

    def keep_outside(self, region: Region, place: int, i: int, trajectory: Trajectory) -> None:
        """Keep the pivot outside the region that a process may change."""
        self.masks[place] = mask = region.at(i, self.clean[place], trajectory)
        if mask is not None:
            self.latents[place] = torch.lerp(trajectory.pivots[i + 1], self.latents[place], mask)

    def of(self, number: int, edits: Edits, plan: Plan) -> Edits:
        """An entry's edits after the step."""
        latents, masks, transition = {}, {}, edits.transition
        for place, process in enumerate(plan.processes[: plan.guided]):
            if process.entry != number:
                continue
            if process.role == TRANSITION:
                transition = self.latents[place]
            else:
                latents[process.dials], masks[process.dials] = self.latents[place], self.masks[place]
        return replace(edits, transition=transition, latents=latents, masks=masks)


def _latent_of(process: Process, i: int, many: list[Edits], trajectory: Trajectory) -> Tensor:
    """Where a process stands before step i, ``[B,C,h,w]``."""
    if process.role == RECONSTRUCTION:
        return trajectory.latents[i]
    edits = many[process.entry]
    return edits.transition if process.role == TRANSITION else edits.latents[process.dials.followed(i)]


def _text_of(process: Process, i: int, many: list[Edits]) -> Tensor:
    """The text of a process at step i, ``[B,T,D]``."""
    embeddings = many[process.entry].embeddings
    if process.role == RECONSTRUCTION:
        return embeddings.tuned[i]
    return embeddings.transition(i) if process.role == TRANSITION else embeddings.target


def _watched(plan: Plan) -> dict[str, int]:
    """Where the reconstruction and the first transition stand, which may be one."""
    reconstruction = plan.places(RECONSTRUCTION)[0]
    return {RECONSTRUCTION: reconstruction, TRANSITION: plan.places(TRANSITION).get(0, reconstruction)}


def renoised_start(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    amount: float,
    mask: Tensor | None,
    seed: int,
) -> Tensor:
    """Where an edit starts whose old layout is to let go, ``[B,C,h,w]``: fresh noise where it may change.

    That is the mask, or without one where the text asks for something else (:func:`.auto_mask.noise_difference` above
    Otsu's threshold, two cells wider), which costs 16 row-forwards an image. See :func:`.region.renoised`.
    """
    if mask is None:
        difference = noise_difference(predict, trajectory, embeddings)
        mask = dilated((difference > otsu(difference)).to(difference), 2)
    return renoised(trajectory.pivots[0], amount, mask, seed)


@torch.no_grad()
def bam(
    predict: Predict,
    trajectory: Trajectory,
    embeddings: Embeddings,
    *,
    tau_sa: float = 0.3,
    tau_ca: float = 0.6,
    appearance: float = 0.0,
    mask: Tensor | None = None,
    auto_mask: float = 0.0,
    change_mask: float = 0.0,
    renoise: float = 0.0,
    seed: int = 0,
    guidance_scale: float = 7.5,
    **how,
) -> tuple[Tensor, Tensor]:
    """Sample the edit (paper, Eq. 4 and 5).

    For the first ``tau_sa`` of the steps the edit's self-attention takes Q and K from the reconstruction, for the
    first ``tau_ca`` its cross-attention takes them from the transition; V stays its own. The reconstruction
    repeats what TTIS did, so it costs one conditional row-forward a step and only while it lends; the transition costs
    two while it lends, and none beside the reconstruction where it is the reconstruction (eta 1 at the tuned guidance).

    Beyond the paper, all off at 0:
    appearance: for the last share of the steps self-attention takes K and V from the reconstruction, which is what
        things look like. With Q and K lent as well at a step, it is the reconstruction's attention.
    mask: ``[1 or B,1,h,w]`` in 0..1; outside it the pivots are kept at every step. auto_mask: see :func:`edit_mask`.
    change_mask: threshold below which a change is none, and the pivots are kept (:func:`.region.change_mask`).
    renoise: share of fresh noise, by ``seed``, where the picture may change (:func:`renoised_start`).
    how: for :func:`advance`: uncond_too: share in the unconditional pass as well; max_tokens: no
        sharing in blocks of more tokens; on_step; watch.
    Returns the edited latent ``[B,C,h,w]``, VP form, and where it was let differ at the last step, ``[B,1,h,w]`` in
    0..1. Raises ValueError for a misfit, NotFinite.
    """
    require_match(trajectory, embeddings)
    steps, device = trajectory.schedule.steps, trajectory.pivots.device
    mask = edit_mask(predict, trajectory, embeddings, None if mask is None else mask.to(device), auto_mask)
    start = renoised_start(predict, trajectory, embeddings, renoise, mask, seed) if renoise else None
    dials = Dials.of(steps, tau_sa, tau_ca, appearance)
    begun = Edits.begin(trajectory, embeddings, [dials], start)
    region = Region(mask, change_mask)
    (edits,) = advance(predict, trajectory, [begun], range(steps), guidance_scale=guidance_scale, region=region, **how)
    return edits.results()[0], whole(edits.masks[dials], trajectory.pivots[0])
