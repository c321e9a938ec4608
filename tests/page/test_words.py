"""What the page tells about a video, in words: the module that the page itself uses, in the browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

VIDEO = {
    "id": "video_1",
    "status": "in_progress",
    "seconds": "60",
    "seconds_ready": 0,
    "chunks_ready": 0,
    "queue_position": None,
    "eta_seconds": None,
    "stalled": None,
    "created_at": 1000,
    "completed_at": None,
    "prompt": "a red circle",
    "error": None,
}
ENDLESS = {"seconds": "endless"}
SAFE = "12 s are made and safe, it goes on by itself"
MADE = {"chunks_ready": 36, "seconds_ready": 12.125}


@pytest.fixture
def page(visitor: Any) -> Page:
    return visitor.open()  # type: ignore[no-any-return]


def test_each_state_has_its_words(page: Page) -> None:
    failed = {"code": "out_of_memory", "message": "the GPU ran out of memory."}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"status": "queued"}, "", "Waiting in line"),
        ({"status": "queued", "queue_position": 0}, "", "Next in line"),
        ({"status": "queued", "queue_position": 1}, "", "Waiting in line, 1 video before yours"),
        ({"status": "queued", "queue_position": 2}, "", "Waiting in line, 2 videos before yours"),
        (
            {"status": "queued", **MADE},
            "",
            "Making room for others | 12 s are made and safe, it goes on by itself",
        ),
        ({}, "", "Painting the first frames"),
        ({**MADE, "eta_seconds": 31.2}, "", "12 s of 60 s ready | about 30 s left"),
        ({**MADE, "eta_seconds": 2}, "", "12 s of 60 s ready | a few seconds left"),
        ({**MADE, "eta_seconds": 400}, "", "12 s of 60 s ready | about 7 min left"),
        ({**MADE, "eta_seconds": 9000}, "", "12 s of 60 s ready | about 2.5 h left"),
        (MADE, "", "12 s of 60 s ready"),
        ({**MADE, "pause_requested": True}, "", "Pausing | after the next chunk"),
        (MADE, "cancel", "Stopping | what is made so far is kept"),
        (
            {**MADE, "stalled": "the store is away"},
            "",
            "Held up for a moment | the store is away; it goes on by itself",
        ),
        ({**MADE, "seconds_ready": 60}, "", "All 60 s ready | putting the file together"),
        ({"status": "paused", **MADE}, "", "Paused | 12 s are made; resume it whenever you like"),
        ({"status": "paused"}, "", "Paused | resume it whenever you like"),
        ({"status": "paused", **MADE}, "finish", "Paused | it comes to its end once you resume it"),
        ({"status": "queued", "eta_seconds": 100}, "", "Waiting in line | ready in about 2 min"),
        (
            {"status": "queued", "queue_position": 0, **MADE},
            "",
            f"Making room for others, next in line | {SAFE}",
        ),
        (
            {"status": "queued", "queue_position": 2, "eta_seconds": 33, **MADE},
            "",
            f"Making room for others, 2 videos before yours | {SAFE}, ready in about 35 s",
        ),
        (ENDLESS, "", "Painting the first frames"),
        ({**ENDLESS, **MADE}, "", "12 s ready | endless: it goes on until you finish it"),
        ({**ENDLESS, **MADE}, "finish", "Finishing | the chunks that are begun still come"),
        ({**ENDLESS, **MADE}, "pause", "Pausing | after the next chunk"),
        (MADE, "finish", "Finishing | 12 s of 60 s ready"),
        ({"status": "completed", "completed_at": 1048}, "", "Finished in 48 s"),
        ({"status": "completed", "completed_at": 1135}, "", "Finished in 2 min 15 s"),
        ({"status": "cancelled", **MADE}, "cancel", "Cancelled | the first 12 s are kept"),
        ({"status": "cancelled"}, "", "Cancelled | nothing was made yet"),
        (
            {"status": "failed", "error": failed},
            "",
            "This video could not be made | The GPU ran out of memory. A smaller size may fit.",
        ),
    ]
    said = page.evaluate(
        """async (cases) => {
            const { describe } = await import("/static/words.js");
            return cases.map(([video, wish]) => {
                const { headline, detail } = describe(video, { wish });
                return [headline, detail].filter(Boolean).join(" | ");
            });
        }""",
        [({**VIDEO, **changes}, wish) for changes, wish, _ in cases],
    )
    assert said == [words for *_, words in cases]


def test_the_shelf_has_a_line_for_each_state(page: Page) -> None:
    cases = [
        ({"status": "queued"}, "In line"),
        ({}, "Starting"),
        (MADE, "12 s of 60 s"),
        ({**ENDLESS, **MADE}, "12 s, endless"),
        ({"status": "paused", **MADE}, "12 s, paused"),
        ({"status": "completed"}, "60 s"),
        ({"status": "cancelled", **ENDLESS, **MADE}, "12 s, cancelled"),
        ({"status": "failed"}, "Failed"),
    ]
    said = page.evaluate(
        """async (videos) => {
            const { summary } = await import("/static/words.js");
            return videos.map(summary);
        }""",
        [{**VIDEO, **changes} for changes, _ in cases],
    )
    assert said == [words for _, words in cases]


def test_times_to_come_are_told_no_more_exactly_than_they_are_known(page: Page) -> None:
    said = page.evaluate(
        """async (seconds) => {
            const { left } = await import("/static/words.js");
            return seconds.map((rest) => left(1000 + rest, 1000));
        }""",
        [20, 70, 4000, 8000, 300_000],
    )
    hours = "for about 2 h"
    assert said == ["for less than a minute", "for about 70 s", "for about 67 min", hours, "for 3 days"]
