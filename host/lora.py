"""A LoRA of a MODEL's UNet by the host's own weight adapters: made, tuned in place, handed on as its LORA_MODEL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.sd
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from .attention import unet_of

_PREFIX = "diffusion_model"
"""Under which the host's models hold their UNet, and its LoRAs name their layers."""


class Lora:
    """Adapters for every linear and convolutional layer of a UNet, which change nothing until they are tuned.

    An adapter adds ``up @ down`` to its layer's weight (Hu et al. 2021; alpha is the rank, so that the learning rate
    does not depend on it); up is random, by the seed, and down is zero. They compute in float32 whatever the weight's
    type, as the host's training does.
    """

    def __init__(self, model, rank: int, seed: int):
        self._adapters: dict[str, nn.Module] = {}
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's: a card's is nobody's to seed anew
            for name, layer in _layers(unet_of(model)):
                # Of the weight, no more than its shape is looked at.
                shape = torch.empty(1).expand(layer.weight.shape)
                adapter = LoRAAdapter.create_train(shape, rank=rank, alpha=float(rank))
                adapter.alpha.requires_grad_(False)
                self._adapters[name] = adapter

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is tuned: the two matrices of each adapter, float32."""
        adapters = self._adapters.values()
        return [weight for adapter in adapters for weight in adapter.parameters() if weight.requires_grad]

    @contextlib.contextmanager
    def on(self, model) -> Iterator[None]:
        """Within it, the layers of a loaded model compute with their adapters, which are moved to its device."""
        layers = dict(_layers(unet_of(model)))
        before = {name: vars(layer).get("weight_function") for name, layer in layers.items()}
        with torch.inference_mode(False):  # what is moved in it can no longer be tuned
            for adapter in self._adapters.values():
                adapter.to(model.load_device)
        try:
            for name, adapter in self._adapters.items():
                layers[name].weight_function = [*layers[name].weight_function, adapter]
            yield
        finally:
            for name, functions in before.items():
                if functions is None:
                    vars(layers[name]).pop("weight_function", None)
                else:
                    layers[name].weight_function = functions

    def weights(self, device: torch.device) -> dict[str, Tensor]:
        """The host's LORA_MODEL: its numbers by the names under which Load LoRA finds them, as they are now."""
        found = {}
        for name, adapter in self._adapters.items():
            for part, weight in adapter.state_dict().items():
                found[f"{_PREFIX}.{name}.{part}"] = weight.detach().to(device, copy=True).contiguous()
        return found


def with_lora(model, lora: dict[str, Tensor]):
    """A MODEL with a LORA_MODEL at strength 1, as the host's own loader gives it."""
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    return loaded


def _layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of a UNet whose weights are matrices, by name; the host's own layers say so by what they have."""
    for name, layer in unet.named_modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "weight_function") and weight is not None and weight.ndim >= 2:
            yield name, layer
