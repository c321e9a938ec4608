"""The Frechet distance: against its closed form, and on broken videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.evaluation import cases, frechet, oracle
from worker.models.base import VideoModel
from worker.models.registry import load_model
from worker.training import scenes


def test_the_distance_of_two_normal_sets_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (20_000, 3))
    other = rng.normal([1.0, 0.0, 2.0], [1.0, 3.0, 1.0], (20_000, 3))
    # |mean|^2 + sum of (s1 - s2)^2 over independent directions
    assert frechet.distance(one, other) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=0.03)
    assert frechet.distance(one, one) == pytest.approx(0, abs=1e-6)


def test_too_few_clips_have_no_distance() -> None:
    few = np.random.default_rng(0).normal(size=(3, 3))
    assert frechet.distance(few, np.random.default_rng(1).normal(size=(50, 3))) is None


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return load_model("builtin")


def clips(seed: int, count: int = 28) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    chosen = [cases.held_out(6, 0)[n % 6].attributes for n in range(count)]
    batch = scenes.sample_scenes([a for a in chosen if a is not None], rng)
    pixels, _ = scenes.render(batch, torch.arange(25) + int(rng.integers(10_000)), 128)
    return [oracle.to_uint8(one[None]) for one in pixels]


def test_broken_videos_are_further_from_true_ones_than_true_ones_are(model: VideoModel) -> None:
    def features(videos: list[NDArray[np.uint8]]) -> frechet.Features:
        return np.stack([frechet.clip_features(model, video) for video in videos])

    others = clips(1)
    reference, again = features(clips(0)), features(others)
    floor = frechet.distance(again, reference)
    assert floor is not None
    broken = {
        "frozen": [np.repeat(video[:1], len(video), axis=0) for video in others],
        "faded": [(video * 0.6).astype(np.uint8) for video in others],
        "noisy": [
            np.clip(v + np.random.default_rng(2).normal(0, 40, v.shape), 0, 255).astype(np.uint8)
            for v in others
        ],
    }
    for name, videos in broken.items():
        distance = frechet.distance(features(videos), reference)
        assert distance is not None
        assert distance > 1.5 * floor, name
