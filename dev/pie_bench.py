"""Run editing methods over PIE-Bench, or any table of pictures and texts, and measure them as its paper does.

    python dev/pie_bench.py --data PIE-Bench_v1 --checkpoint v1-5-pruned-emaonly-fp16.safetensors
    python dev/pie_bench.py --data tedbench.csv --methods auto --checkpoint FILE     # columns: image, text
    python dev/pie_bench.py --draw miniature --count 4                               # the same layout, drawn
    python dev/pie_bench.py --data miniature                                         # and the pack's small model on it

`--data` is the folder with mapping_file.json and annotation_images/, which its authors hand out. Methods run through
batch/run.py, one after another, and go on where they stopped. Two protocols are kept apart: methods that are given the
target text alone, and those that are also given what the benchmark annotates (the source caption, the words to blend).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import comfyui
import workflows

ROOT = Path(__file__).resolve().parent.parent
SIDE = 512  # pixels of the benchmark's pictures and masks
WORLD_SIDE = 128

TARGET_ONLY, CAPTION = "target text only", "source caption allowed"
METHODS = {
    "auto": ("TTIS, Auto Edit", TARGET_ONLY, "Auto Edit"),
    "baret": ("TTIS, transition, BAM Edit", TARGET_ONLY, "BAM Edit"),
    "null-text-p2p": ("null-text inversion, prompt-to-prompt", CAPTION, "Prompt-to-Prompt"),
    "direct-p2p": ("direct inversion, prompt-to-prompt", CAPTION, "Prompt-to-Prompt"),
    "direct-masactrl": ("direct inversion, MasaCtrl", CAPTION, "MasaCtrl Edit"),
}
"""Method -> its name in the table, its protocol, the title of its last node in the template *BARET 09 Compare*."""

PUBLISHED = [
    {
        "method": "direct inversion, prompt-to-prompt",
        "protocol": CAPTION,
        "source": "Ju et al. 2023, arXiv 2310.01506",
        "structure": 11.65,
        "psnr": 27.22,
        "lpips": 54.55,
        "clip_whole": 25.02,
    }
]
"""Rows as others published them, in the table's units; `--published FILE` adds more, a CSV of the same columns."""
AS_PUBLISHED = {  # where the template stands as the drawn world wants it
    "BaretNullTextInversion": {"steps": 50, "iterations": 10, "step_rule": "adam", "learning_rate": 0.01},
    "BaretPromptToPromptEdit": {"cross_share": 0.4, "self_share": 0.6},
    "BaretMasaCtrlEdit": {"start_step": 4, "first_block": 10},
    "BaretTransitionEmbedding": {"eta_start": 0.8, "eta_end": 0.1},
    "BaretTTISInversion": {"steps": 50},
    "BaretInversion": {"steps": 50},
}


@dataclass(frozen=True)
class Item:
    """One edit of a benchmark. caption, blend and mask are None where it annotates none."""

    id: str
    image: Path
    target: str
    caption: str | None = None
    blend: str | None = None
    mask: list[int] | None = None


# --- benchmarks -------------------------------------------------------------------------------------------------------


def read(data: Path) -> list[Item]:
    """The edits of PIE-Bench's folder, or of a table with the columns image and text. Raises ValueError."""
    if data.is_dir():
        return list(_pie(data))
    sys.path.append(str(ROOT / "batch"))
    import rows

    return [Item(row.id.replace("/", "-"), row.image, row.text or "") for row in rows.read(data) if row.image]


def _pie(folder: Path) -> Iterable[Item]:
    mapping = folder / "mapping_file.json"
    if not mapping.is_file():
        raise ValueError(f"{folder} has no mapping_file.json beside annotation_images; PIE-Bench's folder fits")
    try:
        entries = json.loads(mapping.read_text(encoding="utf-8"))
        for id, entry in entries.items():
            words = dict.fromkeys(entry.get("blended_word", "").split())
            yield Item(
                id=id,
                image=folder / "annotation_images" / entry["image_path"],
                target=_plain(entry["editing_prompt"]),
                caption=_plain(entry["original_prompt"]),
                blend=", ".join(words),
                mask=entry["mask"],
            )
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{mapping} is not as PIE-Bench's: {error!r}") from None


def _plain(prompt: str) -> str:
    """A prompt without the brackets that mark what differs."""
    return prompt.replace("[", "").replace("]", "")


def decoded(runs: list[int], side: int = SIDE):
    """A mask [side,side] of pairs (first pixel, how many), row by row; its edge counts as inside, as published."""
    import numpy

    mask = numpy.zeros(side * side, dtype=bool)
    for first, length in zip(runs[::2], runs[1::2]):
        mask[first : first + length] = True
    mask = mask.reshape(side, side)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def encoded(mask) -> list[int]:
    """The pairs (first pixel, how many) of a mask [H,W]."""
    import numpy

    flat = numpy.concatenate([[False], mask.reshape(-1), [False]])
    edges = numpy.flatnonzero(flat[1:] != flat[:-1])
    return [int(number) for first, end in zip(edges[::2], edges[1::2]) for number in (first, end - first)]


def draw(folder: Path, count: int, seed: int = 0) -> None:
    """A miniature of PIE-Bench's layout from scenes of the drawn world: changes of colour and of pose by turns."""
    import draw as drawing
    from PIL import Image

    scenes = drawing.load_scenes()
    entries = {}
    for number, scene in enumerate(scenes.sample(seed, count)):
        field, names, type_id = (("colour", scenes.COLOURS, "6"), ("pose", scenes.POSES, "5"))[number % 2]
        changed = scenes.replace(scene, **{field: (getattr(scene, field) + 1) % len(names)})
        kind = {"6": "6_change_attribute_color_40", "5": "5_change_attribute_pose_40"}[type_id]
        id = f"{type_id}{number:011}"
        path = folder / "annotation_images" / kind / f"{id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.picture_of(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=95)
        masks = scenes.render([scene, changed])[1].amax(0) > 0.5
        large = masks.repeat_interleave(SIDE // WORLD_SIDE, 0).repeat_interleave(SIDE // WORLD_SIDE, 1)
        before, after = scenes.plain_caption(scene), scenes.plain_caption(changed)
        old, new = names[getattr(scene, field)], names[getattr(changed, field)]
        animal = scenes.ANIMALS[scene.animal]
        entries[id] = {
            "image_path": f"{kind}/{id}.jpg",
            "original_prompt": before.replace(old, f"[{old}]", 1),
            "editing_prompt": after.replace(new, f"[{new}]", 1),
            "editing_instruction": f"change the {field} from {old} to {new}",
            "editing_type_id": type_id,
            "blended_word": f"{animal} {animal}",
            "mask": encoded(large.numpy()),
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries, indent=1))


# --- methods ----------------------------------------------------------------------------------------------------------


def workflow_of(method: str, checkpoint: Path | None) -> dict:
    """The part of the template *BARET 09 Compare* that one method needs, on pictures, with texts to fill in."""
    prompt = workflows.example("baret_compare")
    scene = workflows.picture_of(prompt)
    by_title = {node["_meta"]["title"]: id for id, node in prompt.items()}
    caption = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": ""}, "_meta": {"title": "Source text"}}
    for node in prompt.values():
        node["inputs"] = {k: ["caption", 0] if v == [scene, 1] else v for k, v in node["inputs"].items()}
    prompt["caption"] = caption
    last = by_title[METHODS[method][2]]
    if method == "direct-p2p":
        for name, output in (("trajectory", 0), ("embeddings", 1)):
            prompt[last]["inputs"][name] = [by_title["Inversion"], output]
    if checkpoint:
        workflows.use_checkpoint(prompt, checkpoint.name)
        for node in prompt.values():
            node["inputs"].update(AS_PUBLISHED.get(node["class_type"], {}))
    workflows.use_picture(prompt, "", SIDE if checkpoint else WORLD_SIDE)
    decode = next(id for id, node in prompt.items() if node["inputs"].get("samples") == [last, 0])
    inputs = {"images": [decode, 0], "filename_prefix": method}
    prompt["saved"] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Edit"}}
    needed = _needed(prompt, "saved")
    return {id: node for id, node in prompt.items() if id in needed}


def _needed(prompt: dict, id: str) -> set[str]:
    """The ids of a node and of all that it takes from."""
    links = [value[0] for value in prompt[id]["inputs"].values() if isinstance(value, list)]
    return {id}.union(*(_needed(prompt, link) for link in links))


def run(method: str, items: list[Item], options: argparse.Namespace) -> dict[str, Path]:
    """Edit every item by a method through batch/run.py; returns the pictures of those that worked, by id."""
    folder = options.out / method
    folder.mkdir(parents=True, exist_ok=True)
    prompt = workflow_of(method, options.checkpoint)
    titles = {node["_meta"]["title"] for node in prompt.values()}
    (folder / "workflow.json").write_text(json.dumps(prompt, indent=1))
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        extra = {"Source text": "Source text.value", "Prompt-to-Prompt": "Prompt-to-Prompt.blend_words"}
        columns = [column for title, column in extra.items() if title in titles]
        writer = csv.writer(file)
        writer.writerow(["id", "image", "text", *columns])
        for item in items:
            values = {"Source text.value": item.caption, "Prompt-to-Prompt.blend_words": item.blend}
            writer.writerow([item.id, item.image.resolve(), item.target, *(values[name] or "" for name in columns)])
    arguments = [str(folder / "rows.csv"), "--out", str(folder / "run"), "--workflow", str(folder / "workflow.json")]
    arguments += ["--checkpoint", str(options.checkpoint)] if options.checkpoint else []
    arguments += ["--comfyui", options.comfyui] if options.comfyui else ["--version", options.version]
    arguments += ["--workers", str(options.workers)] if options.workers else []
    if batch(arguments) == 2:
        sys.exit(f"error: {method} could not start")
    pictures = {item.id: folder / "run" / "pictures" / f"{item.id}.png" for item in items}
    return {id: path for id, path in pictures.items() if path.is_file()}


def batch(arguments: list[str]) -> int:
    """The exit status of batch/run.py."""
    return subprocess.run([sys.executable, str(ROOT / "batch" / "run.py"), *arguments]).returncode


# --- the table --------------------------------------------------------------------------------------------------------


def measured(items: list[Item], pictures: dict[str, Path], metrics) -> dict[str, dict[str, float]]:
    """Every measure of every edit that is there, by id."""
    import numpy
    from PIL import Image

    found = {}
    for item in items:
        if item.id not in pictures:
            continue
        with Image.open(item.image) as before, Image.open(pictures[item.id]) as after:
            source = before.convert("RGB")
            edit = after.convert("RGB").resize(source.size, Image.Resampling.LANCZOS)
        mask = decoded(item.mask) if item.mask is not None else None
        found[item.id] = metrics.measure(numpy.asarray(source), numpy.asarray(edit), mask, item.target)
    return found


def table(results: dict[str, dict], items: int, published: list[dict], left_out: dict[str, str]) -> str:
    """The measures as Markdown, one table for each protocol. results: method -> id -> measures."""
    from pie_metrics import COLUMNS

    lines = []
    head = ["method", "edits", *(title for title, _ in COLUMNS.values())]
    for protocol in (TARGET_ONLY, CAPTION):
        ours = [name for name in results if METHODS[name][1] == protocol]
        others = [row for row in published if row["protocol"] == protocol]
        if not ours and not others:
            continue
        lines += [f"## {protocol.capitalize()}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name in ours:
            cells = [_mean(results[name], key, scale) for key, (_, scale) in COLUMNS.items()]
            lines.append(f"| {METHODS[name][0]} | {len(results[name])} of {items} | {' | '.join(cells)} |")
        for row in others:
            cells = [f"{float(row[key]):.2f}" if row.get(key) not in (None, "") else "" for key in COLUMNS]
            lines.append(f"| *{row['method']}, as published ({row['source']})* | 700 | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"Left out: {COLUMNS[name][0]}, because {why}." for name, why in left_out.items()]
    return "\n".join(lines).rstrip() + "\n"


def _mean(found: dict[str, dict[str, float]], key: str, scale: float) -> str:
    values = [measures[key] for measures in found.values() if key in measures]
    return f"{scale * sum(values) / len(values):.2f}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="PIE-Bench's folder, or a .csv, .jsonl or .parquet with image and text")
    add("--checkpoint", type=Path, help="a Stable Diffusion 1.x checkpoint (default: the pack's drawn world)")
    add("--methods", nargs="+", choices=METHODS, help="default: all that the data has texts for")
    add("--out", type=Path, default=Path("pie-bench"), help="%(default)s")
    add("--workers", type=int, help="as in batch/run.py")
    add("--offline", action="store_true", help="measure with weights that are on this disk alone")
    add("--published", type=Path, metavar="FILE", help="a CSV of further published rows")
    add("--draw", type=Path, metavar="DIR", help="draw a miniature of the layout there, and end")
    add("--count", type=int, default=8, help="of scenes, with --draw (%(default)s)")
    comfyui.add_arguments(parser)
    options = parser.parse_args()
    if not options.data and not options.draw:
        parser.error("give --data, or --draw for a miniature to try it on")
    comfyui.enter(options, tests=True)
    if options.draw:
        draw(options.draw, options.count)
        print(f"{options.count} edits: {options.draw.resolve()}")
        return
    try:
        items = read(options.data)
        text_only = any(item.caption is None for item in items)
        methods = options.methods or [
            name for name, about in METHODS.items() if about[1] == TARGET_ONLY or not text_only
        ]
        if text_only and (told := [name for name in methods if METHODS[name][1] == CAPTION]):
            raise ValueError(f"{', '.join(told)} need the source's caption, which {options.data} does not give")
        published = [*PUBLISHED, *_csv(options.published)] if options.data.is_dir() else []
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    from pie_metrics import Metrics

    metrics = Metrics(options.offline)
    results = {name: measured(items, run(name, items, options), metrics) for name in methods}
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    written = table(results, len(items), published, metrics.left_out)
    (options.out / "results.md").write_text(written, encoding="utf-8")
    print(written, end="")


def _csv(path: Path | None) -> list[dict]:
    if path is None:
        return []
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
