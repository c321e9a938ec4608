"""From the figures of single videos to those of methods: means with their intervals, differences, claims."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from worker.evaluation import frechet, oracle
from worker.evaluation.methods import REFERENCE

LEAST_PROMPTS = 6
"""Prompts from which on there is an interval. Of fewer, noise alone gives differences of one sign more often than one
time in twenty."""
CONFIDENCE = 0.95

WHOLE = 0.95
"""Share of frames that must show the object for it not to count as lost."""
JITTERY = 0.03
"""Change of step from which a video jitters, widths. True scenes have up to 0.005, and up to 0.014 after the built-in
autoencoder."""
JUMPY = 0.01
"""Share of steps that are jumps from which it does, too."""
DECAYED = 0.1
"""Rise of the color error from first to last segment from which a video decays, RGB 0..1."""

Video = Mapping[str, Any]


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
    "second": Figure(
        "second object", "share of segments with the second object as asked, where one is asked for", 1
    ),
    "present": Figure("present", "share of frames that show the object", 1),
    "stray": Figure("stray", "share of frames that show something else, too", -1),
    "still": Figure("still", "longest stretch in which nothing moves, seconds", -1, 2),
    "jumps": Figure("jumps", "share of steps from frame to frame that no motion explains", -1, 4),
    "jitter": Figure(
        "jitter", f"change of the step from frame to frame that {oracle.SHAKEN:.0%} are under, widths", -1, 5
    ),
    "color_error": Figure("color error", "distance to the color asked for, RGB 0..1", -1),
    "frechet": Figure(
        "Frechet", "Frechet distance to true scenes on VAE-encoder features; of finite sets it is never 0", -1
    ),
    "follows_last": Figure("all as asked at the end", "all as asked in the last segment", 1),
    "follows_change": Figure("change of all as asked", "last segment less first", 1),
    "color_error_change": Figure("change of color error", "last segment less first", -1),
    "identity": Figure("identity", "share of segments whose color or shape is not the first one's", -1),
    "ending": Figure(
        "ending",
        "all but the motion right in the last 2 s, nothing else there, no standstill; share of videos",
        1,
    ),
    "ending_color_error": Figure("ending's color error", "color error in the last 2 s", -1),
    "diverged": Figure(
        "diverged", "share of videos that lose background, color, shape or an object by the end", -1
    ),
    "jittered": Figure("jittered", f"share of videos with jitter over {JITTERY} or jumps over {JUMPY}", -1),
    "ended_badly": Figure(
        "ended badly", "share of videos whose last 2 s are wrong, and what comes before them is not", -1
    ),
    "decayed": Figure("decayed", f"share of videos whose color error rises by more than {DECAYED}", -1),
    "lost": Figure("lost", f"share of videos with a segment that shows the object in under {WHOLE:.0%}", -1),
    "flickering": Figure("flickering", "temporal flickering as VBench defines it; 1 is still", 0, 4),
    "flow": Figure("flow", "mean optical flow (Farneback), widths per second"),
    "sharpness": Figure("sharpness", "variance of the Laplacian", 0, 0),
    "drift_brightness": Figure(
        "drift: brightness",
        "first 15 % of frames to last, unless night is to fall; so are the other drifts",
        -1,
        4,
    ),
    "drift_saturation": Figure("drift: saturation", "first 15 % of frames to last", -1, 4),
    "drift_color": Figure("drift: color", "mean color, first 15 % of frames to last", -1, 4),
    "drift_sharpness": Figure("drift: sharpness", "first 15 % of frames to last", -1, 0),
    "drift_flow": Figure("drift: flow", "first 15 % of frames to last", -1),
    "seam_ratio": Figure(
        "seam ratio", "frame difference at a method's joints over that at other latents, if there are", -1
    ),
    "seam_power": Figure(
        "seam power",
        "share of the frame difference's variance that repeats with a method's joints, beside what every latent "
        "repeats; none if it joins every latent",
        -1,
    ),
    "cuts": Figure("cuts", "hard changes of scene per video", -1, 2),
    "forwards": Figure("evaluations", "network evaluations per video", 0, 0),
    "latent_forwards": Figure("latents", "latent frames through the network", 0, 0),
    "cpu_seconds": Figure("CPU seconds", "processor time to sample and decode", -1, 1),
    "seconds": Figure("seconds", "time on the clock to sample and decode", -1, 1),
    "peak_mb": Figure(
        "peak MB",
        "peak memory of a process with torch, model and what measures the video; on a GPU, of torch there",
        -1,
        0,
    ),
}


def _sound(verdict: Mapping[str, Any]) -> bool:
    """Whether a stretch shows what was asked for and nothing else, and does not freeze; it may be too short to say how
    the object moves."""
    told = all(verdict[name] for name in ("background", "color", "shape"))
    alone = verdict["present"] >= WHOLE and verdict["stray"] <= 1 - WHOLE
    return bool(
        told and verdict.get("second") is not False and alone and verdict["still"] <= oracle.STILL_SECONDS
    )


def of_video(video: Video) -> dict[str, float]:
    """The figures of one video by name; those of the oracle only where it could judge."""
    asked = oracle.parse_prompt(video["prompt"])
    changing = asked is not None and asked.background == "nightfall"  # which is no drift
    measured = {
        name: value
        for name, value in video["drift"].items()
        if name in FIGURES and not (changing and name.startswith("drift_"))
    } | video["cost"]
    found: dict[str, float] = {name: value for name, value in measured.items() if value is not None}
    verdicts = [segment["oracle"] for segment in video["segments"]]
    if verdicts[0] is None:
        return found

    def mean_of(name: str) -> float | None:
        values = [verdict[name] for verdict in verdicts if verdict.get(name) is not None]
        return float(np.mean(values)) if values else None

    first, last = verdicts[0], verdicts[-1]
    ending, before = video["ending"]["oracle"], video["ending"]["before"]
    means = (
        "follows",
        "background",
        "color",
        "shape",
        "motion",
        "second",
        "present",
        "stray",
        "jumps",
        "jitter",
    )
    found |= {name: value for name in (*means, "color_error") if (value := mean_of(name)) is not None}
    found["still"] = max(verdict["still"] for verdict in verdicts)
    identity = [(v["seen_color"], v["seen_shape"]) for v in verdicts]
    if len(verdicts) > 1:  # a single segment cannot change
        found |= {
            "follows_last": float(last["follows"]),
            "follows_change": float(last["follows"]) - float(first["follows"]),
            "identity": float(np.mean([seen != identity[0] for seen in identity[1:]])),
            "diverged": float(
                any(first.get(name) and not last[name] for name in ("background", "color", "shape", "second"))
                or (first["present"] >= WHOLE > last["present"])
            ),
        }
        if None not in (first["color_error"], last["color_error"]):  # what is not seen has no color
            found["color_error_change"] = last["color_error"] - first["color_error"]
            found["decayed"] = float(found["color_error_change"] > DECAYED)
    if before is not None:
        found["ended_badly"] = float(_sound(before) and not _sound(ending))
    if ending["color_error"] is not None:
        found["ending_color_error"] = ending["color_error"]
    return found | {
        "ending": float(_sound(ending)),
        "jittered": float(found["jitter"] > JITTERY or found["jumps"] > JUMPY),
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
    Claim("Overlapped conditioning prevents jitter", ("no-overlap",), ("jitter", "jumps", "seam_ratio")),
    Claim(
        "Variable length gives good beginnings and endings",
        ("padded-ends", "abrupt-ends", "no-variable-length"),
        ("follows", "ending", "ending_color_error"),
    ),
    Claim("Training with shifted levels helps", ("no-level-shift",), ("follows", "frechet", "color_error")),
)
OURS = "progressive"


@dataclass(frozen=True)
class Size:
    """The least difference that counts in a claim, and its unit."""

    least: float
    unit: str = ""


SIZES = {
    "follows": Size(0.05, "of segments"),
    "follows_last": Size(0.05, "of videos"),
    "follows_change": Size(0.05, "of videos"),
    "diverged": Size(0.05, "of videos"),
    "ending": Size(0.05, "of videos"),
    "jumps": Size(0.001, "of steps"),
    "jitter": Size(0.001, "widths"),
    "color_error": Size(0.01, "RGB"),
    "color_error_change": Size(0.01, "RGB"),
    "ending_color_error": Size(0.01, "RGB"),
    "seam_ratio": Size(0.05),
    "frechet": Size(0.02),
}
"""One video or segment in twenty, a jump in 42 s at 24 frames a second, an eighth of a pixel of 128, a hundredth of the
range of colors, a twentieth of a frame difference, a seventh of what two draws of true scenes were apart."""
_SHARES = {
    *("follows", "background", "color", "shape", "motion", "second", "present", "jumps"),
    *("follows_last", "identity"),
    *("ending", "diverged", "jittered", "ended_badly", "decayed", "lost", "flickering", "seam_power"),
}
_CHANGES: dict[str, tuple[float, float]] = {
    "follows_change": (-1, 1),
    "color_error_change": (-math.inf, math.inf),
}
_LOSS = {
    "seen": "a loss is seen",
    "the opposite is seen": "a gain is seen",
    "no difference seen": "no loss seen",
    "no difference that counts": "no loss that counts",
    "the same in all videos": "the same in all videos",
}


def _trained(row: str) -> str:
    return f"{row} (trained)"


@lru_cache
def _students_t(freedom: int) -> float:
    """How many standard errors an interval reaches to either side; `freedom` is at least LEAST_PROMPTS - 1."""
    places = np.linspace(0, 3, 30_001)
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(scale - (freedom + 1) / 2 * np.log1p(places**2 / freedom))
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (places[1] - places[0])])
    return float(np.interp(CONFIDENCE / 2, area, places))


def _span(name: str, *, difference: bool = False) -> tuple[float, float]:
    """Between which values a figure lies, or the difference of two."""
    least, most = _CHANGES.get(name, (0, 1 if name in _SHARES else math.inf))
    return (least - most, most - least) if difference else (least, most)


def _estimate(
    value: float, error: float | None, prompts: int, span: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, Any]:
    """A value and its interval: so many standard errors to either side, as far as such values go."""
    found: dict[str, Any] = {"mean": round(value, 6), "prompts": prompts, "low": None, "high": None}
    if error is None or prompts < LEAST_PROMPTS:
        return found
    reach = _students_t(prompts - 1) * error
    low, high = max(value - reach, span[0]), min(value + reach, span[1])
    return found | {"low": round(low, 6), "high": round(high, 6)}


def _mean_of(values: Sequence[float], span: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Mean over prompts with Student's interval, which is None for few prompts."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return _estimate(float(np.mean(values)), error, count, span)


def _frechet(
    measure: Callable[[Sequence[int]], float | None],
    numbers: Sequence[int],
    span: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Any] | None:
    """The same of a figure of all prompts together; its standard error is the jackknife's, which leaves one prompt out
    at a time, and which of a mean is the ordinary one."""
    value, count = measure(numbers), len(numbers)
    if value is None:
        return None
    without = [measure([n for n in numbers if n != one]) for one in numbers] if count > 1 else []
    found = [one for one in without if one is not None]
    error = None if len(found) < max(count, 2) else math.sqrt((count - 1) * float(np.var(found)))
    return _estimate(value, error, count, span)


def _set_summary(videos: Sequence[Video]) -> dict[str, Any]:
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
                figures[name] = _mean_of(values, _span(name))
        both = sorted(found.keys() & reference.keys())
        if both and (distance := _frechet(partial(apart, row), both, _span("frechet"))):
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
                differences["figures"][name] = _mean_of(pairs, _span(name, difference=True))
        both = [n for n in shared if n in reference]
        if both and (distance := _frechet(partial(gap, ours, row), both)):
            differences["figures"]["frechet"] = distance
        entry["differences"] = differences
    return {"rows": rows, "claims": _claims(rows), "holds": _holds(rows)}


def _classes(videos: Mapping[int, Video], flat: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Per scene class how often the object disappears, jitters, or changes what it is, where the oracle could judge."""
    classes: dict[str, Any] = {}
    for name in sorted({video["class"] for video in videos.values()}):
        members = [flat[n] for n, video in videos.items() if video["class"] == name]
        judged = [m for m in members if "follows" in m]
        measured = {
            figure: [m[figure] for m in judged if figure in m]
            for figure in ("lost", "jittered", "identity", "second", "follows")
        }
        classes[name] = {"videos": len(members), "judged": len(judged)} | {
            figure: round(float(np.mean(values)), 6) for figure, values in measured.items() if values
        }
    return classes


def verdict(difference: Mapping[str, Any], better: int, least: float) -> str:
    """What a difference, ours less theirs, says about ours being better, where less than `least` does not count."""
    if difference["low"] is None:
        return "too few videos to tell"
    low, high = sorted((difference["low"] * better, difference["high"] * better))
    if low > 0:
        return "seen"
    if high < 0:
        return "the opposite is seen"
    if low == high:  # videos that all agree have no spread to tell from how far others would
        return "the same in all videos"
    return "no difference that counts" if -least < low < high < least else "no difference seen"


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
                            "verdict": verdict(difference, FIGURES[figure].better, SIZES[figure].least),
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
            seen = verdict(figures[name], -FIGURES[name].better, SIZES[name].least)
            found.append({"figure": name, **figures[name], "verdict": _LOSS.get(seen, seen)})
    return found


def summarise(videos: Sequence[Video]) -> dict[str, Any]:
    """What a report says of videos whose prompt does not change, from their figures; sets by length in seconds."""
    by_seconds: dict[float, list[Video]] = defaultdict(list)
    for video in videos:
        if "turn" not in video:
            by_seconds[video["seconds"]].append(video)
    return {
        f"{seconds:g}": _set_summary(found)
        for seconds, found in sorted(by_seconds.items())
        if any(video["row"] != REFERENCE for video in found)
    }


def _changed(after: Mapping[str, Any], name: str) -> bool:
    """Whether an attribute is as asked after a change; where no second object is asked for, nothing may be left.

    A motion is as asked if its speed is, too.
    """
    seen = after["motion" if name == "fast" else name]
    return bool(after["stray"] <= 1 - WHOLE if seen is None else seen)


def turns(videos: Sequence[Video]) -> dict[str, Any]:
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
            "changed": [_changed(after, turn["changed"]) for _, after, turn in verdicts],
            "after": [after["follows"] for _, after, _ in verdicts],
        }
        found[name] = {figure: _mean_of(share, (0, 1)) for figure, share in shares.items()}
    return found
