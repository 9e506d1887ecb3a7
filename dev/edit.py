"""Edit a picture by a text, from nothing: sets up ComfyUI, runs its real server with this pack and queues the example workflow.

    python dev/edit.py --checkpoint v1-5-pruned-emaonly-fp16.safetensors --image photo.jpg --text "a dog jumping over a meadow"

Without `--checkpoint` a generated stand-in with random weights is used: the way is the same, the edit means nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import comfyui
import stand_in
import workflows

PICTURE = Path(__file__).resolve().parent / "assets" / "dog.png"
WORKFLOW = workflows.API_FOLDER / "baret_edit.json"

# The default model, in one place: how to get it, the size and steps it is used at, what to say about it.
default_checkpoint = stand_in.ensure
DEFAULT_CHECKPOINT_SIZE, DEFAULT_CHECKPOINT_STEPS = 128, 20
DEFAULT_CHECKPOINT_NOTE = f"""\
No --checkpoint was given, so this uses a generated stand-in with random weights: everything runs as with a real model,
but the pictures mean nothing. So that it takes about a minute on a CPU, it works at
{DEFAULT_CHECKPOINT_SIZE}x{DEFAULT_CHECKPOINT_SIZE} pixels and in {DEFAULT_CHECKPOINT_STEPS} steps."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Edit a picture by a text with BARET, in a real ComfyUI that is set up on first use.")
    parser.add_argument("--image", type=Path, default=PICTURE, help="the picture to edit (default: a drawn dog)")
    parser.add_argument("--text", help="what the picture should become (default: the example workflow's)")
    parser.add_argument("--negative", help="the negative text (default: empty, as in the paper)")
    parser.add_argument("--checkpoint", type=Path, help="a Stable Diffusion 1.x or 2.x checkpoint file")
    parser.add_argument("--size", type=int, help="work at the area of a square of this side; proportions are kept (default: 512 with a checkpoint)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: 50 with a checkpoint)")
    parser.add_argument("--cfg", type=float, help="guidance of the inversion and the edit (default: 7.5)")
    parser.add_argument("--iterations", type=int, help="most updates of the text per step (default: 5)")
    parser.add_argument("--learning-rate", type=float, help="size of an update (default: 0.001)")
    parser.add_argument("--eta-start", type=float, help="how much of the picture the transition keeps at first (default: 0.8)")
    parser.add_argument("--eta-end", type=float, help="and at the end (default: 0.1)")
    parser.add_argument("--tau-sa", type=float, help="share of steps with the reconstruction's self-attention (default: 0.3)")
    parser.add_argument("--tau-ca", type=float, help="share of steps with the transition's cross-attention (default: 0.6)")
    parser.add_argument("--out", type=Path, default=Path("edited.png"), help="where the edit goes (default: %(default)s); a strip "
                        "'before | reconstruction | edit' is written beside it")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    for path in filter(None, (options.image, options.checkpoint)):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if options.size is None:
        options.size = 512 if options.checkpoint else DEFAULT_CHECKPOINT_SIZE
    if options.steps is None and not options.checkpoint:
        options.steps = DEFAULT_CHECKPOINT_STEPS
    if options.size < 104:
        parser.error("--size must be at least 104, the least that the workflow's scaling node takes")
    return options


def fill_in(prompt: dict, options: argparse.Namespace, checkpoint: Path, image: str) -> dict:
    """The example workflow with the options in it; an option that was not given leaves the workflow's value."""
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    ttis, transition, bam = (by_type[t] for t in ("BaretTTISInversion", "BaretTransitionEmbedding", "BaretBAMEdit"))
    for inputs, name, value in (
        (by_type["CheckpointLoaderSimple"], "ckpt_name", checkpoint.name),
        (by_type["LoadImage"], "image", image),
        (by_type["ImageScaleToTotalPixels"], "megapixels", options.size**2 / 1024**2),
        (prompt[ttis["positive"][0]]["inputs"], "text", options.text),
        (prompt[ttis["negative"][0]]["inputs"], "text", options.negative),
        (ttis, "steps", options.steps), (ttis, "cfg", options.cfg), (bam, "cfg", options.cfg),
        (ttis, "iterations", options.iterations), (ttis, "learning_rate", options.learning_rate),
        (transition, "eta_start", options.eta_start), (transition, "eta_end", options.eta_end),
        (bam, "tau_sa", options.tau_sa), (bam, "tau_ca", options.tau_ca),
    ):
        if value is not None:
            inputs[name] = value
    return prompt


class ProgressLine:
    """Shows the server's events on one line of a terminal; elsewhere one line per node."""

    def __init__(self, prompt: dict):
        self.titles = {id: node["_meta"]["title"] for id, node in prompt.items()}
        self.start = time.monotonic()

    def __call__(self, event) -> None:
        if not isinstance(event, dict):
            return  # a preview
        data = event["data"]
        if event["type"] == "executing":
            if sys.stdout.isatty():
                self._show("" if data["node"] is None else self.titles[data["node"]])
            elif data["node"] is not None:
                print(f"{self._elapsed()}  {self.titles[data['node']]}", flush=True)
        elif event["type"] == "progress" and sys.stdout.isatty():
            done = int(30 * data["value"] / data["max"])
            self._show(f"{self.titles[data['node']]:22} [{'#' * done}{'-' * (30 - done)}] {data['value']}/{data['max']}")

    def _elapsed(self) -> str:
        return "{:2}:{:02}".format(*divmod(int(time.monotonic() - self.start), 60))

    def _show(self, text: str) -> None:
        print(f"\r\x1b[K{self._elapsed()}  {text}" if text else "\r\x1b[K", end="", flush=True)


def write_pictures(options: argparse.Namespace, reconstruction: bytes, edit: bytes) -> Path:
    """Write the edit and the strip; returns the strip's path."""
    from PIL import Image  # the host's
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(edit)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (reconstruction, edit)]
    size = pictures[0].size
    pictures.insert(0, Image.open(options.image).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    strip = Image.new("RGB", (3 * size[0] + 16, size[1]), "white")
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * (size[0] + 8), 0))
    path = options.out.with_name(f"{options.out.stem}_strip.png")
    strip.save(path)
    return path


def main() -> None:
    options = parse_arguments()
    host = comfyui.enter(options)
    import comfy_server  # needs the host's interpreter

    try:
        if not options.checkpoint:
            print(DEFAULT_CHECKPOINT_NOTE)
        checkpoint = options.checkpoint or default_checkpoint(host)
        print(f"Starting ComfyUI {host.version}", flush=True)
        with comfy_server.running(host, [checkpoint]) as client:
            prompt = fill_in(json.loads(WORKFLOW.read_text(encoding="utf-8")), options, checkpoint, client.upload(options.image))
            run = client.run(prompt, on_event=ProgressLine(prompt), timeout=24 * 3600)
            pictures = {prompt[id]["class_type"]: client.view(output["images"][0]) for id, output in run.outputs.items()}
    except (comfyui.HostError, comfy_server.ServerError, comfy_server.PromptRejected, comfy_server.ExecutionFailed) as error:
        sys.exit(f"\nerror: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    strip = write_pictures(options, pictures["PreviewImage"], pictures["SaveImage"])
    print(f"The edited picture: {options.out.resolve()}\nbefore | reconstruction | edit: {strip.resolve()}")


if __name__ == "__main__":
    main()
