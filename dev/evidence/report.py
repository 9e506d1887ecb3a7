"""Tables and figures of a run's results: the blocks between markers in `docs/evidence.md`, and `docs/evidence/`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import studies
import torch
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "evidence"
SHARES = ("text", "details", "identity")  # counted; the others are measured

plt.rcParams.update(
    {
        "svg.hashsalt": "baret",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
)


class Results:
    """The results of a run by name, and what is asked of them."""

    def __init__(self, run: Path):
        self.run = run
        self.all = {path.stem: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}

    def mean(self, name: str, key: str) -> float:
        values = self.all[name][key]
        return sum(values) / len(values)

    def interval(self, name: str, key: str) -> tuple[float, float]:
        """95 % interval of a mean: Student's for what is measured, Wilson's for shares."""
        values, n = self.all[name][key], len(self.all[name][key])
        mean = sum(values) / n
        if key in SHARES:
            z = 1.96
            middle, half = (
                (mean + z * z / (2 * n)) / (1 + z * z / n),
                z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n),
            )
            return max(0.0, middle - half), min(1.0, middle + half)
        half = 2.01 * math.sqrt(
            sum((v - mean) ** 2 for v in values) / (n - 1) / n
        )  # Student's t at 47 degrees of freedom
        return mean - half, mean + half

    def show(self, name: str, key: str) -> str:
        """``mean ± half interval``; a share in percent with its interval."""
        mean, (low, high) = self.mean(name, key), self.interval(name, key)
        if key in SHARES:
            return f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        return f"{mean:.3f} ± {(high - low) / 2:.3f}" if key == "ssim" else f"{mean:.1f} ± {(high - low) / 2:.1f}"

    def gain(self, name: str, other: str, key: str = "psnr") -> str:
        """Mean and interval of the scene-by-scene difference."""
        differences = [a - b for a, b in zip(self.all[name][key], self.all[other][key])]
        mean = sum(differences) / len(differences)
        half = 2.01 * math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1) / len(differences))
        return f"{mean:+.1f} ± {half:.1f}"

    def cost(self, name: str) -> float:
        """UNet passes a scene of an edit and its inversion."""
        return self.all[name].get("cost", 0.0) + self.all[name]["inversion_cost"]


def table(header: str, rows: list[list]) -> str:
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in line) + " |" for line in lines)


# --- 1. reconstruction ------------------------------------------------------------------------------------------------


def convergence_points(method: str) -> list[str]:
    names = [f"converge-{method}-{updates}" for updates in studies.CONVERGENCE[method][2]]
    return (["converge-TTIS, Adam-0"] if method.startswith("TTIS") else []) + names


def reach(results: Results, method: str, decibels: float, x) -> float | None:
    """Where a method's mean PSNR reaches a value: ``x(name)`` on the straight lines between its points, None where it never does."""
    points = [(x(name), results.mean(name, "psnr")) for name in convergence_points(method)]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if y0 < decibels <= y1:
            return x0 + (x1 - x0) * (decibels - y0) / (y1 - y0)
    return points[0][0] if points[0][1] >= decibels else None


def convergence_table(results: Results) -> str:
    rows = []
    for method in studies.CONVERGENCE:
        for name in convergence_points(method):
            if name.endswith("-0") and method != "TTIS, Adam":
                continue
            result = results.all[name]
            label = "guided DDIM (no update)" if name.endswith("-0") else method
            rate = result["inputs"].get("learning_rate", "") if not name.endswith("-0") else ""
            rows.append(
                [
                    label,
                    rate,
                    f"{results.mean(name, 'updates'):.0f}",
                    f"{result['inversion_cost']:.0f}",
                    results.show(name, "psnr"),
                    f"{results.mean(name, 'mse'):.4f}",
                ]
            )
    for name, label in (("published-null", "null-text, caption, as published"),):
        result = results.all[name]
        rows.append(
            [
                label,
                result["inputs"]["learning_rate"],
                f"{results.mean(name, 'updates'):.0f}",
                f"{result['inversion_cost']:.0f}",
                results.show(name, "psnr"),
                f"{results.mean(name, 'mse'):.4f}",
            ]
        )
    return table("method | learning rate | updates | passes | PSNR, dB | latent MSE", rows)


def reach_table(results: Results) -> str:
    levels = (30.0, 35.0, 40.0)
    updates, passes = (lambda name: results.mean(name, "updates")), (lambda name: results.all[name]["inversion_cost"])
    cell = lambda value: "not reached" if value is None else f"{value:.0f}"  # noqa: E731
    rows = [
        [
            method,
            *(
                f"{cell(reach(results, method, level, updates))} / {cell(reach(results, method, level, passes))}"
                for level in levels
            ),
        ]
        for method in studies.CONVERGENCE
        if len(convergence_points(method)) > 1
    ]
    return table("updates / passes to reach | " + " | ".join(f"{level:.0f} dB" for level in levels), rows)


def convergence_figure(results: Results) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, x, label in zip(
        axes,
        (lambda n: results.mean(n, "updates"), lambda n: results.all[n]["inversion_cost"]),
        ("updates of the embedding", "UNet passes"),
    ):
        for index, method in enumerate(studies.CONVERGENCE):
            names = convergence_points(method)
            xs, ys, ends = (
                [x(n) for n in names],
                [results.mean(n, "psnr") for n in names],
                [results.interval(n, "psnr") for n in names],
            )
            axis.plot(
                xs, ys, marker="o", ms=4, color=f"C{index}", ls="--" if method.startswith("null") else "-", label=method
            )
            axis.fill_between(
                xs, [low for low, _ in ends], [high for _, high in ends], color=f"C{index}", alpha=0.15, lw=0
            )
        axis.set_xlabel(label)
    axes[0].set_ylabel("reconstruction, PSNR in dB")
    axes[1].legend(fontsize=8)
    save(figure, "convergence")


def rules_table(results: Results) -> str:
    rows = []
    for method in [m for m in studies.CONVERGENCE if m.startswith("TTIS")]:
        for updates in ((0,) if method == "TTIS, Adam" else ()) + studies.CONVERGENCE[method][2]:
            edit, made = f"rules-{method}-{updates}", f"converge-{method}-{updates}"
            rows.append(
                [
                    "no tuning" if updates == 0 else method.removeprefix("TTIS, "),
                    updates,
                    f"{results.all[made]['inversion_cost']:.0f}",
                    results.show(made, "psnr"),
                    results.show(edit, "text"),
                    results.show(edit, "psnr"),
                    results.show(edit, "identity"),
                ]
            )
    return table("rule | updates a step | passes | reconstruction, dB | pose right | kept, dB | identity kept", rows)


# --- 2. edits ---------------------------------------------------------------------------------------------------------

METHODS = (
    "BARET",
    "BARET with auto_mask",
    "BARET, defaults",
    "reconstruction-only attention",
    "plain",
    "plain with auto_mask",
    "SDEdit",
    "MasaCtrl",
    "prompt-to-prompt",
)


def settings_of(result: dict) -> str:
    short = {
        "eta_start": "eta",
        "start_step": "step",
        "first_block": "block",
        "cross_share": "cross",
        "self_share": "self",
    }
    return ", ".join(
        f"{short.get(k, k)} {v:g}" for k, v in result["settings"].items() if k not in ("eta_end", "auto_mask")
    )


def edits_table(results: Results, task: str) -> str:
    rows = []
    for method in METHODS:
        name = f"edit-{task}-{method}"
        if name in results.all:
            rows.append(
                [
                    method,
                    settings_of(results.all[name]) or "its defaults",
                    *(results.show(name, key) for key in ("text", "psnr", "ssim", "details", "identity", "ideal")),
                    f"{results.cost(name):.0f}",
                ]
            )
    return table(
        "method | settings | text obeyed | kept, dB | kept, SSIM | sun and tree kept | identity kept | to the ideal, dB | passes",
        rows,
    )


def edits_figure(results: Results) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.6), sharex=True, layout="constrained")
    for axis, task in zip(axes, studies.TASKS):
        for index, method in enumerate(METHODS):
            name = f"edit-{task}-{method}"
            if name not in results.all:
                continue
            x, y = results.mean(name, "text"), results.mean(name, "psnr")
            (left, right), (low, high) = results.interval(name, "text"), results.interval(name, "psnr")
            axis.errorbar(
                100 * x,
                y,
                xerr=[[max(0, 100 * (x - left))], [max(0, 100 * (right - x))]],
                yerr=[[y - low], [high - y]],
                marker="os^vDPX*<"[index],
                ms=6,
                color=f"C{index}",
                elinewidth=1,
                label=method,
                ls="",
            )
        axis.set_title(task + (" (inside the animal)" if task == "background" else " (outside the animals)"))
        axis.set_xlabel("text obeyed, %")
        axis.set_xlim(-4, 104)
    axes[0].set_ylabel("kept, PSNR in dB")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
    save(figure, "edits")


def pictures_figure(results: Results) -> None:
    """Rows of scenes, columns of methods."""
    shown = (
        "source",
        "ideal",
        "BARET",
        "BARET with auto_mask",
        "BARET, defaults",
        "plain",
        "SDEdit",
        "MasaCtrl",
        "prompt-to-prompt",
    )
    side, gap, top = 112, 6, 20
    font, rows = ImageFont.load_default(11), [(task, index) for task in studies.TASKS for index in range(2)]
    sheet = Image.new("RGB", (len(shown) * (side + gap), top + len(rows) * (side + 22)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(shown):
        draw.text((column * (side + gap), 4), label, fill="black", font=font)
        for row, (task, index) in enumerate(rows):
            scenes = torch.load(results.run / "pictures" / f"scenes-{task}.pt")
            path = results.run / "pictures" / f"edit-{task}-{label}.pt"
            picture = scenes[label][index] if label in scenes else torch.load(path)[index]
            y = top + row * (side + 22)
            sheet.paste(
                Image.fromarray(picture.numpy()).resize((side, side), Image.Resampling.LANCZOS),
                (column * (side + gap), y),
            )
            if column == 0:
                draw.text((0, y + side + 3), f"{task}: \u201c{scenes['texts'][index]}\u201d", fill="black", font=font)
    sheet.quantize(256, dither=Image.Dither.NONE).save(FIGURES / "pictures.png", optimize=True)


# --- 3. dials, 4. open choices, 5. beyond the paper -------------------------------------------------------------------


def dials_figure(results: Results) -> None:
    dials = [dial for dial, values in studies.DIALS.items() if len(values) > 2]
    figure, axes = plt.subplots(1, len(dials), figsize=(12, 3.1), sharex=True, sharey=True, layout="constrained")
    for axis, dial in zip(axes, dials):
        names = [studies.dial_name(dial, value) for value in studies.DIALS[dial]]
        xs, ys = [100 * results.mean(name, "text") for name in names], [results.mean(name, "psnr") for name in names]
        axis.plot(xs, ys, color="C0", lw=1)
        for value, name, x, y in zip(studies.DIALS[dial], names, xs, ys):
            (left, right), (low, high) = results.interval(name, "text"), results.interval(name, "psnr")
            axis.errorbar(
                x,
                y,
                xerr=[[max(0, x - 100 * left)], [max(0, 100 * right - x)]],
                yerr=[[y - low], [high - y]],
                marker="o",
                ms=5,
                color="C3" if name == "dial-default" else "C0",
                elinewidth=0.6,
            )
            axis.annotate(f"{value:g}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axis.set_title(dial)
        axis.set_xlabel("pose right, %")
        axis.set_xlim(-5, 108)
    axes[0].set_ylabel("kept, PSNR in dB")
    save(figure, "dials")


def dials_table(results: Results) -> str:
    rows = []
    for dial, values in studies.DIALS.items():
        for value in values:
            name = studies.dial_name(dial, value)
            label = f"**{value}**" if value == studies.DEFAULTS[dial] else value
            rows.append(
                [
                    dial,
                    label,
                    *(results.show(name, key) for key in ("text", "psnr", "identity")),
                    f"{results.all[name]['cost']:.0f}",
                ]
            )
    return table("dial | value | pose right | kept, dB | identity kept | passes of the edit", rows)


def open_table(results: Results) -> str:
    made, edited = "reconstruction-pose", "edit-pose-BARET, defaults"
    row = lambda label, made, edit, gain: [
        label,
        results.show(made, "psnr"),
        f"{results.all[made]['inversion_cost']:.0f}",
        results.show(edit, "text"),
        results.show(edit, "psnr"),
        gain,
    ]  # noqa: E731
    rows = [row("as this pack chose", made, edited, "")]
    rows += [
        row(name, f"open-{name}", f"open-edit-{name}", results.gain(f"open-edit-{name}", edited))
        for name in studies.OPEN
    ]
    both = studies.dial_name("passes", "both")
    rows.append(row("passes: both", made, both, results.gain(both, edited)))
    return table("alternative | reconstruction, dB | passes | pose right | kept, dB | against the choice, dB", rows)


def rates_table(results: Results) -> str:
    rows = []
    for kind, label in (("adam", "TTIS, Adam"), ("null", "null-text, caption")):
        for updates in studies.UPDATES[kind]:
            tried = {rate: results.mean(f"rates-{kind}-{updates}-{rate}", "psnr") for rate in studies.RATES[kind]}
            best = max(tried, key=tried.get)
            rows.append(
                [
                    label,
                    updates,
                    ", ".join(
                        f"**{rate:g}: {value:.1f}**" if rate == best else f"{rate:g}: {value:.1f}"
                        for rate, value in tried.items()
                    ),
                ]
            )
    return table("method | updates a step | learning rate: PSNR in dB, on the tuning scenes", rows)


def beyond_table(results: Results) -> str:
    rows = []
    for task in studies.TASKS:
        base = f"edit-{task}-BARET"
        rows.append(
            [
                task,
                "BARET, its best settings",
                results.show(base, "text"),
                results.show(base, "psnr"),
                "",
                f"{results.cost(base):.0f}",
            ]
        )
        for idea in ("BARET with auto_mask", *(name for name, _, _ in studies.beyond({}))):
            name = f"edit-{task}-{idea}"
            if name in results.all:
                label = "auto_mask 0.01" if idea.startswith("BARET") else idea
                rows.append(
                    [
                        "",
                        label,
                        results.show(name, "text"),
                        results.show(name, "psnr"),
                        results.gain(name, base),
                        f"{results.cost(name):.0f}",
                    ]
                )
    return table("task | idea | text obeyed | kept, dB | scene by scene, dB | passes", rows)


# --- all of it --------------------------------------------------------------------------------------------------------


def save(figure, name: str) -> None:
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def about_text(results: Results) -> str:
    about = json.loads((results.run / "about.json").read_text())
    return (
        f"{about['sizes']['score']} held-out scenes a task, settings and learning rates chosen on {about['sizes']['tune']} others. "
        f"{about['machine']}; {about['minutes']:.0f} minutes of one core in all, by two processes of one thread; {about['date']}; commit {about['commit']}."
    )


def write(run: Path) -> None:
    """Fill the document's blocks and make its figures; `docs/evidence/numbers.json` has every scene's numbers."""
    results = Results(run)
    FIGURES.mkdir(parents=True, exist_ok=True)
    convergence_figure(results), edits_figure(results), pictures_figure(results), dials_figure(results)
    blocks = {
        "about": about_text, "convergence": convergence_table, "reach": reach_table, "rules": rules_table, "dials": dials_table, "open": open_table,
        "rates": rates_table, "beyond": beyond_table, **{f"edits-{task}": lambda results, task=task: edits_table(results, task) for task in studies.TASKS},
    }  # fmt: skip
    document = DOCS / "evidence.md"
    text = document.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, block=block: match[1] + block(results) + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
        assert found, f"{document} has no block {name}"
    document.write_text(text, encoding="utf-8")
    rounded = {
        name: {key: [round(v, 4) for v in value] if isinstance(value, list) else value for key, value in result.items()}
        for name, result in results.all.items()
    }
    numbers = {
        "about": json.loads((run / "about.json").read_text()),
        "chosen": json.loads((run / "chosen.json").read_text()),
        "results": rounded,
    }
    (FIGURES / "numbers.json").write_text(json.dumps(numbers, separators=(",", ":")))
    print(document)
