"""Figures that need no network, on true videos and on broken ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.evaluation import oracle
from worker.evaluation.drift import DriftMeter, temporal_flickering
from worker.training import scenes
from worker.training.scenes import SceneAttributes

Frames = NDArray[np.uint8]
SEAM = (5, 8)  # frames: chunks of two latents, the first latent of one frame


def video(motion: str = "left", frames: int = 96) -> Frames:
    attributes = SceneAttributes("gray", "red", "square", motion)
    batch = scenes.sample_scenes([attributes], np.random.default_rng(0))
    return oracle.to_uint8(scenes.render(batch, torch.arange(frames), 64)[0])


def measured(frames: Frames, seam: tuple[int, int] = SEAM, piece: int = 7) -> Any:
    meter = DriftMeter(24, seam, 4)
    for first in range(0, len(frames), piece):
        meter.push(frames[first : first + piece])
    return meter.summary()


def test_temporal_flickering_is_that_of_vbench() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    # As vbench.temporal_flickering computes it from the frames of a file.
    errors = [
        np.mean(cv2.absdiff(np.array(a, dtype=np.float32), np.array(b, dtype=np.float32)))
        for a, b in pairwise(frames)
    ]
    assert temporal_flickering(frames) == pytest.approx((255.0 - np.mean(errors).item()) / 255.0, abs=1e-6)
    assert measured(frames)["flickering"] == pytest.approx(temporal_flickering(frames), abs=1e-6)


def test_how_frames_arrive_does_not_matter() -> None:
    frames = video()
    assert measured(frames, piece=1) == measured(frames, piece=96)


def test_a_true_video_has_no_seams_no_drift_and_no_cuts() -> None:
    found = measured(video())
    assert found["seam_ratio"] == pytest.approx(1, abs=0.05)
    assert found["seam_power"] < 0.05
    assert found["cuts"] == 0
    assert found["drift_brightness"] < 0.001
    assert found["drift_color"] < 0.001


def test_flow_tells_speed() -> None:
    frames = video()
    moving = measured(frames)["flow"]
    assert measured(frames[::2])["flow"] > 1.3 * moving
    assert measured(np.repeat(frames[:1], 96, axis=0))["flow"] < 0.01 * moving


def test_a_brightening_video_drifts() -> None:
    ramp = np.linspace(0, 60, 96)[:, None, None, None]
    found = measured(np.clip(video() + ramp, 0, 255).astype(np.uint8))
    assert found["drift_brightness"] > 0.15
    assert found["drift_color"] > 0.25


def test_a_video_that_blurs_loses_sharpness() -> None:
    frames = video()
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 0.1 + 3 * n / 96) for n, f in enumerate(frames)])
    assert measured(blurred.astype(np.uint8))["drift_sharpness"] > 0.5 * measured(frames)["sharpness"]


def test_a_seam_at_every_chunk_is_seen() -> None:
    frames = video().astype(int)
    chunk = (np.arange(96) + 3) // 8  # borders at 5, 13, 21, ...
    stepped = np.clip(frames + 12 * (chunk % 2)[:, None, None, None], 0, 255).astype(np.uint8)
    found = measured(stepped)
    assert found["seam_ratio"] > 3
    assert found["seam_power"] > 0.15
    assert measured(stepped, seam=(9, 12))["seam_power"] < 0.05


def test_seams_of_any_period_weigh_the_same() -> None:
    noise = np.random.default_rng(0).integers(0, 40, (480, 16, 16, 3))

    def power(hop: int, period: int) -> float:
        frames = noise + 60
        frames += hop * (np.arange(480) // period % 2)[:, None, None, None]
        found = measured(frames.astype(np.uint8), seam=(period, period))["seam_power"]
        assert found is not None
        return found

    for period in (8, 32):
        assert power(0, period) < 0.01
        assert power(100, period) > 0.9
        assert power(10, period) < power(30, period) < power(100, period)


@pytest.mark.parametrize("seam", [(1, 4), (97, 8)])
def test_without_joints_or_without_borders_beside_them_there_is_no_seam_ratio(seam: tuple[int, int]) -> None:
    assert measured(video(), seam=seam)["seam_ratio"] is None


def test_a_change_of_scene_is_a_cut() -> None:
    frames = video()
    frames[40:] = np.clip(frames[40:].astype(int)[..., ::-1] + 90, 0, 255).astype(np.uint8)
    assert measured(frames)["cuts"] == 1


def test_a_segment_is_measured_on_its_own() -> None:
    frames = video()
    frames[48:] = frames[48]
    meter = DriftMeter(24, SEAM, 4)
    meter.push(frames)
    assert meter.segment(50, 96)["flickering"] == 1
    assert meter.segment(0, 48)["flickering"] == pytest.approx(temporal_flickering(frames[:48]), abs=1e-6)


def test_a_single_frame_is_no_video() -> None:
    meter = DriftMeter(24, SEAM, 4)
    meter.push(video(frames=1))
    with pytest.raises(ValueError, match="two frames"):
        meter.summary()
