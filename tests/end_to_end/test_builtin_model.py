"""What the model that comes with the package makes of a prompt, judged by measuring the pixels."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests.end_to_end.conftest import longtake
from worker.evaluation.oracle import judge, parse_prompt
from worker.models.registry import BUILTIN_FOLDER

PROMPT = "a red ball bouncing past a green square over a meadow by day"
"""That of `make demo`."""

pytestmark = pytest.mark.skipif(
    not (BUILTIN_FOLDER / "model_index.json").is_file(), reason="this checkout has no built-in model"
)


def frames_of(path: Path) -> np.ndarray:
    """All frames, uint8 (T, H, W, 3)."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def check(path: Path, seconds: int) -> None:
    frames = frames_of(path)
    assert len(frames) == seconds * 24
    wanted = parse_prompt(PROMPT)
    assert wanted is not None
    second = 24
    for start in range(second, len(frames) - 4 * second, 5 * second):  # the first second is the weakest
        verdict = judge(frames[start : start + 5 * second], wanted)
        assert verdict.background, (start, verdict)
        assert verdict.color, (start, verdict)
        assert verdict.present > 0.9, (start, verdict)
    verdict = judge(frames[second : 9 * second], wanted)
    assert verdict.motion, verdict


def test_generate_shows_what_the_prompt_says(tmp_path: Path) -> None:
    out = tmp_path / "ball.mp4"
    done = longtake("generate", PROMPT, "--seconds", "12", "--seed", "0", "-o", str(out))
    assert done.returncode == 0, done.stderr
    check(out, 12)


@pytest.mark.slow
def test_a_minute_shows_it_to_the_end(tmp_path: Path) -> None:
    out = tmp_path / "ball.mp4"
    done = longtake("generate", PROMPT, "--seed", "0", "-o", str(out), seconds=600)
    assert done.returncode == 0, done.stderr
    check(out, 60)
