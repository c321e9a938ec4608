"""From figures of videos to what a report says of methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker.evaluation import figures

GOOD: dict[str, Any] = {
    "background": True,
    "color": True,
    "shape": True,
    "motion": True,
    "second": None,
    "present": 1.0,
    "stray": 0.0,
    "still": 0.2,
    "jumps": 0.0,
    "jitter": 0.001,
    "color_error": 0.02,
    "background_error": 0.0,
    "seen_color": "red",
    "seen_shape": "circle",
    "seen_motion": "bounce",
    "follows": True,
}
WRONG_COLOR = GOOD | {"color": False, "follows": False, "color_error": 0.4, "seen_color": "blue"}


def video(row: str, number: int, *verdicts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "row": row,
        "method": row,
        "seconds": 20.0,
        "number": number,
        "prompt": "a red ball bouncing on a black background",
        "class": "one object moving",
        "segments": [{"oracle": verdict} for verdict in verdicts],
        "ending": {"oracle": verdicts[-1], "before": verdicts[-1]},
        "drift": {"flickering": 0.99},
        "cost": {
            "forwards": 100,
            "latent_forwards": 800,
            "seconds": 1.0,
            "cpu_seconds": 1.0,
            "peak_mb": None,
        },
        "features": [],
    } | fields


def test_a_perfect_video_has_no_failure() -> None:
    found = figures.of_video(video("progressive", 0, GOOD, GOOD))
    assert found["follows"] == 1
    failures = ("diverged", "jittered", "ended_badly", "decayed", "lost", "identity")
    assert [found[name] for name in failures] == [0] * 6
    assert "peak_mb" not in found


@pytest.mark.parametrize(
    ("failure", "verdicts", "ending"),
    [
        ("diverged", (GOOD, WRONG_COLOR), WRONG_COLOR),
        ("diverged", (GOOD, GOOD | {"shape": False}), GOOD),
        ("decayed", (GOOD, WRONG_COLOR), WRONG_COLOR),
        ("identity", (GOOD, WRONG_COLOR), WRONG_COLOR),
        ("jittered", (GOOD | {"jitter": 0.08}, GOOD), GOOD),
        ("jittered", (GOOD, GOOD | {"jumps": 0.1}), GOOD),
        ("ended_badly", (GOOD, GOOD), WRONG_COLOR),
        ("lost", (GOOD | {"present": 0.5}, GOOD), GOOD),
    ],
)
def test_each_failure_is_told(
    failure: str, verdicts: tuple[dict[str, Any], ...], ending: dict[str, Any]
) -> None:
    parts = {"oracle": ending, "before": GOOD}
    found = figures.of_video(video("progressive", 0, *verdicts, ending=parts))
    assert found[failure] > 0


@pytest.mark.parametrize(
    "wrong", [{"background": False}, {"shape": False}, {"present": 0.5}, {"stray": 0.5}, {"still": 1.0}]
)
def test_an_ending_is_bad_when_what_comes_before_it_was_right(wrong: dict[str, Any]) -> None:
    def found(before: Any, ending: Any) -> dict[str, float]:
        parts = {"oracle": ending, "before": before}
        return figures.of_video(video("progressive", 0, GOOD | wrong, ending=parts))

    assert (found(GOOD, GOOD)["ending"], found(GOOD, GOOD)["ended_badly"]) == (1, 0)
    assert (found(GOOD, GOOD | wrong)["ending"], found(GOOD, GOOD | wrong)["ended_badly"]) == (0, 1)
    assert found(GOOD | wrong, GOOD | wrong)["ended_badly"] == 0
    assert "ended_badly" not in found(None, GOOD | wrong)  # the ending is all there is


def test_a_standstill_is_the_longest_of_a_video_and_what_was_not_measured_is_no_figure() -> None:
    verdicts = (GOOD | {"still": 0.1}, GOOD | {"still": 3.0}, GOOD)
    found = figures.of_video(video("no-chunks", 0, *verdicts, drift={"seam_ratio": None, "cuts": 0.0}))
    assert found["still"] == 3
    assert found["cuts"] == 0
    assert "seam_ratio" not in found


def test_night_that_is_to_fall_is_no_drift() -> None:
    def found(prompt: str) -> set[str]:
        drift = {"drift_color": 0.4, "sharpness": 100.0}
        return set(figures.of_video(video("progressive", 0, GOOD, prompt=prompt, drift=drift)))

    assert found("a red ball bouncing over a field by day") - found(
        "a red ball bouncing over a field as day turns to night"
    ) == {"drift_color"}


def test_a_single_segment_cannot_decay() -> None:
    found = figures.of_video(video("progressive", 0, GOOD))
    assert not found.keys() & {"diverged", "decayed", "identity", "follows_change", "color_error_change"}
    assert summary([video("progressive", n, GOOD) for n in range(3)])["holds"] == []


def test_a_video_that_no_oracle_can_judge_keeps_its_other_figures() -> None:
    blind = video(
        "progressive", 0, GOOD, segments=[{"oracle": None}], ending={"oracle": None, "before": None}
    )
    assert set(figures.of_video(blind)) == {
        "flickering",
        "forwards",
        "latent_forwards",
        "seconds",
        "cpu_seconds",
    }


def summary(videos: list[dict[str, Any]]) -> Any:
    return figures.summarise(videos)["20"]


def test_intervals_and_differences_are_over_prompts() -> None:
    ours = [video("progressive", n, GOOD, GOOD) for n in range(8)]
    theirs = [video("replacement-with-noise", n, GOOD, GOOD if n < 2 else WRONG_COLOR) for n in range(8)]
    rows = summary(ours + theirs)["rows"]
    follows = rows["replacement-with-noise"]["figures"]["follows"]
    values = np.array([1.0] * 2 + [0.5] * 6)
    assert follows["mean"] == values.mean()
    assert follows["low"] < values.mean() < follows["high"]
    error = values.std(ddof=1) / np.sqrt(8)
    assert follows["high"] - follows["low"] == pytest.approx(2 * 2.3646 * error, rel=1e-3)  # Student's t of 7
    difference = rows["replacement-with-noise"]["differences"]["figures"]["follows"]
    assert rows["replacement-with-noise"]["differences"]["to"] == "progressive"
    assert difference["mean"] == 1 - values.mean()
    assert difference["low"] > 0


def test_a_claim_is_seen_refuted_or_open() -> None:
    ours = [video("progressive", n, GOOD, GOOD) for n in range(8)]
    theirs = [video("no-chunks", n, GOOD, WRONG_COLOR) for n in range(8)]

    def verdicts(videos: list[dict[str, Any]]) -> dict[str, str]:
        found = summary(videos)["claims"]
        return {claim["figure"]: claim["verdict"] for claim in found if claim["against"] == "no-chunks"}

    assert verdicts(ours + theirs)["diverged"] == "seen"
    swapped = [v | {"row": "no-chunks"} for v in ours] + [v | {"row": "progressive"} for v in theirs]
    assert verdicts(swapped)["diverged"] == "the opposite is seen"
    assert verdicts(ours + [v | {"row": "no-chunks"} for v in ours])["diverged"] == "the same in all videos"
    assert verdicts(ours[:5] + theirs[:5])["diverged"] == "too few videos to tell"


@pytest.mark.parametrize("prompts", [6, 8, 16, 64])
@pytest.mark.parametrize(
    "noise",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.lognormal(size=n) - rng.lognormal(size=n),
        lambda rng, n: (rng.integers(0, 7, n) - rng.integers(0, 7, n)) / 6,
    ],
    ids=["normal", "skewed", "shares of six segments"],
)
def test_noise_alone_is_hardly_ever_seen(noise: Any, prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    found = [figures.verdict(figures._mean_of(noise(rng, prompts)), 1, 0) for _ in range(2000)]
    assert set(found) <= {"seen", "the opposite is seen", "no difference seen"}
    share = np.mean([words != "no difference seen" for words in found])
    assert 0.02 < share < 0.065


def test_noise_alone_is_hardly_ever_seen_in_a_figure_of_all_prompts_together() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(200):
        ours, theirs = rng.normal(size=(2, 6, 10))
        difference = figures._frechet(
            lambda numbers, a=ours, b=theirs: float(np.var(a[[*numbers]]) - np.var(b[[*numbers]])), range(6)
        )
        assert difference is not None
        seen += figures.verdict(difference, 1, 0) != "no difference seen"
    assert seen <= 20


def test_under_six_prompts_there_is_no_interval_and_no_verdict() -> None:
    videos = [video(row, n, GOOD, GOOD) for row in ("progressive", "no-overlap") for n in range(5)]
    found = summary(videos)
    for figure in found["rows"]["no-overlap"]["figures"].values():
        assert (figure["low"], figure["high"]) == (None, None)
    told = [claim["verdict"] for claim in found["claims"] if claim["against"]] + [
        held["verdict"] for held in found["holds"]
    ]
    assert set(told) == {"too few videos to tell"}


def test_an_interval_of_a_share_ends_where_shares_do() -> None:
    videos = [video("progressive", n, GOOD, GOOD if n else WRONG_COLOR) for n in range(6)]
    found = summary(videos)["rows"]["progressive"]["figures"]
    assert found["follows"]["high"] == 1
    assert found["diverged"]["low"] == 0
    assert found["follows_change"]["low"] < -0.5


def test_what_is_not_seen_has_no_color_to_be_wrong() -> None:
    lost = GOOD | {"color": False, "follows": False, "present": 0.0, "color_error": None, "seen_color": None}
    found = figures.of_video(video("progressive", 0, GOOD, lost))
    assert found["color_error"] == GOOD["color_error"]
    assert not {"color_error_change", "decayed", "ending_color_error"} & found.keys()
    assert found["lost"] == found["diverged"] == 1
    gone = figures.of_video(video("progressive", 0, lost, lost))
    assert "color_error" not in gone


def test_an_interval_within_what_counts_says_that_there_is_no_difference() -> None:
    def held(low: float, high: float) -> str:
        return figures.verdict({"low": low, "high": high}, -1, 0.02)

    assert held(-0.01, 0.01) == "no difference that counts"
    assert held(-0.01, 0.03) == "no difference seen"
    assert held(0, 0) == "the same in all videos"  # nothing says how far others would be


def test_every_figure_of_a_claim_has_a_least_size() -> None:
    assert {name for claim in figures.CLAIMS for name in claim.figures} <= figures.SIZES.keys()


def test_claims_without_their_videos_stay_open() -> None:
    claims = summary([video("progressive", 0, GOOD, GOOD)])["claims"]
    assert [claim["against"] for claim in claims] == [None] * len(figures.CLAIMS)
    single = [video(row, n, GOOD) for row in ("progressive", "no-chunks") for n in range(3)]
    chunked = [claim for claim in summary(single)["claims"] if claim["claim"].startswith("Chunked")]
    assert [claim["against"] for claim in chunked] == [None]  # a single segment cannot diverge


def test_trained_variants_are_compared_with_what_was_trained_alike() -> None:
    rows = [
        "progressive",
        "progressive (trained)",
        "no-chunks (trained)",
        "no-chunks",
    ]
    videos = [video(row, n, GOOD, GOOD) for row in rows for n in range(3)]
    found = summary(videos)["rows"]
    assert found["no-chunks (trained)"]["differences"]["to"] == "progressive (trained)"
    assert found["no-chunks"]["differences"]["to"] == "progressive"


def test_a_loss_over_time_is_told() -> None:
    holding = summary([video("progressive", n, GOOD, GOOD) for n in range(6)])["holds"]
    assert [figure["verdict"] for figure in holding] == ["the same in all videos"] * 2
    losing = summary([video("progressive", n, GOOD, WRONG_COLOR) for n in range(6)])["holds"]
    assert [figure["verdict"] for figure in losing] == ["a loss is seen"] * 2


def test_scene_classes_have_their_own_figures() -> None:
    still = [
        video("progressive", n, GOOD | {"present": 0.5}, **{"class": "one object in place"}) for n in range(2)
    ]
    classes = summary([*still, video("progressive", 2, GOOD)])["rows"]["progressive"]["classes"]
    assert classes["one object in place"] | {"videos": 2, "lost": 1.0} == classes["one object in place"]
    assert classes["one object moving"] | {"videos": 1, "lost": 0.0} == classes["one object moving"]


def test_a_class_has_the_figures_of_those_prompts_that_can_be_judged() -> None:
    blind = video("progressive", 0, GOOD, segments=[{"oracle": None}] * 2, ending={"oracle": None})
    classes = summary([blind, video("progressive", 1, GOOD, GOOD)])["rows"]["progressive"]["classes"]
    assert (
        classes["one object moving"] | {"videos": 2, "judged": 1, "follows": 1.0}
        == classes["one object moving"]
    )
    assert summary([blind])["rows"]["progressive"]["classes"] == {
        "one object moving": {"videos": 1, "judged": 0}
    }


def test_a_second_object_counts_where_one_is_asked_for() -> None:
    right, lost = GOOD | {"second": True}, GOOD | {"second": False, "follows": False}
    videos = [
        video("progressive", 0, right, lost, **{"class": "several objects"}),
        video("progressive", 1, GOOD, GOOD),
    ]
    found = [figures.of_video(one) for one in videos]
    assert (found[0]["second"], found[0]["diverged"], found[0]["ending"]) == (0.5, 1, 0)
    assert "second" not in found[1]
    row = summary(videos)["rows"]["progressive"]
    assert (row["figures"]["second"]["mean"], row["figures"]["second"]["prompts"]) == (0.5, 1)
    assert row["classes"]["several objects"]["second"] == 0.5
    assert "second" not in row["classes"]["one object moving"]


@pytest.mark.parametrize(
    ("after", "changed"), [({"second": True}, 1), ({"second": False}, 0), ({}, 1), ({"stray": 0.5}, 0)]
)
def test_a_second_object_has_changed_when_it_is_as_asked_or_gone(after: dict[str, Any], changed: int) -> None:
    turned = video("progressive", 0, GOOD, GOOD | after, turn={"changed": "second"})
    assert figures.turns([turned])["second"]["changed"]["mean"] == changed
