"""The report, and the one in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.evaluation import figures, report
from worker.evaluation.cases import EvaluationError
from worker.evaluation.methods import METHODS, REFERENCE

DOCS = Path(__file__).parents[3] / "docs"


def test_the_report_of_the_repository_is_that_of_its_results() -> None:
    results = report.read(DOCS / "results" / "results.json")
    text = (DOCS / "results.md").read_text()
    assert text == report.text(results, "results/", DOCS / "results")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(DOCS / picture) as image:
            assert min(image.size) > 60, "a row of stills at least"


def test_the_summary_of_the_repository_is_that_of_its_videos() -> None:
    results = report.read(DOCS / "results" / "results.json")
    again = figures.summarise(results["videos"])
    assert json.loads(json.dumps(again)) == results["summary"]


def test_every_row_and_every_failure_is_reported(smoke: Any) -> None:
    text = report.text(smoke, "")
    for row in {video["row"] for video in smoke["videos"]} - {REFERENCE}:
        assert f"| {row} |" in text
    assert f"| {REFERENCE} |" not in text
    for name, words in report.SIGNATURES.items():
        assert (f"- {words}: " in text) == (name not in ("diverged", "decayed"))  # these need two segments
    assert "**not trained for it**" in text
    assert f"weights trained for it ({smoke['variants']['no-level-shift']})" in text
    assert "| no-level-shift |" not in text
    assert "Not shown, for no prompt of this evaluation asks for it: one object in place" in text
    assert "VBench-Long were not run" in text
    assert ".7923" in text


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
    assert f"| {ours / without - 1:+.1%} latents, " in line


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for content in ("{", "[]", "{}", json.dumps({"schema": 0})):
        path.write_text(content)
        with pytest.raises(EvaluationError, match=r"results\.json"):
            report.read(path)


def test_every_method_has_words_for_the_report() -> None:
    assert all(method.words for method in METHODS.values())
