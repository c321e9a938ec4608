"""How far a video is, for a person at a terminal: one live line, or plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import time
from collections import deque
from typing import Any, TextIO

from app.client import VideoEvent
from app.jobs.job import Status
from app.schemas import VideoObject

_PLAIN_SECONDS = 5.0
_LIVE_SECONDS = 0.05
_BAR_WIDTH = 20
_SPEED_CHUNKS = 12
_COUNTS = ("progress", "chunks_ready", "chunks_total", "seconds_ready", "eta_seconds", "stalled")
_WORDS = {
    Status.QUEUED: "waiting for a worker",
    Status.PAUSED: "paused",
    Status.COMPLETED: "done",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


class Progress:
    """What a video's events have told so far."""

    def __init__(self, video: VideoObject) -> None:
        self.video = video
        self.eta_told: tuple[float, float] | None = None
        """When the remaining seconds were last told (monotonic clock), and how many."""
        self._made: deque[tuple[float, float]] = deque(maxlen=_SPEED_CHUNKS)
        """Of the newest chunks: when each was ready (clock of the service), and where in the video it ends."""

    def take(self, event: VideoEvent, now: float) -> None:
        """Learns from one event; `now` is when it arrived, by the monotonic clock."""
        if event.video is not None:
            self.video = event.video
        elif (chunk := event.chunk) is not None:
            end = chunk.start_seconds + chunk.duration_seconds
            self._made.append((chunk.created_at, end))
            self._change(chunks_ready=chunk.index + 1, seconds_ready=end)
        elif event.type == "progress":
            told = {name: event.data[name] for name in _COUNTS if name in event.data}
            self._change(**{"stalled": None, **told})
        if event.data.get("eta_seconds") is not None:
            self.eta_told = (now, float(event.data["eta_seconds"]))

    def _change(self, **fields: Any) -> None:
        self.video = self.video.model_copy(update=fields)

    @property
    def total_seconds(self) -> float | None:
        """Length of the video; None for an endless one that has not ended."""
        return None if self.video.frames is None else self.video.frames / self.video.fps

    @property
    def fraction(self) -> float:
        """Part of the work that is done, 0 to 1; 0 while there is no end."""
        if self.video.status is Status.COMPLETED:
            return 1.0
        ready = self.video.seconds_ready / self.total_seconds if self.total_seconds else 0.0
        return max(self.video.progress / 100, min(0.99, ready))

    @property
    def speed(self) -> float | None:
        """Seconds of video that are made in one second, over the newest chunks; None while there are too few."""
        if len(self._made) < 2 or self._made[-1][0] <= self._made[0][0]:
            return None
        (then, before), (now, after) = self._made[0], self._made[-1]
        return (after - before) / (now - then)

    def eta_seconds(self, now: float) -> float | None:
        """Seconds until the end as last told, counted down."""
        if self.eta_told is None or self.video.status is not Status.IN_PROGRESS:
            return None
        return max(0.0, self.eta_told[1] - (now - self.eta_told[0]))

    def words(self, now: float) -> list[str]:
        """The parts of a line, the most important first."""
        video = self.video
        if video.status is not Status.IN_PROGRESS:
            position = f", {video.queue_position} before it" if video.queue_position else ""
            words = [_WORDS[video.status] + position]
            return words if video.status is Status.QUEUED else [*words, self._ready_words()]
        words = [self._ready_words()]
        if (eta := self.eta_seconds(now)) is not None:
            words.append(f"{clock(eta)} left")
        if video.chunks_total:
            words.append(f"chunk {video.chunks_ready} of {video.chunks_total}")
        if (speed := self.speed) is not None:
            words.append(f"{speed:.1f}x")
        if video.stalled:
            words.insert(0, f"waiting: {video.stalled}")
        if video.pause_requested:
            words.insert(0, "about to be paused")
        return words

    def _ready_words(self) -> str:
        of = "" if self.total_seconds is None else f" of {self.total_seconds:g}"
        return f"{self.video.seconds_ready:.1f}{of} s"


def clock(seconds: float) -> str:
    """A duration as people read it: `8 s`, `1:05`, `2:00:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(fraction: float, width: int, *, fancy: bool) -> str:
    """`width` characters filled up to `fraction`."""
    done = round(max(0.0, min(1.0, fraction)) * width)
    full, empty = ("█", "░") if fancy else ("#", "-")
    return full * done + empty * (width - done)


class ProgressDisplay:
    """Shows `Progress` on a stream: on a terminal one line that is drawn again, else a line from time to time."""

    def __init__(self, stream: TextIO, *, live: bool | None = None) -> None:
        self._stream = stream
        self._live = stream.isatty() if live is None else live
        self._fancy = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._drawn = False
        self._shown_at = float("-inf")
        self._shown: tuple[Status, bool] | None = None

    def show(self, progress: Progress) -> None:
        """Shows where the video is now, or leaves it out when that was shown a moment ago."""
        now = time.monotonic()
        news = (progress.video.status, progress.video.chunks_ready > 0)
        if news == self._shown and now - self._shown_at < (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            return
        self._shown, self._shown_at = news, now
        percent = f"{100 * progress.fraction:3.0f} %"
        words = progress.words(now)
        if self._live:
            self._draw(progress.fraction, percent, words)
        else:
            self.say(f"{percent}  {', '.join(words)}")

    def say(self, line: str) -> None:
        """Writes a line of its own above the live one."""
        self._stream.write(f"\r\x1b[K{line}\n" if self._drawn else f"{line}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leaves the live line as it is and goes on below."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = False

    def _draw(self, fraction: float, percent: str, words: list[str]) -> None:
        columns = shutil.get_terminal_size().columns - 1
        line = f"{bar(fraction, _BAR_WIDTH, fancy=self._fancy)} {percent}"
        for word in words:  # as many as fit, the most important first
            if len(line) + 2 + len(word) > columns:
                break
            line += f"  {word}"
        self._stream.write(f"\r{line[:columns]}\x1b[K")
        self._stream.flush()
        self._drawn = True
