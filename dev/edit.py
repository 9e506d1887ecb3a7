"""Edit a picture by a text, from nothing: set up ComfyUI, run its server with this pack, queue an example workflow.

    python dev/edit.py                                            # the model and a scene that come with the pack
    python dev/edit.py --text "a red dog jumping on the sea"      # the same scene, another text
    python dev/edit.py --checkpoint v1-5-pruned-emaonly-fp16.safetensors --image photo.jpg --text "a dog on a meadow"

An option that is not given leaves what the example workflow has.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import comfyui
import workflows

DRAWN_WORLD = workflows.API_FOLDER / "baret_edit.json"  # needs no checkpoint
PHOTO = workflows.API_FOLDER / "baret_edit_photo.json"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Edit a picture by a text with BARET, in a real ComfyUI that is set up on first use."
    )
    add = parser.add_argument
    add("--image", type=Path, help="the picture to edit (default: a drawn scene)")
    add("--text", help="what the picture should become (default: the example workflow's)")
    add("--negative", help="the negative text (default: empty, as in the paper)")
    add("--checkpoint", type=Path, help="a Stable Diffusion 1.x or 2.x checkpoint (default: the pack's drawn world)")
    add("--size", type=int, default=512, help="with a checkpoint: work at the area of a square of this side (512)")
    add("--steps", type=int, help="sampling steps (default: 50 with a checkpoint, 25 without)")
    add("--cfg", type=float, help="guidance of the inversion and the edit (default: 7.5)")
    add("--iterations", type=int, help="most updates of the text per step (default: 1)")
    add("--learning-rate", type=float, help="size of an update of the step rule adam (default: 0.001)")
    add("--eta-start", type=float, help="how much of the picture stays at first (default: 0.8, without checkpoint 0.4)")
    add("--eta-end", type=float, help="and at the end (default: 0.1, without checkpoint 0)")
    add("--tau-sa", type=float, help="share of steps with the reconstruction's self-attention (default: 0.3)")
    add("--tau-ca", type=float, help="share of steps with the transition's cross-attention (default: 0.6)")
    add("--out", type=Path, default=Path("edited.png"), help="where the edit goes, beside it a strip (%(default)s)")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    for path in filter(None, (options.image, options.checkpoint)):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if options.size < 104:
        parser.error("--size must be at least 104, the least that the workflow's scaling node takes")
    return options


def fill_in(prompt: dict, options: argparse.Namespace, image: str | None) -> dict:
    """The example workflow with the options in it; an option that was not given leaves the workflow's value."""
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    ttis, transition, bam = (by_type[t] for t in ("BaretTTISInversion", "BaretTransitionEmbedding", "BaretBAMEdit"))
    if options.checkpoint:
        by_type["CheckpointLoaderSimple"]["ckpt_name"] = options.checkpoint.name
        by_type["LoadImage"]["image"] = image
        by_type["ImageScaleToTotalPixels"]["megapixels"] = options.size**2 / 1024**2
    elif image:
        scene = next(node for node in prompt.values() if node["class_type"] == "BaretWorldScene")
        scene.update(class_type="LoadImage", inputs={"image": image})  # its first output is the picture too
    for inputs, name, value in (
        (prompt[ttis["positive"][0]]["inputs"], "text", options.text),
        (prompt[ttis["negative"][0]]["inputs"], "text", options.negative),
        (ttis, "steps", options.steps),
        (ttis, "cfg", options.cfg),
        (bam, "cfg", options.cfg),
        (ttis, "iterations", options.iterations),
        (ttis, "learning_rate", options.learning_rate),
        (transition, "eta_start", options.eta_start),
        (transition, "eta_end", options.eta_end),
        (bam, "tau_sa", options.tau_sa),
        (bam, "tau_ca", options.tau_ca),
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
            value, most = data["value"], data["max"]
            bar = "#" * int(30 * value / most)
            self._show(f"{self.titles[data['node']]:22} [{bar:-<30}] {value}/{most}")

    def _elapsed(self) -> str:
        return "{:2}:{:02}".format(*divmod(int(time.monotonic() - self.start), 60))

    def _show(self, text: str) -> None:
        print(f"\r\x1b[K{self._elapsed()}  {text}" if text else "\r\x1b[K", end="", flush=True)


def write_pictures(out: Path, before: bytes, reconstruction: bytes, edit: bytes) -> Path:
    """Write the edit and the strip; returns the strip's path."""
    from PIL import Image  # the host's

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(edit)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (before, reconstruction, edit)]
    size = pictures[1].size
    pictures[0] = pictures[0].resize(size, Image.Resampling.LANCZOS)
    strip = Image.new("RGB", (3 * size[0] + 16, size[1]), "white")
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * (size[0] + 8), 0))
    path = out.with_name(f"{out.stem}_strip.png")
    strip.save(path)
    return path


def main() -> None:
    options = parse_arguments()
    host = comfyui.enter(options)
    from comfy_server import ExecutionFailed, PromptRejected, ServerError  # need the host's interpreter

    if options.checkpoint and not options.image:
        options.image = workflows.PICTURE_FILE
    try:
        prompt, shown = edited(host, options)
    except (comfyui.HostError, ServerError, PromptRejected, ExecutionFailed) as error:
        sys.exit(f"\nerror: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    before = options.image.read_bytes() if options.image else shown["Before"]
    strip = write_pictures(options.out, before, shown["Reconstruction"], shown["Edit"])
    (target,) = (node for node in prompt.values() if node["_meta"]["title"] == "Target text")
    print(f"Edited by: {target['inputs']['text']}")
    print(f"The edited picture: {options.out.resolve()}")
    print(f"before | reconstruction | edit: {strip.resolve()}")


def edited(host: comfyui.Host, options: argparse.Namespace) -> tuple[dict, dict[str, bytes]]:
    """Run the edit; returns the workflow as it ran, and the pictures its nodes show, by their titles."""
    import comfy_server

    checkpoints, threads = ([options.checkpoint], None) if options.checkpoint else ([], 1)
    print(f"Starting ComfyUI {host.version}", flush=True)
    with comfy_server.running(host, checkpoints, threads=threads) as client:
        workflow = json.loads((PHOTO if options.checkpoint else DRAWN_WORLD).read_text(encoding="utf-8"))
        prompt = fill_in(workflow, options, client.upload(options.image) if options.image else None)
        run = client.run(prompt, on_event=ProgressLine(prompt), timeout=24 * 3600)
        return prompt, client.pictures(run, prompt)


if __name__ == "__main__":
    main()
