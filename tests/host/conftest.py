"""What several test files of the nodes inside the host need."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def ttis(execute, text, picture):
    """TTIS Inversion of a random picture with random texts, unless others are given."""

    def call(model, **inputs):
        given = {"positive": text(1), "negative": text(2), "latent": picture()}
        return execute("BaretTTISInversion", model=model, **{**given, **inputs})

    return call


@pytest.fixture
def bam(execute):
    """BAM Edit; returns the latent alone."""

    def call(model, trajectory, embeddings, **inputs):
        edit, _ = execute("BaretBAMEdit", model=model, trajectory=trajectory, embeddings=embeddings, **inputs)
        return edit["samples"]

    return call


@pytest.fixture
def stock_euler(host):
    """Guided sampling with the host's own euler sampler, as SamplerCustom runs it, from ``latent`` as it is."""
    import comfy.sample
    import comfy.samplers

    def call(model, cfg, sigmas, positive, negative, latent):
        no_noise = torch.zeros_like(latent)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model, no_noise, cfg, sampler, sigmas, positive, negative, latent, disable_pbar=True
            )

    return call


@pytest.fixture
def run_passes_apart(host, monkeypatch):
    """Call it, and the host finds no free memory: the two passes of a step then run one after the other."""
    import comfy.model_patcher

    def call():
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)

    return call


class _Compiled(torch.nn.Module):
    """A UNet as torch.compile gives it to the host's node: the patches of its first call are in it for good."""

    def __init__(self, unet):
        super().__init__()
        self._orig_mod = unet
        self.dtype, self.patches = unet.dtype, None

    def forward(self, *args, transformer_options, **kwargs):
        if self.patches is None:
            self.patches = {name: transformer_options.get(name, {}) for name in ("patches", "wrappers")}
        return self._orig_mod(*args, transformer_options={**transformer_options, **self.patches}, **kwargs)


@pytest.fixture
def compiled(host, monkeypatch):
    """A clone of a MODEL from the host's node that compiles, with a stand-in for the compiler, which takes a minute."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    def call(model):
        with torch.inference_mode(), monkeypatch.context() as patch:
            patch.setattr(torch, "compile", lambda model, **_: _Compiled(model))
            return TorchCompileModel.execute(model, "inductor")[0]

    return call


@contextmanager
def before_each_forward(model, do):
    """Within it, ``do(x, context)`` is called before every forward of the model's UNet."""

    def hook(module, args, kwargs):
        do(args[0], kwargs["context"])

    handle = model.model.diffusion_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def counting():
    """``with counting(model) as seen:`` counts the UNet's forwards, their rows, and the rows to be differentiated."""

    @contextmanager
    def count(model):
        seen = SimpleNamespace(forwards=0, rows=0, gradient_rows=0)

        def add(x, context):
            seen.forwards += 1
            seen.rows += len(x)
            if torch.is_grad_enabled() and context.requires_grad:
                seen.gradient_rows += len(x)

        with before_each_forward(model, add):
            yield seen

    return count


@pytest.fixture
def counted(counting, model):
    """Counts of the shared model's UNet during a test."""
    with counting(model) as seen:
        yield seen


@pytest.fixture
def cancelling(host):
    """``with cancelling(model, at=n):`` presses Cancel before forward n of the UNet; the run within must end by it."""
    import comfy.model_management

    @contextmanager
    def cancel(model, at=0):
        forwards = 0

        def press(x, context):
            nonlocal forwards
            forwards += 1
            if forwards == at + 1:
                comfy.model_management.interrupt_current_processing()

        interrupted = pytest.raises(comfy.model_management.InterruptProcessingException)
        with before_each_forward(model, press), interrupted:
            yield
        assert forwards == at + 1, "no further pass begins"

    return cancel


@pytest.fixture(scope="module")
def drawn_world(pack, host):
    """The drawn world's models; stock nodes encode texts and pictures with them, and decode latents."""
    with torch.inference_mode():
        model, clip, vae, clip_vision = pack.nodes["BaretWorldLoader"].execute().args

    def encode(text):
        with torch.inference_mode():
            return host.nodes.CLIPTextEncode().encode(clip, text)[0]

    def decode(latent):
        with torch.inference_mode():
            return host.nodes.VAEDecode().decode(vae, latent)[0]

    def latent(picture):
        with torch.inference_mode():
            return host.nodes.VAEEncode().encode(vae, picture)[0]

    return SimpleNamespace(
        model=model, clip=clip, vae=vae, clip_vision=clip_vision, encode=encode, decode=decode, latent=latent
    )
