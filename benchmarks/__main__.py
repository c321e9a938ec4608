"""The README's figures: `python -m benchmarks [speed] [memory] [sse] [post] [--seconds 60] [--rounds 3]`.

speed   a 60-s video made by stock diffusers, by the bare loop, and through the whole service, in turn; the figures
        are ratios of medians within this run, because absolute times say more about the machine than about the code
memory  the worker's peak resident size for a 60-s and for a 600-s video, each on a fresh service
sse     event streams under load: clients on one API process, some of which drop and resume; what each received is
        compared with what was written
post    requests for videos per second, as a ratio to a bare FastAPI and RQ app in the same run
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.one_video import PROMPT, SEED
from benchmarks.post import post
from benchmarks.service import running_service
from benchmarks.sse import sse

RESULTS = Path(__file__).parent / "results"


def alone(what: str, seconds: float, model: str) -> dict[str, Any]:
    """One video by `benchmarks.one_video` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.one_video",
        what,
        "--seconds",
        str(seconds),
        "--model",
        model,
    ]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return answer


def through_service(seconds: float, model: str) -> dict[str, Any]:
    """One video through a fresh service."""
    with running_service(model) as service:
        return service.make(PROMPT, seconds, SEED).__dict__


def speed(seconds: float, rounds: int, model: str) -> dict[str, Any]:
    """Stock, bare and service in turn, `rounds` times."""
    runs: dict[str, list[dict[str, Any]]] = {"stock": [], "bare": [], "service": []}
    for number in range(rounds):
        for name, run in runs.items():
            cost = through_service(seconds, model) if name == "service" else alone(name, seconds, model)
            run.append(cost)
            print(
                f"round {number + 1}: {name:8} {cost['seconds']:7.1f} s, "
                f"first chunk {cost['first_chunk_seconds']:6.2f} s",
                flush=True,
            )
    total = {name: median(cost["seconds"] for cost in run) for name, run in runs.items()}
    first = {name: median(cost["first_chunk_seconds"] for cost in run) for name, run in runs.items()}
    peaks = [cost["worker_peak_mb"] for cost in runs["service"]]
    return {
        "video_seconds": seconds,
        "seconds": total,
        "first_chunk_seconds": first,
        "forwards": {name: runs[name][0]["forwards"] for name in ("stock", "bare")},
        "service_to_stock": total["service"] / total["stock"],
        "service_wait_to_stock": first["service"] / first["stock"],
        "service_to_bare": total["service"] / total["bare"],
        "peak_mb": {name: max(cost["peak_mb"] for cost in runs[name]) for name in ("stock", "bare")}
        | {"service_worker": None if None in peaks else max(peaks)},
        "runs": runs,
    }


def memory(seconds: float, model: str) -> dict[str, Any]:
    """Peak of the worker for a video and for one ten times as long."""
    short, long = (through_service(length, model) for length in (seconds, 10 * seconds))
    before, after = short["worker_peak_mb"], long["worker_peak_mb"]
    growth = None if before is None or after is None else after - before
    return {"short": short, "long": long, "growth_mb": growth}


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="*",
        default=["speed", "memory", "sse", "post"],
        help="which measurements (default: all)",
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--clients", type=int, default=1000, help="sse: clients that watch")
    parser.add_argument("--videos", type=int, default=10, help="sse: videos they watch")
    parser.add_argument("--events", type=int, default=200, help="sse: progress events of each video")
    parser.add_argument("--rate", type=float, default=2.0, help="sse: of these per second")
    parser.add_argument("--dropping", type=float, default=0.3, help="sse: share of clients that drop, resume")
    parser.add_argument("--requests", type=int, default=1000, help="post: requests to each app in a round")
    parser.add_argument("--connections", type=int, default=16, help="post: connections that send them")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for what in arguments.what:
        if what == "speed":
            result = speed(arguments.seconds, arguments.rounds, arguments.model)
        elif what == "memory":
            result = memory(arguments.seconds, arguments.model)
        elif what == "sse":
            result = sse(
                arguments.clients, arguments.videos, arguments.events, arguments.rate, arguments.dropping
            )
        elif what == "post":
            result = post(arguments.requests, arguments.connections, arguments.rounds)
        else:
            parser.error(f"no measurement is called {what!r}")
        result["machine"] = {"python": platform.python_version(), "processor": platform.machine()}
        path = RESULTS / f"{what}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))


if __name__ == "__main__":
    main()
