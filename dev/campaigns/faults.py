"""Errors and Cancel in the middle of a run: afterwards the model is as it was, and so is the next result."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import in_process
import torch

from . import Report

STEPS, SIDE = 3, 64
CAPTION, TARGET = "a red dog sitting in the grass", "a blue dog sitting in the grass"
Run = Callable[[], tuple]


class Fault(RuntimeError):
    """An error of no kind that anybody expects."""


KINDS: dict[str, Callable[[], BaseException]] = {
    "out of memory": lambda: torch.cuda.OutOfMemoryError("out of memory, as a card says it"),
    "error": lambda: Fault("a fault"),
    "Ctrl-C": KeyboardInterrupt,
}
BACKWARD = "error on the way back"


# --- runs -------------------------------------------------------------------------------------------------------------


def runs(pack: in_process.Pack) -> tuple[object, dict[str, Run]]:
    """The drawn world's MODEL, and a short run of every node that samples, by its name. A run gives its tensors."""
    model, clip, vae, _ = pack.call("BaretWorldLoader")
    picture, _, _ = pack.call("BaretWorldScene", seed=1)
    stock = in_process.call_stock
    (text,), (target,), (empty,) = (stock("CLIPTextEncode", clip=clip, text=each) for each in (CAPTION, TARGET, ""))
    (latent,) = stock("VAEEncode", vae=vae, pixels=picture[:, :SIDE, :SIDE])

    def call(node_id: str, **inputs) -> tuple:
        return pack.call(node_id, model=model, **inputs)

    pictures = {"negative": empty, "latent": latent, "steps": STEPS}
    source = call("BaretInversion", positive=text, **pictures)[:2]
    tuned = call("BaretTTISInversion", positive=target, iterations=1, **pictures)[:2]
    of_text = dict(zip(("trajectory", "embeddings"), source))
    of_target = dict(zip(("trajectory", "embeddings"), tuned))
    (moving,) = pack.call("BaretTransitionEmbedding", embeddings=tuned[1])
    edit = {"trajectory": tuned[0], "embeddings": moving}
    texts = {"clip": clip, "target_text": TARGET, **of_text}
    longer = {**pictures, "iterations": 2, "stop_threshold": 0.0, "stop_growth": 0.0}
    found: dict[str, Run] = {
        "TTIS, adam": partial(call, "BaretTTISInversion", positive=target, step_rule="adam", **longer),
        "TTIS, secant": partial(call, "BaretTTISInversion", positive=target, **longer),
        "null-text": partial(call, "BaretNullTextInversion", positive=text, **longer),
        "direct": partial(call, "BaretInversion", positive=text, **pictures),
        "BAM": partial(call, "BaretBAMEdit", appearance=0.5, auto_mask=0.02, **edit),
        "Auto Edit": partial(call, "BaretAutoEdit", seed=1, effort=1, **of_target),
        "prompt-to-prompt": partial(
            call, "BaretPromptToPromptEdit", source_text=CAPTION, blend_words="dog", blend_start=0.0, **texts
        ),
        "MasaCtrl": partial(
            call, "BaretMasaCtrlEdit", start_step=0, first_block=3, source_text=CAPTION, foreground_words="dog", **texts
        ),
        "maps": partial(call, "BaretAttentionMaps", clip=clip, vae=vae, text=TARGET, **edit),
        "sweep": partial(call, "BaretEditSweep", vae=vae, eta_ranges="1, 0.5", tau_sa="0.3", **edit),
    }
    return model, found


def tensors_of(value) -> list[torch.Tensor]:
    """The tensors in a node's outputs."""
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in tensors_of(each)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_of(each)]
    names = ("pivots", "latents", "tuned", "target", "negative", "losses")
    return [getattr(value, name) for name in names if hasattr(value, name)]


def same(a: tuple, b: tuple) -> bool:
    """Whether two results are equal to the bit."""
    ours, theirs = tensors_of(a), tensors_of(b)
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# --- the model's state ------------------------------------------------------------------------------------------------


class State:
    """What a run could leave behind on a MODEL."""

    def __init__(self, patcher):
        modules = dict(patcher.model.named_modules())
        self.weights = {
            name: weight.detach().clone() for name, weight in patcher.model.state_dict(keep_vars=True).items()
        }
        self.marks = {
            "inference tensors": {n: w.is_inference() for n, w in patcher.model.state_dict(keep_vars=True).items()},
            "gradients": {n: w.grad is not None for n, w in patcher.model.named_parameters()},
            "forwards": sorted(name for name, part in modules.items() if "forward" in vars(part)),
            "hooks": {
                n: len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
                for n, m in modules.items()
            },
            "patches": sorted(map(str, patcher.patches)),
            "object patches": sorted(patcher.object_patches),
            "hook patches": len(patcher.hook_patches),
            "injections": sorted(patcher.injections),
            "wrappers": _counts(patcher.wrappers),
            "callbacks": _counts(patcher.callbacks),
            "options": _outline(patcher.model_options),
            "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        }

    def differences(self, other: State) -> list[str]:
        """Names of what is not as in another state."""
        found = [name for name, value in self.marks.items() if value != other.marks[name]]
        if not all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items()):
            found.append("weights")
        return found


def _counts(table: dict) -> dict[str, int]:
    return {f"{kind} {key}": len(each) for kind, keyed in table.items() for key, each in keyed.items() if each}


def _outline(value) -> object:
    """The structure of nested options, with the identity of what is in them."""
    if isinstance(value, dict):
        return {str(key): _outline(each) for key, each in value.items()}
    return [_outline(each) for each in value] if isinstance(value, list) else id(value)


# --- faults -----------------------------------------------------------------------------------------------------------


@contextmanager
def _calls(model, before: Callable[[int], None], after: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within it ``before(k)`` is called before UNet call k, from 0, and ``after(k, output)`` behind it."""
    count = -1

    def begin(*_):
        nonlocal count
        count += 1
        before(count)

    unet = model.model.diffusion_model
    hooks = [unet.register_forward_pre_hook(begin), unet.register_forward_hook(lambda m, i, out: after(count, out))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _nothing(*_) -> None:
    pass


def _count_calls(model, run: Run) -> tuple[int, tuple]:
    """How many UNet calls a run makes, and its result."""
    seen: list[int] = []
    with _calls(model, seen.append, _nothing):
        result = run()
    return len(seen), result


NODES = (
    "TTIS, adam",
    "TTIS, secant",
    "null-text",
    "direct",
    "BAM",
    "Auto Edit",
    "prompt-to-prompt",
    "MasaCtrl",
    "maps",
    "sweep",
)
"""The names of :func:`runs`."""


def attack(pack: in_process.Pack, every: int = 1, nodes: tuple[str, ...] = NODES) -> Report:
    """An error of each kind at every ``every``-th UNet call of each of the nodes, forward and on the way back."""
    report = Report()
    model, found = runs(pack)
    for name in nodes:
        run = found[name]
        run()  # the first one turns inference tensors into normal ones, and that stays
        calls, expected = _count_calls(model, run)
        before = State(model)
        for k in range(0, calls, every):
            for kind in (*KINDS, BACKWARD):
                if not _fails_at(model, run, k, kind):
                    continue
                where = f"{name}, {kind} at call {k} of {calls}"
                report.outcomes[kind] += 1
                if left := State(model).differences(before):
                    report.failures.append(f"{where}: {', '.join(left)} not as before")
                if not same(run(), expected):
                    report.failures.append(f"{where}: the next run gives something else")
    return report


def _fails_at(model, run: Run, at: int, kind: str) -> bool:
    """Run with an error at one call. False where that call has no way back."""
    raised = KINDS[kind if kind in KINDS else "error"]()

    def fail(*_):
        raise raised

    def before(k: int) -> None:
        if k == at and kind != BACKWARD:
            fail()

    def after(k: int, output: torch.Tensor) -> None:
        if k == at and kind == BACKWARD and output.requires_grad:
            output.register_hook(fail)

    try:
        with _calls(model, before, after):
            run()
    except BaseException as error:
        if error is not raised and error.__cause__ is not raised and type(error) is not type(raised):
            raise
        return True
    return False


# --- Cancel -----------------------------------------------------------------------------------------------------------


def interrupt(pack: in_process.Pack, tries: int, seed: int) -> Report:
    """Cancel at random moments of random nodes: no second UNet pass begins, and the next run is as before."""
    import comfy.model_management as management

    report, drawn = Report(), random.Random(seed)
    model, found = runs(pack)
    expected, spent = {}, {}
    for name, run in found.items():
        run()
        began = time.monotonic()
        expected[name], spent[name] = run(), time.monotonic() - began
    before = State(model)
    for _ in range(tries):
        name = drawn.choice(list(found))
        passes: list[float] = []
        pressed: list[float] = []

        def press(pressed=pressed):
            management.interrupt_current_processing()
            pressed.append(time.monotonic())

        delay = drawn.uniform(0, spent[name])
        timer = threading.Timer(delay, press)
        timer.start()
        try:
            with _calls(model, lambda k, passes=passes: passes.append(time.monotonic()), _nothing):
                found[name]()
            report.outcomes["ended before"] += 1
        except management.InterruptProcessingException:
            report.outcomes["cancelled"] += 1
            late = sum(began > pressed[0] for began in passes)
            if late > 1:
                report.failures.append(f"{name} after {delay:.2f} s: {late} passes began after Cancel")
        timer.cancel()
        timer.join()
        management.interrupt_current_processing(False)
        if left := State(model).differences(before):
            report.failures.append(f"{name} after {delay:.2f} s: {', '.join(left)} not as before")
        if not same(found[name](), expected[name]):
            report.failures.append(f"{name} after {delay:.2f} s: the next run gives something else")
    return report
