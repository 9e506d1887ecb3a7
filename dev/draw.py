"""Draw scenes of the drawn world into a folder, to try `batch/run.py` on.

python dev/draw.py scenes --count 12
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import comfyui

SCENES = Path(__file__).resolve().parent.parent / "world" / "scenes.py"


def load_scenes():
    """The module world/scenes.py by itself. Needs torch."""
    if "drawn_scenes" not in sys.modules:
        spec = importlib.util.spec_from_file_location("drawn_scenes", SCENES)
        sys.modules["drawn_scenes"] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up there
        spec.loader.exec_module(sys.modules["drawn_scenes"])
    return sys.modules["drawn_scenes"]


def picture_of(scene):
    """A scene as a PIL image, 128 x 128."""
    from PIL import Image

    pictures, _ = load_scenes().render([scene])
    return Image.fromarray((pictures[0] * 255).round().byte().numpy())


def draw(folder: Path, count: int, seed: int = 0) -> list:
    """Write `count` scenes as scene-0001.png and so on; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = load_scenes().sample(seed, count)
    for number, scene in enumerate(drawn, 1):
        picture_of(scene).save(folder / f"scene-{number:04}.png")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw scenes into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    comfyui.enter(options)
    draw(options.folder, options.count, options.seed)
    print(f"{options.count} scenes: {options.folder.resolve()}")


if __name__ == "__main__":
    main()
