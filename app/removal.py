"""The end of a video's data: deletion on request, and expiry.

Files go before the record, and the manifest before all other files. So a removal that is interrupted is found again by
its record and repeated, and one that is interrupted together with the loss of Redis is never restored in part.
"""

from __future__ import annotations

import logging

from app.jobs.job import Video
from app.jobs.store import VideoStore
from app.storage import ObjectStore, StorageError
from app.storage.objects import manifest_key, video_prefix

log = logging.getLogger(__name__)

# Videos that one look removes at most: other processes look too, and so does the next.
_BATCH = 100


def remove(video: Video, store: VideoStore, objects: ObjectStore) -> None:
    """Removes every file and record of a video; a worker that has it stops. Does no harm when repeated.

    Raises `StorageError` and `redis.exceptions.RedisError`; the record is there then, and this can be repeated.
    """
    objects.delete(manifest_key(video.id))
    objects.delete_prefix(video_prefix(video.id))
    store.delete(video)
    if not video.state.status.terminal:
        objects.delete_prefix(video_prefix(video.id))  # somebody may have written something in between


def sweep(store: VideoStore, objects: ObjectStore) -> list[str]:
    """Removes videos whose time is up, and returns their ids. Any number of processes may do it at the same time.

    A video whose files the store does not remove does not keep the others, unless the store is away altogether. Raises
    what `remove` does; what was not removed is found by the next sweep.
    """
    removed: list[str] = []
    stay: list[str] = []
    refused: StorageError | None = None
    for video in store.expired(_BATCH):
        try:
            remove(video, store, objects)
        except StorageError as error:
            if error.retryable:
                objects.check()  # away altogether: each of the others would only be waited for too
            stay.append(video.id)
            refused = error
            continue
        log.info("expired; record and files are removed", extra={"video": video.id})
        removed.append(video.id)
    if refused is not None:
        if not removed:
            raise refused
        log.warning("expired, but their files stay: %s (%s)", ", ".join(stay), refused)
    return removed
