"""Figures of a video that need no trained network: flicker, motion, sharpness, brightness, color, seams, cuts.

A :class:`DriftMeter` takes frames as they come and keeps a few numbers of each, so its memory does not grow with the
size of the frames and hardly with the length of the video.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.models.base import VideoFrames

Signal = NDArray[np.floating[Any]]

FLOW_EVERY = 4
"""Optical flow is measured from every so manieth frame to the next."""
FLOW_WIDTH = 256
"""Wider frames are shrunk to this width, pixels, before optical flow is measured."""
CUT_CONTENT = 27.0
"""PySceneDetect's threshold of its content detector. Its rule is repeated here, because its package insists on
the build of OpenCV that needs a display."""
CUT_SECONDS = 0.6
"""Shortest scene between two cuts."""
EDGE_SHARE = 0.15
"""Share of a video at either end that drift is measured between."""

LEVELS = ("flickering", "flow", "sharpness", "brightness", "saturation", "red", "green", "blue")
"""What is averaged over each segment; see :meth:`DriftMeter.segment`."""


def temporal_flickering(frames: VideoFrames) -> float:
    """VBench's figure of this name: ``(255 - mean absolute difference of neighbouring frames) / 255``."""
    return _flickering(_differences(frames))


def _differences(frames: VideoFrames) -> Signal:
    values = frames.astype(np.float32)
    differences: Signal = np.abs(np.diff(values, axis=0)).mean(axis=(1, 2, 3))
    return differences


def _flickering(differences: Signal) -> float:
    return float((255 - differences.mean()) / 255) if len(differences) else 1.0


@dataclass
class DriftMeter:
    """Measures one video. `seam` is frames before the first joint and from joint to joint."""

    fps: int
    seam: tuple[int, int]
    latent_frames: int
    """Frames per latent."""
    _last: VideoFrames | None = None
    _signals: dict[str, array[float]] = field(default_factory=dict)

    def push(self, frames: VideoFrames) -> None:
        """The next frames, uint8 `(T, H, W, 3)`."""
        for frame in frames:
            self._take(frame)

    def _take(self, frame: NDArray[np.uint8]) -> None:
        number = len(self._signals.get("brightness", ()))
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        red, green, blue = (frame.mean(axis=(0, 1)) / 255).tolist()
        self._note(
            sharpness=float(cv2.Laplacian(gray, cv2.CV_64F).var()),
            brightness=float(gray.mean()) / 255,
            saturation=float(hsv[..., 1].mean()) / 255,
            red=red,
            green=green,
            blue=blue,
        )
        if self._last is not None:
            self._note(
                difference=float(cv2.absdiff(frame, self._last).mean()),
                content=float(cv2.absdiff(hsv, cv2.cvtColor(self._last, cv2.COLOR_RGB2HSV)).mean()),
                flow=self._flow(gray) if number % FLOW_EVERY == 1 else np.nan,
            )
        self._last = frame

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            self._signals.setdefault(name, array("d")).append(value)

    def _flow(self, gray: Any) -> float:
        """Mean length of Farneback's optical flow, widths per second."""
        assert self._last is not None
        earlier: Any = cv2.cvtColor(self._last, cv2.COLOR_RGB2GRAY)
        height, width = gray.shape
        if width > FLOW_WIDTH:
            size = (FLOW_WIDTH, max(1, round(height * FLOW_WIDTH / width)))
            gray, earlier = (cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in (gray, earlier))
        # Positional: initial flow, pyramid scale, levels, window, iterations, neighbourhood, its sigma, flags.
        flow = cv2.calcOpticalFlowFarneback(earlier, gray, None, 0.5, 3, 11, 3, 5, 1.1, 0)  # type: ignore[call-overload]
        length = float(np.linalg.norm(flow, axis=2).mean())  # pixels per frame
        return length / int(gray.shape[1]) * self.fps

    def _signal(self, name: str, first: int = 0, end: int | None = None) -> Signal:
        """A signal over frames `first` to `end`; those between two frames belong to the later one."""
        between = name in ("difference", "content", "flow")
        end = len(self._signals["brightness"]) if end is None else end
        values = self._signals.get(name, array("d"))
        return np.array(values[max(0, first - between) : max(0, end - between)], dtype=np.float64)

    def segment(self, first: int, end: int) -> dict[str, float]:
        """Means over frames `first` to `end`: LEVELS.

        Flickering is VBench's (1 is still); flow is in widths per second; sharpness is the variance of the
        Laplacian; the others are in 0..1.
        """
        values = {name: self._signal(name, first, end) for name in LEVELS[1:]}
        return {"flickering": _flickering(self._signal("difference", first, end))} | {
            name: float(np.nanmean(signal)) if np.isfinite(signal).any() else 0.0
            for name, signal in values.items()
        }

    def summary(self) -> dict[str, float | None]:
        """Figures of the whole video so far.

        `drift_*`: distance of a level between the first and the last 15 % of the frames. `seam_ratio`: difference
        between frames at the joints, over that at all other borders of latents, because each border of latents
        leaves a trace of its own (1 is seamless); None without joints or without other borders. `seam_power`: of the
        variance of the frame difference that does not repeat from latent to latent, the share that does from joint to
        joint, whatever its form, less what would of noise; None under two periods. Both are None for a method that
        joins every latent to the next: at that period the autoencoder's own trace is many times as large. `cuts`:
        hard changes of scene.
        """
        frames = len(self._signals.get("brightness", ()))
        if frames < 2:
            raise ValueError(f"a video to measure has two frames or more, got {frames}")
        edge = max(1, round(EDGE_SHARE * frames))
        head, tail = self.segment(0, edge), self.segment(frames - edge, frames)
        return {
            **self.segment(0, frames),
            **{f"drift_{name}": abs(head[name] - tail[name]) for name in LEVELS[:5]},
            "drift_color": float(
                np.linalg.norm([head[name] - tail[name] for name in ("red", "green", "blue")])
            ),
            "seam_ratio": self._seam_ratio(),
            "seam_power": self._seam_power(),
            "cuts": float(self._cuts()),
        }

    def _seam_ratio(self) -> float | None:
        difference = self._signal("difference")
        places = np.arange(1, len(difference) + 1)  # the frame that each difference leads to
        first, period = self.seam
        joint = (places >= first) & ((places - first) % period == 0)
        other = ((places - 1) % self.latent_frames == 0) & ~joint
        if not joint.any() or not difference[other].any():
            return None
        return float(difference[joint].mean() / difference[other].mean())

    def _seam_power(self) -> float | None:
        latent, period = self.latent_frames, self.seam[1]
        difference = self._signal("difference")
        if period == latent or len(difference) < 2 * period:
            return None
        rest = difference[len(difference) % period :]
        power = float(rest.var())
        if power == 0:
            return 0.0
        own, repeated = (float(rest.reshape(-1, every).mean(0).var()) / power for every in (latent, period))
        by_chance = (1 - repeated) * (period - latent) / (len(rest) - period)
        return max(0.0, (repeated - own - by_chance) / (1 - own)) if own < 1 else 0.0

    def _cuts(self) -> int:
        count, last = 0, 0
        for place, content in enumerate(self._signal("content"), start=1):
            if content >= CUT_CONTENT and place - last >= CUT_SECONDS * self.fps:
                count, last = count + 1, place
        return count
