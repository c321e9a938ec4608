"""The way to VBench: clips out, scores back. A stand-in of its package does what needs no weights, for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from worker.evaluation import study, vbench
from worker.evaluation.cases import EvaluationError
from worker.evaluation.drift import temporal_flickering
from worker.evaluation.study import Plan, VideoSet

PLACE = "videos/60s/no-chunks/003"
VBENCH = """
import cv2, json, os
import numpy as np

class VBench:
    def __init__(self, device, full_info, output):
        json.load(open(full_info))
        self.output = output

    def evaluate(self, videos_path, name, dimension_list, mode):
        assert mode == "custom_input"
        assert dimension_list == ["temporal_flickering"], "these need weights"
        found = []
        for file in sorted(os.listdir(videos_path)):
            path = os.path.join(videos_path, file)
            video, frames = cv2.VideoCapture(path), []
            while True:
                good, frame = video.read()
                if not good:
                    break
                frames.append(frame.astype(np.float32))
            mae = [np.mean(cv2.absdiff(a, b)) for a, b in zip(frames, frames[1:])]
            found.append({"video_path": path, "video_results": (255.0 - np.mean(mae).item()) / 255.0})
        mean = float(np.mean([row["video_results"] for row in found]))
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file:
            json.dump({"temporal_flickering": [mean, found]}, file)
"""
LONG = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("--mode", choices=["long_custom_input"], required=True)
parser.add_argument("--videos_path", required=True)
parser.add_argument("--output_path", required=True)
parser.add_argument("--dimension", nargs="+", required=True)
given = parser.parse_args()
found = [{"video_path": os.path.join(given.videos_path, name), "video_results": os.path.getsize(
    os.path.join(given.videos_path, name)) > 0} for name in os.listdir(given.videos_path)]
with open(os.path.join(given.output_path, "results_today_eval_results.json"), "w") as file:
    json.dump({name: [1.0, found] for name in given.dimension}, file)
"""


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"vbench/__init__": VBENCH, "vbench2_beta_long/eval_long": LONG}.items():
        path = tmp_path / "packages" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    (tmp_path / "packages" / "vbench2_beta_long" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))


def clip(seconds: float = 5) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (round(seconds * 24), 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def write(output: Path, suite: vbench.Suite, frames: NDArray[np.uint8]) -> list[Path]:
    writer = vbench.ClipWriter(output, PLACE, 24, suite)
    for frame in frames:
        writer.take(frame)
    writer.close()
    return sorted(vbench.folder(output, suite).iterdir())


def decoded(path: Path) -> NDArray[np.uint8]:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.usefixtures("_stand_in")
def test_vbench_scores_clips_of_two_seconds(tmp_path: Path) -> None:
    frames = clip()
    paths = write(tmp_path, "vbench", frames)
    assert [len(decoded(path)) for path in paths] == [48, 48, 24]
    assert [path.name for path in write(tmp_path, "vbench", frames)] == [path.name for path in paths]
    scores = vbench.score(sys.executable, tmp_path, "vbench", [PLACE], ["temporal_flickering"])
    assert list(scores) == ["60 s, no-chunks"]
    ours = np.mean([temporal_flickering(frames[i : i + 48]) for i in (0, 48, 96)])
    # An MP4 holds color at half the resolution, which takes away some of its change.
    assert scores["60 s, no-chunks"]["temporal_flickering"] == pytest.approx(ours, abs=0.05)
    exact = np.mean([temporal_flickering(decoded(path)) for path in paths])
    assert scores["60 s, no-chunks"]["temporal_flickering"] == pytest.approx(exact, abs=0.01)


@pytest.mark.usefixtures("_stand_in")
def test_vbench_long_gets_whole_videos(tmp_path: Path) -> None:
    (path,) = write(tmp_path, "vbench-long", clip())
    assert len(decoded(path)) == 120
    scores = vbench.score(sys.executable, tmp_path, "vbench-long", [PLACE])
    assert set(scores["60 s, no-chunks"]) == set(vbench.DIMENSIONS)


@pytest.mark.usefixtures("_stand_in")
def test_what_vbench_says_when_it_fails_is_the_error(tmp_path: Path) -> None:
    write(tmp_path, "vbench", clip(2))
    with pytest.raises(EvaluationError, match="these need weights"):
        vbench.score(sys.executable, tmp_path, "vbench", [PLACE])
    with pytest.raises(EvaluationError, match="No such file"):
        vbench.score("/nowhere/python", tmp_path, "vbench", [PLACE])


@pytest.mark.usefixtures("_stand_in")
def test_videos_of_other_evaluations_are_not_judged(tmp_path: Path) -> None:
    write(tmp_path, "vbench", clip(2))
    other = vbench.ClipWriter(tmp_path, "videos/60s/graded/000", 24, "vbench")
    for frame in clip(2):
        other.take(frame)
    scores = vbench.score(sys.executable, tmp_path, "vbench", [PLACE], ["temporal_flickering"])
    assert list(scores) == ["60 s, no-chunks"]


@pytest.mark.parametrize("suite", ["vbench", "vbench-long"])
def test_a_suite_that_is_not_there_is_told_before_any_video_is_made(
    suite: vbench.Suite, tiny_folder: Path, tmp_path: Path
) -> None:
    plan = Plan((VideoSet(2, 1, ("rendered",)),), segment_seconds=2)
    for python, message in ((sys.executable, "has no package vbench"), ("/nowhere/python", "No such file")):
        with pytest.raises(EvaluationError, match=message):
            study.run(plan, model=str(tiny_folder), output=tmp_path / "out", suite=(suite, python))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_stand_in")
def test_an_evaluation_keeps_the_scores(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vbench, "DIMENSIONS", ("temporal_flickering",))
    plan = Plan((VideoSet(2, 1, ("rendered", "abrupt-ends")),), segment_seconds=2)
    found = study.run(
        plan,
        model=str(tiny_folder),
        output=tmp_path / "out",
        suite=("vbench", sys.executable),
        say=lambda line: None,
    )
    assert set(found["vbench"]) == {"2 s, rendered", "2 s, abrupt-ends"}
    said: list[str] = []
    study.run(plan, model=str(tiny_folder), output=tmp_path / "out", say=said.append)
    assert said[0] == "3 videos, 3 of them made before"  # clips or not, the figures are the same
    next(vbench.folder(tmp_path / "out", "vbench").glob("2s@rendered@*.mp4")).unlink()
    study.run(
        plan,
        model=str(tiny_folder),
        output=tmp_path / "out",
        suite=("vbench", sys.executable),
        say=said.append,
    )
    assert "3 videos, 2 of them made before" in said
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["vbench"]
    assert kept == found["vbench"]
    ours = next(video["drift"]["flickering"] for video in found["videos"] if video["row"] == "rendered")
    assert kept["2 s, rendered"]["temporal_flickering"] == pytest.approx(ours, abs=0.003)
