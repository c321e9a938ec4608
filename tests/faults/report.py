"""docs/reliability.md from what the long form measured. The words are here, the figures in benchmarks/results/."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.faults import campaign, soak
from tests.faults.cluster import ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"

_KINDS = {
    "point": "SIGKILL of a worker at a chosen point of its work",
    "random": "SIGKILL of a worker at a random time (what an out-of-memory kill does)",
    "api": "SIGKILL of an API replica, started again",
    "redis": "SIGKILL of Redis, started again from its append-only file",
    "term": "SIGTERM of a worker",
    "zombie": "SIGSTOP of a worker for longer than its lease, then SIGCONT",
    "pause": "no fault: a running video paused meanwhile, and resumed",
    "urgent": "no fault: a video of high priority asked for meanwhile",
    "steer": "no fault: a video steered meanwhile",
    "lengthen": "no fault: a video made longer meanwhile",
    "finish": "no fault: a video finished early meanwhile",
    "cancel": "no fault: a video cancelled meanwhile",
    "delete": "no fault: a video deleted meanwhile",
}

_NOT_RUN = "This has not been measured for this version; `{command}` does.\n"

_INTRODUCTION = """# Reliability

A video that was accepted is finished, whatever dies meanwhile, without anyone doing anything, and its files are the
same bytes as if nothing had happened. This page says how that is tested, and what came out. It is written by
`python -m tests.faults report` from [`benchmarks/results/`](../benchmarks/results/).

## How it is tested

`tests/faults/` runs the service as real processes: Redis, two API replicas, workers with a real pipeline of small
random weights, and a folder or an S3 bucket. Processes are ended with signals, at random times and at chosen
points. The chosen points lie in the tests, not in the product: `tests/faults/worker_entry.py` wraps the worker's
own functions in the worker's process, and that process kills itself there. There is one at every boundary:

{points}

After each round, for every video that was asked for during it:

- every object in the bucket (init segment, chunks, latents, checkpoint, final file, pictures) has the SHA-256 of
  the same object of an undisturbed run, and there is no other object;
- the record in Redis, the list of chunks, the manifest in the bucket, the event history, the playlist and what is
  served agree;
- a client that followed the video live, over however many connections, was told of each chunk once, in order, with
  rising ids, and of one end;
- the final file decodes to exactly the frames that were asked for, each at its time;
- one that was steered, made longer or finished early meanwhile is, byte for byte, the video that is made undisturbed
  when the same prompts and length are asked for at once;
- one that was cancelled has the first chunks of the undisturbed video, as many as its record, its manifest and its
  events tell, and they can be played; of one that was deleted nothing is left in the bucket nor in Redis;
- no entry is left in the queues, among the leases, the active videos, RQ's jobs, or the temporary folders.

In some rounds each worker makes two videos at once, whose forwards are shared. There the pictures may differ by
rounding, and all else is asked for as above.

The same holds in these single scenarios, which are part of the ordinary test suite, and more where it is said:

- An API replica is killed while it answers a POST, before or after the record was written: the repeated request, at
  another replica, makes one video.
- Redis is away for longer than a lease: the worker that had the video keeps it, no attempt is used up.
- The store refuses, delays, cuts short, answers 503 SlowDown or 500, or acts and loses its answer: the video tells
  why it stalls, and goes on.
- The store is away for a minute (in the long form).
- The disk is full, or read-only: the same, with its own reason.
- The wall clocks of Redis and of the service jump 5 s forward and back, one after the other: no more than what is
  asked of all.
- A worker is stopped between upload and commit, wakes after another has gone on: it commits nothing.
- A worker on another host is cut off from Redis for longer than its lease (network namespaces): it is replaced,
  finds out when the cable is back, and takes the next video.
- SIGTERM, five times in one video, at different points: no attempt is used up.
- A GPU fails for good under a video (a model that says so): its worker hands the other videos over, which use up no
  attempt, and ends.
- A video that kills its worker each time: it fails after its attempts with `attempts_exhausted`; other videos are
  finished. Where a worker makes several videos at once, one whose last attempt came to nothing runs alone until it has
  made a chunk: the others rest at their next chunk meanwhile, which uses up no attempt.
"""

_NOT_TESTED = """## What was not tested

- Loss of power of a whole machine. Killing a process does not lose what it has written to the operating system; a
  power cut can lose the last second of Redis' append-only file (`appendfsync everysec`). The video then continues
  from an older checkpoint, which is kept for some seconds for this, and a client may be told of a chunk a second
  time.
- More than one real machine. The two hosts of the cut-off test are network namespaces on one kernel, and share its
  disk.
- Redis Cluster, Sentinel, and failover to a replica that lags behind.
- Amazon S3 itself: the bucket is moto's, behind a proxy that misbehaves.
- GPUs: the model runs on the CPU. Faults of a GPU (a hung kernel, an uncorrectable memory error) are not
  provoked, only the errors that PyTorch raises for them.
- Damage to stored bytes, other than a missing or unreadable checkpoint (`tests/worker/test_generate.py`).
"""


def render(results: Mapping[str, Any], soaked: Mapping[str, Any]) -> str:
    """The document. What was not measured is said to be so."""
    points = ", ".join(f"*{name}*" for name in _points())
    parts = [
        _INTRODUCTION.format(points=f"{points}."),
        _kills(results),
        _detection(results),
        _soak(soaked),
        _machine(results),
        _NOT_TESTED,
        _again(),
    ]
    return "\n".join(part for part in parts if part)


def write() -> None:
    """Writes the document from the results at hand."""
    soaked = json.loads(soak.RESULTS.read_text()) if soak.RESULTS.exists() else {}
    DOCUMENT.write_text(render(campaign.load(), soaked))


def _points() -> list[str]:
    from tests.faults.worker_entry import POINTS

    return list(POINTS)


def _kills(results: Mapping[str, Any]) -> str:
    head = "## Kills\n\n"
    if not results.get("rounds"):
        return head + _NOT_RUN.format(command="python -m tests.faults kills")
    rounds = results["rounds"]
    sums = campaign.totals(rounds)
    told = Counter(sums["kinds"])
    missing = sorted(set(campaign.SEEDS) - {entry["seed"] for entry in rounds})
    lines = [
        f"{len(rounds)} rounds, {sums['faults']} faults, of which {sums['kills']} are SIGKILLs, met {sums['videos']} "
        f"videos. Of these {told['delete']} were deleted and {told['cancel']} told to cancel, some perhaps too late; "
        f"all others were finished. That took {sums['attempts']} attempts in all, and all agree with the "
        "undisturbed run.",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {words} | {told[kind]} |" for kind, words in _KINDS.items()),
        "",
        "Kills at the chosen points: "
        + ", ".join(f"{name} {sums['points'].get(name, 0)}" for name in _points())
        + ".",
    ]
    if missing:
        lines += ["", f"Of the fixed list of seeds these were not run: {', '.join(map(str, missing))}."]
    return head + "\n".join(lines) + "\n"


def _detection(results: Mapping[str, Any]) -> str:
    head = "## Detection and hand-over\n\n"
    found = results.get("detection")
    if not found:
        return head + _NOT_RUN.format(command="python -m tests.faults detection")
    settings = found["settings"]
    rows = []
    for kind, words in (("sigkill", "SIGKILL"), ("sigterm", "SIGTERM")):
        for moment, meaning in (
            ("claimed", "another worker has claimed it"),
            ("next_chunk", "its next chunk is ready"),
        ):
            figures = found[kind][moment]
            rows.append(
                f"| {words} until {meaning} | {figures['n']} | {figures['min']:.2f} | {figures['median']:.2f} | "
                f"{figures['max']:.2f} |"
            )
    return head + (
        f"Seconds, with the default lease ({settings['lease_seconds']:g} s) and heartbeat "
        f"({settings['heartbeat_seconds']:g} s), one idle worker standing by. A SIGTERM used up no attempt.\n\n"
        "| | n | min | median | max |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _soak(soaked: Mapping[str, Any]) -> str:
    head = "## Soak\n\n"
    if not soaked:
        return head + _NOT_RUN.format(command="python -m tests.faults.soak --minutes 60")
    traffic = soaked["traffic"]
    growing = [name for name, figure in soaked["figures"].items() if not figure["flat"]]
    judged = "Everything is flat." if not growing else f"Not flat: {', '.join(growing)}."
    rows = []
    for name, figure in soaked["figures"].items():
        unit = (1 << 20) if name.endswith(("rss", "memory")) else 1
        suffix = " MiB" if unit > 1 else ""
        rows.append(
            f"| {name} | {figure['median'] / unit:.4g}{suffix} | {figure['max'] / unit:.4g}{suffix} | "
            f"{figure['growth'] / unit:+.3g}{suffix} | {figure['later'] / unit:+.3g}{suffix} | "
            f"{figure['allowed'] / unit:.3g}{suffix} |"
        )
    return head + (
        f"{soaked['minutes']:g} minutes of traffic on two API replicas and two workers: "
        f"{traffic.get('long videos', 0)} videos of {soak.LONG_SECONDS} s, {traffic.get('endless videos', 0)} endless "
        f"ones that were steered, paused {traffic.get('pauses', 0)} times in all, and ended at that length, and "
        f"{traffic.get('short videos', 0)} short ones, watched over server-sent events and the playlist, to their end "
        f"or not, cancelled and deleted. No client met an error. {judged} The growth is the median slope between all "
        "pairs of samples (Theil-Sen) after the first quarter, over the rest of the run. What rises to a level and "
        "stays there is flat: at most half of what is allowed in the second half of the run (pools of connections "
        "keep one for each request that ever ran at the same time as others). Of the keys of Redis those count that "
        "do not expire.\n\n"
        "| | median | most | growth | in the second half | allowed |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _machine(results: Mapping[str, Any]) -> str:
    machine = results.get("machine")
    if not machine:
        return ""
    return (
        f"Measured on {machine['cores']} {machine['processor']} cores with Python {machine['python']}, which "
        "everything shared, the clients and the measuring included.\n"
    )


def _again() -> str:
    return """## To run it again

```sh
pytest tests/faults -m "not slow"            # the short form, in the ordinary suite
python -m tests.faults kills                 # the long form: every seed of the list
python -m tests.faults kills --resume        # those that are not in the results yet
python -m tests.faults kills --only 17       # one seed; a failure names it
python -m tests.faults detection
python -m tests.faults.soak --minutes 60
python -m tests.faults report
```

`pytest tests/faults` (or `make test-all`) runs the seeds, the detection and a short soak as tests, without a
record. Network namespaces and a disk of a few MiB need root, jumping clocks need Debian's `faketime`; where they
are missing these tests are skipped and say so.
"""
