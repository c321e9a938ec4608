"""The load measurements at a size for tests: they work, and they would notice."""

from __future__ import annotations

import pytest

from benchmarks.post import post
from benchmarks.sse import Viewer, judged, sse


def test_watchers_that_drop_and_resume_are_compared_with_what_was_written() -> None:
    figures = sse(clients=20, videos=2, events=20, per_second=20, dropping=0.5)
    assert figures["events_written"] == 2 * (20 + 3)  # and made, claimed, completed
    assert figures["events_delivered"] == 20 * (20 + 3)
    assert (figures["gaps"], figures["repeats"], figures["clients_out_of_order"]) == (0, 0, 0)
    assert 10 <= figures["resumed_connections"] <= 30
    assert 0 < figures["live_events"] <= 20 * 20
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"] <= figures["latency_ms"]["max"]


def test_gaps_repeats_and_disorder_are_noticed() -> None:
    written = ["9-0", "10-0", "10-1", "11-0"]

    def figures(*ids: str) -> tuple[int, int, int]:
        found = judged([Viewer("v", [], ids=list(ids), connections=1)], {"v": written})
        return found["gaps"], found["repeats"], found["clients_out_of_order"]

    assert figures(*written) == (0, 0, 0)
    assert figures("9-0", "10-0", "11-0") == (1, 0, 0)
    assert figures("9-0", "10-0", "10-0", "10-1", "11-0") == (0, 1, 0)
    assert figures("10-0", "9-0", "10-1", "11-0") == (0, 0, 1)
    with pytest.raises(RuntimeError, match="nobody wrote"):
        figures(*written, "12-0")


def test_both_apps_take_every_request() -> None:
    figures = post(requests=40, connections=4, rounds=1)
    assert figures["service_to_bare"] == pytest.approx(
        figures["per_second"]["service"] / figures["per_second"]["bare"]
    )
    assert all(run["p50_ms"] <= run["p99_ms"] for runs in figures["runs"].values() for run in runs)
