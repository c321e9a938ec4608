"""The long form as tests, and what makes its record: judged and written from figures that are known."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import campaign, detection, report, soak
from tests.faults.rounds import WISHES
from tests.faults.worker_entry import POINTS


@pytest.mark.slow
@pytest.mark.parametrize("seed", campaign.SEEDS)
def test_a_round_of_kills_costs_nothing_but_time(tmp_path: Path, model: Path, seed: int) -> None:
    assert campaign.run_round(seed, tmp_path / "round", model)["faults"]


@pytest.mark.slow
def test_a_lost_worker_is_noticed_within_its_lease_and_a_shutdown_at_once(
    tmp_path: Path, model: Path
) -> None:
    found = detection.measure(tmp_path / "service", model)
    assert found["sigkill"]["claimed"]["n"] >= 8
    assert found["sigkill"]["claimed"]["max"] <= 15
    assert found["sigterm"]["claimed"]["n"] >= 20
    assert found["sigterm"]["claimed"]["max"] <= 1.5


@pytest.mark.slow
def test_nothing_grows_under_traffic(tmp_path: Path, model: Path) -> None:
    minutes = float(os.environ.get("LONGTAKE_TESTS_SOAK_MINUTES", "4"))
    found = soak.run(tmp_path / "service", model, minutes=minutes, every_seconds=min(10.0, 2 * minutes))
    assert found["traffic"]["short videos"]
    assert found["flat"], {name: figure for name, figure in found["figures"].items() if not figure["flat"]}


def test_the_fixed_list_holds_two_hundred_kills_at_all_points_and_every_wish() -> None:
    kinds = Counter(fault.kind for seed in campaign.SEEDS for fault in campaign.planned(seed))
    points = {fault.point for seed in campaign.SEEDS for fault in campaign.planned(seed)} - {""}
    assert kinds["point"] + kinds["random"] + kinds["api"] + kinds["redis"] >= 200
    assert set(kinds) == {"point", "random", "term", "zombie", "api", "redis", *WISHES}
    assert points == set(POINTS)
    assert campaign.planned(7) == campaign.planned(7) != campaign.planned(8)


def samples(count: int, **figures: object) -> list[dict[str, float]]:
    """One sample every ten seconds; each figure is a function of the seconds."""
    return [
        {"seconds": 10.0 * number, **{name: function(10.0 * number) for name, function in figures.items()}}  # type: ignore[operator]
        for number in range(1, count + 1)
    ]


def test_a_leak_is_told_from_noise_from_a_saw_tooth_and_from_warming_up() -> None:
    dice = random.Random(3)
    mib = soak.MIB
    told = soak.verdict(
        [
            {name.replace("_", " "): value for name, value in sample.items()}
            for sample in samples(
                360,
                noisy_rss=lambda s: 300 * mib + dice.gauss(0, 20 * mib),
                leaking_rss=lambda s: 300 * mib + s / 3600 * 60 * mib + dice.gauss(0, 5 * mib),
                warming_rss=lambda s: min(300, 100 + s) * mib,
                used_memory=lambda s: (5 + s % 600 / 60) * mib,
                open_files=lambda s: 40 + s // 600,
                pooled_files=lambda s: min(39, 29 + s // 230),
                some_threads=lambda s: 12.0,
            )
        ]
    )
    assert {name: figure["flat"] for name, figure in told.items()} == {
        "noisy rss": True,
        "leaking rss": False,
        "warming rss": True,
        "used memory": True,
        "open files": False,
        "pooled files": True,
        "some threads": True,
    }
    with pytest.raises(ValueError, match="too few"):
        soak.verdict(samples(5, threads=lambda s: 1.0))


def test_the_document_says_what_the_results_say() -> None:
    rounds = [
        {
            "seed": seed,
            "faults": [{"kind": "point", "point": "committed"}, {"kind": "term", "point": ""}],
            "kinds": {"point": 1, "term": 1},
            "videos": 4,
            "attempts": 6,
        }
        for seed in campaign.SEEDS[1:]
    ]
    figures = {"n": 8, "min": 1.5, "median": 2.25, "max": 13.125}
    results = {
        "rounds": rounds,
        "detection": {
            "settings": {"lease_seconds": 15.0, "heartbeat_seconds": 3.0},
            **{kind: {"claimed": figures, "next_chunk": figures} for kind in ("sigkill", "sigterm")},
        },
        "machine": {"cores": 2, "processor": "x86_64", "python": "3.11"},
    }
    flat = {
        "median": 3 * soak.MIB,
        "max": 4 * soak.MIB,
        "growth": 0.5 * soak.MIB,
        "later": 0,
        "allowed": soak.MIB,
    }
    soaked = {
        "minutes": 60,
        "traffic": {"long videos": 3, "short videos": 500},
        "figures": {"api 1 rss": {**flat, "flat": True}, "redis rss": {**flat, "flat": False}},
    }
    text = report.render(results, soaked)
    count = len(rounds)
    assert (
        f"{count} rounds, {2 * count} faults, of which {count} are SIGKILLs, met {4 * count} videos" in text
    )
    assert "these were not run: 1." in text
    assert "| SIGKILL until another worker has claimed it | 8 | 1.50 | 2.25 | 13.12 |" in text
    assert "| api 1 rss | 3 MiB | 4 MiB | +0.5 MiB | +0 MiB | 1 MiB |" in text
    assert "Not flat: redis rss." in text
    assert all(name in text for name in POINTS)
    assert report.render({}, {}).count("has not been measured") == 3


def test_the_document_is_that_of_the_results_at_hand() -> None:

    soaked = json.loads(soak.RESULTS.read_text()) if soak.RESULTS.exists() else {}
    assert report.DOCUMENT.read_text() == report.render(campaign.load(), soaked)
