"""The codec: encoder and decoder together, later the decoder alone on the latents as they are."""

import torch
import torch.nn.functional as F
from baret.host import world as model
from baret.world.codec import Codec
from common import HELD_OUT, Descent, log, psnr, rendered, save_grid, to_input
from torch import nn


def _edges(x):
    """The differences of neighbouring pixels, side by side and one below the other."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _loss(out, target, masks):
    """Squared error, thrice on the animal, plus the absolute error of edges, which keeps thin limbs sharp."""
    weight = 1 + 2 * F.interpolate(masks[:, None], scale_factor=8)
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(out), _edges(target)))
    return ((out - target).pow(2) * weight).mean() + 0.05 * edges


def _check(run, stage, decode):
    held = to_input(rendered(HELD_OUT, 64)[1])

    @torch.no_grad()
    def check(step):
        back = decode(held)
        log(run, stage=stage, step=step, psnr=round(psnr(back.clamp(-1, 1), held), 2))
        save_grid(torch.stack([held[:8], back[:8]]).flatten(0, 1), run / f"{stage}-{step:05}.png")

    return check


def train_codec(run, args):
    """A `Codec` whose latents have unit variance.

    A batch normalisation stands behind the encoder, and is folded into its last convolution at the end. Latent noise of
    0.05 in training lets the decoder forgive a UNet's small errors.
    """
    torch.manual_seed(args.seed)
    codec, norm = Codec(), nn.BatchNorm2d(4, affine=False, momentum=0.02)

    def problem():
        _, pictures, masks = rendered(args.seed * 1000 + 1, args.codec_scenes)

        def loss_of(generator):
            pick = torch.randint(len(pictures), (args.codec_batch,), generator=generator)
            x = to_input(pictures[pick])
            with torch.autocast("cpu", torch.bfloat16):
                z = norm(codec.encode(x).float())
                out = codec.decode(z + 0.05 * torch.randn(z.shape, generator=generator)).float()
            return _loss(out, x, masks[pick])

        def decode(held):
            back = codec.decode(norm.eval()(codec.encode(held)))
            norm.train()
            return back

        return loss_of, lambda step: None, _check(run, "codec", decode)

    Descent(
        run,
        "codec",
        modules={"codec": codec, "norm": norm},
        groups=[{"params": codec.parameters(), "weight_decay": 1e-3}],
        steps=args.codec_steps,
        rate=args.codec_lr,
        batch=args.codec_batch,
        seed=args.seed,
        clip=0.5,
    ).go(problem)
    last, scale = codec.encoder[-1], (norm.running_var + norm.eps).rsqrt()
    with torch.no_grad():
        last.weight.mul_(scale.view(-1, 1, 1, 1))
        last.bias.sub_(norm.running_mean).mul_(scale)
    return codec.eval().requires_grad_(False)


def read_codec(path):
    """The `Codec` of a weights file, as it is. Raises as `model.read`."""
    tensors, _ = model.read(path)
    codec = Codec()
    ours = {name: tensor.float() for name, tensor in tensors.items() if name.startswith("codec.")}
    codec.load_state_dict({name.removeprefix("codec."): tensor for name, tensor in ours.items()})
    return codec.eval().requires_grad_(False)


def train_decoder(run, args, codec):
    """Go on with the decoder alone. The encoder, and with it the latents that the UNet learned, stays."""
    codec.decoder.requires_grad_(True)

    def problem():
        _, pictures, masks = rendered(args.seed * 1000 + 2, args.codec_scenes)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = [codec.encode(to_input(part)).half() for part in pictures.split(20)]
        latents = torch.cat(latents)

        def loss_of(generator):
            pick = torch.randint(len(pictures), (args.codec_batch,), generator=generator)
            z = latents[pick].float()
            with torch.autocast("cpu", torch.bfloat16):
                out = codec.decode(z + 0.03 * torch.randn(z.shape, generator=generator)).float()
            return _loss(out, to_input(pictures[pick]), masks[pick])

        return loss_of, lambda step: None, _check(run, "decoder", lambda held: codec.decode(codec.encode(held)))

    Descent(
        run,
        "decoder",
        modules={"decoder": codec.decoder},
        groups=[{"params": codec.decoder.parameters(), "weight_decay": 1e-3}],
        steps=args.decoder_steps,
        rate=0.5 * args.codec_lr,
        batch=args.codec_batch,
        seed=args.seed,
        clip=0.5,
    ).go(problem)
    return codec.requires_grad_(False)
