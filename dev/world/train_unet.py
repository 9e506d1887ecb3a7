"""The UNet and the text side, trained together on the codec's latents."""

import copy
import time

import comfy.clip_model
import comfy.ops
import torch
from baret.host import world as model
from baret.world import scenes
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from common import HELD_OUT, Descent, log, rendered, save, save_grid, to_input
from torch import nn

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # SD1.5's schedule
ABAR = torch.cumprod(1 - BETAS, 0).float()
SNR = ABAR / (1 - ABAR)
# What ends a residual branch, by the end of its name: it begins as nothing.
BRANCH_ENDS = (".proj_out", ".out_layers.3", ".out_proj", ".fc2", "unet.out.2")


def encode_set(run, args, codec):
    """Latents (n, 4, 16, 16) fp16 and the captions' token ids (n, captions, window) uint8 of the training scenes."""
    path = run / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    words = model.WordTokenizer(scenes.vocabulary())

    def windows(scene, number):
        """The token ids of a scene's captions."""
        seeds = range(8 * number, 8 * number + args.captions)
        return [words.window(scenes.caption(scene, seed, args.keep)) for seed in seeds]

    latents, tokens, started = [], [], time.time()
    for start in range(0, args.scenes, 500):
        batch, pictures, _ = rendered(args.seed * 10**6 + 10 + start, 500)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents += [codec.encode(to_input(part)).half() for part in pictures.split(20)]
        found = [windows(scene, start + i) for i, scene in enumerate(batch)]
        tokens.append(torch.tensor(found, dtype=torch.uint8))
    data = {"latents": torch.cat(latents), "tokens": torch.cat(tokens)}
    spread, seconds = data["latents"].float().std().item(), time.time() - started
    log(run, stage="encode", scenes=args.scenes, seconds=round(seconds), std=round(spread, 3))
    save(path, data)
    return data


def _attention(q, k, v, heads, mask=None):
    """softmax(q k^T / sqrt(d) + mask) v as two matrix products.

    On a CPU their backward is faster than the fused kernel's.
    """
    b, n, width = q.shape
    q, k, v = (x.reshape(b, -1, heads, width // heads).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) * (width // heads) ** -0.5
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    return torch.bmm(weights, v).view(b, heads, n, -1).transpose(1, 2).reshape(b, n, width)


def _layer_forward(self, x, mask=None, optimized_attention=None):
    x = x + self.self_attn(self.layer_norm1(x), mask, _attention)
    return x + self.mlp(self.layer_norm2(x))


comfy.clip_model.CLIPLayer.forward = _layer_forward  # the host adds in place, which has no backward


class Net(nn.Module):
    """The host's UNet and text transformer with weights to learn (the host's own constructors leave them unset)."""

    def __init__(self, tokens):
        super().__init__()
        ops = comfy.ops.disable_weight_init
        self.unet = UNetModel(**model.UNET, dtype=torch.float32, operations=ops)
        self.text = model.WordTextModel(model.text_config(tokens), torch.float32, "cpu", ops)
        self.text.text_projection = nn.Identity()  # the UNet takes no pooled text; `train_clip` makes it
        for module in self.modules():
            for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
                if isinstance(module, kind):
                    kind.reset_parameters(module)
        # Words stand out in the embeddings from the start: with small ones the transformer drowns what matters late.
        embeddings = self.text.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=1.0)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)
        for name, module in self.named_modules():
            if name.endswith(BRANCH_ENDS):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def context(self, tokens):
        """Embeddings (b, window, width) of token ids (b, window)."""
        return self.text.text_model(input_tokens=tokens)[0]

    def forward(self, z, t, tokens=None, context=None):
        """Noise (b, 4, h, w) in the variance-preserving latent `z` at times `t` (b,), given tokens or embeddings."""

        def override(_, q, k, v, heads, *args, **kwargs):
            return _attention(q, k, v, heads)

        context = self.context(tokens) if context is None else context
        return self.unet(z, t, context=context, transformer_options={"optimized_attention_override": override})


@torch.no_grad()
def sample(net, tokens, empty, guidance, steps=30, seed=0):
    """Deterministic DDIM from noise: latents (b, 4, 16, 16) for token ids (b, window)."""
    times = torch.linspace(999, 1, steps).round().long()
    sigmas = torch.cat([SNR[times].rsqrt(), torch.zeros(1)])
    x = torch.randn(len(tokens), 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * sigmas[0]
    context = net.context(torch.cat([tokens, empty.expand_as(tokens)]))
    for i, t in enumerate(times):
        z = x / (1 + sigmas[i] ** 2).sqrt()
        with torch.autocast("cpu", torch.bfloat16):
            cond, uncond = net(z.repeat(2, 1, 1, 1), t.float().expand(2 * len(z)), context=context).float().chunk(2)
        x = x + (sigmas[i + 1] - sigmas[i]) * (uncond + guidance * (cond - uncond))
    return x


def train_unet(run, args, codec, data):
    """The exponential mean of a `Net`'s weights over training: eps-prediction, a tenth of the captions left out."""
    torch.manual_seed(args.seed + 1)
    words = model.WordTokenizer(scenes.vocabulary())
    net = Net(len(words.ids))
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    empty = torch.tensor(words.window(""))

    def problem():
        predict = net if args.eager else torch.compile(net)
        prompts = torch.tensor([words.window(scenes.plain_caption(s)) for s in scenes.sample(HELD_OUT + 1, 32)])

        half, quarter = args.batch // 2, args.batch // 4

        def loss_of(generator):
            def draw(high, low=0, n=args.batch):
                return torch.randint(low, high, (n,), generator=generator)

            pick = draw(len(data["latents"]))
            tokens = data["tokens"][pick, draw(args.captions)].long()
            tokens[torch.rand(args.batch, generator=generator) < 0.1] = empty
            x0, t = data["latents"][pick].float(), draw(1000)
            # Pose, position and facing are settled where there is hardly any signal, and there they change the error of
            # eps little. So half of all times are noisy, and in a quarter the latent holds no signal at all, as where
            # sampling begins: SD1.5's last level still shows some, and a network that relies on it ignores the text.
            t[:half] = draw(1000, low=700, n=half)
            t[:quarter] = draw(1000, low=900, n=quarter)
            noise, abar = torch.randn(x0.shape, generator=generator), ABAR[t].view(-1, 1, 1, 1)
            z = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
            z[:quarter] = (1 - abar[:quarter]).sqrt() * noise[:quarter]
            with torch.autocast("cpu", torch.bfloat16):
                eps = predict(z, t.float(), tokens).float()
            target = (z - abar.sqrt() * x0) / (1 - abar).sqrt()
            weight = SNR[t].clamp(max=5) / SNR[t]  # min-SNR-5 (Hang et al. 2023)
            weight = weight + 0.5 / (SNR[t] + 0.05)  # and a share of the error of x0
            weight[:quarter] = 0.3 / SNR[t[:quarter]]
            return ((eps - target).pow(2).mean((1, 2, 3)) * weight).mean()

        def after(step):
            kept = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - kept)

        def check(step):
            save_grid(codec.decode(sample(ema, prompts, empty, 4.0)), run / f"samples-{step:05}.png")

        return loss_of, after, check

    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    Descent(
        run,
        "unet",
        modules={"net": net, "ema": ema},
        groups=[{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        steps=args.steps,
        rate=args.lr,
        batch=args.batch,
        seed=args.seed,
        every=args.checkpoint,
    ).go(problem)
    return ema
