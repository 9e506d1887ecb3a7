"""Null-text inversion (Mokady et al. 2022) with diffusers' parts at its published settings: the peer in `bench.py`."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint


def diffusers_unet(model, config: dict, heads: int) -> UNet2DConditionModel:
    """The UNet of a MODEL as diffusers' own, with the same weights. config: as in `in_process.SD15`."""
    weights = model.model.diffusion_model.state_dict()
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    blocks = config["num_res_blocks"][0]
    attends = [config["transformer_depth"][level * blocks] > 0 for level in range(len(widths))]
    settings = {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": blocks,
        "block_out_channels": widths,
        "cross_attention_dim": config["context_dim"],
        "attention_head_dim": heads,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
    }
    named = {f"model.diffusion_model.{key}": value.clone() for key, value in weights.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    unet.load_state_dict(convert_ldm_unet_checkpoint(named, {**settings, "class_embed_type": None}), assign=True)
    return unet.to(model.load_device).requires_grad_(False)


class NullText:
    """Null-text inversion of latents ``z [B,C,h,w]`` in VP form over a diffusers UNet; texts are ``[B,L,D]``.

    The prediction for the text is computed once a step, for the tuning and for the step itself.
    """

    def __init__(self, unet: UNet2DConditionModel, steps: int, cfg: float):
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        scheduler.set_timesteps(steps)
        self.unet, self.cfg = unet, cfg
        self.times = scheduler.timesteps.tolist()
        self.gap = 1000 // steps
        self.alphas, self.last_alpha = scheduler.alphas_cumprod, scheduler.final_alpha_cumprod

    def run(self, z, text, negative, updates: int):
        """The reconstruction of ``z``, after at most ``updates`` updates of the negative embedding at each step."""
        with torch.no_grad():
            pivots = self.pivots(z, text)
        z, null = pivots[0], negative
        for i, t in enumerate(self.times):
            with torch.no_grad():
                cond = self.predict(z, t, text)
            null = self.tuned(i, z, cond, null, pivots[i + 1], updates)
            with torch.no_grad():
                z = self.guided_step(z, t, cond, self.predict(z, t, null))
        return z

    def pivots(self, z, text) -> list:
        """DDIM inversion at guidance 1: the latents from pure noise to the picture."""
        found = [z]
        for t in reversed(self.times):
            eps = self.predict(found[-1], t, text)
            found.append(_ddim(found[-1], eps, self.alpha(t - self.gap), self.alpha(t)))
        return found[::-1]

    def tuned(self, i: int, z, cond, null, pivot, updates: int):
        """The negative embedding with which step ``i`` lands nearest to its pivot."""
        null = null.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
        scale = float(pivot.numel())
        for _ in range(updates):
            with torch.enable_grad():
                landed = self.guided_step(z, self.times[i], cond, self.predict(z, self.times[i], null))
                loss = torch.nn.functional.mse_loss(landed, pivot)
            # Differentiated as a sum over the pixels: the mean's gradient would vanish in 16 bit.
            (gradient,) = torch.autograd.grad(loss * scale, null)
            null.grad = gradient / scale
            optimizer.step()
            if loss.item() < 1e-5 + i * 2e-5:
                break
        return null.detach()

    def guided_step(self, z, t: int, cond, uncond):
        eps = uncond + self.cfg * (cond - uncond)
        return _ddim(z, eps, self.alpha(t), self.alpha(t - self.gap))

    def predict(self, z, t: int, text):
        noise = self.unet(z.to(self.unet.dtype), t, encoder_hidden_states=text.to(self.unet.dtype)).sample
        return noise.float()

    def alpha(self, t: int):
        """The signal's share of variance at a time; before the first it is the schedule's last."""
        return self.alphas[t] if t >= 0 else self.last_alpha


def _ddim(z, eps, alpha, alpha_next):
    """The deterministic DDIM step (Song et al. 2021, Eq. 12) between two signal shares, in either direction."""
    z0 = (z - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    return alpha_next.sqrt() * z0 + (1 - alpha_next).sqrt() * eps
