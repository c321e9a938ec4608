"""What a person sees of a video that is being made."""

from __future__ import annotations

import io
from typing import Any

import pytest

from app.client import VideoEvent
from app.jobs.job import Status
from app.progress import Progress, ProgressDisplay, bar, clock
from app.schemas import VideoObject


def video(**changes: Any) -> VideoObject:
    fields: dict[str, Any] = {
        "id": "video_1",
        "model": "builtin",
        "status": Status.IN_PROGRESS,
        "progress": 0,
        "created_at": 100,
        "prompt": "a ball",
        "seconds": "60",
        "size": "64x64",
        "seed": 1,
        "fps": 24,
        "frames": 1440,
        "playlist_url": "",
        "events_url": "",
    }
    return VideoObject.model_validate(fields | changes)


def chunk(index: int, created_at: float) -> VideoEvent:
    data = {
        "index": index,
        "start_seconds": float(index),
        "duration_seconds": 1.0,
        "frames": 24,
        "bytes": 1,
        "sha256": "",
        "url": "",
        "created_at": created_at,
    }
    return VideoEvent("chunk", f"{index}-0", data)


def told(**data: Any) -> VideoEvent:
    return VideoEvent("progress", "9-0", {"progress": 10, "chunks_total": 60, **data})


def test_the_remaining_time_is_counted_down_from_what_was_told_last() -> None:
    progress = Progress(video())
    assert progress.eta_seconds(0) is None
    progress.take(told(eta_seconds=42.0), now=10)
    assert progress.eta_seconds(12) == 40
    progress.take(chunk(0, 101), now=13)
    assert progress.eta_seconds(13) == 39
    assert progress.eta_seconds(99) == 0
    progress.take(VideoEvent("completed", "", video(status="completed", progress=100).model_dump()), now=20)
    assert progress.eta_seconds(20) is None


def test_speed_is_that_of_the_newest_chunks_by_the_clock_of_the_service() -> None:
    progress = Progress(video())
    assert progress.speed is None
    progress.take(chunk(0, 101.0), now=0)
    assert progress.speed is None
    progress.take(chunk(1, 101.5), now=0)
    assert progress.speed == 2.0
    for index in range(2, 60):  # then slower
        progress.take(chunk(index, 110 + 4.0 * index), now=0)
    assert progress.speed == 0.25


def test_words_begin_with_what_matters_most() -> None:
    progress = Progress(video())
    progress.take(told(eta_seconds=70.0, chunks_ready=0), now=0)
    progress.take(chunk(0, 101.0), now=0)
    progress.take(chunk(1, 101.5), now=0)
    assert progress.words(now=0) == ["2.0 of 60 s", "1:10 left", "chunk 2 of 60", "2.0x"]
    progress.take(told(stalled="the object store"), now=0)
    assert progress.words(now=0)[0] == "waiting: the object store"
    progress.take(told(), now=0)
    assert progress.words(now=0)[0] == "2.0 of 60 s"


def test_a_waiting_video_tells_its_place_in_line() -> None:
    assert Progress(video(status="queued")).words(0) == ["waiting for a worker"]
    assert Progress(video(status="queued", queue_position=3)).words(0) == [
        "waiting for a worker, 3 before it"
    ]


def test_a_running_video_tells_that_it_will_be_paused() -> None:
    assert Progress(video(pause_requested=True)).words(0)[0] == "about to be paused"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (8.4, "8 s"), (59.6, "1:00"), (65, "1:05"), (7200, "2:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_bar_is_always_as_wide_as_asked() -> None:
    assert bar(0.5, 4, fancy=False) == "##--"
    assert bar(1.5, 4, fancy=True) == "████"
    assert bar(-1, 4, fancy=True) == "░░░░"


def test_a_terminal_sees_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    stream = io.StringIO()
    display = ProgressDisplay(stream, live=True)
    progress = Progress(video(progress=50))
    for index in range(3):
        progress.take(chunk(index, 101.0 + index), now=0)
        display.show(progress)
    display.end()
    lines = stream.getvalue().split("\r")
    assert stream.getvalue().count("\n") == 1
    assert all(len(line.replace("\x1b[K", "").rstrip("\n")) < 50 for line in lines)
    assert " 50 %  1.0 of 60 s" in stream.getvalue()


def test_without_a_terminal_there_are_plain_lines_from_time_to_time() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(stream, live=False)
    progress = Progress(video(status="queued"))
    display.show(progress)
    progress.take(VideoEvent("status", "", video().model_dump()), now=0)
    display.show(progress)
    for index in range(50):
        progress.take(chunk(index, 101.0 + index), now=0)
        display.show(progress)
    progress.take(
        VideoEvent("completed", "", video(status="completed", seconds_ready=60).model_dump()), now=0
    )
    display.show(progress)
    display.end()
    assert stream.getvalue().splitlines() == [
        "  0 %  waiting for a worker",
        "  0 %  0.0 of 60 s",
        "  2 %  1.0 of 60 s",
        "100 %  done, 60.0 of 60 s",
    ]


def test_a_video_without_an_end_shows_what_is_ready_and_no_share_of_it() -> None:
    progress = Progress(video(seconds="endless", frames=None))
    progress.take(chunk(0, 100.0), 1.0)
    told = {"progress": 0, "chunks_ready": 1, "chunks_total": None, "eta_seconds": None}
    progress.take(VideoEvent("progress", "1-0", told), 1.0)
    progress.take(VideoEvent("prompt", "2-0", {"at": 3.5, "text": "a square"}), 1.0)
    assert (progress.total_seconds, progress.fraction) == (None, 0.0)
    assert progress.words(1.0) == ["1.0 s"]
