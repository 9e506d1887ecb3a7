"""Train the world's model from nothing: `python dev/world/train.py RUN`; resumable, seeded, one CPU thread.

Stages: the codec, the scenes' latents, the UNet with the text side, the decoder alone, the CLIP, scores,
`RUN/world.safetensors`. With `--clip-for FILE` only a CLIP is trained, and all else is that file's, bit for bit.
RUN holds what each stage left (`*.pt`), so the same command goes on where it was stopped; `log.jsonl` has losses, speed
and scores, `*.png` are reconstructions and samples on the way.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import comfyui  # noqa: E402
import in_process  # noqa: E402

STAGES = ("codec", "encode", "unet", "export")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, help="folder for checkpoints, log and grids; an earlier run in it is continued")
    add("--seed", type=int, default=1)
    add("--codec-scenes", type=int, default=20_000)
    add("--codec-steps", type=int, default=3000)
    add("--decoder-steps", type=int, default=2500)
    add("--codec-batch", type=int, default=16)
    add("--codec-lr", type=float, default=2e-3)
    add("--scenes", type=int, default=50_000)
    add("--captions", type=int, default=4, help="captions drawn for each scene")
    add("--keep", type=float, default=0.9, help="share of its facts that a caption names (default: %(default)s)")
    add("--codec", type=Path, help="a weights file whose codec is taken as it is, in place of training one")
    add("--steps", type=int, default=5500)
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=1e-3)
    add("--ema", type=float, default=0.999)
    add("--checkpoint", type=int, default=400, help="steps between checkpoints")
    add("--score-scenes", type=int, default=240, help="held-out scenes for the control scores")
    add("--clip-for", type=Path, help="a weights file that gets a CLIP; nothing else is trained")
    add("--clip-scenes", type=int, default=8000)
    add("--clip-steps", type=int, default=700)
    add("--clip-batch", type=int, default=128)
    add("--clip-lr", type=float, default=3e-3)
    add("--eager", action="store_true", help="do without torch.compile and its C++ compiler; a fifth slower")
    add("--until", choices=STAGES, default="export", help="last stage to run")
    comfyui.add_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_arguments()
    host = comfyui.enter(args)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    in_process.load_host(host.path)  # the stages import it, and the pack's folders as `drawn` makes them importable
    import drawn  # noqa: F401
    import torch
    from export import export, export_clip
    from score import scores
    from train_clip import read_text, text_side, train_clip
    from train_codec import read_codec, train_codec, train_decoder
    from train_unet import encode_set, train_unet

    torch.set_num_threads(1)
    args.run.mkdir(parents=True, exist_ok=True)
    if args.clip_for is not None:
        text = read_text(args.clip_for)
        export_clip(args.run, args, train_clip(args.run, args, text), text)
        return
    codec = train_codec(args.run, args) if args.codec is None else read_codec(args.codec)
    if args.until == "codec":
        return
    data = encode_set(args.run, args, codec)
    if args.until == "encode":
        return
    net = train_unet(args.run, args, codec, data)
    if args.until == "unet":
        return
    if args.codec is None:
        codec = train_decoder(args.run, args, codec)
    text = text_side(net.text.state_dict())
    clip = train_clip(args.run, args, text)
    export(args.run, args, net, codec, clip, text, scores(args.run, args, net, codec))


if __name__ == "__main__":
    main()
