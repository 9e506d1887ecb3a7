"""Edit a picture by a text, from nothing: set up ComfyUI, run its server with this pack, queue an example workflow.

    python dev/edit.py                                            # the model and a scene that come with the pack
    python dev/edit.py --text "a yellow dog"                      # the same scene, another text
    python dev/edit.py --checkpoint v1-5-pruned-emaonly-fp16.safetensors --image photo.jpg --text "a dog lying"
    python dev/edit.py --dials --text "a red dog on the sea, sun, tree" --eta-start 0.6    # the paper's three nodes

The text says what is in the picture and what is new. With --dials it says the whole scene as it should become. An
option that is not given leaves what the example workflow has.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path

import comfyui
import workflows

NO_DIALS, DIALS = "baret_edit", "baret_paper"

WORLD_SIDE = 128  # pixels of the drawn world
WORLD_ONLY = (
    "note: without --checkpoint the pack's drawn world edits, a small model that knows drawn scenes only. "
    "A photo needs --checkpoint."
)
TTIS, TRANSITION, BAM = "BaretTTISInversion", "BaretTransitionEmbedding", "BaretBAMEdit"
AUTO = "BaretAutoEdit"
NUMBERS = {
    "seed": (int, 0, 2**32 - 1, (AUTO,), "which noise is tried; another number is another try (0)"),
    "effort": (int, 1, 4, (AUTO,), "how many candidates are tried at most (4)"),
}
DIAL_NUMBERS = {
    "steps": (int, 2, 999, (TTIS,), "sampling steps (50 with a checkpoint, 25 without)"),
    "cfg": (float, 1, 30, (TTIS, BAM), "guidance of the inversion and the edit (7.5)"),
    "iterations": (int, 0, 100, (TTIS,), "most updates of the text per step (1)"),
    "learning_rate": (float, 1e-6, 1, (TTIS,), "size of an update of the step rule adam (0.001)"),
    "eta_start": (float, 0, 1, (TRANSITION,), "how much of the picture stays at first (0.8, without checkpoint 0.4)"),
    "eta_end": (float, 0, 1, (TRANSITION,), "and at the end (0.1, without checkpoint 0)"),
    "tau_sa": (float, 0, 1, (BAM,), "share of steps with the reconstruction's self-attention (0.3)"),
    "tau_ca": (float, 0, 1, (BAM,), "share of steps with the transition's cross-attention (0.6)"),
}
"""Options that are numbers: type, least and most, the nodes that take them, what they are."""
PHOTO_DIALS = {"steps": 50, "eta_start": 0.8, "eta_end": 0.1}  # where the example stands as the drawn world wants it
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


# --- what was asked for ---------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The options. Ends the program with a sentence where one cannot be right, before anything starts."""
    parser = argparse.ArgumentParser(
        description="Edit a picture by a text with BARET, in a real ComfyUI that is set up on first use."
    )
    add = parser.add_argument
    add("--image", type=Path, help="the picture to edit (default: a drawn scene)")
    add("--text", help="what is in the picture and what is new (default: the example workflow's)")
    add("--checkpoint", type=Path, help="a Stable Diffusion 1.x or 2.x checkpoint (default: the pack's drawn world)")
    add("--size", type=int, help=f"shrink to the area of a square of this side (512, without checkpoint {WORLD_SIDE})")
    _add_numbers(parser, NUMBERS)
    add("--out", type=Path, default=Path("edited.png"), help="where the edit goes, beside it a strip (%(default)s)")
    add("--dials", action="store_true", help="the paper's three nodes; the text is then the whole scene")
    dials = parser.add_argument_group("with --dials alone")
    dials.add_argument("--negative", help="the negative text (default: empty, as in the paper)")
    _add_numbers(dials, DIAL_NUMBERS)
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_numbers(parser, numbers: dict) -> None:
    for name, (kind, _, _, _, what) in numbers.items():
        parser.add_argument(_option(name), type=kind, help=what)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, with what fits, for what could only fail later."""
    for names, with_dials in ((NUMBERS, False), ([*DIAL_NUMBERS, "negative"], True)):
        for name in names:
            if getattr(options, name) is not None and options.dials != with_dials:
                raise ValueError(f"{_option(name)} works only {'with' if with_dials else 'without'} --dials")
    for name, (_, least, most, _, _) in {**NUMBERS, **DIAL_NUMBERS}.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{_option(name)} is {value:g}; {least:g} to {most:g} fits")
    if options.size is not None and not 64 <= options.size <= 4096:
        raise ValueError(f"--size is {options.size}; 64 to 4096 pixels fit")
    if options.size is not None and not (options.image or options.checkpoint):
        raise ValueError("--size is for a picture of your own: give --image as well")
    if options.text is not None and not options.text.strip():
        raise ValueError("--text is empty; write what is in the picture and what is new")
    if options.image:
        _check_picture(options.image)
    if options.checkpoint:
        _check_checkpoint(options.checkpoint)
    _check_out(options.out)


def _start_of(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with open(path, "rb") as file:
        return file.read(16)


def _check_picture(path: Path) -> None:
    if not _start_of(path).startswith(PICTURE_STARTS):
        raise ValueError(f"{path} is no picture; a PNG, JPEG, WebP, GIF, BMP or TIFF file fits")


def _check_checkpoint(path: Path) -> None:
    start = _start_of(path)
    if path.suffix == ".safetensors":
        length = int.from_bytes(start[:8], "little")
        whole = start[8:9] == b"{" and 8 + length <= path.stat().st_size
    else:
        whole = path.suffix in (".ckpt", ".pt", ".pth", ".bin") and start.startswith((b"PK", b"\x80"))
    if not whole:
        raise ValueError(f"{path} is no checkpoint, or is cut short; a .safetensors or .ckpt file fits")


def _check_out(path: Path) -> None:
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--out is {path}; a name that ends in {', '.join(PICTURE_SUFFIXES)} fits")
    folder = next(folder for folder in path.resolve().parents if folder.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--out is {path}, and no file can be written there")


# --- the workflow ---------------------------------------------------------------------------------------------------


def fill_in(options: argparse.Namespace, image: str | None) -> dict:
    """The example workflow with the options in it. image: the name of the uploaded picture."""
    prompt = workflows.example(DIALS if options.dials else NO_DIALS)
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    workflows.show_picture(prompt)
    if options.dials:
        workflows.show_reconstruction(prompt)
    if options.checkpoint:
        workflows.use_checkpoint(prompt, options.checkpoint.name)
        _set(by_type, {name: value for name, value in PHOTO_DIALS.items() if options.dials or name == "steps"})
    if image:
        workflows.use_picture(prompt, image, options.size or (512 if options.checkpoint else WORLD_SIDE))
    _set(by_type, vars(options))
    ttis = by_type[TTIS]
    for name, text in (("positive", options.text), ("negative", options.negative)):
        if text is not None:
            prompt[ttis[name][0]]["inputs"]["text"] = text
    return prompt


def _set(by_type: dict[str, dict], values: dict) -> None:
    """Set the numbers that were given in every node that takes them."""
    for name, (_, _, _, nodes, _) in {**NUMBERS, **DIAL_NUMBERS}.items():
        if values.get(name) is not None:
            for node in nodes:
                if node in by_type:
                    by_type[node][name] = values[name]


# --- the run --------------------------------------------------------------------------------------------------------


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


def write_pictures(out: Path, before: bytes, *after: bytes) -> Path:
    """Write the last picture, and all of them in a strip; returns the strip's path."""
    from PIL import Image  # the host's

    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (before, *after)]
    pictures[-1].save(out)
    width, height = pictures[-1].size
    strip = Image.new("RGB", (len(pictures) * (width + 8) - 8, height), "white")
    for number, picture in enumerate(pictures):
        strip.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (number * (width + 8), 0))
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
        require_readable(options.image)
        shown, report = edited(host, options)
    except (comfyui.HostError, ServerError, PromptRejected, ExecutionFailed) as error:
        sys.exit(f"\nerror: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    titles = ["Before", "Reconstruction", "Edit"] if options.dials else ["Before", "Edit"]
    strip = write_pictures(options.out, *(shown[title] for title in titles))
    print(report)
    print(f"The edited picture: {options.out.resolve()}")
    print(f"{' | '.join(titles).lower()}: {strip.resolve()}")


def require_readable(image: Path | None) -> None:
    """End the program where a file that begins like a picture is none."""
    from PIL import Image  # the host's

    if image:
        try:
            with Image.open(image) as picture:
                picture.load()
        except OSError as error:
            sys.exit(f"error: {image} cannot be read as a picture: {error}")


def edited(host: comfyui.Host, options: argparse.Namespace) -> tuple[dict[str, bytes], str]:
    """Run the edit; returns the pictures that its nodes show, by their titles, and what is to be said of it."""
    import comfy_server

    checkpoints, threads = ([options.checkpoint], None) if options.checkpoint else ([], 1)
    if options.image and not options.checkpoint:
        print(WORLD_ONLY, flush=True)
    print(f"Starting ComfyUI {host.version}", flush=True)
    with comfy_server.running(host, checkpoints, threads=threads) as client:
        prompt = fill_in(options, client.upload(options.image) if options.image else None)
        run = client.run(prompt, on_event=ProgressLine(prompt), timeout=24 * 3600)
        return client.pictures(run, prompt), report_of(prompt, run)


def report_of(prompt: dict, run) -> str:
    """The text as it ran, what the model says of its words, and what became of the candidates."""
    (target,) = (id for id, node in prompt.items() if node["_meta"]["title"] == "Target text")
    lines = [f"Edited by: {prompt[target]['inputs']['text']}", run.remarks.get(target, "")]
    lines += [run.outputs[id]["text"][0] for id, node in prompt.items() if node["class_type"] == AUTO]
    return "\n".join(filter(None, lines))


if __name__ == "__main__":
    main()
