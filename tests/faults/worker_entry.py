"""The service's own worker, which ends, stops or asks itself to end at a chosen point of its work.

The points lie in this file, not in the product: they wrap its functions in the worker's process. As a script it is one
worker, or with ``--api`` a replica of the API, with a plan as JSON in FAULTS_PLAN
(`[{"point": "committed", "passage": 3, "action": "kill"}]`). With ``--nursery`` it loads the libraries once and then
makes a worker process of each line on its standard input, because a fresh interpreter needs seconds for them: a process
of its own all the same, which is what gets killed.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}

_PR_SET_PDEATHSIG = 1


def _any(*_: Any, **__: Any) -> bool:
    return True


def _key(*parts: str) -> Callable[..., bool]:
    """Calls whose first text that looks like an object key has one of these parts."""

    def matches(*arguments: Any, **_: Any) -> bool:
        keys = [text for text in arguments if isinstance(text, str) and text.startswith("videos/")]
        return bool(keys) and any(part in keys[0] for part in parts)

    return matches


@dataclass(frozen=True)
class Point:
    """Places in the code: before or after calls, that match, of functions written as `module:attribute`."""

    places: Sequence[str]
    after: bool
    matches: Callable[..., bool] = _any
    each_chunk: bool = False
    """Passed once per chunk; the others once or a few times per video."""
    none_is_nothing: bool = False
    """The call answers None when there was nothing to do."""


def _before(*places: str, matches: Callable[..., bool] = _any, each_chunk: bool = False) -> Point:
    return Point(places, False, matches, each_chunk)


def _after(
    *places: str,
    matches: Callable[..., bool] = _any,
    each_chunk: bool = False,
    none_is_nothing: bool = False,
) -> Point:
    return Point(places, True, matches, each_chunk, none_is_nothing)


_STORE = "app.jobs.store:VideoStore"
_PIPELINE = "worker.pipeline"
_PUT = f"{_PIPELINE}:Pipeline._put"

# In the order in which a video passes them.
POINTS: dict[str, Point] = {
    "taken": _after(f"{_STORE}.take", none_is_nothing=True),
    "claimed": _after(f"{_STORE}.claim"),
    "prompt encoded": _before("worker.engine:Engine.add"),
    "sampled": _after("worker.engine:Track.take", each_chunk=True, none_is_nothing=True),
    "decoded": _before(f"{_PIPELINE}:encode_chunk", each_chunk=True),
    "encoded": _after(f"{_PIPELINE}:encode_chunk", each_chunk=True),
    "init uploaded": _after(_PUT, matches=_key("init.mp4")),
    "segment half written": _before(  # a folder's store alone
        "app.storage.filesystem:FilesystemStore._install", each_chunk=True
    ),
    "segment uploaded": _after(_PUT, matches=_key("chunks/"), each_chunk=True),
    "latents uploaded": _after(_PUT, matches=_key("latents/"), each_chunk=True),
    "checkpoint uploaded": _after(_PUT, matches=_key("checkpoints/"), each_chunk=True),
    "committed": _after(f"{_STORE}.commit_chunk", each_chunk=True),
    "manifest written": _after(f"{_PIPELINE}:Archive.write_manifest"),
    "assembling": _before(f"{_PIPELINE}:assemble_final"),
    "assembled": _after(f"{_PIPELINE}:assemble_final"),
    "file uploaded": _after(
        "app.storage.filesystem:FilesystemStore.put",
        "app.storage.s3:S3Store.put",
        matches=_key("/video.mp4"),
    ),
    "stills uploaded": _before(f"{_STORE}.update", matches=lambda *_, **named: "final_bytes" in named),
    "size recorded": _after(f"{_STORE}.update", matches=lambda *_, **named: "final_bytes" in named),
    "last manifest written": _after(
        f"{_PIPELINE}:Archive.write_manifest",
        matches=lambda *given, **_: isinstance(given[-1], dict) and "status" in given[-1],
    ),
    "checkpoints pruned": _after(f"{_PIPELINE}:Archive.prune"),
    "finished": _after(f"{_STORE}.finish"),
    # Only after a SIGTERM.
    "releasing": _before(f"{_STORE}.release"),
    "released": _after(f"{_STORE}.release"),
}
API_POINTS = {
    "creating": _before(f"{_STORE}.create"),
    "created": _after(f"{_STORE}.create"),
}
HAND_OVER = ("releasing", "released")


@dataclass
class Step:
    """Of a plan: at the given passage of a point, send this process a signal."""

    point: str
    passage: int = 1
    action: str = "kill"
    prompt: str = ""
    """Only for a video whose prompt has this text; known where the point's call sees the video."""

    def __post_init__(self) -> None:
        if self.point not in {**POINTS, **API_POINTS} or self.action not in SIGNALS:
            raise ValueError(f"no such step: {self}")


class Executor:
    """Counts passages and carries the plan out."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._passages: Counter[str] = Counter()
        self._lock = threading.Lock()

    def install(self) -> None:
        for name in {step.point for step in self._steps}:
            self._wrap(name, {**POINTS, **API_POINTS}[name])

    def _wrap(self, name: str, point: Point) -> None:
        for place in point.places:
            module, _, attributes = place.partition(":")
            *path, attribute = attributes.split(".")
            owner: Any = importlib.import_module(module)
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, attribute, self._wrapped(name, point, getattr(owner, attribute)))

    def _wrapped(self, name: str, point: Point, original: Callable[..., Any]) -> Callable[..., Any]:

        @functools.wraps(original)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            counts = point.matches(*arguments, **options)
            if counts and not point.after:
                self._pass(name, arguments)
            result = original(*arguments, **options)
            if counts and point.after and (result is not None or not point.none_is_nothing):
                self._pass(name, result)
            return result

        return wrapped

    def _pass(self, name: str, seen: Any) -> None:
        with self._lock:
            self._passages[name] += 1
            due = [
                step
                for step in self._steps
                if step.point == name
                and (step.prompt in repr(seen) if step.prompt else step.passage == self._passages[name])
            ]
        for step in due:
            print(f"FAULT {step.action} at {name}, passage {self._passages[name]}", flush=True)
            os.kill(os.getpid(), SIGNALS[step.action])
            if step.action != "term":
                time.sleep(
                    0.2
                )  # another thread may be the one that the signal reaches; this one goes no further


def run(plan: Sequence[Mapping[str, Any]]) -> int:
    """Runs a worker in this process until it is told to end, or its plan ends it."""
    from app.settings import Settings
    from worker import main as worker_main

    Executor([Step(**step) for step in plan]).install()
    return worker_main.main(Settings())


def run_api(plan: Sequence[Mapping[str, Any]]) -> int:
    """The same for a replica of the API."""
    from app.main import serve
    from app.settings import Settings

    Executor([Step(**step) for step in plan]).install()
    return serve(Settings())


def nursery() -> None:
    """Reads ``{"environment", "log", "plan"}``, tells ``{"born": pid}`` and later ``{"ended": pid, "code": n}``."""
    for name in ("worker.main", "worker.models.wan", "diffusers.models.autoencoders.autoencoder_kl_wan"):
        importlib.import_module(name)
    from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel  # noqa: F401
    from transformers import AutoTokenizer, UMT5EncoderModel  # noqa: F401

    if threading.active_count() != 1:
        raise RuntimeError("a process with threads must not fork")
    gc.collect()
    gc.freeze()
    os.set_blocking(0, False)
    waiting = b""
    _tell({"ready": os.getpid()})
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                _bear(json.loads(line))
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _bear(order: Mapping[str, Any]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _tell({"born": pid})
        return
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        tempfile.tempdir = None  # what the nursery found is not what this worker is told
        code = run(order["plan"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _tell(message: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        process = run_api if sys.argv[1:] == ["--api"] else run
        sys.exit(process(json.loads(os.environ.get("FAULTS_PLAN", "[]"))))
