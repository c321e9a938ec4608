"""Requests made up from the OpenAPI document, right and wrong ones: no 5xx, and no answer that it does not describe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.client import LongtakeClient
from app.main import create_app
from app.settings import Settings
from tests.conformance.conftest import Service

NOBODY = "video_" + 32 * "0"

CHECKED = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="session")
def known_ids(open_service: Service) -> Iterator[list[str]]:
    """Videos in several states, none of which goes on by itself."""
    with LongtakeClient(open_service.url) as client:
        made = client.create_and_poll("a circle", seconds=2, size="16x16")
        failed = client.create_and_poll("error", seconds=1, size="16x16")
        cancelled = client.create("a circle", seconds=60, size="16x16")
        client.cancel(cancelled.id)
        yield [made.id, failed.id, client.wait(cancelled.id).id, NOBODY]


@pytest.fixture(autouse=True)
def _nothing_goes_on(open_service: Service, known_ids: list[str]) -> Iterator[None]:
    """What was asked for by chance is not made."""
    yield
    with LongtakeClient(open_service.url) as client:
        for video in list(client.list()):
            if video.id not in known_ids:
                client.delete(video.id)


def served() -> dict[str, Any]:
    """The document, as every service of this version serves it."""
    document: dict[str, Any] = create_app(Settings(redis_url=SecretStr("redis://127.0.0.1:1"))).openapi()
    return document


SCHEMA = schemathesis.openapi.from_dict(served())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}


def test_the_document_is_the_one_that_is_served(open_service: Service) -> None:
    assert httpx.get(f"{open_service.url}/openapi.json").json() == served()


def test_every_operation_is_tried() -> None:
    assert len(OPERATIONS) == sum(len(methods) for methods in served()["paths"].values())


def test_every_operation_is_described_with_examples() -> None:
    document = served()
    schemas = document["components"]["schemas"]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    for name, schema in schemas.items():
        assert schema.get("description"), name
        for example in schema.get("examples", []):
            rooted = {**schema, "components": document["components"]}
            jsonschema.Draft202012Validator(rooted).validate(example)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], f"{method} {path}"
            assert operation["description"], f"{method} {path}"
            parts = [operation.get("requestBody", {}), *operation["responses"].values()]
            for part in parts:
                for content in part.get("content", {}).values():
                    name = content["schema"].get("$ref", "").rpartition("/")[2]
                    assert not name or schemas[name].get("examples"), f"{method} {path}: {name}"


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_described(label: str, open_service: Service, known_ids: list[str]) -> None:
    try_out(OPERATIONS[label], open_service.url, known_ids, 8)


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_described_at_length(label: str, open_service: Service, known_ids: list[str]) -> None:
    try_out(OPERATIONS[label], open_service.url, known_ids, 300)


def try_out(operation: Any, url: str, ids: list[str], examples: int) -> None:
    """Sends as many right requests as wrong ones, mostly about videos that are there."""
    parameters = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @parameters
    @given(data=strategies.data())
    def run(data: Any) -> None:
        mode = data.draw(strategies.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
        try:
            case = data.draw(operation.as_strategy(generation_mode=mode))
        except SkipTest:  # what takes nothing cannot be asked wrongly
            return
        if "video_id" in case.path_parameters:
            # The others are still needed.
            known = ids[-1:] if case.method == "DELETE" else ids
            case.path_parameters["video_id"] = data.draw(strategies.sampled_from(known))
        case.call_and_validate(base_url=url, checks=CHECKED, timeout=20)

    run()
