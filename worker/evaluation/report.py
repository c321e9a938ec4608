"""The results of an evaluation as Markdown, plots and contact sheets, from its JSON alone.

Plots need matplotlib (`pip install 'longtake[evaluation]'`). Contact sheets need the stills, which lie beside the JSON
of an evaluation as it was made; a copy of the JSON without them keeps the sheets it came with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from worker.evaluation import study
from worker.evaluation.cases import SCENE_CLASSES, EvaluationError
from worker.evaluation.figures import FIGURES, OURS
from worker.evaluation.methods import METHODS, RECONSTRUCTED, REFERENCE, RENDERED

Results = Mapping[str, Any]

PAPER = (
    ("method", "subject", "background", "motion", "dynamic", "aesthetic", "imaging", "scenes", "FVD"),
    ("progressive, model M (PA-M)", ".7923", ".8964", ".9896", ".8000", ".4726", ".5927", "1.75", "358.0"),
    (
        "replacement with noise, M (RW-M)",
        ".8001",
        ".8851",
        ".9836",
        ".3958",
        ".4123",
        ".5961",
        "1.10",
        "669.7",
    ),
    (
        "progressive, model O (PA-O-base)",
        ".7656",
        ".8880",
        ".9859",
        ".5625",
        ".4582",
        ".5033",
        "2.04",
        "548.1",
    ),
    ("replacement without noise, O", ".7406", ".8820", ".9873", ".5750", ".4034", ".4464", "5.19", "600.7"),
    ("StreamingSVD", ".8172", ".8916", ".9929", ".6500", ".4264", ".5566", "1.08", "440.3"),
    ("SVD-XT", ".6102", ".8136", ".9724", ".9875", ".3019", ".4814", "2.10", "702.3"),
    ("FIFO-OSP", ".7577", ".8990", ".9731", ".7500", "n/a", ".5675", "18.32", "975.5"),
)
"""Table 1 of arXiv 2410.08151v2: 1,440 frames, VBench per 2-s clip, extensions of real first frames."""

PAPER_LIKE = ("flickering", "flow", "cuts", "frechet", "follows")
"""What of ours stands beside it."""

TABLES = {
    "Prompt and object": (
        "follows",
        "background",
        "color",
        "shape",
        "motion",
        "present",
        "jumps",
        "jitter",
        "color_error",
        "frechet",
    ),
    "Drift and seams": (
        "flickering",
        "flow",
        "sharpness",
        "drift_brightness",
        "drift_saturation",
        "drift_color",
        "drift_sharpness",
        "seam_ratio",
        "seam_power",
        "cuts",
    ),
    "The paper's failures, and the last two seconds": (
        "diverged",
        "jittered",
        "ended_badly",
        "decayed",
        "lost",
        "identity",
        "ending",
        "ending_color_error",
    ),
    "Cost": ("forwards", "latent_forwards", "cpu_seconds", "seconds", "peak_mb"),
}
SIGNATURES = {
    "diverged": "Divergence",
    "jittered": "Jitter",
    "ended_badly": "Bad endings",
    "decayed": "Decay",
    "lost": "Loss of the object",
}
_OVER_TIME = (
    ("follows", "everything as asked, share of videos"),
    ("color_error", "color error, RGB 0..1"),
    ("sharpness", "sharpness, variance of the Laplacian"),
    ("flickering", "temporal flickering (VBench)"),
)
_COMPARED = (
    "follows",
    "color_error",
    "jumps",
    "jitter",
    "seam_power",
    "frechet",
    "ending_color_error",
    "cpu_seconds",
)
_PICTURES = {
    "sheet-{}s.jpg": "Stills of the first prompt",
    "figures-{}s.png": "Figures and their intervals",
    "over-time-{}s.png": "Figures over time",
}
_TURNING = "turning.jpg"
_TRUE = {"color": "0.6", "lw": 3}
_NO_OVERLAP = "no-overlap"
_LABEL_PIXELS = 190


def read(path: Path) -> Results:
    """Results that `longtake evaluate` wrote. Raises EvaluationError."""
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        schema = results["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} holds no results of an evaluation: {error}") from error
    if schema != study.SCHEMA:
        raise EvaluationError(f"{path} has schema {schema}, this version reads {study.SCHEMA}")
    return results


def write(path: Path, markdown: Path) -> None:
    """Writes the report of `path` to `markdown`, its pictures beside `path`."""
    results = read(path)
    folder = path.parent
    for kind in ("sheet-*s.jpg", "figures-*s.png", "over-time-*s.png"):
        for old in folder.glob(kind):
            if kind.startswith("over") or old.stem.rpartition("-")[2][:-1] not in results["summary"]:
                old.unlink()  # of other results
    for seconds in results["summary"]:
        plot_figures(results, seconds, folder / f"figures-{seconds}s.png")
        if max(len(points) for points in _over_time(results, seconds, "flickering").values()) > 1:
            plot_over_time(results, seconds, folder / f"over-time-{seconds}s.png")
        contact_sheet(results, seconds, folder)
    turning_sheet(results, folder)
    pictures = os.path.relpath(folder, markdown.parent)
    markdown.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_text(text(results, "" if pictures == "." else f"{pictures}/", folder))


# -- words and tables -----------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float | None, digits: int) -> str:
    """A figure as the report shows it."""
    return "" if value is None else f"{value:,.{digits}f}"


def cell(figure: Mapping[str, Any] | None, digits: int) -> str:
    """A mean and its interval."""
    if figure is None:
        return ""
    mean = number(figure["mean"], digits)
    if figure["low"] is None or figure["low"] == figure["high"]:
        return mean
    return f"{mean} [{number(figure['low'], digits)}, {number(figure['high'], digits)}]"


def _sampled(found: Mapping[str, Any]) -> list[str]:
    """Rows of a set in the order of the methods."""
    order = {name: place for place, name in enumerate(METHODS)}
    return sorted(found["rows"], key=lambda row: (order[row.removesuffix(" (trained)")], row))


def _figures_table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = _sampled(found)
    shown = [name for name in names if any(name in found["rows"][row]["figures"] for row in rows)]
    return _table(
        ["method", *(FIGURES[name].name for name in shown)],
        [
            [row, *(cell(found["rows"][row]["figures"].get(n), FIGURES[n].digits) for n in shown)]
            for row in rows
        ],
    )


def _claims(results: Results) -> str:
    """Every claim of the paper on a line: in which figures it is seen, and in which not."""
    rows = []
    for seconds, found in results["summary"].items():
        verdicts: dict[tuple[str, str], dict[str, list[str]]] = {}
        for claim in found["claims"]:
            if claim["against"] is not None:
                by_verdict = verdicts.setdefault((claim["claim"], claim["against"]), {})
                by_verdict.setdefault(claim["verdict"], []).append(FIGURES[claim["figure"]].name)
        for (words, against), by_verdict in verdicts.items():
            seen = "; ".join(f"**{verdict}** in {', '.join(names)}" for verdict, names in by_verdict.items())
            rows.append([words, f"{seconds} s", against, seen])
        for holds in found["holds"]:
            figure = FIGURES[holds["figure"]]
            seen = f"**{holds['verdict']}** in {figure.name}: {cell(holds, figure.digits)}"
            rows.append(["Quality holds", f"{seconds} s", "its own start", seen])
        if cost := _overlap_cost(found["rows"]):
            rows.append(["Overlapped conditioning costs little", f"{seconds} s", _NO_OVERLAP, cost])
    return _table(["the paper", "length", "progressive against", "what we saw"], rows)


def _overlap_cost(rows: Mapping[str, Any]) -> str:
    """What the clean context adds to a video's cost; empty where it was not measured."""
    if OURS not in rows or _NO_OVERLAP not in rows:
        return ""
    parts = []
    for name in ("latent_forwards", "cpu_seconds"):
        ours, without = (rows[row]["figures"][name]["mean"] for row in (OURS, _NO_OVERLAP))
        parts.append(f"{ours / without - 1:+.1%} {FIGURES[name].name}")
    return ", ".join(parts)


def _differences(found: Mapping[str, Any]) -> str:
    """The numbers behind the claims of a set."""
    rows = []
    for claim in found["claims"]:
        if claim["against"] is not None:
            figure = FIGURES[claim["figure"]]
            better = "more" if figure.better > 0 else "less"
            against, measured = claim["against"], cell(claim, figure.digits)
            rows.append(
                [claim["claim"], against, f"{figure.name} ({better} is better)", measured, claim["verdict"]]
            )
    return (
        _table(["the paper", "against", "figure", "progressive less other", "so it is"], rows) if rows else ""
    )


def _unmeasured(results: Results) -> list[str]:
    """Claims that no set measured."""
    open_claims: dict[str, bool] = {}
    for found in results["summary"].values():
        for claim in found["claims"]:
            open_claims[claim["claim"]] = open_claims.get(claim["claim"], True) and claim["against"] is None
    return [claim for claim, is_open in open_claims.items() if is_open]


def _methods(results: Results) -> str:
    rows = {row for found in results["summary"].values() for row in found["rows"]}
    served = "graded" if results["model"].get("sampler", {}).get("graded") else OURS
    lines = []
    for name, method in METHODS.items():
        for row in sorted(row for row in rows if row.removesuffix(" (trained)") == name):
            if method.sample is None:
                on = "no weights"
            elif row != name:
                on = f"weights trained for it ({results['variants'][name]})"
            elif name == served:
                on = "the model's weights, served like this"
            elif method.ablation or name in ("fifo-like", "replacement-with-noise"):
                on = "the model's weights, **not trained for it**"
            else:
                on = "the model's weights"
            lines.append([row, method.words, method.ablation, on])
    return _table(["method", "what it is", "takes away", "runs on"], lines)


def _signatures(found: Mapping[str, Any]) -> str:
    lines = []
    for name, words in SIGNATURES.items():
        shares = {
            row: found["rows"][row]["figures"][name]
            for row in _sampled(found)
            if METHODS[row.removesuffix(" (trained)")].sample and name in found["rows"][row]["figures"]
        }
        seen = [
            f"{row} ({round(share['mean'] * share['prompts'])} of {share['prompts']} videos)"
            for row, share in shares.items()
            if share["mean"] > 0
        ]
        if shares:
            lines.append(f"- {words}: {', '.join(seen) if seen else 'in no video of any method'}.")
    return "\n".join(lines)


def _over_time(results: Results, seconds: str, name: str) -> dict[str, list[tuple[float, float]]]:
    """Means over prompts of a figure of the segments, by row: (middle in seconds, value)."""
    curves: dict[str, dict[float, list[float]]] = {}
    for video in results["videos"]:
        if f"{video['seconds']:g}" != seconds or video["row"] == REFERENCE:
            continue
        for segment in video["segments"]:
            values = segment["drift"] if name in segment["drift"] else (segment["oracle"] or {})
            if name in values:
                middle = (segment["from_second"] + segment["to_second"]) / 2
                curves.setdefault(video["row"], {}).setdefault(middle, []).append(float(values[name]))
    return {
        row: [(middle, float(np.mean(values))) for middle, values in sorted(points.items())]
        for row, points in curves.items()
    }


def _by_time(results: Results, seconds: str, group: float) -> str:
    """Everything as asked, and color error, by stretch of time."""
    tables = []
    for name in ("follows", "color_error"):
        curves = _over_time(results, seconds, name)
        if not curves:
            continue
        groups = sorted({int(middle // group) for points in curves.values() for middle, _ in points})
        rows = []
        for row in _sampled(results["summary"][seconds]):
            cells = [
                [value for middle, value in curves.get(row, []) if int(middle // group) == place]
                for place in groups
            ]
            rows.append([row, *(number(float(np.mean(c)), 3) if c else "" for c in cells)])
        header = ["method", *(f"{place * group:g}-{(place + 1) * group:g} s" for place in groups)]
        tables.append(f"`{FIGURES[name].name}` over time:\n\n{_table(header, rows)}")
    return "\n\n".join(tables)


def _classes(results: Results) -> str:
    rows, shown = [], set()
    for seconds, found in results["summary"].items():
        for row in _sampled(found):
            for name, figures in found["rows"][row]["classes"].items():
                shown.add(name)
                measured = [number(figures.get(f), 3) for f in ("lost", "jittered", "identity", "follows")]
                rows.append([f"{seconds} s", name, row, str(figures["videos"]), *measured])
    table = _table(
        [
            "length",
            "scene class",
            "method",
            "videos",
            "disappearance",
            "jitter",
            "identity drift",
            "all as asked",
        ],
        rows,
    )
    missing = [name for name in SCENE_CLASSES if name not in shown]
    if not missing:
        return table
    return f"{table}\n\nNot shown, for no prompt of this evaluation asks for it: {', '.join(missing)}."


def _turns(results: Results) -> str:
    """How videos follow a prompt that changes half-way; empty where none does."""
    found = results["turns"]
    if not found:
        return ""
    lengths = sorted({video["seconds"] for video in results["videos"] if "turn" in video})
    seconds = " and ".join(f"{length:g}" for length in lengths)
    rows = [
        [name, str(shares["after"]["prompts"]), *(cell(shares[n], 3) for n in ("before", "changed", "after"))]
        for name, shares in found.items()
    ]
    table = _table(
        ["what changes", "videos", "all as asked before", "the change is seen", "all as asked after"], rows
    )
    return (
        f"Videos of {seconds} s whose prompt changes half-way in one respect. The frames in which the chunks in flight "
        "turn over are left out.\n\n" + table
    )


def _vbench(results: Results) -> str:
    scores = results.get("vbench")
    if not scores:
        return (
            "VBench and VBench-Long were not run: their networks' weights were not at hand. `--vbench "
            "PYTHON` runs them. "
            "Temporal flickering above is VBench's own definition and needs none."
        )
    names = sorted({name for row in scores.values() for name in row})
    rows = [[row, *(number(values.get(name), 4) for name in names)] for row, values in scores.items()]
    return _table(["length / method", *names], rows)


def _beside_paper(results: Results) -> str:
    rows = []
    for seconds, found in results["summary"].items():
        for row in _sampled(found):
            figures = found["rows"][row]["figures"]
            rows.append(
                [
                    f"{row}, {seconds} s",
                    *(cell(figures.get(name), FIGURES[name].digits) for name in PAPER_LIKE),
                ]
            )
    return _table(["method", *(FIGURES[name].name for name in PAPER_LIKE)], rows)


def _window(sampler: Mapping[str, Any]) -> str:
    """A setting of the sampler in words."""
    size = sampler["chunk_latents"]
    return (
        f"Chunks of {size} latent{'s' if size > 1 else ''}, {sampler['chunks_in_flight']} in flight, "
        f"{sampler['context_chunks']} of context, {sampler['forwards_per_shift']} evaluations per shift, guidance "
        f"{sampler['guidance_scale']:g}{', levels that rise within a chunk' if sampler.get('graded') else ''}"
    )


def _own_window(results: Results) -> str:
    """The setting that the model is served with, where the evaluation has another."""
    own = results["model"].get("sampler", results["sampler"])
    if own == results["sampler"]:
        return ""
    row = " (the row `graded`)" if own == {**results["sampler"], "graded": True} else ""
    return f" The model itself is served with another setting{row}: {_window(own).lower()}."


def text(results: Results, pictures: str, folder: Path | None = None) -> str:
    """The report. `pictures` leads from it to the pictures; those that are not in `folder` are left out."""
    model, sampler, machine = results["model"], results["sampler"], results["machine"]
    width, height = results["geometry"]["size"]
    prompts = {
        seconds: max(r["figures"]["forwards"]["prompts"] for r in found["rows"].values())
        for seconds, found in results["summary"].items()
    }
    size = ", ".join(f"{n} prompt{'s' if n > 1 else ''} of {seconds} s" for seconds, n in prompts.items())
    parts = [
        "# Results",
        f"The claims of PA-VDM (arXiv 2410.08151), measured on `{model['name']}` (weights "
        f"{model['weights']}), {width}x{height} "
        f"pixels at {results['geometry']['fps']} frames per second: {size}. Written by `longtake "
        "evaluate` from its JSON; "
        "`longtake evaluate report JSON` writes it again.",
    ]
    if results["missing"]:
        parts.append(f"**Not finished: {results['missing']} videos of the plan are missing.**")
    if min(prompts.values()) < 20:
        parts.append(
            "Few prompts: an interval of so few videos is rough, and one that is a single point says "
            "that all of them "
            "agreed, not that nothing else can happen."
        )
    parts += [
        "Brackets are 95 % bootstrap intervals over prompts. Differences are between videos of one prompt and seed. "
        "`seen`: the whole interval lies on the side the paper claims. `no difference seen`: it contains zero.",
        "## In short",
        _claims(results),
    ]
    if unmeasured := _unmeasured(results):
        parts.append(f"Not measured here, for want of its videos: {'; '.join(unmeasured)}.")
    parts += [
        "## How",
        f"{_window(sampler)}.{_own_window(results)} Every method has the same prompts and seeds, and as many network "
        "evaluations as its steps can be made to cost; what it really spent is under Cost.",
        _methods(results),
        "An ablation on weights that were not trained for it shows what the sampler's setting does to "
        "*these* weights. The "
        "paper trains some of its variants; only rows marked (trained) are that experiment, as far as their "
        "training went, and they are compared with `progressive (trained)`, trained as long. Weights that "
        "went on for a short while from the model's, or from an earlier state of it, have got used to another "
        "window, and have forgotten little: they do not show what training that way from the beginning would give.",
        "`rendered` is the ground truth run through the same measurements: the best that any figure can "
        "be, and where a "
        "failure is counted in it, a false alarm. Prompts are held-out combinations unless a file of "
        "prompts was given.",
        f"Made on {machine['cores']} cores ({machine['device']}) on {machine['date']}, torch "
        f"{machine['torch']}, diffusers "
        f"{machine['diffusers']}, longtake {machine['longtake']}. One thread per process.",
    ]
    groups = {f"{one['seconds']:g}": one["group_seconds"] for one in results["plan"]["sets"]}
    for seconds, found in results["summary"].items():
        parts.append(f"## {seconds} seconds")
        for name, words in _PICTURES.items():
            picture = name.format(seconds)
            if folder is None or (folder / picture).is_file():
                parts.append(f"![{words}, {seconds} s]({pictures}{picture})")
        for title, names in TABLES.items():
            parts += [f"### {title}, {seconds} s", _figures_table(found, names)]
        if differences := _differences(found):
            parts += [f"### Differences, {seconds} s", differences]
        if failures := _signatures(found):
            parts += [f"### Where failures appear, {seconds} s", failures]
        if over_time := _by_time(results, seconds, groups[seconds]):
            parts += [f"### Over time, {seconds} s", over_time]
    if turned := _turns(results):
        parts += ["## A prompt that changes", turned]
        if folder is None or (folder / _TURNING).is_file():
            parts.append(f"![A video for each attribute that changes]({pictures}{_TURNING})")
    parts += [
        "## What the figures are",
        "\n".join(f"- {figure.name}: {figure.words}." for figure in FIGURES.values()),
        "## By complexity of the scene",
        _classes(results),
        "## VBench",
        _vbench(results),
        "## The paper's table beside ours",
        _table(PAPER[0], PAPER[1:]),
        "Ours, in the figures that come nearest. The models, the data and the feature networks differ, so numbers of "
        "the two tables must not be compared with each other; only the order of the methods within each can be.",
        _beside_paper(results),
        "## What these figures are not",
        "- The model is small and its scenes are plain; what does not show here may show on a large "
        "model, and the other way round.\n"
        "- The paper extends real first frames; all videos here start from text alone.\n"
        "- The Frechet distance is on features of the model's own video encoder (mean, deviation and "
        "change of each latent channel "
        "over 2-s clips), not on those of the classifier that FVD uses. Its intervals lean upwards, "
        "for a resampled set holds some clips twice.\n"
        "- The async mode of stock diffusers staggers single latents; its causal blocks were left out, "
        "for these weights "
        "attend in both directions. Stock diffusers solves with UniPC, everything else with Euler.\n"
        "- Seconds are of sampling and decoding in one process with one thread; other work on the "
        "machine lengthens them.",
    ]
    return "\n\n".join(parts) + "\n"


# -- pictures -------------------------------------------------------------------------------------------------------


def _canvas(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise EvaluationError(f"plots need `pip install 'longtake[evaluation]'` ({error})") from error
    return Canvas(figsize=(width, height), dpi=90, layout="constrained")


def plot_figures(results: Results, seconds: str, path: Path) -> None:
    """Figures of every method with their intervals, a panel each."""
    found = results["summary"][seconds]["rows"]
    rows = _sampled(results["summary"][seconds])
    shown = [name for name in _COMPARED if any(name in found[row]["figures"] for row in rows)]
    canvas = _canvas(11, 1.2 + 0.2 * len(rows) * -(-len(shown) // 4))
    panels = canvas.subplots(-(-len(shown) // 4), 4, sharey=True, squeeze=False).flat
    for panel, name in zip(panels, shown, strict=False):
        for place, row in enumerate(rows):
            if figure := found[row]["figures"].get(name):
                low, high = (
                    figure[end] if figure[end] is not None else figure["mean"] for end in ("low", "high")
                )
                color = {RENDERED: "0.6", RECONSTRUCTED: "0.6", OURS: "black"}.get(row, "C0")
                panel.plot([low, high], [place, place], color=color, lw=1.5)
                panel.plot(figure["mean"], place, "o", color=color, ms=5)
        better = {1: " (more is better)", -1: " (less is better)"}.get(FIGURES[name].better, "")
        panel.set_title(f"{FIGURES[name].name}{better}", fontsize=8)
        panel.set_yticks(range(len(rows)), rows, fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(alpha=0.3)
    canvas.axes[0].invert_yaxis()
    for panel in canvas.axes[len(shown) :]:
        panel.remove()
    canvas.savefig(path, metadata={"Software": None})


def plot_over_time(results: Results, seconds: str, path: Path) -> None:
    """Four figures of the segments over time, a line per method."""
    canvas = _canvas(11, 6.5)
    axes = canvas.subplots(2, 2).flat
    rows = _sampled(results["summary"][seconds])
    for axis, (name, words) in zip(axes, _OVER_TIME, strict=True):
        curves = _over_time(results, seconds, name)
        for place, row in enumerate(rows):
            if row in curves:
                times, values = zip(*curves[row], strict=True)
                style: dict[str, Any] = {
                    "color": f"C{place % 10}",
                    "lw": 1.2,
                    "ls": ("-", "--")[place // 10 % 2],
                }
                style |= {
                    RENDERED: _TRUE,
                    RECONSTRUCTED: {**_TRUE, "ls": ":"},
                    OURS: {"color": "black", "lw": 2.5},
                }.get(row, {})
                axis.plot(times, values, marker="o", ms=3, label=row, **style)
        axis.set_title(words, fontsize=9)
        axis.set_xlabel("second of the video", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    handles, labels = canvas.axes[-1].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    canvas.savefig(path, metadata={"Software": None})


def contact_sheet(results: Results, seconds: str, folder: Path) -> Path | None:
    """The stills of the first prompt, a row per method; None where there are none."""
    strips = {}
    for row in _sampled(results["summary"][seconds]):
        name = row.replace(" ", "-").replace("(", "").replace(")", "")
        strips[row] = folder / "videos" / f"{seconds}s" / name / "000.png"
    return _sheet(strips, folder / f"sheet-{seconds}s.jpg")


def turning_sheet(results: Results, folder: Path) -> Path | None:
    """The stills of the first video for each attribute that a prompt changes; None where there are none."""
    strips: dict[str, Path] = {}
    for video in results["videos"]:
        if "turn" in video:
            place = f"videos/{video['seconds']:g}s/{video['row']}/{video['number']:03}.png"
            strips.setdefault(video["turn"]["changed"], folder / place)
    return _sheet(strips, folder / _TURNING)


def _sheet(strips: Mapping[str, Path], path: Path) -> Path | None:
    """Strips of stills below each other with their labels; None where none of the files is there."""
    opened = []
    for label, source in strips.items():
        if source.is_file():
            with Image.open(source) as picture:
                opened.append((label, picture.convert("RGB")))
    if not opened:
        return None
    height = opened[0][1].height
    width = _LABEL_PIXELS + max(strip.width for _, strip in opened)
    sheet = Image.new("RGB", (width, len(opened) * (height + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (label, strip) in enumerate(opened):
        top = place * (height + 4)
        draw.text((6, top + height // 2 - 6), label, fill="black", font_size=12)
        sheet.paste(strip, (_LABEL_PIXELS, top))
    sheet.save(path, quality=88)
    return path
