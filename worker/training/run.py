"""What every training run shares: configuration files, the schedule, checkpoints, progress lines, the device."""

from __future__ import annotations

import json
import math
import os
import pickle
import textwrap
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, distributed

from worker.devices import device_of

Section = TypeVar("Section")

# What the fields of a table may hold; `section` checks it.
Whole: TypeAlias = Annotated[int, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Amount: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Part: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A configuration file, or an input, that does not fit the recipe; one line for a person."""

    code: ClassVar[str] = "invalid_training_config"


def section(kind: type[Section], table: dict[str, Any], where: str) -> Section:
    """A dataclass from one table of a TOML file; lists become tuples.

    Raises `ConfigError` for an unknown, missing or senseless value.
    """
    check_keys(kind, table, where)
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = "".join(f" {part}" for part in problem["loc"])
        told = problem.get("ctx", {}).get("error", problem["msg"])
        raise ConfigError(f"[{where}]{place}: {told}") from error


def check_keys(kind: type, table: dict[str, Any], where: str) -> None:
    """Raises `ConfigError` for keys of a TOML table that are no fields of the dataclass."""
    if unknown := table.keys() - {field.name for field in fields(kind)}:
        raise ConfigError(f"[{where}] has unknown keys: {', '.join(sorted(unknown))}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one; each of several processes gets its own.

    Raises `ConfigError` for a device that is not there, and for more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and "LOCAL_RANK" in os.environ:
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        if processes > (gpus := torch.cuda.device_count() if name == "cuda" else 1):
            raise ConfigError(
                f"[machine] device {name}: {processes} processes need a GPU each, there are {gpus}"
            )
        if name == "cuda":
            name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return device_of(name)
    except ValueError as error:
        raise ConfigError(f"[machine] {error}") from error


class Ranks:
    """Data parallelism: the processes that `torchrun` started, or this one alone.

    On a CPU, one thread per process and one process per core train a small model about twice as fast as threads do.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = device
        if self.count > 1 and not distributed.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)  # NCCL talks through the current one
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process writes checkpoints and reports."""
        return self.rank == 0

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Averages the gradients over all processes."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # unused in this process, perhaps not in the others
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Waits for all processes."""
        if self.count > 1:
            distributed.barrier()

    def agree(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, device=self.device, dtype=torch.float32)
        distributed.broadcast(shared, 0)
        return shared.item()

    def rng(self, seed: int, step: int) -> np.random.Generator:
        """The randomness of a training step in this process; a resumed run needs no generator state."""
        return np.random.default_rng((seed, step, self.rank))

    def noise(self, seed: int, step: int) -> torch.Generator:
        """The same for tensors on the device."""
        return torch.Generator(self.device).manual_seed((seed * 1_000_003 + step) * 64 + self.rank)


@dataclass
class Schedule:
    """Learning-rate schedule over `steps` and, if `minutes` is not 0, over a wall-clock budget, whichever is further.

    Warm-up, then constant until `hold` (a fraction of the run), then a cosine down to `floor` times the peak.
    """

    steps: int
    minutes: float
    warmup_steps: int
    hold: float
    floor: float = 0.02

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.earlier_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Time spent on this run, in this and earlier processes."""
        return self.earlier_seconds + time.monotonic() - self.started

    def fraction(self, step: int) -> float:
        """How much of the run is over, 0..1."""
        by_step = step / self.steps
        by_clock = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_step, by_clock))

    def factor(self, step: int) -> float:
        """The learning rate at `step` as a fraction of its peak."""
        done = self.fraction(step)
        fall = max(0.0, (done - self.hold) / (1 - self.hold))
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * fall))
        return min(1.0, (step + 1) / self.warmup_steps) * cosine


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint so that a crash leaves either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`, or None. Raises `ConfigError` where it cannot be read.

    On the CPU, where an optimizer wants some of its state; modules and optimizers copy the rest to their device.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} cannot be read: {textwrap.shorten(str(error), 200)}") from error
    return state


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Loads weights that come from `source`. Raises `ConfigError` where they are not those of such a module."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = textwrap.shorten(str(error), 200)
        raise ConfigError(f"{source} does not hold the models of this configuration: {told}") from error


def report(log: Path, **values: Any) -> None:
    """One progress line on standard output, and the same as JSON at the end of `log`."""
    line = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def autocast(device: torch.device, enabled: bool) -> Iterator[None]:
    """bfloat16 autocast, if enabled."""
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield


def clip_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    """Scales the gradient down to a norm of 1. Raises `ConfigError` where it is not finite: the steps were too long."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    if not torch.isfinite(norm):
        raise ConfigError(
            f"step {step}: the gradient is not finite; go on from the last checkpoint with a lower learning_rate"
        )


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights; the decay grows from 0 so that the start is forgotten."""
    decay = min(decay, (step + 1) / (step + 20))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
