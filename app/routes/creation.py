"""What all requests that make a video have in common: the idempotency key, the record, the answer."""

from __future__ import annotations

import logging
import re
from typing import Annotated

from fastapi import Depends, Header, Response
from redis.exceptions import RedisError

from app.context import Context
from app.errors import APIError, invalid
from app.jobs.job import VideoSpec
from app.jobs.store import Created, IdempotencyMismatch
from app.schemas import VideoObject
from app.storage import StorageError
from app.storage.objects import video_prefix

log = logging.getLogger(__name__)

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}", re.ASCII)


def _checked_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Repeating a request with the same key and body gives the first answer for a day."
        ),
    ] = None,
) -> str | None:
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise invalid("It must be 1 to 255 printable ASCII characters.", param="Idempotency-Key")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_checked_key)]


def replayed(ctx: Context, key: str | None, digest: str) -> Created | None:
    """What an idempotency key names already: the first answer holds, whatever has become of the source since.

    Raises `APIError`.
    """
    if key is None:
        return None
    try:
        video = ctx.videos.replayed(ctx.owner, key, digest)
    except IdempotencyMismatch as error:
        raise _mismatch() from error
    return None if video is None else Created(video, replayed=True)


def _mismatch() -> APIError:
    return APIError(
        422,
        "This Idempotency-Key was used before with another body.",
        code="idempotency_mismatch",
        param="Idempotency-Key",
    )


def record(ctx: Context, spec: VideoSpec, key: str | None, digest: str) -> Created:
    """Puts a video in line. What was stored for it before goes if nothing comes of it. Raises `APIError`."""
    try:
        created = ctx.create(spec, idempotency=None if key is None else (key, digest))
    except IdempotencyMismatch as error:
        forget(ctx, spec)
        raise _mismatch() from error
    except (APIError, RedisError):
        forget(ctx, spec)
        raise
    if created.video.id != spec.id:
        forget(ctx, spec)
    return created


def forget(ctx: Context, spec: VideoSpec) -> None:
    """Removes what was stored for a video that has no record."""
    if spec.reference is None:
        return
    try:
        # An answer that was lost on the way may have been a success.
        if ctx.videos.get(spec.id) is None:
            ctx.objects.delete_prefix(video_prefix(spec.id))
    except (RedisError, StorageError) as error:
        log.warning("the reference of %s may be left behind: %s", spec.id, type(error).__name__)


def answer(ctx: Context, response: Response, created: Created) -> VideoObject:
    """The new video, or the one that an idempotency key named."""
    response.headers["openai-poll-after-ms"] = str(ctx.settings.poll_after_ms)
    if created.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return ctx.wire(created.video)[0]
