"""The end of videos whose owner's key was revoked: nobody can stop them any more."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from app.jobs.migrations import RecordError
from app.jobs.store import VideoGone, VideoStore
from app.keys import ApiKey

log = logging.getLogger(__name__)


def cancel_revoked(store: VideoStore, keys: Iterable[ApiKey]) -> list[str]:
    """Cancels the videos of every revoked key that have not ended; returns their ids. What is finished stays.

    A key that is not among `keys` was lost, not revoked, and its videos go on. Any number of processes may do it.
    Raises `redis.exceptions.RedisError`.
    """
    revoked = {key.id for key in keys if key.revoked_at is not None}
    cancelled: list[str] = []
    for video_id in store.uncancelled(revoked) if revoked else ():
        try:
            store.request_cancel(video_id)
        except (VideoGone, RecordError):  # a version that can read the record cancels it
            continue
        log.info("its owner's key was revoked; it is cancelled", extra={"video": video_id})
        cancelled.append(video_id)
    return cancelled
