"""What the suites of the evaluation share: results of every method on a tiny model, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.evaluation import study


@pytest.fixture(scope="session")
def smoke_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the plan `smoke` on a model with random weights, with a variant."""
    output = tmp_path_factory.mktemp("smoke")
    study.run(
        study.Plan.read("smoke"),
        model=str(tiny_folder),
        output=output,
        variants={"no-level-shift": str(tiny_folder)},
        say=lambda line: None,
    )
    return output


@pytest.fixture(scope="session")
def smoke(smoke_folder: Path) -> Any:
    """Its results."""
    from worker.evaluation import report

    return report.read(smoke_folder / "results.json")
