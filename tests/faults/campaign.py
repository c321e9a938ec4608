"""The long form: rounds from a fixed list of seeds, each on a service of its own, folder and bucket in turn."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer

from tests.faults.agreement import undisturbed
from tests.faults.cluster import ROOT, Cluster, running_cluster
from tests.faults.conftest import REQUESTS
from tests.faults.rounds import (
    WISHES,
    Fault,
    Round,
    at_random,
    every_boundary,
    with_orders,
    with_wishes,
)
from tests.worker import tiny

RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"

# Below 100: ten faults of every kind at random. From 100 on: a kill at each boundary, at another chunk each time. From
# 200 on: faults at random and as many pauses and urgent videos. From 300 on: as many orders (steer, lengthen, finish,
# cancel, delete). From 400 on: faults and orders while each worker makes two videos at once.
SEEDS: tuple[int, ...] = (
    *range(1, 21),
    *range(100, 105),
    *range(200, 208),
    *range(300, 308),
    *range(400, 404),
)
FAULTS_PER_ROUND = 10
WISHES_PER_ROUND = 6


@contextmanager
def service(seed: int, folder: Path, model: Path) -> Iterator[Cluster]:
    """What a round runs on: a folder for even seeds, a bucket for odd ones."""
    with ExitStack() as stack:
        storage: dict[str, Any] = {}
        if seed % 2:
            logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it tells of each request
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            stack.callback(server.stop)
            host, port = server.get_host_and_port()
            os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
            os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test-secret")
            storage = {"storage_url": "s3://faults", "s3_endpoint_url": f"http://{host}:{port}"}
        slots = slots_of(seed)
        yield stack.enter_context(running_cluster(folder, model, apis=2, slots=slots, **storage))


def slots_of(seed: int) -> int:
    """Videos that each worker of a round makes at once."""
    return 2 if seed >= 400 else 1


def planned(seed: int) -> list[Fault]:
    """What a seed of the fixed list stands for."""
    generator = random.Random(seed)
    if seed >= 300:
        return with_orders(generator, WISHES_PER_ROUND)
    if seed >= 200:
        return with_wishes(generator, WISHES_PER_ROUND)
    return every_boundary(generator) if seed >= 100 else at_random(generator, FAULTS_PER_ROUND)


def run_round(seed: int, folder: Path, model: Path) -> dict[str, Any]:
    """One round and its report. Raises `AssertionError` that names the seed."""
    faults = planned(seed)
    if seed % 2:  # that point is one of the folder's store alone
        faults = [fault for fault in faults if fault.point != "segment half written"]
    with service(seed, folder, model) as cluster:
        expected = undisturbed(cluster, REQUESTS)
        fleet = 3 if 100 <= seed < 200 else 2
        report = Round(cluster, seed, faults, expected, fleet, slots=slots_of(seed)).run()
    return {**report.to_json(), "store": "bucket" if seed % 2 else "folder"}


def run(seeds: Sequence[int], *, resume: bool) -> dict[str, Any]:
    """Runs rounds and keeps what they report after each; with `resume` those already reported are not run again."""
    kept: dict[str, Any] = load()
    rounds = {entry["seed"]: entry for entry in kept.get("rounds", [])}
    if not resume:
        rounds = {seed: entry for seed, entry in rounds.items() if seed not in seeds}
    with tempfile.TemporaryDirectory(prefix="longtake-faults-") as folder:
        model = tiny.save(Path(folder) / "model")
        for seed in seeds:
            if seed in rounds:
                continue
            began = time.monotonic()
            rounds[seed] = run_round(seed, Path(folder) / f"round-{seed}", model)
            kept["rounds"] = [rounds[number] for number in sorted(rounds)]
            save(kept)
            events = len(rounds[seed]["faults"])
            print(
                f"seed {seed}: {events} faults and wishes survived in {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return kept


def totals(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over rounds."""
    kinds: Counter[str] = Counter()
    points: Counter[str] = Counter()
    for entry in rounds:
        kinds.update(entry["kinds"])
        points.update(fault["point"] for fault in entry["faults"] if fault["kind"] == "point")
    return {
        "faults": sum(count for kind, count in kinds.items() if kind not in WISHES),
        "wishes": sum(kinds[kind] for kind in WISHES),
        "kills": sum(kinds[kind] for kind in ("point", "random", "api", "redis")),
        "kinds": dict(kinds),
        "points": dict(points),
        "videos": sum(entry["videos"] for entry in rounds),
        "attempts": sum(entry["attempts"] for entry in rounds),
    }


def load() -> dict[str, Any]:
    """What was measured so far."""
    if not RESULTS.exists():
        return {}
    kept: dict[str, Any] = json.loads(RESULTS.read_text())
    return kept


def save(kept: dict[str, Any]) -> None:
    """Keeps it, with the machine it was measured on."""
    kept["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=2) + "\n")
    temporary.replace(RESULTS)
