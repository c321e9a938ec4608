"""VBench and VBench-Long on the videos of an evaluation, run by an environment of their own.

The package `vbench` insists on versions of numpy and transformers that longtake cannot live with, and downloads the
weights of its networks. So the Python of an environment that has it is given a folder of MP4 files, and answers with
JSON. VBench gets clips of two seconds, as in the paper; VBench-Long gets whole videos, and cuts them itself. The wheel
of `vbench` 0.1.5 lacks the configuration files of VBench-Long, which therefore needs a checkout of its repository.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worker.evaluation.cases import EvaluationError
from worker.media.encode import EncoderSettings, encode_chunk

Suite = Literal["vbench", "vbench-long"]

CLIP_SECONDS = 2.0
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "temporal_flickering",
)
"""The paper's, and the one that needs no weights."""
_QUALITY = EncoderSettings(quality=8)
_NAME = re.compile(r"(?P<seconds>[\d.]+)s@(?P<row>[^@/]+)@\d+@")
_VBENCH = """
import sys, torch
from vbench import VBench
folder, out, info, *dimensions = sys.argv[1:]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VBench(device, info, out).evaluate(videos_path=folder, name="longtake", dimension_list=dimensions, mode="custom_input")
"""


class ClipWriter:
    """Writes one video as MP4: clip by clip for VBench, whole for VBench-Long."""

    def __init__(self, output: Path, place: str, fps: int, suite: Suite) -> None:
        self._folder, self._name = folder(output, suite), place.removeprefix("videos/").replace("/", "@")
        self._fps, self._whole = fps, suite == "vbench-long"
        self._frames: list[Any] = []
        self._written = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in clips(output, place, suite):
            old.unlink()

    def take(self, frame: Any) -> None:
        """The next frame, uint8 `(H, W, 3)`."""
        self._frames.append(frame)
        if len(self._frames) == round(CLIP_SECONDS * self._fps):
            self._write()

    def close(self) -> None:
        """The end of the video. A clip of a single frame is left out, for nothing moves in it."""
        if len(self._frames) > 1:
            self._write()

    def _write(self) -> None:
        first = self._written * round(CLIP_SECONDS * self._fps) if self._whole else 0
        index = self._written if self._whole else 0
        encoded = encode_chunk(np.stack(self._frames), index, first, self._fps, _QUALITY)
        number = 0 if self._whole else self._written
        with (self._folder / f"{self._name}@{number:04}.mp4").open("ab") as file:
            file.write((b"" if index else encoded.init) + encoded.segment)
        self._frames = []
        self._written += 1


def check(python: str, suite: Suite) -> None:
    """Raises EvaluationError when this Python does not have the suite."""
    package = "vbench" if suite == "vbench" else "vbench2_beta_long"
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        done = subprocess.run([python, "-c", find], capture_output=True, text=True, check=False)
    except OSError as error:
        raise EvaluationError(f"{suite}: {python}: {error.strerror}") from error
    if done.returncode:
        raise EvaluationError(f"{suite}: {python} has no package {package}")


def clips(output: Path, place: str, suite: Suite) -> list[Path]:
    """The MP4 files of one video."""
    name = place.removeprefix("videos/").replace("/", "@")
    return sorted(folder(output, suite).glob(f"{name}@*.mp4"))


def folder(output: Path, suite: Suite) -> Path:
    """Where the MP4 files of an evaluation are."""
    return output / "clips" / suite


def score(
    python: str, output: Path, suite: Suite, places: Sequence[str], dimensions: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Mean score by dimension of every `SECONDS s, ROW` of the videos at these places.

    Raises EvaluationError with the suite's last words.
    """
    dimensions = DIMENSIONS if dimensions is None else dimensions
    out = (output / suite).resolve()
    out.mkdir(parents=True, exist_ok=True)
    videos = out / "videos"  # of this evaluation alone: the folder of clips keeps those of others
    shutil.rmtree(videos, ignore_errors=True)
    videos.mkdir()
    for clip in (clip for place in places for clip in clips(output, place, suite)):
        (videos / clip.name).symlink_to(clip.resolve())
    for old in out.glob("*_eval_results.json"):
        old.unlink()
    if suite == "vbench":
        info = out / "no_standard_prompts.json"
        info.write_text("[]")
        command = [python, "-c", _VBENCH, str(videos), str(out), str(info), *dimensions]
    else:
        command = [python, "-m", "vbench2_beta_long.eval_long", "--mode", "long_custom_input"]
        command += ["--videos_path", str(videos), "--output_path", str(out), "--dimension", *dimensions]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EvaluationError(f"{suite}: {python}: {error.strerror}") from error
    found = sorted(out.glob("*_eval_results.json"))
    if done.returncode or not found:
        last = (done.stderr.strip() or done.stdout.strip() or "it wrote no results").splitlines()[-1]
        raise EvaluationError(f"{suite}: {last}")
    return _by_row(json.loads(found[-1].read_text()))


def _by_row(answer: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`{dimension: [mean, [{video_path, video_results}, ...]]}` by row."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for dimension, (_, videos) in answer.items():
        for video in videos:
            if name := _NAME.search(video["video_path"]):
                row = f"{name['seconds']} s, {name['row']}"
                found[row][dimension].append(float(video["video_results"]))
    return {
        row: {dimension: round(float(np.mean(values)), 6) for dimension, values in sorted(scores.items())}
        for row, scores in sorted(found.items())
    }
