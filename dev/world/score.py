"""How good the trained model is, on held-out scenes: the codec's PSNR and how far text controls the picture."""

import judge as judging
import torch
from baret.host import world as model
from baret.world import scenes
from common import HELD_OUT, log, psnr, rendered, to_image, to_input
from train_unet import sample

GUIDANCES = (2.0, 3.0, 4.0, 5.0, 7.5)
CHOSEN_BY = ("colour", "pose", "animal and pose", "place")


def control(net, codec, judge, batch, guidance):
    """How often a picture sampled from the plain caption alone shows a fact that the caption names: shares by fact."""
    words = model.WordTokenizer(scenes.vocabulary())
    prompts = torch.tensor([words.window(scenes.plain_caption(scene)) for scene in batch])
    empty, pictures = torch.tensor(words.window("")), []
    for start in range(0, len(batch), 40):
        latents = sample(net, prompts[start : start + 40], empty, guidance, seed=start)
        pictures.append(to_image(codec.decode(latents).clamp(-1, 1)))
    facts, seen = judging.truth(batch), judging.read(judge, torch.cat(pictures))
    right = {name: seen[name] == facts[name] for name in facts}
    right["animal and pose"] = right["animal"] & right["pose"]
    return {name: round(value.float().mean().item(), 4) for name, value in right.items()}


def scores(run, args, net, codec):
    """PSNR and control on held-out scenes, at the guidance that was best on other held-out scenes."""
    if not (run / "judge.pt").exists():
        judging.train(run / "judge.pt")
    judge = judging.load(run / "judge.pt")
    held, others = scenes.sample(HELD_OUT + 2, args.score_scenes), scenes.sample(HELD_OUT + 4, 80)
    found = {"drawn": judging.accuracy(judge, 2000)}
    pictures = to_input(rendered(HELD_OUT + 3, 256)[1])
    with torch.no_grad():
        back = torch.cat([codec.decode(codec.encode(part)) for part in pictures.split(32)])
        found["psnr"] = round(psnr(back.clamp(-1, 1), pictures), 2)
        tried = {guidance: control(net, codec, judge, others, guidance) for guidance in GUIDANCES}
        totals = {guidance: sum(shares[fact] for fact in CHOSEN_BY) for guidance, shares in tried.items()}
        found["guidance"] = max(totals, key=totals.get)
        found["control"] = control(net, codec, judge, held, found["guidance"])
    log(run, stage="score", **found, tried=tried)
    return found
