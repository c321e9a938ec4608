"""One configuration file: the shape of the model and how each part is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.training import run
from worker.training.export import Export
from worker.training.latents import LatentSet
from worker.training.text import TextModel
from worker.training.transformer import TransformerModel, TransformerTraining
from worker.training.vae import VaeModel, VaeTraining
from worker.training.windows import WindowMixture


@dataclass(frozen=True)
class Machine:
    """Where the recipe runs."""

    device: str = "auto"
    threads: run.Whole = 0  # per process, of a CPU; 0 leaves the choice to torch


def _tables(path: Path, *extended_by: Path) -> dict[str, Any]:
    """The tables of a file over those of the file that it extends, if it does. Raises `ConfigError`."""
    if path.resolve() in extended_by:
        raise run.ConfigError(f"{path}: extends itself")
    tables = run.read_toml(path)
    base_name = tables.pop("extends", None)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise run.ConfigError(f"{path}: {name} is outside of the tables")
    if base_name is None:
        return tables
    base = _tables(path.parent / str(base_name), path.resolve(), *extended_by)
    return base | {name: base.get(name, {}) | table for name, table in tables.items()}


@dataclass(frozen=True)
class Recipe:
    """The tables of a configuration file."""

    machine: Machine
    vae: VaeModel
    vae_training: VaeTraining
    latents: LatentSet
    text: TextModel
    transformer: TransformerModel
    windows: WindowMixture
    transformer_training: TransformerTraining
    export: Export

    def __post_init__(self) -> None:
        if not self.vae_training.world == self.latents.world == self.text.world:
            raise run.ConfigError("[vae_training], [latents] and [text] are of different worlds")
        longest = self.windows.longest
        for kind, (videos, latents) in self.latents.kinds().items():
            length = latents if kind == "start" else latents - self.latents.settle
            if videos and length < longest:
                raise run.ConfigError(
                    f"[windows] has windows of {longest} latents, [latents] gives {kind} videos {length}"
                )

    @staticmethod
    def read(path: Path) -> Recipe:
        """Reads and checks a configuration file; with `extends` it holds what differs from the file named there."""
        tables = _tables(path)
        kinds = {
            "machine": Machine,
            "vae": VaeModel,
            "vae_training": VaeTraining,
            "latents": LatentSet,
            "text": TextModel,
            "transformer": TransformerModel,
            "windows": WindowMixture,
            "transformer_training": TransformerTraining,
            "export": Export,
        }
        if set(tables) != set(kinds):
            raise run.ConfigError(f"{path}: expected the tables {', '.join(kinds)}")
        return Recipe(**{name: run.section(kind, tables[name], name) for name, kind in kinds.items()})

    def device(self) -> torch.device:
        """The device to train on."""
        return run.pick_device(self.machine.device)
