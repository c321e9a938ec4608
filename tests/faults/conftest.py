"""One service for the faults that leave its Redis and store alone, and a model that is quick and real."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.agreement import Request, Undisturbed, undisturbed
from tests.faults.cluster import Cluster, running_cluster
from tests.worker import tiny

REQUESTS = (Request(seed=1), Request(prompt="a red square", seconds=7.0, seed=2))
"""Of 24 and 21 chunks, in whole and in part filled by frames."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pipeline with small random weights."""
    return tiny.save(tmp_path_factory.mktemp("faults-model"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Cluster]:
    """Two API replicas on one Redis and a folder. Tests start the workers they need, and end them."""
    with running_cluster(tmp_path_factory.mktemp("faults"), model, apis=2) as running:
        yield running


@pytest.fixture(scope="session")
def expected(cluster: Cluster) -> Mapping[Request, Undisturbed]:
    """What becomes of the requests when nothing happens."""
    return undisturbed(cluster, REQUESTS)


@pytest.fixture
def own_cluster(tmp_path: Path, model: Path, cluster: Cluster) -> Iterator[Callable[..., Cluster]]:
    """Starts a service for one test alone."""
    with ExitStack() as stack:

        def start(**options: Any) -> Cluster:
            # Processes with an environment of their own need a nursery that has it.
            nursery = None if "extra_environment" in options else cluster.nursery
            return stack.enter_context(
                running_cluster(tmp_path / "service", model, nursery=nursery, **options)
            )

        yield start


@pytest.fixture
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a file system or makes network namespaces")


def tool(name: str) -> str:
    """Path of a program; skips the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
