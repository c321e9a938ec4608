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
MADE = {"chunks_ready": 36, "seconds_ready": 12.125}


@pytest.fixture
def page(visitor: Any) -> Page:
    return visitor.open()  # type: ignore[no-any-return]


def test_each_state_has_its_words(page: Page) -> None:
    failed = {"code": "out_of_memory", "message": "the GPU ran out of memory."}
    cases: list[tuple[dict[str, Any], bool, str]] = [
        ({"status": "queued"}, False, "Waiting in line"),
        ({"status": "queued", "queue_position": 0}, False, "Next in line"),
        ({"status": "queued", "queue_position": 1}, False, "Waiting in line, 1 video before yours"),
        ({"status": "queued", "queue_position": 2}, False, "Waiting in line, 2 videos before yours"),
        ({"status": "queued", **MADE}, False, "Waiting in line | 12 s are already made and safe"),
        ({}, False, "Painting the first frames"),
        ({**MADE, "eta_seconds": 31.2}, False, "12 s of 60 s ready | about 30 s left"),
        ({**MADE, "eta_seconds": 2}, False, "12 s of 60 s ready | a few seconds left"),
        ({**MADE, "eta_seconds": 400}, False, "12 s of 60 s ready | about 7 min left"),
        ({**MADE, "eta_seconds": 9000}, False, "12 s of 60 s ready | about 2.5 h left"),
        (MADE, False, "12 s of 60 s ready"),
        ({**MADE, "pause_requested": True}, False, "Pausing | after the next chunk"),
        (MADE, True, "Stopping | what is made so far is kept"),
        ({**MADE, "stalled": "the store is away"}, False, "Held up for a moment | the store is away"),
        ({**MADE, "seconds_ready": 60}, False, "All 60 s ready | putting the file together"),
        ({"status": "paused", **MADE}, False, "Paused | the first 12 s are kept"),
        ({"status": "completed", "completed_at": 1048}, False, "Finished in 48 s"),
        ({"status": "completed", "completed_at": 1135}, False, "Finished in 2 min 15 s"),
        ({"status": "cancelled", **MADE}, True, "Cancelled | the first 12 s are kept"),
        ({"status": "cancelled"}, False, "Cancelled | nothing was made yet"),
        (
            {"status": "failed", "error": failed},
            False,
            "This video could not be made | The GPU ran out of memory.",
        ),
    ]
    said = page.evaluate(
        """async (cases) => {
            const { describe } = await import("/static/words.js");
            return cases.map(([video, cancelling]) => {
                const { headline, detail } = describe(video, { cancelling });
                return [headline, detail].filter(Boolean).join(" | ");
            });
        }""",
        [({**VIDEO, **changes}, cancelling) for changes, cancelling, _ in cases],
    )
    assert said == [words for *_, words in cases]
