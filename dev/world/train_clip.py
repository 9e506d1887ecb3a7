"""The drawn world's CLIP: an image encoder and the projection of the text side, which itself stays as it is.

Radford et al. 2021: pictures and captions of a batch are told apart by the cosines of their embeddings. Among scenes
drawn at random colour and place tell nearly all of them apart, and an encoder learns nothing else (animal 54 %, pose
24 % after 500 steps); so a batch is a few groups of scenes that are alike in both. That alone is slow (72 % and 40 %
after 700 steps), so each picture is also to pick the text of its own value of each fact among those of the others.
"""

import comfy.ops
import judge as judging
import torch
import torch.nn.functional as F
from baret.host import world as model
from baret.world import scenes
from baret.world.picture_encoder import CONFIG, PictureEncoder
from common import HELD_OUT, Descent, log, rendered
from torch import nn

KEEPS = (0.9, 0.9, 0.9, 0.4)  # of each scene's captions: the share of its facts that one names
GROUPS = 4  # of scenes alike in a batch
FACTS = ("animal", "pose", "colour", "place", "position", "facing")


class Clip(nn.Module):
    """The image encoder with normalisations to train it by, the text's projection, and the logits' scale (its log)."""

    def __init__(self):
        super().__init__()
        self.vision = PictureEncoder()
        self.vision.norms = nn.ModuleList(nn.BatchNorm2d(each.out_channels) for each in self.vision.convolutions)
        self.text_projection = nn.Linear(model.WIDTH, CONFIG["projection_dim"], bias=False)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, pictures):
        """Unit embeddings (b, d) of pictures (b, 3, 128, 128) in 0..1."""
        return F.normalize(self.vision(pixel_values=2 * pictures - 1)[2].float(), dim=-1)

    def fold(self):
        """Put the normalisations into the convolutions before them."""
        for convolution, norm in zip(self.vision.convolutions, self.vision.norms):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            convolution.weight.data.mul_(scale.data.view(-1, 1, 1, 1))
            convolution.bias.data.sub_(norm.running_mean).mul_(scale.data).add_(norm.bias.data)
        self.vision.norms = nn.ModuleList(nn.Identity() for _ in self.vision.norms)

    def texts(self, pooled):
        """Unit embeddings (b, d) of the text side's pooled outputs (b, width)."""
        return F.normalize(self.text_projection(pooled), dim=-1)

    def values(self, texts):
        """Unit embeddings (v, d) of the values of a fact: of each the mean over its texts, a list of (n, width)."""
        return F.normalize(torch.stack([self.texts(each).mean(0) for each in texts]), dim=-1)


@torch.no_grad()
def pooled(text, captions):
    """What the text side `text` says of captions as a whole (n, width): its output at the end of each."""
    words = model.WordTokenizer(scenes.vocabulary())
    tokens = torch.tensor([words.window(caption) for caption in captions])
    return torch.cat([text.text_model(input_tokens=part)[2] for part in tokens.split(500)])


def _cutout(x, generator):
    """Each picture of x (b, 3, h, w) cut to a random part, 70 to 100 % of a side, and brought to full size again."""
    scale = 0.7 + 0.3 * torch.rand(len(x), generator=generator)
    shift = (2 * torch.rand(len(x), 2, generator=generator) - 1) * (1 - scale[:, None])
    place = torch.zeros(len(x), 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = scale
    place[:, :, 2] = shift
    return F.grid_sample(x, F.affine_grid(place, x.shape, align_corners=False), align_corners=False)


def read_text(path):
    """The text side of a weights file, as it is. Raises as `model.read`."""
    tensors, _ = model.read(path)
    return text_side({name.removeprefix("text."): t for name, t in tensors.items() if name.startswith("text.")})


def text_side(weights):
    """The text side of these weights (a dict), in the 16 bit in which they are shipped."""
    ops = comfy.ops.disable_weight_init
    text = model.WordTextModel(model.text_config(len(scenes.vocabulary()) + 2), torch.float32, "cpu", ops)
    text.load_state_dict({name: weight.half().float() for name, weight in weights.items()}, strict=False)
    return text.eval().requires_grad_(False)


def train_clip(run, args, text):
    """A `Clip` for the text side `text` as it is."""
    torch.manual_seed(args.seed)
    clip = Clip()

    def problem():
        batch, pictures, _ = rendered(args.seed * 1000 + 3, args.clip_scenes)
        captions = []
        for number, scene in enumerate(batch):
            captions += [scenes.caption(scene, len(KEEPS) * number + i, keep) for i, keep in enumerate(KEEPS)]
        said = pooled(text, captions).view(len(batch), len(KEEPS), -1)
        named = {fact: [pooled(text, texts) for texts in prompts(fact)] for fact in FACTS}
        truth = judging.truth(batch)
        alike = {}
        for number, scene in enumerate(batch):
            alike.setdefault((scene.colour, scene.place), []).append(number)
        alike = [torch.tensor(numbers) for numbers in alike.values()]

        def drawn_numbers(generator):
            """Scenes of a batch: groups of one colour and place, which only what the animal is and does tells apart."""
            group = args.clip_batch // GROUPS
            chosen = torch.randperm(len(alike), generator=generator)[:GROUPS]
            picked = [torch.randperm(len(alike[i]), generator=generator)[:group] for i in chosen]
            return torch.cat([alike[i][numbers] for i, numbers in zip(chosen, picked)])

        def loss_of(generator):
            pick = drawn_numbers(generator)
            chosen = torch.randint(len(KEEPS), (len(pick),), generator=generator)
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            seen = judging.smear(_cutout(pictures[pick].float() / 255, generator))
            with torch.autocast("cpu", torch.bfloat16):
                images = clip.images(seen)
            images = clip.scale.exp().clamp(max=100) * images
            logits, same = images @ clip.texts(said[pick, chosen]).T, torch.arange(len(pick))
            loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
            for fact, values in named.items():
                loss = loss + F.cross_entropy(images @ clip.values(values).T, truth[fact][pick]) / len(named)
            return loss

        def check(step):
            log(run, stage="clip", step=step, **accuracy(clip.eval(), text, 300))
            clip.train()

        return loss_of, lambda step: None, check

    matrices = [p for p in clip.parameters() if p.ndim > 1]
    vectors = [p for p in clip.parameters() if p.ndim <= 1]
    Descent(
        run,
        "clip",
        modules={"clip": clip},
        groups=[{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        steps=args.clip_steps,
        rate=args.clip_lr,
        batch=args.clip_batch,
        seed=args.seed,
        every=250,
    ).go(problem)
    clip.eval().requires_grad_(False).fold()
    return clip


def prompts(fact):
    """Texts that say one value of a fact and nothing else but an animal: a list for each value."""
    every = ["a dog", "a cat"]
    if fact == "animal":
        return [[one] for one in every]
    if fact == "colour":
        return [[one.replace("a ", f"a {words[0]} ") for one in every] for words in scenes.WORDS[fact]]
    return [[f"{one} {words[0]}" for one in every] for words in scenes.WORDS[fact]]


@torch.no_grad()
def accuracy(clip, text, n):
    """The share of `n` held-out drawings of which `clip` picks the right text among all values of a fact, by fact."""
    held = scenes.sample(HELD_OUT + 5, n)
    pictures, truth, found = scenes.render(held)[0].movedim(-1, 1), judging.truth(held), {}
    images = torch.cat([clip.images(part) for part in pictures.split(64)])
    for fact in FACTS:
        values = clip.values([pooled(text, texts) for texts in prompts(fact)])
        picked = (images @ values.T).argmax(1)
        found[fact] = round((picked == truth[fact]).float().mean().item(), 4)
    return found
