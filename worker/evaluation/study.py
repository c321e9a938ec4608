"""Makes and measures the videos of an evaluation, one file of figures per video, so that nothing is made twice."""

from __future__ import annotations

import ast
import ctypes
import gc
import hashlib
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from app import __version__
from worker.evaluation import cases, figures, frechet, oracle, vbench
from worker.evaluation.cases import Case, EvaluationError
from worker.evaluation.drift import DriftMeter
from worker.evaluation.methods import (
    METHODS,
    RECONSTRUCTED,
    REFERENCE,
    RENDERED,
    CountedModel,
    MethodError,
    Wanted,
    has_true_scenes,
    prepare,
    reconstruct,
    render,
    seed_of,
    training_shares,
)
from worker.models.base import ModelLoadError, SamplerConfig, VideoFrames, VideoModel
from worker.models.fingerprint import revision
from worker.models.registry import describe, load_model
from worker.training import scenes
from worker.training.run import check_keys

SCHEMA = 4
"""Version of what a video's file of figures holds; files of another version are made again."""
CONFIGS = Path(__file__).parent / "configs"
MEASURES = (
    "evaluation/study.py",
    "evaluation/oracle.py",
    "evaluation/drift.py",
    "evaluation/frechet.py",
    "evaluation/methods.py",
    "training/scenes.py",
    "training/backdrops.py",
    "training/stock.py",
    "sampler/*.py",
    "models/*.py",
)
"""Modules that the figures of a video depend on."""
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless")
"""Their versions do, too."""
ENDING_SECONDS = 2.0
"""The end of a video that is judged on its own."""
CLIP_SECONDS = 2.0
"""Length of the clips that the Frechet distance compares."""
CLIP_EVERY_SECONDS = 5.0
STILLS = 16
STILL_PIXELS = 96
"""Longest side of a still."""
FIGURE_DIGITS = 6
CHOICES = METHODS.keys() - {REFERENCE}
"""Methods that a plan may name; true scenes to compare with come with those that are rendered."""
SEEDS = 2**31
"""Seeds of a plan are below."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class VideoSet:
    """Videos of one length."""

    seconds: float
    prompts: int
    methods: tuple[str, ...]
    group_seconds: float = 10
    """How the report groups time."""
    variants: bool = False
    """Whether weights that were trained for a method are tried here."""
    turns: bool = False
    """Whether the prompt changes half-way. Only the progressive sampler follows; prompts of a file do not turn."""


@dataclass(frozen=True)
class Plan:
    """What an evaluation makes."""

    sets: tuple[VideoSet, ...]
    seed: int = 0
    segment_seconds: float = 10
    """What the oracle judges at once; two to ten seconds."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler that differ from the model's own."""
    world: str = ""
    """Scenes that are asked for, one of `scenes.WORLDS`; if empty, those that the model has the words for."""

    @staticmethod
    def read(name: str) -> Plan:
        """The plan of this name, or in this TOML file. Raises EvaluationError."""
        path = CONFIGS / f"{name}.toml"
        path = path if path.is_file() else Path(name)
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            rows = tables.pop("sets")
            if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
                raise EvaluationError(f"{path}: sets must be [[sets]] tables")
            check_keys(Plan, tables, "plan")
            for row in rows:
                check_keys(VideoSet, row, "sets")
            sets = [VideoSet(**{**row, "methods": tuple(map(str, row["methods"]))}) for row in rows]
            plan = Plan(sets=tuple(sets), **tables)
        except OSError as error:
            known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
            raise EvaluationError(f"{name} is neither a file nor one of {known}") from error
        except KeyError as error:
            raise EvaluationError(f"{path}: {error} is missing") from error
        except EvaluationError:
            raise
        except (ValueError, TypeError) as error:
            raise EvaluationError(f"{path}: {error}") from error
        return plan.checked()

    def checked(self) -> Plan:
        """This plan. Raises EvaluationError naming what makes no sense."""
        _check_kinds(self, {"seed": int, "segment_seconds": float, "sampler": Mapping, "world": str})
        if self.world and self.world not in scenes.WORLDS:
            raise EvaluationError(f"world: choose from {', '.join(scenes.WORLDS)}, got {self.world!r}")
        for one in self.sets:
            _check_kinds(
                one,
                {"seconds": float, "prompts": int, "group_seconds": float, "variants": bool, "turns": bool},
            )
        if not self.sets:
            raise EvaluationError("the plan has no sets")
        if not 0 <= self.seed < SEEDS:
            raise EvaluationError(f"seed must be 0 to {SEEDS - 1}, got {self.seed}")
        if len({one.seconds for one in self.sets}) < len(self.sets):
            raise EvaluationError("two sets of the plan have one length")
        if not 2 <= self.segment_seconds <= 10:
            raise EvaluationError(f"segment_seconds must be 2 to 10, got {self.segment_seconds:g}")
        if all(one.turns for one in self.sets):
            raise EvaluationError("the plan needs a set whose prompts do not turn")
        for one in self.sets:
            if one.turns and (one.methods != (figures.OURS,) or one.variants):
                raise EvaluationError(f"only {figures.OURS} follows a prompt that turns")
            if one.seconds < ENDING_SECONDS or one.prompts < 1 or one.group_seconds <= 0:
                raise EvaluationError(f"a set needs {ENDING_SECONDS:g} s, a prompt and a group: {one}")
            if not one.methods or set(one.methods) - CHOICES:
                known = ", ".join(sorted(CHOICES))
                raise EvaluationError(f"methods of the {one.seconds:g}-s set: choose from {known}")
            if len({*one.methods}) < len(one.methods):
                raise EvaluationError(f"the {one.seconds:g}-s set names a method twice")
        return self

    def only(self, methods: tuple[str, ...]) -> Plan:
        """The plan with these of its methods."""
        if unknown := set(methods) - CHOICES:
            known = ", ".join(sorted(CHOICES))
            raise EvaluationError(f"no method {', '.join(sorted(unknown))}; there are {known}")
        sets = [replace(one, methods=tuple(m for m in one.methods if m in methods)) for one in self.sets]
        if not any(one.methods for one in sets):
            raise EvaluationError(f"the plan has none of the methods {', '.join(methods)}")
        return replace(self, sets=tuple(one for one in sets if one.methods)).checked()


_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a table",
    str: "text",
}


def _check_kinds(table: VideoSet | Plan, kinds: Mapping[str, type]) -> None:
    """Raises EvaluationError naming what a TOML file gave as something else."""
    for name, kind in kinds.items():
        value = getattr(table, name)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if (
            isinstance(value, bool) != (kind is bool)
            or not fits
            or (kind is float and not math.isfinite(value))
        ):
            raise EvaluationError(f"{name} must be {_KINDS[kind]}, got {value!r}")


@dataclass(frozen=True)
class Job:
    """One video to make."""

    row: str
    """Name in tables: the method, and whether its weights were trained for it."""
    method: str
    spec: str
    """Model."""
    case: Case
    number: int
    """Of the prompt, from 0."""
    seconds: float
    seed: int
    stills: bool

    @property
    def place(self) -> str:
        """Where its figures are, below the output folder."""
        row = self.row.replace(" ", "-").replace("(", "").replace(")", "")
        return f"videos/{self.seconds:g}s/{row}/{self.number:03}"


@dataclass(frozen=True)
class Bench:
    """What all videos of an evaluation share; goes to every process."""

    model: str
    device: str
    output: Path
    segment_seconds: float
    suite: vbench.Suite | None = None
    """What MP4 files are kept for."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """`Plan.sampler`."""

    @property
    def sampler(self) -> SamplerConfig:
        """What all methods are derived from, with all weights. Raises EvaluationError."""
        try:
            return replace(describe(self.model).sampler, **self.changes)
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"[sampler] of the plan: {error}") from error

    def wanted(self, job: Job) -> tuple[Wanted, int]:
        """The video to make and its frames."""
        facts = describe(self.model)
        frames = round(job.seconds * facts.geometry.fps)
        return Wanted(
            job.case,
            facts.geometry.latents_for_frames(frames),
            seed_of(job.method, job.seed),
            self.sampler,
        ), frames

    def turning(self, job: Job) -> tuple[int, int] | None:
        """The frame from which on a video turns with its prompt, and that from which on it has; None if it does not.

        Raises EvaluationError when too little is left on either side.
        """
        (wanted, frames), geometry = self.wanted(job), describe(self.model).geometry
        if not wanted.turn_latent:
            return None
        # The chunks in flight turn with the prompt, and the one behind them still sees them: what they become is
        # neither the one scene nor the other.
        chunk = wanted.config.chunk_latents * geometry.temporal_factor
        turn = geometry.frames_for_latents(wanted.turn_latent)
        begun, turned = turn - (wanted.config.chunks_in_flight - 1) * chunk, turn + 2 * chunk
        if min(begun, frames - turned) < ENDING_SECONDS * geometry.fps:
            raise EvaluationError(f"{job.seconds:g} s are too short for a prompt that turns half-way")
        return begun, turned

    def fingerprint(self, job: Job) -> str:
        """Changes with everything that the figures of a video depend on."""
        wanted, frames = self.wanted(job)
        facts = {
            "schema": SCHEMA,
            "method": job.method,
            "weights": weights(job.spec),
            "wanted": asdict(wanted),
            "frames": frames,
            "segment_seconds": self.segment_seconds,
            "device": self.device,
            "stills": job.stills,
            "code": code(),
            **{name: version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def made(self, job: Job) -> dict[str, Any] | None:
        """The figures of a video that was made already, as it would be made now, with its clips."""
        path = self.output / f"{job.place}.json"
        if (
            self.suite is not None
            and job.method != REFERENCE
            and not vbench.clips(self.output, job.place, self.suite)
        ):
            return None
        try:
            video: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return video if video.get("fingerprint") == self.fingerprint(job) else None


@lru_cache(maxsize=16)
def weights(spec: str) -> str:
    """Digest of the files of a model folder, or the hub id with the revision that lies here."""
    source = Path(describe(spec).source)
    if not source.is_dir():
        found = revision(str(source))
        return f"{spec}@{found[:12]}" if found else spec
    digest = hashlib.sha256()
    for path in sorted(p for p in source.rglob("*") if p.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            digest.update(
                f"{path.relative_to(source)} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode()
            )
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def code() -> str:
    """Digest of the modules that make and measure videos, but for their comments and their form."""
    package = Path(__file__).parents[1]
    paths = [path for pattern in MEASURES for path in sorted(package.glob(pattern))]
    trees = [ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _model(spec: str, device: str) -> VideoModel:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return load_model(spec, device=device)


# -- one video ------------------------------------------------------------------------------------------------------


class Measurement:
    """Takes the frames of one video as they come; keeps a segment of them, never the video."""

    def __init__(self, bench: Bench, job: Job, model: VideoModel, frames: int) -> None:
        self._job, self._model, self._frames, fps = job, model, frames, model.geometry.fps
        config = bench.sampler
        first, period = METHODS[job.method].seam(config)
        factor = model.geometry.temporal_factor
        self.meter = DriftMeter(fps, (1 + (first - 1) * factor, period * factor), factor)
        self._segment = max(1, round(bench.segment_seconds * fps))
        self._ends = list(range(self._segment, frames + 1, self._segment)) or [frames]
        self._ends[-1] = frames  # the last segment takes what is left over
        self._turning = bench.turning(job)
        if self._turning is not None:
            self._ends = [*self._turning, frames]
        self._clip = 1 + (round(CLIP_SECONDS * fps) - 1) // factor * factor
        self._clip_every = round(CLIP_EVERY_SECONDS * fps)
        self._still_at = (
            {round(n * (frames - 1) / (STILLS - 1)) for n in range(STILLS)} if job.stills else set()
        )
        self._writer = None
        if bench.suite is not None and job.method != REFERENCE:
            self._writer = vbench.ClipWriter(bench.output, job.place, fps, bench.suite)
        self._held: list[VideoFrames] = []
        self._ending: deque[Any] = deque(maxlen=round(ENDING_SECONDS * fps))
        self._stills: list[Any] = []
        self._features: list[list[float]] = []
        self._clip_frames: list[Any] = []
        self._segments: list[dict[str, Any]] = []
        self._before_ending: dict[str, Any] | None = None
        self._night = 0.0
        """How far night had fallen at the end of the last segment but the video's last."""
        self.count = 0
        self.seconds = 0.0
        """Time spent here, which is not the method's."""
        self.cpu_seconds = 0.0

    def take(self, frames: VideoFrames) -> None:
        """The next frames; those beyond the video's length are left out."""
        began, cpu_began = time.perf_counter(), time.process_time()
        for frame in frames[: self._frames - self.count]:
            self._take(frame)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began

    def _take(self, frame: Any) -> None:
        frame = frame.copy()  # a view would keep its whole chunk
        if self.count in self._still_at:
            self._stills.append(frame)
        if self.count % self._clip_every < self._clip:
            self._clip_frames.append(frame)
            if len(self._clip_frames) == self._clip:
                features = frechet.clip_features(self._model, np.stack(self._clip_frames))
                self._features.append([round(float(value), FIGURE_DIGITS) for value in features])
                self._clip_frames = []
        if self._writer is not None:
            self._writer.take(frame)
        self._held.append(frame)
        self._ending.append(frame)
        self.meter.push(frame[None])
        self.count += 1
        if self.count == self._ends[len(self._segments)]:
            fps, first = self._model.geometry.fps, self.count - len(self._held)
            if self.count == self._frames:
                self._before_ending = self._judge_before_ending()
            verdict = self._judge(self._held, self.count)
            self._segments.append(
                {
                    "from_second": round(first / fps, 3),
                    "to_second": round(self.count / fps, 3),
                    "oracle": verdict,
                    "drift": _rounded(self.meter.segment(first, self.count)),
                }
            )
            if self.count < self._frames:  # the ending is a part of the last segment
                self._night = (verdict or {}).get("night") or 0.0
            self._held = []

    def _judge_before_ending(self) -> dict[str, Any] | None:
        """The last segment without the ending, or the segment before it if under a second is left of it."""
        left = len(self._held) - len(self._ending)
        if left >= self._model.geometry.fps:
            return self._judge(self._held[:left], self.count - len(self._ending))
        before: dict[str, Any] | None = self._segments[-1]["oracle"] if self._segments else None
        return before

    def _judge(self, frames: Any, end: int) -> dict[str, Any] | None:
        """Frames up to frame `end` against the prompt in force; None where no prompt is, or none that says enough."""
        attributes = self._job.case.attributes
        if self._turning is not None and self._job.case.turn is not None and end > self._turning[0]:
            attributes = self._job.case.turn.attributes if end > self._turning[1] else None
        if attributes is None:
            return None
        verdict = oracle.judge(np.stack(frames), attributes, self._model.geometry.fps, night=self._night)
        return _rounded({**asdict(verdict), "follows": verdict.follows})

    def finish(self) -> dict[str, Any]:
        """The figures. Raises EvaluationError when the method made too few frames."""
        if self.count != self._frames:
            raise EvaluationError(f"{self._job.row} made {self.count} frames of {self._frames}")
        if self._writer is not None:
            self._writer.close()
        return {
            "segments": self._segments,
            "ending": {"oracle": self._judge(self._ending, self.count), "before": self._before_ending},
            "drift": _rounded(self.meter.summary()),
            "features": self._features,
        }

    def strip(self) -> Image.Image:
        """The stills in a row."""
        stills = [Image.fromarray(still) for still in self._stills]
        for still in stills:
            still.thumbnail((STILL_PIXELS, STILL_PIXELS))
        width, height = stills[0].size
        strip = Image.new("RGB", (width * len(stills), height))
        for place, still in enumerate(stills):
            strip.paste(still, (place * width, 0))
        return strip


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, FIGURE_DIGITS) if isinstance(v, float) else v for k, v in values.items()}


def _reset_peak(device: str) -> None:
    """Peak memory is counted anew from now on, where the kernel lets us (Linux), without what earlier videos left."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: str) -> float | None:
    """Peak memory since then, MB: of torch on the GPU, else resident of this process; None where nobody tells."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


def make(bench: Bench, job: Job) -> dict[str, Any]:
    """Makes one video, measures it, and writes its figures."""
    # For several videos at once, processes use a CPU better than threads; and its seconds are then comparable.
    torch.set_num_threads(1)
    model = _model(job.spec, bench.device)
    wanted, frames = bench.wanted(job)
    method = METHODS[job.method]
    counted = CountedModel(model, job.spec)
    prepare(job.method, counted)
    measurement = Measurement(bench, job, model, frames)
    _reset_peak(bench.device)
    began, cpu_began = time.perf_counter(), time.process_time()
    if job.method == RECONSTRUCTED:
        reconstruct(model, wanted, measurement.take)
    elif method.sample is None:
        render(model, wanted, frames, measurement.take)
    else:
        decoder = model.open_decoder()

        def take(latents: Tensor) -> None:
            for one in torch.split(latents, wanted.config.chunk_latents, dim=2):
                measurement.take(decoder.push(one))

        method.sample(counted, wanted, take)
    seconds = time.perf_counter() - began - measurement.seconds
    cpu_seconds = time.process_time() - cpu_began - measurement.cpu_seconds
    peak_mb = _peak_mb(bench.device)
    video = {
        "fingerprint": bench.fingerprint(job),
        "row": job.row,
        "method": job.method,
        "seconds": job.seconds,
        "frames": frames,
        "number": job.number,
        "prompt": job.case.prompt,
        "class": job.case.scene_class,
        **({"turn": asdict(job.case.turn)} if job.case.turn is not None else {}),
        "seed": wanted.seed,
        "weights": weights(job.spec),
        "date": datetime.now(UTC).date().isoformat(),
        "cost": {
            "forwards": counted.forwards,
            "latent_forwards": counted.latent_forwards,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "peak_mb": None if peak_mb is None else round(peak_mb, 1),
        },
        **measurement.finish(),
    }
    path = bench.output / f"{job.place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.stills:
        path.with_suffix(".png").unlink(missing_ok=True)
        measurement.strip().save(path.with_suffix(".png"), optimize=True)
    _write(path, json.dumps(video))
    return video


# -- all videos -----------------------------------------------------------------------------------------------------


def jobs(plan: Plan, model: str, variants: Mapping[str, str], prompts: list[Case] | None) -> list[Job]:
    """Every video of a plan, prompt by prompt, so that an interrupted evaluation compares all methods on some prompts.

    `variants` maps a method to a folder of weights trained for it. True scenes are left out where the model's size or
    rate is not theirs.
    """
    planned, rendered = [], has_true_scenes(describe(model).geometry)
    world = scenes.WORLDS[plan.world] if plan.world else cases.world_of(model)
    for one in plan.sets:
        if one.turns and prompts:
            continue
        rows = [(name, name, model) for name in one.methods if not METHODS[name].own_weights]
        if one.variants:
            rows += [(f"{name} (trained)", name, folder) for name, folder in variants.items()]
        if RENDERED in one.methods:
            rows.append((REFERENCE, REFERENCE, model))
        choose = cases.turning if one.turns else cases.held_out
        listed = prompts[: one.prompts] if prompts else choose(one.prompts, plan.seed, world)
        for number, case in enumerate(listed):
            for row, method, spec in rows:
                if METHODS[method].sample is None and (case.attributes is None or not rendered):
                    continue  # there is no true scene
                stills = number < (len(cases.CHANGING) if one.turns else 1)
                planned.append(Job(row, method, spec, case, number, one.seconds, plan.seed + number, stills))
    return planned


_bench: Bench


def _begin(bench: Bench) -> None:
    global _bench  # noqa: PLW0603 - what a process of the pool is given once
    _bench = bench


def _make(job: Job) -> dict[str, Any]:
    return make(_bench, job)


@contextmanager
def _pool(bench: Bench, processes: int) -> Iterator[Callable[[Job], Future[dict[str, Any]]]]:
    """A function that makes a video in one of the processes; with one process, in this."""
    if processes == 1:

        def here(job: Job) -> Future[dict[str, Any]]:
            future: Future[dict[str, Any]] = Future()
            try:
                future.set_result(make(bench, job))
            except Exception as error:  # noqa: BLE001 - as in another process: whoever asks for the result is told
                future.set_exception(error)
            return future

        yield here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(bench,)) as pool:
        yield lambda job: pool.submit(_make, job)


def _check_device(name: str) -> None:
    """Raises EvaluationError for a device that is not here."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise EvaluationError(f"--device {name}: choose cpu or cuda")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise EvaluationError(f"--device {name}: torch {torch.__version__} finds no such GPU here")


def _check_writable(output: Path) -> None:
    """Raises EvaluationError for a folder that no figures can be kept in, before any video is made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise EvaluationError(f"{output}: nothing can be written there: {error.strerror or error}") from error


def run(
    plan: Plan,
    *,
    model: str,
    output: Path,
    variants: Mapping[str, str] | None = None,
    prompts: list[Case] | None = None,
    budget_minutes: float | None = None,
    processes: int = 1,
    device: str = "cpu",
    suite: tuple[vbench.Suite, str] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Makes what is missing of an evaluation and returns its results, which `output/results.json` then holds.

    Stops to begin new videos when `budget_minutes` are over; the results say how many are missing, and which could not
    be made. `variants` maps a method to the folder of weights trained for it. `suite` is VBench or VBench-Long, and the
    Python that has it. Raises EvaluationError and ModelLoadError.
    """
    _check_device(device)
    if suite is not None:
        vbench.check(suite[1], suite[0])
    variants = dict(variants or {})
    for name in variants:
        if name not in METHODS or METHODS[name].sample is None:
            raise EvaluationError(f"--variant {name}: no such method; there are {', '.join(METHODS)}")
    if variants and not any(one.variants for one in plan.sets):
        raise EvaluationError("--variant: no set of the plan has `variants = true`")
    if variants and figures.OURS not in variants:
        say(
            f"no --variant {figures.OURS}=FOLDER, trained as long: variants are compared with the model's own weights"
        )
    for one in plan.sets if prompts else ():
        if not one.turns and one.prompts < len(prompts or ()):
            say(f"the {one.seconds:g}-s set takes the first {one.prompts} of {len(prompts or ())} prompts")
    facts = describe(model)
    for folder in variants.values():
        if describe(folder).geometry.latent_channels != facts.geometry.latent_channels:
            raise EvaluationError(f"--variant {folder}: its latents are not those of {facts.name}")
    bench = Bench(
        model, device, output, plan.segment_seconds, suite[0] if suite else None, changes=plan.sampler
    )
    planned = jobs(plan, model, variants, prompts)
    if not has_true_scenes(facts.geometry):
        (width, height), fps = facts.geometry.default_size, facts.geometry.fps
        say(
            f"true scenes are square and have {scenes.FPS} frames a second, not {width}x{height} and {fps}: left out"
        )
    if not planned:
        raise EvaluationError("the plan has no videos that can be made of this model and these prompts")
    for job in planned:
        bench.turning(job)
    _check_writable(output)
    made = [bench.made(job) for job in planned]
    waiting = deque(job for job, video in zip(planned, made, strict=True) if video is None)
    total, begun = len(waiting), time.monotonic()
    say(f"{len(planned)} videos, {len(planned) - total} of them made before")
    work = sum(job.seconds for job in waiting)
    done = 0.0
    failed: list[dict[str, Any]] = []
    with _pool(bench, processes) as start:
        running: dict[Future[dict[str, Any]], Job] = {}
        while waiting or running:
            minutes = (time.monotonic() - begun) / 60
            if waiting and budget_minutes is not None and minutes >= budget_minutes:
                say(f"{budget_minutes:g} minutes are over: {len(waiting)} videos are left for another time")
                waiting.clear()
            while waiting and len(running) < processes:
                job = waiting.popleft()
                running[start(job)] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                done += job.seconds
                try:
                    video = future.result()
                except BrokenExecutor as error:
                    raise EvaluationError(
                        "a process died, maybe for want of memory; what was made is kept"
                    ) from error
                except ModelLoadError:
                    raise
                except Exception as error:  # noqa: BLE001 - a method that cannot make a video is a result, too
                    failed.append(_failure(job, error))
                    say(f"{job.seconds:g} s, prompt {job.number}, {job.row}: failed: {failed[-1]['error']}")
                    if isinstance(error, MethodError):
                        hopeless = [other for other in waiting if other.row == job.row]
                        failed += [_failure(other, error) for other in hopeless]
                        waiting = deque(other for other in waiting if other.row != job.row)
                        work -= sum(other.seconds for other in hopeless)
                    continue
                left = (time.monotonic() - begun) / done * (work - done) / 60
                say(
                    f"{job.seconds:g} s, prompt {job.number}, {job.row}: {video['cost']['seconds']:.1f} s, "
                    f"{video['cost']['forwards']} forwards; about {left:.0f} min left"
                )
    results = _results(bench, plan, planned, variants, failed)
    _write(output / "results.json", dumps(results))
    if suite:
        say(f"{suite[0]} judges the clips")
        results["vbench"] = vbench.score(suite[1], output, suite[0], [job.place for job in planned])
        _write(output / "results.json", dumps(results))
    return results


def _write(path: Path, text: str) -> None:
    """The whole file or, when this is interrupted or the disk is full, the one before it. Raises EvaluationError."""
    try:
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}") from error


def _failure(job: Job, error: Exception) -> dict[str, Any]:
    words = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
    return {
        "row": job.row,
        "seconds": job.seconds,
        "number": job.number,
        "error": words[0] if isinstance(error, EvaluationError) and words else reason,
    }


def _results(
    bench: Bench, plan: Plan, planned: list[Job], variants: Mapping[str, str], failed: list[dict[str, Any]]
) -> dict[str, Any]:
    made = [bench.made(job) for job in planned]
    videos = [{k: v for k, v in video.items() if k != "fingerprint"} for video in made if video is not None]
    if not videos:
        why = f"{failed[0]['row']}: {failed[0]['error']}" if failed else "give the evaluation more minutes"
        raise EvaluationError(f"no video was made: {why}")
    facts, dates = describe(bench.model), [video["date"] for video in videos]
    return {
        "schema": SCHEMA,
        "code": code(),
        "model": {
            "name": facts.name,
            "weights": weights(bench.model),
            "sampler": asdict(facts.sampler),
            "training_shares": None if plan.sampler else training_shares(bench.model),
        },
        "variants": {name: weights(folder) for name, folder in variants.items()},
        "sampler": asdict(bench.sampler),
        "geometry": {
            "size": list(facts.geometry.default_size),
            "fps": facts.geometry.fps,
            "latent_frames": facts.geometry.temporal_factor,
        },
        "plan": asdict(plan),
        "missing": len(planned) - len(videos) - len(failed),
        "failed": failed,
        "machine": {
            "device": bench.device,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "date": " to ".join(sorted({min(dates), max(dates)})),
            "longtake": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "summary": figures.summarise(videos),
        "turns": figures.turns(videos),
        "videos": videos,
    }


def dumps(results: Mapping[str, Any]) -> str:
    """JSON with one video per line."""
    head = {k: v for k, v in results.items() if k != "videos"}
    lines = ",\n".join(json.dumps(video) for video in results["videos"])
    return json.dumps(head, indent=1)[:-2] + f',\n "videos": [\n{lines}\n]}}\n'
