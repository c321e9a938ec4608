"""Versions of stored records: what older software wrote is brought up to date, what newer software wrote is refused.

Every record says which version wrote it: a video in `spec.schema_version` (its state belongs to it), everything else in
`schema_version`: a chunk, a manifest, a model's card, a webhook delivery (its log belongs to it), the secret that signs
deliveries, and what an idempotency key names. Events are answers as they were given, and stay so. A record is migrated
when it is read, one version at a time, by the functions of one table, and stored anew when it is next written as a
whole: a video when a worker claims it.

To change what is stored: raise `app.jobs.job.SCHEMA_VERSION`, add the step to `_STEPS`, and keep a record of the
version before in `tests/app/jobs/records/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel

from app.jobs.job import SCHEMA_VERSION

Record: TypeAlias = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
Kind = Literal["video", "chunk", "manifest", "model", "delivery", "secret", "idempotency"]


class RecordError(Exception):
    """A stored record that this version cannot read: damaged, or written by a newer one.

    The message says which in words fit for a client; `__cause__` has the details.
    """


class RecordTooNew(RecordError):
    """A newer version wrote the record. It is left alone: that version, or a later one, goes on with it."""

    def __init__(self, version: object) -> None:
        super().__init__(
            f"The record has schema version {version}; this version of longtake reads up to {SCHEMA_VERSION}."
        )


class RecordDamaged(RecordError):
    """What is stored is not a record."""

    def __init__(self) -> None:
        super().__init__("The record is damaged.")


def migrated(kind: Kind, record: Any) -> Record:
    """A record as this version would have written it. What it holds beyond its version is the caller's to check.

    `record` is parsed JSON; a video is ``{"spec": ..., "state": ...}``. Raises `RecordTooNew` and `RecordDamaged`.
    """
    try:
        version = (record["spec"] if kind == "video" else record).get("schema_version", 1)
        if not isinstance(version, int) or version < 1:
            raise RecordDamaged
        if version > SCHEMA_VERSION:
            raise RecordTooNew(version)
        for step in range(version, SCHEMA_VERSION):
            record = _STEPS[step][kind](record)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordDamaged from error
    result: Record = record
    return result


def parsed(kind: Kind, model: type[Model], raw: bytes) -> Model:
    """A record of one JSON text. Raises `RecordTooNew` and `RecordDamaged`."""
    try:
        return model.model_validate(migrated(kind, json.loads(raw)))
    except ValueError as error:  # pydantic's errors are of this kind
        raise RecordDamaged from error


# -- from 1: videos did not expire; only videos and manifests had a version of their own --------------------------


def _video_from_1(video: Record) -> Record:
    return {
        "spec": {**video["spec"], "schema_version": 2},
        "state": {**video["state"], "expires_at": None},
    }


def _manifest_from_1(manifest: Record) -> Record:
    return {
        **manifest,
        **_video_from_1(manifest),
        "chunks": [_versioned_from_1(chunk) for chunk in manifest["chunks"]],
        "schema_version": 2,
    }


def _versioned_from_1(record: Record) -> Record:
    return {**record, "schema_version": 2}


_STEPS: dict[int, dict[Kind, Callable[[Record], Record]]] = {
    1: {
        "video": _video_from_1,
        "chunk": _versioned_from_1,
        "manifest": _manifest_from_1,
        "model": _versioned_from_1,
        "delivery": _versioned_from_1,
        "secret": _versioned_from_1,
        "idempotency": _versioned_from_1,
    },
}
