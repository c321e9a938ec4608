"""The end of endless videos whose owner's day is spent: nobody asks again before they go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from app.errors import APIError
from app.jobs.job import Status
from app.jobs.store import VideoGone, VideoStore
from app.keys import ApiKey
from app.limits import limits_of
from app.settings import Settings
from app.steering import finish

log = logging.getLogger(__name__)

_AT_ONCE = 1000


def finish_overdrawn(store: VideoStore, keys: Iterable[ApiKey], settings: Settings) -> list[str]:
    """Finishes the running endless videos of every key beyond its day's seconds; returns their ids.

    They end with the chunks that are begun. Any number of processes may do it. Raises `redis.exceptions.RedisError`.
    """
    finished: list[str] = []
    for key in keys:
        most = limits_of(key, settings).seconds_per_day
        if not most or store.spent_seconds(key.id) <= most:
            continue
        videos, _ = store.page(key.id, limit=_AT_ONCE, status=Status.IN_PROGRESS)
        for video in videos:
            endless = video.spec.seconds is None and not video.state.finish_requested
            if endless and _finished(store, video.id):
                log.info("its owner's day is spent; it is finished", extra={"video": video.id})
                finished.append(video.id)
    return finished


def _finished(store: VideoStore, video_id: str) -> bool:
    try:
        store.request(video_id, finish)
    except (APIError, VideoGone):  # it ends already
        return False
    return True
