"""What every route works with: settings, records, objects, events. One per application."""

from __future__ import annotations

import re
import threading
from typing import Annotated

from fastapi import Depends, Request

from app.errors import APIError, not_found
from app.jobs.connection import connect
from app.jobs.events import EventHub
from app.jobs.job import Video
from app.jobs.store import VideoStore
from app.schemas import VideoObject, video_object
from app.settings import Settings
from app.storage import ObjectStore, store_of

_VIDEO_ID = re.compile(r"video_[0-9a-f]{32}", re.ASCII)

# A request answers within a few seconds even when Redis or the store does not: 503 is better than silence.
_REDIS_SECONDS = 1.5
_STORE_SECONDS = 5.0
_ATTEMPTS = 2


class Context:
    """Opens nothing before it is needed: the API starts, and says what is wrong, while Redis or the store is away."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError when the settings name no Redis."""
        if settings.redis_url is None:
            raise ValueError("LONGTAKE_REDIS_URL is not set")
        self.settings = settings
        self.origin = (settings.public_url or "").rstrip("/")
        url = settings.redis_url.get_secret_value()
        self.videos = VideoStore(
            connect(url, timeout_seconds=_REDIS_SECONDS, retries=_ATTEMPTS - 1),
            origin=self.origin,
            max_events=settings.max_events,
            max_queued=settings.max_queued,
            idempotency_seconds=settings.idempotency_seconds,
        )
        self.events = EventHub(
            url, heartbeat_seconds=settings.sse_heartbeat_seconds, queue_limit=settings.sse_client_queue
        )
        self._objects: ObjectStore | None = None
        self._opening = threading.Lock()

    @property
    def objects(self) -> ObjectStore:
        """The object store. Raises `StorageError` while it cannot be opened; blocks."""
        with self._opening:
            if self._objects is None:
                self._objects = store_of(
                    self.settings, timeout_seconds=_STORE_SECONDS, max_attempts=_ATTEMPTS
                )
            return self._objects

    def video(self, video_id: str) -> Video:
        """The video of a path. Raises `APIError` 404."""
        video = self.videos.get(self.video_id(video_id))
        if video is None:
            raise no_video()
        return video

    def video_id(self, text: str) -> str:
        """The id in a path. Raises `APIError` 404 for what cannot be one."""
        if not _VIDEO_ID.fullmatch(text):
            raise no_video()
        return text

    def wire(self, *videos: Video) -> list[VideoObject]:
        """Videos as clients see them now."""
        positions = self.videos.queue_positions(videos)
        return [video_object(video, self.origin, positions.get(video.id)) for video in videos]


def no_video() -> APIError:
    """404 for an id that is not, or no longer, a video's."""
    return not_found("There is no such video.", code="video_not_found", param="video_id")


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
