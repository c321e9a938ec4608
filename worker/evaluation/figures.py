"""From the figures of single videos to those of methods: means with bootstrap intervals, differences, claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.evaluation import frechet
from worker.evaluation.methods import REFERENCE

RESAMPLES = 1000
FRECHET_RESAMPLES = 200
"""Fewer, because each one is a matrix root."""
INTERVAL = (2.5, 97.5)
"""Percentiles of a bootstrap interval."""

WHOLE = 0.95
"""Share of frames that must show the object for it not to count as lost."""
JITTERY = 0.02
"""Typical change of step from which a video jitters, widths. True scenes have up to 0.003, and up to 0.012 after the
built-in autoencoder."""
JUMPY = 0.01
"""Share of steps that are jumps from which it does, too."""
DECAYED = 0.1
"""Rise of the color error from first to last segment from which a video decays, RGB 0..1."""

Video = Mapping[str, Any]
Draws = NDArray[np.intp]


@dataclass(frozen=True)
class Figure:
    """What a number of a video is. `better` is 1 or -1 where more or less of it is better, else 0."""

    name: str
    words: str
    better: int = 0
    digits: int = 3


FIGURES: dict[str, Figure] = {
    "follows": Figure("all as asked", "share of segments in which all of the following is right", 1),
    "background": Figure("background", "share of segments with the background asked for", 1),
    "color": Figure("color", "share of segments with the color asked for", 1),
    "shape": Figure("shape", "share of segments with the shape asked for", 1),
    "motion": Figure("motion", "share of segments with the motion asked for", 1),
    "present": Figure("present", "share of frames that show the object", 1),
    "jumps": Figure("jumps", "share of steps from frame to frame that no motion explains", -1, 4),
    "jitter": Figure("jitter", "typical change of the step from frame to frame, widths", -1, 5),
    "color_error": Figure("color error", "distance to the color asked for, RGB 0..1", -1),
    "frechet": Figure("Frechet", "Frechet distance to true scenes on VAE-encoder features", -1),
    "follows_last": Figure("all as asked at the end", "all as asked in the last segment", 1),
    "follows_change": Figure("change of all as asked", "last segment less first", 1),
    "color_error_change": Figure("change of color error", "last segment less first", -1),
    "identity": Figure("identity", "share of segments whose color or shape is not the first one's", -1),
    "ending": Figure("ending", "color, shape and background right in the last 2 s, share of videos", 1),
    "ending_color_error": Figure("ending's color error", "color error in the last 2 s", -1),
    "diverged": Figure("diverged", "share of videos that lose background, color or object by the end", -1),
    "jittered": Figure("jittered", f"share of videos with jitter over {JITTERY} or jumps over {JUMPY}", -1),
    "ended_badly": Figure(
        "ended badly", "share of videos whose last 2 s are wrong after a right segment", -1
    ),
    "decayed": Figure("decayed", f"share of videos whose color error rises by more than {DECAYED}", -1),
    "lost": Figure("lost", f"share of videos with a segment that shows the object in under {WHOLE:.0%}", -1),
    "flickering": Figure("flickering", "temporal flickering as VBench defines it; 1 is still", 0, 4),
    "flow": Figure("flow", "mean optical flow (Farneback), widths per second"),
    "sharpness": Figure("sharpness", "variance of the Laplacian", 0, 0),
    "drift_brightness": Figure("drift: brightness", "first 15 % of frames to last", -1, 4),
    "drift_saturation": Figure("drift: saturation", "first 15 % of frames to last", -1, 4),
    "drift_color": Figure("drift: color", "mean color, first 15 % of frames to last", -1, 4),
    "drift_sharpness": Figure("drift: sharpness", "first 15 % of frames to last", -1, 0),
    "drift_flow": Figure("drift: flow", "first 15 % of frames to last", -1),
    "seam_ratio": Figure("seam ratio", "frame difference at a method's joints over that at other latents"),
    "seam_power": Figure("seam power", "share of frame difference that repeats with the joints", -1),
    "cuts": Figure("cuts", "hard changes of scene per video", -1, 2),
    "forwards": Figure("evaluations", "network evaluations per video", 0, 0),
    "latent_forwards": Figure("latents", "latent frames through the network", 0, 0),
    "cpu_seconds": Figure("CPU seconds", "processor time to sample and decode", -1, 1),
    "seconds": Figure("seconds", "time on the clock to sample and decode", -1, 1),
    "peak_mb": Figure("peak MB", "peak memory of the process, or of the GPU", -1, 0),
}


def of_video(video: Video) -> dict[str, float]:
    """The figures of one video by name; those of the oracle only where it could judge."""
    found: dict[str, float] = {name: value for name, value in video["drift"].items() if name in FIGURES}
    found |= {name: value for name, value in video["cost"].items() if value is not None}
    verdicts = [segment["oracle"] for segment in video["segments"]]
    if verdicts[0] is None:
        return found
    first, last, ending = verdicts[0], verdicts[-1], video["ending"]["oracle"]
    means = ("follows", "background", "color", "shape", "motion", "present", "jumps", "jitter", "color_error")
    found |= {name: float(np.mean([verdict[name] for verdict in verdicts])) for name in means}
    ended = all(ending[name] for name in ("background", "color", "shape")) and ending["present"] >= WHOLE
    was_right = all(last[name] for name in ("background", "color", "shape")) and last["present"] >= WHOLE
    identity = [(v["seen_color"], v["seen_shape"]) for v in verdicts]
    if len(verdicts) > 1:  # a single segment cannot change
        color_error_change = last["color_error"] - first["color_error"]
        found |= {
            "follows_last": float(last["follows"]),
            "follows_change": float(last["follows"]) - float(first["follows"]),
            "color_error_change": color_error_change,
            "identity": float(np.mean([seen != identity[0] for seen in identity[1:]])),
            "diverged": float(
                any(first[name] and not last[name] for name in ("background", "color"))
                or (first["present"] >= WHOLE > last["present"])
            ),
            "decayed": float(color_error_change > DECAYED),
        }
    return found | {
        "ending": float(ended),
        "ending_color_error": ending["color_error"],
        "jittered": float(found["jitter"] > JITTERY or found["jumps"] > JUMPY),
        "ended_badly": float(was_right and not ended),
        "lost": float(any(verdict["present"] < WHOLE for verdict in verdicts)),
    }


@dataclass(frozen=True)
class Claim:
    """Something the paper says, and what of it can be measured: that `ours` is better than `theirs` in a figure."""

    words: str
    theirs: tuple[str, ...]
    figures: tuple[str, ...]


CLAIMS = (
    Claim(
        "Progressive noise beats the replacement methods",
        ("replacement-with-noise", "replacement-without-noise"),
        ("follows", "frechet", "color_error", "jumps"),
    ),
    Claim(
        "Progressive noise beats windowed diffusion forcing and FIFO",
        ("stock-sync", "stock-async", "fifo-like"),
        ("follows", "frechet", "color_error", "jumps"),
    ),
    Claim(
        "Chunked frames prevent divergence",
        ("no-chunks",),
        ("diverged", "follows_last", "color_error_change"),
    ),
    Claim("Overlapped conditioning prevents jitter", ("no-overlap",), ("jitter", "jumps", "seam_power")),
    Claim(
        "Variable length gives good endings",
        ("padded-ends", "abrupt-ends", "no-variable-length"),
        ("ending", "ending_color_error"),
    ),
    Claim("Training with shifted levels helps", ("no-level-shift",), ("follows", "frechet", "color_error")),
)
OURS = "progressive"
_LOSS = {
    "seen": "a loss is seen",
    "the opposite is seen": "a gain is seen",
    "no difference seen": "no loss seen",
}


def _trained(row: str) -> str:
    return f"{row} (trained)"


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(values, INTERVAL)
    return {"low": round(float(low), 6), "high": round(float(high), 6)}


def _draws(count: int, resamples: int, seed: int) -> Draws:
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def _mean_of(values: NDArray[np.floating[Any]], seed: int) -> dict[str, Any]:
    """Mean over prompts with its interval; None for the interval of a single prompt."""
    mean = {"mean": round(float(values.mean()), 6), "prompts": len(values)}
    if len(values) < 2:
        return {**mean, "low": None, "high": None}
    return {**mean, **_interval(values[_draws(len(values), RESAMPLES, seed)].mean(1).tolist())}


def _frechet(
    measure: Callable[[Sequence[int]], float | None], numbers: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """A figure of whole sets of videos, with its interval over prompts."""
    whole = measure(numbers)
    if whole is None:
        return None
    result: dict[str, Any] = {"mean": round(whole, 6), "prompts": len(numbers), "low": None, "high": None}
    if len(numbers) > 1:
        drawn = _draws(len(numbers), FRECHET_RESAMPLES, seed)
        found = [measure([numbers[place] for place in draw]) for draw in drawn]
        result |= _interval([value for value in found if value is not None])
    return result


def _set_summary(videos: Sequence[Video], seed: int) -> dict[str, Any]:
    """Rows of one length: figures, differences to the progressive sampler, and scene classes."""
    by_row: dict[str, dict[int, Video]] = defaultdict(dict)
    for video in videos:
        by_row[video["row"]][video["number"]] = video
    reference = by_row.pop(REFERENCE, {})
    flat = {row: {n: of_video(v) for n, v in found.items()} for row, found in by_row.items()}

    def apart(row: str, numbers: Sequence[int]) -> float | None:
        return frechet.distance(
            frechet.join([by_row[row][n]["features"] for n in numbers]),
            frechet.join([reference[n]["features"] for n in numbers]),
        )

    def gap(row: str, other: str, numbers: Sequence[int]) -> float | None:
        ours, theirs = apart(row, numbers), apart(other, numbers)
        return None if ours is None or theirs is None else ours - theirs

    rows: dict[str, Any] = {}
    for row, found in flat.items():
        figures: dict[str, Any] = {}
        for name in FIGURES:
            values = [figure[name] for figure in found.values() if name in figure]
            if values:
                figures[name] = _mean_of(np.array(values, dtype=np.float64), seed)
        both = sorted(found.keys() & reference.keys())
        if both and (distance := _frechet(partial(apart, row), both, seed)):
            figures["frechet"] = distance
        rows[row] = {
            "figures": figures,
            "differences": {},
            "classes": _classes(by_row[row], found),
        }
    for row, entry in rows.items():
        ours = _trained(OURS) if row.endswith("(trained)") and _trained(OURS) in rows else OURS
        if ours not in rows or row == ours:
            continue
        shared = sorted(flat[row].keys() & flat[ours].keys())
        differences: dict[str, Any] = {"to": ours, "figures": {}}
        for name in FIGURES:
            pairs = [
                flat[ours][n][name] - flat[row][n][name]
                for n in shared
                if name in flat[ours][n] and name in flat[row][n]
            ]
            if pairs:
                differences["figures"][name] = _mean_of(np.array(pairs, dtype=np.float64), seed)
        both = [n for n in shared if n in reference]

        if both and (distance := _frechet(partial(gap, ours, row), both, seed)):
            differences["figures"]["frechet"] = distance
        entry["differences"] = differences
    return {"rows": rows, "claims": _claims(rows), "holds": _holds(rows)}


def _classes(videos: Mapping[int, Video], flat: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Per scene class how often the object disappears, jitters, or changes what it is."""
    classes: dict[str, Any] = {}
    for name in sorted({video["class"] for video in videos.values()}):
        members = [flat[n] for n, video in videos.items() if video["class"] == name]
        classes[name] = {"videos": len(members)} | {
            figure: round(float(np.mean([m[figure] for m in members])), 6)
            for figure in ("lost", "jittered", "identity", "follows", "flickering")
            if all(figure in m for m in members)
        }
    return classes


def verdict(difference: Mapping[str, Any], better: int) -> str:
    """What a difference, ours less theirs, says about ours being better."""
    if difference["low"] is None:
        return "one prompt only"
    low, high = sorted((difference["low"] * better, difference["high"] * better))
    if low > 0:
        return "seen"
    return "the opposite is seen" if high < 0 else "no difference seen"


def _claims(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for claim in CLAIMS:
        names = [name for row in claim.theirs for name in (row, _trained(row)) if name in rows]
        before = len(found)
        for row in names:
            differences = rows[row]["differences"]
            for figure in claim.figures:
                if differences and figure in differences["figures"]:
                    difference = differences["figures"][figure]
                    found.append(
                        {
                            "claim": claim.words,
                            "against": row,
                            "figure": figure,
                            **difference,
                            "verdict": verdict(difference, FIGURES[figure].better),
                        }
                    )
        if len(found) == before:
            found.append({"claim": claim.words, "against": None})
    return found


def _holds(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whether the progressive sampler is as good at the end as at the beginning."""
    figures = rows.get(OURS, {}).get("figures", {})
    found = []
    for name in ("follows_change", "color_error_change"):
        if name in figures:
            seen = verdict(figures[name], -FIGURES[name].better)
            found.append({"figure": name, **figures[name], "verdict": _LOSS.get(seen, seen)})
    return found


def summarise(videos: Sequence[Video], *, seed: int) -> dict[str, Any]:
    """What a report says of videos whose prompt does not change, from their figures; sets by length in seconds."""
    by_seconds: dict[float, list[Video]] = defaultdict(list)
    for video in videos:
        if "turn" not in video:
            by_seconds[video["seconds"]].append(video)
    return {f"{seconds:g}": _set_summary(found, seed) for seconds, found in sorted(by_seconds.items())}


def turns(videos: Sequence[Video], *, seed: int) -> dict[str, Any]:
    """How videos follow a prompt that changes half-way, by the attribute that changed, and all of them.

    `before` and `after`: all as asked before the change and after it; `changed`: the new attribute is there after it.
    """
    groups: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        if "turn" in video:
            groups[video["turn"]["changed"]].append(video)
            groups["any"].append(video)
    found = {}
    for name, members in sorted(groups.items(), key=lambda group: (group[0] == "any", group[0])):
        verdicts = [(v["segments"][0]["oracle"], v["segments"][-1]["oracle"], v["turn"]) for v in members]
        shares = {
            "before": [before["follows"] for before, _, _ in verdicts],
            "changed": [after[turn["changed"]] for _, after, turn in verdicts],
            "after": [after["follows"] for _, after, _ in verdicts],
        }
        found[name] = {
            figure: _mean_of(np.array(share, dtype=np.float64), seed) for figure, share in shares.items()
        }
    return found
