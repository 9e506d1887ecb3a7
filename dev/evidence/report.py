"""Tables and figures of a run's results: the blocks between markers in `docs/evidence.md`, and `docs/evidence/`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import studies
import torch
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "evidence"
SHARES = ("text", "details", "identity", "all", "good")  # counted; the others are measured
NORMAL = 1.96  # the same of the normal distribution

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


# --- numbers ----------------------------------------------------------------------------------------------------------


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def student_half(values: list[float]) -> float:
    """Half of the 95 % interval of a mean of what is measured."""
    n, mean = len(values), mean_of(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    student = NORMAL + 2.4 / (n - 1)  # Student's t of 95 %, to a hundredth from 15 values on
    return student * math.sqrt(variance / n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n."""
    z = NORMAL
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


class Results:
    """The results of a run by name, and what is asked of them."""

    def __init__(self, run: Path):
        self.run = run
        self.all = {path.stem: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}

    def mean(self, name: str, key: str) -> float:
        return mean_of(self.all[name][key])

    def interval(self, name: str, key: str) -> tuple[float, float]:
        """95 % interval of a mean: Student's for what is measured, Wilson's for shares."""
        values = self.all[name][key]
        mean = mean_of(values)
        if key in SHARES:
            return wilson(mean, len(values))
        half = student_half(values)
        return mean - half, mean + half

    def show(self, name: str, key: str) -> str:
        """``mean ± half interval``; a share in percent with its interval."""
        mean, (low, high) = self.mean(name, key), self.interval(name, key)
        if key in SHARES:
            return f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        digits = 3 if key == "ssim" else 1
        return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"

    def shown(self, name: str, *keys: str) -> list[str]:
        return [self.show(name, key) for key in keys]

    def gain(self, name: str, other: str, key: str = "psnr") -> str:
        """Mean and interval of the scene-by-scene difference."""
        differences = [a - b for a, b in zip(self.all[name][key], self.all[other][key])]
        return f"{mean_of(differences):+.1f} ± {student_half(differences):.1f}"

    def updates(self, name: str) -> float:
        """Updates of the embedding in an inversion."""
        return self.mean(name, "updates")

    def inversion_cost(self, name: str) -> float:
        """UNet passes a scene of an inversion."""
        return self.all[name]["inversion_cost"]

    def cost(self, name: str) -> float:
        """UNet passes a scene of an edit and its inversion."""
        return self.all[name].get("cost", 0.0) + self.inversion_cost(name)


def table(header: str, rows: list[list]) -> str:
    """A Markdown table. header: the columns' names with | between them."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in line) + " |" for line in lines)


# --- figures ----------------------------------------------------------------------------------------------------------


def save(figure, name: str) -> None:
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def cross(axis, results: Results, name: str, share: str, **style) -> tuple[float, float]:
    """Draw an edit at a share in percent and what is kept in dB, with its intervals; returns the place."""
    x, y = 100 * results.mean(name, share), results.mean(name, "psnr")
    left, right = results.interval(name, share)
    low, high = results.interval(name, "psnr")
    to_sides = [[max(0, x - 100 * left)], [max(0, 100 * right - x)]]
    axis.errorbar(x, y, xerr=to_sides, yerr=[[y - low], [high - y]], **style)
    return x, y


# --- 1. reconstruction ------------------------------------------------------------------------------------------------

UNTUNED = "converge-TTIS, Adam-0"
Axis = Callable[[str], float]
"""What of a result, by its name, goes along the x axis."""


def convergence_points(method: str) -> list[str]:
    """The results of a method, by more and more updates."""
    names = [f"converge-{method}-{updates}" for updates in studies.CONVERGENCE[method][2]]
    return [UNTUNED, *names] if method.startswith("TTIS") else names


def reach(results: Results, method: str, decibels: float, x: Axis) -> float | None:
    """Where a method's mean PSNR reaches a value, on the straight lines between its points; None where it never does.

    x: what its points are placed by.
    """
    points = [(x(name), results.mean(name, "psnr")) for name in convergence_points(method)]
    first_x, first_y = points[0]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if y0 < decibels <= y1:
            return x0 + (x1 - x0) * (decibels - y0) / (y1 - y0)
    return first_x if first_y >= decibels else None


def convergence_table(results: Results) -> str:
    def row(label: str, name: str, rate) -> list:
        updates, passes = f"{results.updates(name):.0f}", f"{results.inversion_cost(name):.0f}"
        return [label, rate, updates, passes, results.show(name, "psnr"), f"{results.mean(name, 'mse'):.4f}"]

    rows = [row("guided DDIM (no update)", UNTUNED, "")]
    for method in studies.CONVERGENCE:
        tuned = [name for name in convergence_points(method) if name != UNTUNED]
        rows += [row(method, name, results.all[name]["inputs"].get("learning_rate", "")) for name in tuned]
    published = results.all["published-null"]["inputs"]
    rows.append(row("null-text, caption, as published", "published-null", published["learning_rate"]))
    return table("method | learning rate | updates | passes | PSNR, dB | latent MSE", rows)


def reach_table(results: Results) -> str:
    levels = (30.0, 35.0, 40.0)

    def where(method: str, level: float, x: Axis) -> str:
        found = reach(results, method, level, x)
        return "not reached" if found is None else f"{found:.0f}"

    def both(method: str, level: float) -> str:
        return f"{where(method, level, results.updates)} / {where(method, level, results.inversion_cost)}"

    methods = [method for method in studies.CONVERGENCE if len(convergence_points(method)) > 1]
    rows = [[method, *(both(method, level) for level in levels)] for method in methods]
    return table("updates / passes to reach | " + " | ".join(f"{level:.0f} dB" for level in levels), rows)


def convergence_figure(results: Results) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    quantities = {"updates of the embedding": results.updates, "UNet passes": results.inversion_cost}
    for axis, (label, x) in zip(axes, quantities.items()):
        for index, method in enumerate(studies.CONVERGENCE):
            names, colour = convergence_points(method), f"C{index}"
            xs, ys = [x(name) for name in names], [results.mean(name, "psnr") for name in names]
            lows, highs = zip(*(results.interval(name, "psnr") for name in names))
            style = "--" if method.startswith("null") else "-"
            axis.plot(xs, ys, marker="o", ms=4, color=colour, ls=style, label=method)
            axis.fill_between(xs, lows, highs, color=colour, alpha=0.15, lw=0)
        axis.set_xlabel(label)
    axes[0].set_ylabel("reconstruction, PSNR in dB")
    axes[1].legend(fontsize=8)
    save(figure, "convergence")


def rules_table(results: Results) -> str:
    def row(method: str, updates: int) -> list:
        edit, made = f"rules-{method}-{updates}", f"converge-{method}-{updates}"
        rule = method.removeprefix("TTIS, ") if updates else "no tuning"
        passes, redrawn = f"{results.inversion_cost(made):.0f}", results.show(made, "psnr")
        return [rule, updates, passes, redrawn, *results.shown(edit, "text", "psnr", "identity")]

    rows = [row("TTIS, Adam", 0)]
    for method, (kind, _, counts, _) in studies.CONVERGENCE.items():
        if kind == "ttis":
            rows += [row(method, updates) for updates in counts]
    return table("rule | updates a step | passes | reconstruction, dB | pose right | kept, dB | identity kept", rows)


def rates_table(results: Results) -> str:
    rows = []
    for kind, label in (("adam", "TTIS, Adam"), ("null", "null-text, caption")):
        for updates in studies.UPDATES[kind]:
            tried = {rate: results.mean(f"rates-{kind}-{updates}-{rate}", "psnr") for rate in studies.RATES[kind]}
            best = max(tried, key=lambda rate: tried[rate])
            cells = {rate: f"{rate:g}: {value:.1f}" for rate, value in tried.items()}
            cells[best] = f"**{cells[best]}**"
            rows.append([label, updates, ", ".join(cells.values())])
    return table("method | updates a step | learning rate: PSNR in dB, on the tuning scenes", rows)


# --- 2. edits ---------------------------------------------------------------------------------------------------------

METHODS = (
    "Auto Edit",
    "Auto Edit, other noise",
    "BARET",
    "plain sampling",
    "SDEdit",
    "SDEdit, other noise",
    "MasaCtrl",
    "prompt-to-prompt",
)
MARKERS = "*Ps^vdXo"
TITLES = {"adding": "adding a thing", "two": "two changes"}
SHORT = {"eta_start": "eta", "start_step": "step", "first_block": "block", "cross_share": "cross", "self_share": "self"}
UNSAID = ("eta_end", "seed")  # settings that the tables leave out


def settings_of(result: dict) -> str:
    """The settings of an edit in few words."""
    said = {name: value for name, value in result["settings"].items() if name not in UNSAID}
    return ", ".join(f"{SHORT.get(name, name)} {value:g}" for name, value in said.items())


def measured(results: Results, group: str, form: str, task: str) -> dict[str, str]:
    """The methods that were measured on a task, each with the name of its result.

    group: fixed, or best, which is fixed where no other setting was better.
    """
    found = {}
    for method in METHODS:
        for name in (f"{group}-{form}-{task}-{method}", f"fixed-{form}-{task}-{method}"):
            if name in results.all:
                found[method] = name
                break
    return found


def overview(results: Results, group: str, form: str) -> str:
    """Methods by tasks: *all*, with its interval, and what is kept."""
    rows = []
    by_task = [measured(results, group, form, task) for task in studies.TASKS]
    for method in METHODS:
        names = [found.get(method) for found in by_task]
        passes = [results.cost(name) for name in names if name is not None]
        if passes:
            rows.append([method, *(_in_short(results, name) for name in names), f"{mean_of(passes):.0f}"])
    titles = [TITLES.get(task, task) for task in studies.TASKS]
    return table(" | ".join(["method", *titles, "passes"]), rows)


def _in_short(results: Results, name: str | None) -> str:
    """A cell of the overview; a dash for what was not measured."""
    return "–" if name is None else f"{results.show(name, 'all')}, {results.mean(name, 'psnr'):.1f} dB"


def edits_table(results: Results, group: str, form: str, task: str) -> str:
    header = (
        "method | settings | text obeyed | identity kept | sun and tree kept | all | kept, dB | kept, SSIM "
        "| to the ideal, dB | passes"
    )
    rows = []
    for method, name in measured(results, group, form, task).items():
        settings = settings_of(results.all[name]) or "its defaults"
        scores = results.shown(name, "text", "identity", "details", "all", "psnr", "ssim", "ideal")
        rows.append([method, settings, *scores, f"{results.cost(name):.0f}"])
    return table(header, rows)


def all_tables(results: Results, other: Results) -> str:
    """The document with a table for each task, form and choice of settings."""
    parts = [
        "# Edits, task by task",
        "Every score of the edits in [evidence.md](../evidence.md), which says how to read them.",
    ]
    for form in studies.FORMS:
        for task in studies.TASKS:
            parts.append(f"## {TITLES.get(task, task).capitalize()}, {form} texts")
            for title, run, group in (
                ("One setting for all tasks", results, "fixed"),
                ("The settings best for this task on other scenes", results, "best"),
                ("The other model, one setting for all tasks", other, "fixed"),
            ):
                if measured(run, group, form, task):
                    parts += [f"{title}:", edits_table(run, group, form, task)]
    return "\n\n".join(parts) + "\n"


def area_under_curve(scores: list[float], obeyed: list[float]) -> float | None:
    """The chance that of an edit that obeys and one that does not the first has the better score."""
    right = [score for score, good in zip(scores, obeyed) if good]
    wrong = [score for score, good in zip(scores, obeyed) if not good]
    if not right or not wrong:
        return None
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


def judge_table(results: Results, other: Results) -> str:
    """Whether the model's judgement of its own edits is right, by short texts, over both seeds."""
    rows = []
    for task in studies.TASKS:
        row = [TITLES.get(task, task)]
        for run in (results, other):
            scores, obeyed, called_good = _judged(run, task)
            area = area_under_curve(scores, obeyed)
            wrong = len(obeyed) - int(sum(obeyed))
            row.append("none failed" if area is None else f"{area:.2f} ({wrong} of {len(obeyed)} did not obey)")
            share = mean_of(called_good)
            low, high = wilson(share, len(called_good))
            row.append(f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f}) of {len(called_good)}")
        rows.append(row)
    header = "task | AUC of the score | of those called good obey | the other model: AUC | of those called good obey"
    return table(header, rows)


def _judged(results: Results, task: str) -> tuple[list[float], list[float], list[float]]:
    """Of all candidates the scores and whether they obey; and whether the edits that were called good obey."""
    scores, obeyed, called_good = [], [], []
    measured_seeds = [f"fixed-short-{task}-{method}" for method in studies.AUTO_SEEDS]
    for name in measured_seeds:
        if name not in results.all:
            continue
        result = results.all[name]
        for row, truth in zip(result["scores"], result["obeyed"]):
            tried = [(score, right) for score, right in zip(row, truth) if score is not None]
            scores += [score for score, _ in tried]
            obeyed += [right for _, right in tried]
        called_good += [right for right, good in zip(result["text"], result["good"]) if good]
    return scores, obeyed, called_good


def edits_figure(results: Results) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharex=True, layout="constrained")
    for axis, task in zip(axes.flat, studies.TASKS):
        for method, name in measured(results, "fixed", "short", task).items():
            index = METHODS.index(method)
            style = {"marker": MARKERS[index], "color": f"C{index}", "ms": 6, "elinewidth": 1, "ls": ""}
            cross(axis, results, name, "all", label=method, **style)
        axis.set_title(TITLES.get(task, task) + (" (inside the animal)" if task == "background" else ""))
        axis.set_xlim(-4, 104)
    for axis in axes[1]:
        axis.set_xlabel("obeyed and all else kept, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("kept, PSNR in dB")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, "edits")


PICTURED = ("Auto Edit", "BARET", "plain sampling", "SDEdit", "MasaCtrl", "prompt-to-prompt")
SIDE, GAP, HEADING, CAPTION = 112, 6, 20, 22  # pixels of the sheet


def pictures_figure(results: Results) -> None:
    """Rows of scenes, columns of methods."""
    columns = ("source", "ideal", *PICTURED)
    rows = [(task, index) for task in studies.TASKS for index in range(2)]
    width, height = len(columns) * (SIDE + GAP), HEADING + len(rows) * (SIDE + CAPTION)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, label in enumerate(columns):
        draw.text((column * (SIDE + GAP), 4), label, fill="black", font=font)
    for row, (task, index) in enumerate(rows):
        y = HEADING + row * (SIDE + CAPTION)
        shown = _pictures_of(results.run / "pictures", task)
        for column, label in enumerate(columns):
            picture = Image.fromarray(shown[label][index].numpy())
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * (SIDE + GAP), y))
        draw.text((0, y + SIDE + 3), f"\u201c{shown['texts'][index]}\u201d", fill="black", font=font)
    sheet.quantize(256, dither=Image.Dither.NONE).save(FIGURES / "pictures.png", optimize=True)


def _pictures_of(folder: Path, task: str) -> dict:
    """The kept pictures of a task by method, ``[n,128,128,3]`` uint8, with the source, the ideal and the texts."""
    edited = {method: torch.load(folder / f"fixed-short-{task}-{method}.pt") for method in PICTURED}
    return {**torch.load(folder / f"scenes-{task}-short.pt"), **edited}


# --- 3. dials --------------------------------------------------------------------------------------------------


def dials_figure(results: Results) -> None:
    dials = [dial for dial, values in studies.DIALS.items() if len(values) > 2]
    figure, axes = plt.subplots(1, len(dials), figsize=(12, 3.1), sharex=True, sharey=True, layout="constrained")
    for axis, dial in zip(axes, dials):
        names = {value: studies.dial_name(dial, value) for value in studies.DIALS[dial]}
        xs = [100 * results.mean(name, "text") for name in names.values()]
        ys = [results.mean(name, "psnr") for name in names.values()]
        axis.plot(xs, ys, color="C0", lw=1)
        for value, name in names.items():
            colour = "C3" if name == "dial-default" else "C0"
            place = cross(axis, results, name, "text", marker="o", ms=5, color=colour, elinewidth=0.6)
            axis.annotate(f"{value:g}", place, textcoords="offset points", xytext=(5, 4), fontsize=8)
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
            passes = f"{results.all[name]['cost']:.0f}"
            rows.append([dial, label, *results.shown(name, "text", "psnr", "identity"), passes])
    return table("dial | value | pose right | kept, dB | identity kept | passes of the edit", rows)


# --- all of it --------------------------------------------------------------------------------------------------------


def about_text(results: Results) -> str:
    about = json.loads((results.run / "about.json").read_text())
    sizes, unet = about["sizes"], about.get("unet", "bfloat16")  # runs that do not say it computed so
    return (
        f"{sizes['score']} held-out scenes a task, settings and learning rates chosen on {sizes['tune']} others. "
        f"{about['machine']}, UNet in {unet}; {about['minutes']:.0f} minutes of one core in all, "
        f"by two processes of one thread; {about['date']}; commit {about['commit']}."
    )


def blocks_of(results: Results, other: Results) -> dict[str, str]:
    """What stands between the document's markers, by their names."""
    return {
        "about": about_text(results),
        "convergence": convergence_table(results),
        "reach": reach_table(results),
        "rates": rates_table(results),
        "rules": rules_table(results),
        **{f"fixed-{form}": overview(results, "fixed", form) for form in studies.FORMS},
        **{f"best-{form}": overview(results, "best", form) for form in studies.FORMS},
        "other": overview(other, "fixed", "short"),
        "judge": judge_table(results, other),
        "dials": dials_table(results),
    }


def filled(text: str, blocks: dict[str, str]) -> str:
    """The document with its blocks. Raises ValueError where it lacks one."""
    for name, block in blocks.items():
        before, marker, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the document has no block {name}; write its two markers where the block belongs.")
        text = before + marker + block + "\n" + end + after
    return text


def numbers_of(results: Results) -> dict:
    """Every scene's numbers to four digits, with what the run is and what it chose."""

    def rounded(value):
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return round(value, 4) if isinstance(value, float) else value

    return {
        "about": json.loads((results.run / "about.json").read_text()),
        "chosen": json.loads((results.run / "chosen.json").read_text()),
        "results": {
            name: {key: rounded(value) for key, value in result.items()} for name, result in results.all.items()
        },
    }


def write(run: Path, other_run: Path) -> None:
    """Fill the document's blocks and make its figures; `docs/evidence/numbers.json` has every scene's numbers.

    other_run: of another world's model.
    """
    results, other = Results(run), Results(other_run)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for draw in (convergence_figure, edits_figure, pictures_figure, dials_figure):
        draw(results)
    document = DOCS / "evidence.md"
    document.write_text(filled(document.read_text(encoding="utf-8"), blocks_of(results, other)), encoding="utf-8")
    (FIGURES / "edits.md").write_text(all_tables(results, other), encoding="utf-8")
    numbers = {"drawn world": numbers_of(results), "other model": numbers_of(other)}
    (FIGURES / "numbers.json").write_text(json.dumps(numbers, separators=(",", ":")))
    print(document)
