"""A measurement is not lost where a system does not tell all of it, and says the same of every system."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.one_video import peak_mb
from benchmarks.service import ApiProcess, Service


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_the_peak_of_a_process_is_in_mb_whatever_the_system_counts_in(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    class Usage:
        ru_maxrss = 300 * unit

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_mb() == 300


def test_a_worker_whose_peak_the_system_does_not_tell_costs_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "worker-0.pid").write_text("-1")  # nothing in /proc has this name
    peak = Service("http://127.0.0.1", tmp_path).worker_peak_mb()
    assert peak is None
    cost: dict[str, Any] = {"seconds": 2.0, "first_chunk_seconds": 1.0, "forwards": 3, "peak_mb": 4.0}
    monkeypatch.setattr(benchmarks, "alone", lambda *_: cost)
    monkeypatch.setattr(benchmarks, "through_service", lambda *_: cost | {"worker_peak_mb": peak})
    assert benchmarks.memory(1.0, "builtin")["growth_mb"] is None
    found = benchmarks.speed(1.0, 2, "builtin")
    assert found["peak_mb"] == {"stock": 4.0, "bare": 4.0, "service_worker": None}
    assert found["service_to_stock"] == 1.0


def test_memory_and_time_of_an_api_process_are_told_on_every_system() -> None:
    me = ApiProcess(0, os.getpid(), "")
    assert me.resident_bytes() > 2**20
    assert me.cpu_seconds() > 0
