"""The report, and the one in the repository."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.evaluation import figures, report, study
from worker.evaluation.cases import EvaluationError
from worker.evaluation.figures import OURS
from worker.evaluation.methods import METHODS, REFERENCE, training_shares

DOCS = Path(__file__).parents[3] / "docs"


def test_the_report_of_the_repository_is_that_of_its_results() -> None:
    results = report.read(DOCS / "results" / "results.json")
    text = (DOCS / "results.md").read_text()
    assert text == report.text(results, "results/", DOCS / "results")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(DOCS / picture) as image:
            assert min(image.size) > 60, "a row of stills at least"


def test_the_summary_of_the_repository_is_that_of_its_videos() -> None:
    results = json.loads((DOCS / "results" / "results.json").read_text())
    again = figures.summarise(results["videos"])
    assert json.loads(json.dumps(again)) == results["summary"]


def test_every_row_and_every_failure_is_reported(smoke: Any) -> None:
    text = report.text(smoke, "")
    for row in {video["row"] for video in smoke["videos"]} - {REFERENCE}:
        assert f"| {row} |" in text
    assert f"| {REFERENCE} |" not in text
    for name, words in report.SIGNATURES.items():
        # These need two segments, or something before the last two seconds.
        assert (f"- {words}: " in text) == (name not in ("diverged", "decayed", "ended_badly", "identity"))
    assert (
        "training windows" not in text.partition("## What")[0]
    )  # of the built-in model alone they are known
    assert f"weights trained for it ({smoke['variants']['no-level-shift']})" in text
    assert "| no-level-shift |" not in text
    assert "Not shown, for no prompt of this evaluation asks for it: one object in place" in text
    assert "VBench-Long were not run" in text
    assert ".7923" in text


def test_a_failure_is_counted_in_videos_however_much_of_each_has_it(smoke: Any) -> None:
    videos = json.loads(json.dumps(smoke["videos"]))
    mine = [video for video in videos if video["row"] == OURS and video["seconds"] == 2]
    for video in mine:  # five segments, of which the last has another color
        segments = [json.loads(json.dumps(video["segments"][0])) for _ in range(5)]
        segments[-1]["oracle"]["seen_color"] = "another"
        video["segments"] = segments
    made = {**smoke, "videos": videos, "summary": figures.summarise(videos)}
    assert made["summary"]["2"]["rows"][OURS]["figures"]["identity"]["mean"] == 0.25
    line = next(line for line in report.text(made, "").splitlines() if line.startswith("- Change of color"))
    assert f"{OURS} ({len(mine)} of {len(mine)} videos)" in line


def test_a_figure_stands_in_the_report_as_in_the_json(smoke: Any) -> None:
    row = smoke["summary"]["2"]["rows"]["no-overlap"]["figures"]
    text = report.text(smoke, "")
    line = next(line for line in text.splitlines() if line.startswith("| no-overlap | 0."))
    for name in ("present", "jitter"):
        assert report.cell(row[name], figures.FIGURES[name].digits) in line


def test_an_unfinished_evaluation_says_so(smoke: Any) -> None:
    assert "**Not finished: 7 videos of the plan are missing.**" in report.text(smoke | {"missing": 7}, "")
    assert "Not finished" not in report.text(smoke, "")


def test_pictures_show_every_method(smoke: Any, smoke_folder: Path, tmp_path: Path) -> None:
    markdown = tmp_path / "report.md"
    stale = smoke_folder / "over-time-60s.png"
    stale.touch()
    report.write(smoke_folder / "results.json", markdown)
    assert not stale.exists()
    rows = len(smoke["summary"]["2"]["rows"])
    with Image.open(smoke_folder / "sheet-2s.jpg") as sheet:
        assert sheet.height == rows * (32 + 4)  # pixels of a tiny frame
    with Image.open(smoke_folder / "figures-2s.png") as plot:
        assert plot.width > 800
    assert "figures-2s.png" in markdown.read_text()
    assert not (smoke_folder / "over-time-2s.png").exists()  # there is one segment


def test_longer_videos_are_plotted_over_time(smoke: Any, tmp_path: Path) -> None:
    def longer(video: Any) -> Any:
        (one,) = video["segments"]
        return video | {"segments": [one, one | {"from_second": 2, "to_second": 4}]}

    results = smoke | {"videos": [longer(video) for video in smoke["videos"]]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    report.write(tmp_path / "results.json", tmp_path / "report.md")
    with Image.open(tmp_path / "over-time-2s.png") as plot:
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 20  # lines of many colors
    assert "![Figures over time, 2 s](over-time-2s.png)" in (tmp_path / "report.md").read_text()


def test_the_cost_of_overlap_is_that_of_the_latents_it_shows_again(smoke: Any) -> None:
    rows = smoke["summary"]["2"]["rows"]
    ours, without = (rows[row]["figures"]["latent_forwards"]["mean"] for row in ("progressive", "no-overlap"))
    assert ours > without
    line = next(
        line for line in report.text(smoke, "").splitlines() if "Overlapped conditioning costs" in line
    )
    assert f"| +0.0% evaluations, {ours / without - 1:+.1%} latents (counted); " in line


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    whole = json.loads((DOCS / "results" / "results.json").read_text())
    for content in (
        *("{", "[]", "{}", json.dumps({"schema": 0}), json.dumps({"schema": study.SCHEMA})),
        *(json.dumps(whole | {"videos": videos}) for videos in ([1], [{"row": "progressive"}])),
        *(json.dumps(whole | changed) for changed in ({"missing": None}, {"plan": {}}, {"model": {}})),
    ):
        path.write_text(content)
        with pytest.raises(EvaluationError, match=r"results\.json"):
            report.read(path)


def test_every_method_has_words_for_the_report() -> None:
    assert all(method.words for method in METHODS.values())


def of_prompts(smoke: Any, count: int, jitters: dict[str, float]) -> Any:
    """The smoke results as if each of so many prompts had given them, with these rows at these jitters, widths."""

    def moved(video: Any, number: int) -> Any:
        (segment,) = video["segments"]
        jitter = jitters.get(video["row"], 0) * (1 + number / 1000)
        return video | {
            "number": number,
            "segments": [segment | {"oracle": segment["oracle"] | {"jitter": jitter, "jumps": 0.0}}],
        }

    videos = [moved(video, number) for video in smoke["videos"] for number in range(count)]
    return smoke | {"videos": videos, "summary": figures.summarise(videos)}


def line(text: str, beginning: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(beginning))


def entries(text: str, beginning: str) -> list[str]:
    """What is listed under a line of `In short`."""
    lines = text.splitlines()
    below = lines[lines.index(line(text, beginning)) + 1 :]
    return [one.strip() for one in takewhile(lambda one: one.startswith("    - "), below)]


OVERLAP = "- Overlapped conditioning prevents jitter, against no-overlap (2 s)"


def test_a_difference_is_said_with_its_size_and_unit_and_what_reproduces_is_said_in_words(smoke: Any) -> None:
    text = report.text(of_prompts(smoke, 6, {"progressive": 0.01, "no-overlap": 0.05}), "")
    assert "jitter (less is better): -0.04010 [-0.04018, -0.04002] widths: **seen**<br>" in text
    (found,) = (one for one in entries(text, "- What reproduces here:") if one.startswith(OVERLAP))
    assert found.startswith(f"{OVERLAP}: better in jitter; ")
    assert "- Chunked frames prevent divergence, no videos of it." in entries(
        text, "- What cannot be told here:"
    )
    assert "differences with an interval: of so many, about" in text

    turned = report.text(of_prompts(smoke, 6, {"progressive": 0.05, "no-overlap": 0.01}), "")
    assert any(
        one.startswith(f"{OVERLAP}: the opposite in jitter") for one in entries(turned, "- What does not:")
    )


def test_a_difference_that_is_seen_but_small_counts_for_nothing(smoke: Any) -> None:
    small = {"progressive": 0.010, "no-overlap": 0.0105}
    text = report.text(of_prompts(smoke, 6, small), "")
    assert "widths: **seen**, but smaller than what counts (0.00100 widths)" in text
    (found,) = (one for one in entries(text, "- What cannot be told here:") if one.startswith(OVERLAP))
    assert (
        found == f"{OVERLAP}: nothing that counts in jitter, seam ratio; the same in all 6 videos in jumps."
    )


@pytest.mark.parametrize(
    ("words", "outcomes", "place"),
    [
        ("claim", ["better", "open"], "reproduces"),
        ("claim", ["better", "worse"], "does not"),
        ("claim", ["small", "small"], "does not"),
        ("claim", ["small", "open"], "cannot be told"),
        ("claim", ["same", "small"], "cannot be told"),
        ("Quality holds", ["same", "small"], "reproduces"),
        ("Quality holds", ["open", "small"], "cannot be told"),
        ("Quality holds", ["worse", "small"], "does not"),
    ],
)
def test_a_claim_reproduces_does_not_or_cannot_be_told(
    words: str, outcomes: list[str], place: str, smoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = [{"figure": "jumps", "prompts": 6, "is": one} for one in outcomes]
    monkeypatch.setattr(report, "_comparisons", lambda results: {(words, "other", "2"): differences})
    monkeypatch.setattr(report, "_outcome", lambda one: one["is"])
    said = report._in_words(smoke | {"summary": {}}).splitlines()
    (title,) = (one for one in said if one.startswith("- ") and not one.endswith("nothing."))
    assert place in title


def test_few_prompts_have_no_verdict(smoke: Any) -> None:
    text = report.text(of_prompts(smoke, 5, {"progressive": 0.01, "no-overlap": 0.05}), "")
    assert "widths: **too few videos to tell**" in text
    assert "**seen**" not in text
    told = entries(text, "- What cannot be told here:")
    assert any(one.startswith(f"{OVERLAP}: not told in jitter") for one in told)


def test_what_a_method_shows_the_network_is_set_against_what_it_was_trained_on(smoke: Any) -> None:
    shares = training_shares("builtin")
    text = report.text(smoke | {"model": smoke["model"] | {"training_shares": shares}}, "")
    assert "served like this; many training windows like its full ones (43 %) |" in text
    assert "few training windows like its full ones (2.9 %) |" in line(text, "| replacement-with-noise |")
    assert "no training windows like its full ones |" in line(text, "| graded |")
    assert "Shares of training windows are of the last part" in text


def test_results_of_turning_videos_alone_are_reported() -> None:
    results = report.read(DOCS / "results" / "results.json")
    videos = [video for video in results["videos"] if "turn" in video]
    turning = {**results, "videos": videos, "summary": figures.summarise(videos)}
    text = report.text(turning, "")
    assert f"{len(videos)} prompts that change half-way" in text
    assert "## A prompt that changes" in text
    assert "## In short" not in text


def test_a_prompt_that_cannot_be_judged_is_said_to_be(smoke: Any) -> None:
    def blind(video: Any) -> Any:
        (segment,) = video["segments"]
        return video | {
            "class": "rich background",
            "segments": [segment | {"oracle": None}],
            "ending": {"oracle": None},
        }

    videos = [blind(video) for video in smoke["videos"]]
    text = report.text(smoke | {"videos": videos, "summary": figures.summarise(videos)}, "")
    assert "| 2 s | rich background | progressive | 1 | cannot be judged | cannot be judged |" in text
    assert "1 of 1 prompts cannot be judged by the oracle" in text
    assert "knows the scenes that the built-in model was trained on" in text
    assert "cannot be judged by the oracle" not in report.text(smoke, "")
