"""A Frechet distance between sets of clips, on features of the model's own video encoder.

Like FVD (Unterthiner et al., arXiv 1812.01717) in form, but the features are no classifier's: of every channel of a
clip's latents the mean, the deviation, and the root mean square of its change from latent to latent. They need no
download; they see color, size, amount of motion and flicker well, and the kind of a shape badly. Distances are
comparable between methods on one autoencoder and one reference, with nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.models.base import VideoFrames, VideoModel

Features = NDArray[np.floating[Any]]
"""One row per clip."""


def clip_features(model: VideoModel, clip: VideoFrames) -> Features:
    """Features of one clip, uint8 `(T, H, W, 3)`; three numbers per latent channel."""
    latents = model.encode_video(clip)[0].float()
    change = latents.diff(dim=1) if latents.shape[1] > 1 else latents.new_zeros(latents.shape)
    values = [
        latents.mean(dim=(1, 2, 3)),
        latents.std(dim=(1, 2, 3), correction=0),
        change.square().mean(dim=(1, 2, 3)).sqrt(),
    ]
    features: Features = np.concatenate([value.cpu().numpy() for value in values]).astype(np.float64)
    return features


def distance(one: Features, other: Features) -> float | None:
    """Squared Frechet distance of two sets as if they were normal; None where one has no more clips than features."""
    if min(len(one), len(other)) <= one.shape[-1]:
        return None
    first, second = np.cov(one.T), np.cov(other.T)
    # The product of two covariances has real eigenvalues of at least 0, up to rounding.
    mixed = np.linalg.eigvals(first @ second).real.clip(min=0)
    apart = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return float(max(0.0, apart + np.trace(first) + np.trace(second) - 2 * np.sqrt(mixed).sum()))


def join(videos: Sequence[Sequence[Sequence[float]]]) -> Features:
    """The clips of several videos as one set."""
    return np.array([clip for video in videos for clip in video], dtype=np.float64)
