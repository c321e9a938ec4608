"""The results of an evaluation as Markdown, plots and contact sheets, from its JSON alone.

Plots need matplotlib (`pip install '.[evaluation]'`). Contact sheets need the stills, which lie beside the JSON
of an evaluation as it was made; a copy of the JSON without them keeps the sheets it came with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from worker.evaluation import figures, study
from worker.evaluation.cases import SCENE_CLASSES, EvaluationError
from worker.evaluation.figures import CONFIDENCE, FIGURES, LEAST_PROMPTS, OURS, SIZES
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
        "second",
        "present",
        "stray",
        "still",
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
    "decayed": "Decay of color",
    "identity": "Change of color or shape",
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
    "seam_ratio",
    "frechet",
    "ending_color_error",
    "latent_forwards",
)
_PICTURES = {
    "sheet-{}s.jpg": "Stills of the first prompt",
    "figures-{}s.png": "Figures and their intervals",
    "over-time-{}s.png": "Figures over time",
}
_HOLDS: dict[str, type] = {
    **dict.fromkeys(
        ("model", "variants", "sampler", "geometry", "plan", "machine", "summary", "turns"), dict
    ),
    "missing": int,
    "failed": list,
    "videos": list,
}
"""What the JSON of an evaluation has."""
_BLIND = "cannot be judged"
_TURNING = "turning.jpg"
_TRUE = {"color": "0.6", "lw": 3}
_NO_OVERLAP = "no-overlap"
_HOLDING = "Quality holds"
_FEW = 0.2
"""Share of training windows under which they are few."""
_LABEL_PIXELS = 190


def read(path: Path) -> Results:
    """Results that `longtake evaluate` wrote, their summary made again from their videos. Raises EvaluationError."""
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        schema = results["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} holds no results of an evaluation: {error}") from error
    if schema != study.SCHEMA:
        raise EvaluationError(f"{path} has schema {schema}, this version reads {study.SCHEMA}")
    if lacking := [name for name, kind in _HOLDS.items() if not isinstance(results.get(name), kind)]:
        raise EvaluationError(f"{path} holds no results of an evaluation: no {', '.join(lacking)}")
    try:
        videos = results["videos"]
        made = {**results, "summary": figures.summarise(videos), "turns": figures.turns(videos)}
        text(made, "")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise EvaluationError(f"{path} cannot be read as results of an evaluation: {error!r}") from error
    return made


def write(path: Path, markdown: Path) -> None:
    """Writes the report of `path` to `markdown`, its pictures beside `path`.

    Says on standard error where other code than today's made and measured the videos.
    """
    results = read(path)
    if results.get("code") != study.code():
        print(f"{path}: its videos were made or measured by other code than this version's", file=sys.stderr)
    folder = path.parent
    _canvas(1, 1)  # before anything is removed
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


def _difference(found: Mapping[str, Any]) -> str:
    """A difference with its interval and unit, and what it says; a change that is too small to count says so."""
    figure, size = FIGURES[found["figure"]], SIZES[found["figure"]]
    verdict = f"**{found['verdict']}**"
    if _outcome(found) == "small" and "seen" in found["verdict"]:
        least = f"{number(size.least, figure.digits)}{' ' + size.unit if size.unit else ''}"
        verdict += f", but smaller than what counts ({least})"
    better = "more" if figure.better > 0 else "less"
    measured = f"{cell(found, figure.digits)}{' ' + size.unit if size.unit else ''}"
    return f"{figure.name} ({better} is better): {measured}: {verdict}"


def _outcome(found: Mapping[str, Any]) -> str:
    """`better`, `worse`, `small` (the difference is none that counts), `same` (in all videos) or `open`."""
    verdict = found["verdict"]
    if verdict in ("no difference that counts", "no loss that counts"):
        return "small"
    if verdict == "the same in all videos":
        return "same"
    outcome = {
        "seen": "better",
        "the opposite is seen": "worse",
        "a loss is seen": "worse",
        "a gain is seen": "better",
    }.get(verdict, "open")
    if outcome == "open":
        return outcome
    # As for no difference that counts: the whole interval is too small, not its middle alone.
    return "small" if max(abs(found["low"]), abs(found["high"])) < SIZES[found["figure"]].least else outcome


Comparison = tuple[str, str, str]
"""What the paper says, against what, at which length in seconds."""


def _comparisons(results: Results) -> dict[Comparison, list[Mapping[str, Any]]]:
    """The differences of every comparison that was made."""
    found: dict[Comparison, list[Mapping[str, Any]]] = {}
    for seconds, measured in results["summary"].items():
        for claim in measured["claims"]:
            if claim["against"] is not None:
                found.setdefault((claim["claim"], claim["against"], seconds), []).append(claim)
        for change in measured["holds"]:
            found.setdefault((_HOLDING, "its own start", seconds), []).append(change)
    return found


def _claims(results: Results) -> str:
    """Every claim of the paper on a line, with the differences behind it; empty where none was measured."""
    rows = [
        [words, f"{seconds} s", against, "<br>".join(_difference(one) for one in differences)]
        for (words, against, seconds), differences in _comparisons(results).items()
    ]
    for seconds, found in results["summary"].items():
        if cost := _overlap_cost(found["rows"]):
            rows.append(["Overlapped conditioning costs little", f"{seconds} s", _NO_OVERLAP, cost])
    return (
        _table(["the paper", "length", "progressive against", "progressive less other"], rows) if rows else ""
    )


def _overlap_cost(rows: Mapping[str, Any]) -> str:
    """What the clean context adds to a video's cost; empty where it was not measured."""
    if OURS not in rows or _NO_OVERLAP not in rows:
        return ""

    def added(name: str) -> str:
        ours, without = (rows[row]["figures"][name]["mean"] for row in (OURS, _NO_OVERLAP))
        return f"{ours / without - 1:+.1%} {FIGURES[name].name}"

    return f"{added('forwards')}, {added('latent_forwards')} (counted); {added('cpu_seconds')} (not measured together)"


def _in_words(results: Results) -> str:
    """What reproduces, what does not, and what cannot be told, from the verdicts; every figure has its say.

    A comparison reproduces the claim if a figure is better (in what holds: if none is worse and none is open). It does
    not if one is worse, or if all differ by nothing that counts. Else it cannot be told.
    """
    reproduces: dict[str, list[str]] = {}
    does_not: dict[str, list[str]] = {}
    untold: dict[str, list[str]] = {}
    for (words, against, seconds), differences in _comparisons(results).items():
        names: dict[str, list[str]] = {}
        for one in differences:
            names.setdefault(_outcome(one), []).append(FIGURES[one["figure"]].name)
        holding = words == _HOLDING
        said = [
            f"{told}{', '.join(names[outcome])}"
            for outcome, told in (
                ("better", "a gain in " if holding else "better in "),
                ("worse", "a loss in " if holding else "the opposite in "),
                ("small", "nothing that counts in "),
                ("same", f"the same in all {differences[0]['prompts']} videos in "),
                ("open", "not told in "),
            )
            if outcome in names
        ]
        if "worse" in names or (not holding and names.keys() == {"small"}):
            place = does_not
        elif "better" in names or (holding and "open" not in names):
            place = reproduces
        else:
            place = untold
        place.setdefault(words, []).append(f"against {against} ({seconds} s): {'; '.join(said)}")
    for words in _unmeasured(results):
        untold.setdefault(words, []).append("no videos of it")
    lists = {
        "What reproduces here": reproduces,
        "What does not": does_not,
        "What cannot be told here": untold,
    }
    lines = []
    for title, entries in lists.items():
        lines.append(f"- {title}:{'' if entries else ' nothing.'}")
        lines += [f"    - {words}, {where}." for words, places in entries.items() for where in places]
    return "\n".join(lines)


def _by_chance(results: Results) -> str:
    """How many verdicts chance alone would give."""
    told = [one for found in _comparisons(results).values() for one in found if one["low"] is not None]
    if not told:
        return ""
    return (
        f"There are {len(told)} differences with an interval: of so many, about "
        f"{max(1, round((1 - CONFIDENCE) * len(told)))} would be seen by chance where there is none."
    )


def _unmeasured(results: Results) -> list[str]:
    """Claims that no set measured."""
    open_claims: dict[str, bool] = {}
    for found in results["summary"].values():
        for claim in found["claims"]:
            open_claims[claim["claim"]] = open_claims.get(claim["claim"], True) and claim["against"] is None
    return [claim for claim, is_open in open_claims.items() if is_open]


def _training(name: str, shares: Mapping[str, float] | None) -> str:
    """How many of the model's training windows were like those of a method."""
    if shares is None or name not in shares:
        return ""
    share, untrained = shares[name], METHODS[name].untrained
    many = "no" if not share else "few" if share < _FEW else "many"
    percent = f" ({100 * share:.2g} %)" if share else ""
    return f"; {many} training windows like its full ones{percent}{f', none like {untrained}' if untrained else ''}"


def _methods(results: Results) -> str:
    rows = {row for found in results["summary"].values() for row in found["rows"]}
    served = "graded" if results["model"].get("sampler", {}).get("graded") else OURS
    shares = results["model"].get("training_shares")
    lines = []
    for name, method in METHODS.items():
        for row in sorted(row for row in rows if row.removesuffix(" (trained)") == name):
            if method.sample is None:
                on = "no weights"
            elif row != name:
                on = f"weights trained for it ({results['variants'][name]})"
            else:
                on = f"the model's weights{', served like this' if name == served else ''}{_training(name, shares)}"
            lines.append([row, method.words, method.ablation, on])
    return _table(["method", "what it is", "takes away", "runs on"], lines)


def _recipe(results: Results) -> str:
    if results["model"].get("training_shares") is None:
        return ""
    return (
        "Shares of training windows are of the last part of the model's recipe: the windows with as much clean context "
        "and the same order of noise levels as those that a method shows the network once they are full. "
    )


def _signatures(results: Results, seconds: str) -> str:
    """In how many videos of which methods each failure is seen."""
    videos: dict[str, list[dict[str, float]]] = {}
    for video in _videos(results, seconds):
        videos.setdefault(video["row"], []).append(figures.of_video(video))
    lines = []
    for name, words in SIGNATURES.items():
        judged = {
            row: [one[name] for one in videos[row] if name in one]
            for row in _sampled(results["summary"][seconds])
            if METHODS[row.removesuffix(" (trained)")].sample
        }
        seen = [
            f"{row} ({sum(value > 0 for value in values)} of {len(values)} videos)"
            for row, values in judged.items()
            if any(values)
        ]
        if any(judged.values()):
            lines.append(f"- {words}: {', '.join(seen) if seen else 'in no video of any method'}.")
    return "\n".join(lines)


def _videos(results: Results, seconds: str) -> list[Mapping[str, Any]]:
    """The videos of a set whose prompt does not change, but for the references."""
    return [
        video
        for video in results["videos"]
        if f"{video['seconds']:g}" == seconds and video["row"] != REFERENCE and "turn" not in video
    ]


def _over_time(results: Results, seconds: str, name: str) -> dict[str, list[tuple[float, float]]]:
    """Means over prompts of a figure of the segments, by row: (middle in seconds, value)."""
    curves: dict[str, dict[float, list[float]]] = {}
    for video in _videos(results, seconds):
        for segment in video["segments"]:
            values = segment["drift"] if name in segment["drift"] else (segment["oracle"] or {})
            if values.get(name) is not None:
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
            for name, members in found["rows"][row]["classes"].items():
                shown.add(name)
                measured = [
                    number(members.get(f), 3) if members["judged"] else _BLIND
                    for f in ("lost", "jittered", "identity", "second", "follows")
                ]
                videos = str(members["videos"])
                if 0 < members["judged"] < members["videos"]:
                    videos += f" ({members['judged']} judged)"
                rows.append([f"{seconds} s", name, row, videos, *measured])
    header = [
        "length",
        "scene class",
        "method",
        "videos",
        "disappearance",
        "jitter",
        "identity drift",
        "second object",
        "all as asked",
    ]
    parts = [_table(header, rows)] if rows else []
    parts.append(
        "Failures are told by the oracle, which knows the scenes that the built-in model was trained on: one object "
        "that moves over a plain background or a landscape, perhaps past a second one, named in the words of its "
        f"prompts. Other prompts {_BLIND}: they have the figures that need no oracle. Identity drift takes more than "
        "one segment. `second object`: share of segments in which it is as asked, of the videos that ask for one. "
        "Fast motion counts as such, whatever else there is, and a scene with a second object among several objects, "
        "whatever is behind it."
    )
    if missing := [name for name in SCENE_CLASSES if name not in shown]:
        parts.append(
            f"Not shown, for no prompt of this evaluation asks for it: {', '.join(missing)}. `--prompts` takes prompts "
            "of any class."
        )
    return "\n\n".join(parts)


def _failures(results: Results) -> str:
    """Which videos could not be made, and why."""
    why: dict[tuple[str, str], list[str]] = {}
    for one in results["failed"]:
        why.setdefault((one["row"], one["error"]), []).append(f"{one['seconds']:g} s prompt {one['number']}")
    lines = [f"- {row} ({', '.join(places)}): {error}" for (row, error), places in why.items()]
    return "Videos that could not be made:\n\n" + "\n".join(lines)


def _trained_beside(results: Results) -> str:
    """What the rows of trained variants are compared with."""
    if OURS in results["variants"]:
        return f"compared with `{OURS} (trained)`, trained as long"
    return "compared with the model's own weights, as there is no variant of the progressive sampler trained as long"


def _unjudged(results: Results) -> str:
    """How many prompts the figures of prompt and object leave out; empty where none."""
    seen = {
        (video["seconds"], video["number"]): video["segments"][0]["oracle"] is not None
        for video in results["videos"]
        if "turn" not in video
    }
    blind = sum(not judged for judged in seen.values())
    if not blind:
        return ""
    return f"{blind} of {len(seen)} prompts {_BLIND} by the oracle: what is said of prompt and object is of the others."


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
            measured = found["rows"][row]["figures"]
            rows.append(
                [
                    f"{row}, {seconds} s",
                    *(cell(measured.get(name), FIGURES[name].digits) for name in PAPER_LIKE),
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
    sizes = [f"{n} prompt{'s' if n > 1 else ''} of {seconds} s" for seconds, n in prompts.items()]
    if results["turns"]:
        turning = results["turns"]["any"]["after"]["prompts"]
        sizes.append(
            f"{turning} prompt{'s' if turning > 1 else ''} that change{'s' if turning == 1 else ''} half-way"
        )
    parts = [
        "# Results",
        f"The claims of PA-VDM (arXiv 2410.08151), measured on `{model['name']}` (weights "
        f"{model['weights']}), {width}x{height} "
        f"pixels at {results['geometry']['fps']} frames per second: {', '.join(sizes)}. Written by `longtake "
        "evaluate` from its JSON; "
        "`longtake evaluate report JSON` writes it again.",
    ]
    if results["missing"]:
        parts.append(f"**Not finished: {results['missing']} videos of the plan are missing.**")
    if results["failed"]:
        parts.append(_failures(results))
    if prompts:
        parts += ["## In short", _in_words(results)]
        parts += [part for part in (_by_chance(results), _unjudged(results)) if part]
    if claims := _claims(results):
        parts.append(claims)
    parts.append(
        f"Brackets are 95 % intervals over prompts, from {LEAST_PROMPTS} prompts on: Student's, of the mean or of the "
        "differences between videos of one prompt and seed; for the Frechet distance with the standard error of a "
        "jackknife over prompts. They are cut to what a figure can be. With fewer prompts there are too few "
        "videos to tell. A share that is a single point says that all videos agreed, not that nothing else can "
        "happen.\n\n"
        "`seen`: the whole interval lies on the side the paper claims. `no difference seen`: it contains zero, so that "
        "nothing is told. `the same in all videos`: there is no spread to tell how far others would be. `no difference "
        "that counts`: it contains zero and nothing as large as the least that counts: "
        + ", ".join(
            f"{FIGURES[name].name} {number(size.least, FIGURES[name].digits)}{' ' + size.unit if size.unit else ''}"
            for name, size in SIZES.items()
        )
        + "."
    )
    parts += [
        "## How",
        f"{_window(sampler)}.{_own_window(results)} Every method has the same prompts and seeds, and as many network "
        "evaluations as its steps can be made to cost; what it really spent is under Cost. Evaluations and latents are "
        "counted, so they are exact. Rows were made at different times, maybe beside other work: their seconds can "
        "differ by a tenth for the same work, and no claim rests on them.",
        _methods(results),
        _recipe(results)
        + "An ablation on weights that were not trained for it shows what the sampler's setting does to "
        "*these* weights. The "
        "paper trains some of its variants; only rows marked (trained) are that experiment, as far as their "
        f"training went, and they are {_trained_beside(results)}. Weights that "
        "went on for a short while from the model's, or from an earlier state of it, have got used to another "
        "window, and have forgotten little: they do not show what training that way from the beginning would give.",
        "`rendered` is the ground truth run through the same measurements: the best that a figure can be, but for the "
        "Frechet distance, in which it shows how far two draws of the same scenes are apart, and for the drifts, of "
        "which scenes have some; and where a failure is counted in it, a false alarm. Prompts are held-out "
        f"combinations unless a file of prompts was given, those of seed {results['plan'].get('seed', 0)}. The sets of "
        "seed 0, which the model card is of, were looked at when the recipe of the built-in model was chosen; others "
        "were not, but are of the same combinations.",
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
        if failures := _signatures(results, seconds):
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
        "- The model is small and its scenes are simple; what does not show here may show on a large "
        "model, and the other way round.\n"
        "- The paper extends real first frames; all videos here start from text alone.\n"
        "- The Frechet distance is on features of the model's own video encoder (mean, deviation and "
        "change of each latent channel "
        "over 2-s clips), not on those of the classifier that FVD uses. Its intervals are "
        "rather too wide than too narrow.\n"
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
        raise EvaluationError(f"plots need `pip install '.[evaluation]'` in a checkout ({error})") from error
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
