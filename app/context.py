"""What every route works with: settings, records, objects, events, and who asks."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request

from app.auth import Caller
from app.committed import CommittedChunks
from app.errors import APIError, not_found, too_many, unavailable
from app.jobs.connection import connect
from app.jobs.events import EventHub
from app.jobs.job import VIDEO_ID, ChunkRecord, Video, VideoSpec
from app.jobs.store import Created, QueueFull, VideoStore
from app.keys import Keyring
from app.limits import DailySecondsExceeded, RequestRate, TooManyQueued, announce, seconds_until_tomorrow
from app.metrics import Metrics
from app.overdrawn import finish_overdrawn
from app.removal import sweep
from app.revoked import cancel_revoked
from app.schemas import ChunkObject, VideoObject, chunk_object, format_seconds, video_object
from app.settings import Settings
from app.signatures import Signer
from app.storage import ObjectStore, store_of

# A request answers within a few seconds even when Redis or the store does not: 503 is better than silence.
_REDIS_SECONDS = 1.5
_STORE_SECONDS = 5.0
_ATTEMPTS = 2

THREADS = 64
"""Requests that may wait for Redis or the store at the same time; event streams need no thread."""

# A transaction that watches keys has a connection, and reads over another meanwhile: with fewer than two for each
# thread all could hold their first and wait for the second. The others are for upkeep and event streams.
_CONNECTIONS = 2 * THREADS + 16


class Context:
    """The application's services; in a route, those of one caller, who sees and makes only what is its own.

    Opens nothing before it is needed: the API starts, and says what is wrong, while Redis or the store is away.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError when the settings name no Redis."""
        if settings.redis_url is None:
            raise ValueError("LONGTAKE_REDIS_URL is not set")
        self.settings = settings
        self.origin = settings.public_url or ""
        url = settings.redis_url.get_secret_value()
        self.videos = VideoStore(
            connect(
                url,
                max_connections=_CONNECTIONS,
                timeout_seconds=_REDIS_SECONDS,
                retries=_ATTEMPTS - 1,
            ),
            origin=self.origin,
            max_events=settings.max_events,
            max_queued=settings.max_queued,
            idempotency_seconds=settings.idempotency_seconds,
            starvation_seconds=settings.starvation_seconds,
            turn_seconds=settings.turn_seconds,
            keep_seconds=settings.keep_seconds,
        )
        self.committed = CommittedChunks(self.videos)
        self.events = EventHub(
            url,
            self.videos,
            heartbeat_seconds=settings.sse_heartbeat_seconds,
            queue_limit=settings.sse_client_queue,
        )
        self._decoding = asyncio.Semaphore(settings.uploads_at_once)
        self.keyring = None if settings.api_keys_file is None else Keyring(settings.api_keys_file)
        self.request_rate = RequestRate(self.videos.redis)
        secret = settings.signing_secret
        self.signer = Signer(
            self.videos.redis,
            None if secret is None else secret.get_secret_value(),
            settings.signed_url_seconds,
        )
        self.metrics = Metrics(self.videos, lambda: self.events.watchers)
        self._store = _LazyStore(settings)
        self._caller: Caller | None = None

    def of(self, caller: Caller | None) -> Context:
        """The same services for one caller."""
        bound = copy.copy(self)
        bound._caller = caller
        return bound

    @property
    def caller(self) -> Caller:
        """Who asks. There is nobody at a public address, and outside of a request."""
        if self._caller is None:
            raise RuntimeError("what belongs to somebody was asked for by nobody")
        return self._caller

    @property
    def owner(self) -> str:
        """Whose videos these are."""
        return self.caller.owner

    @property
    def objects(self) -> ObjectStore:
        """The object store. Raises `StorageError` while it cannot be opened; blocks."""
        return self._store.get()

    def chores(self) -> dict[str, Callable[[], object]]:
        """What has to be done again and again beside answering; see `Upkeep`."""

        def expire() -> None:
            while sweep(self.videos, self.objects):
                pass

        def limits() -> None:
            if self.keyring is not None:
                announce(self.videos.redis, self.keyring.all(), self.settings)
                finish_overdrawn(self.videos, self.keyring.all(), self.settings)

        def revoked() -> None:
            if self.keyring is not None:
                cancel_revoked(self.videos, self.keyring.all())

        def histories() -> None:
            self.videos.find_ended()
            while self.videos.cut_histories():
                pass

        return {
            "removal of expired videos": expire,
            "limits of API keys": limits,
            "videos of revoked API keys": revoked,
            "events of ended videos": histories,
        }

    @asynccontextmanager
    async def decoding(self) -> AsyncIterator[None]:
        """A turn to decode an upload. Raises `APIError` 503 when the others take too long."""
        try:
            async with asyncio.timeout(self.settings.upload_queue_seconds):
                await self._decoding.acquire()
        except TimeoutError as error:
            raise unavailable(
                "Too many uploads are being decoded.", code="uploads_busy", retry_after_seconds=10
            ) from error
        try:
            yield
        finally:
            self._decoding.release()

    def video(self, video_id: str, *, param: str = "video_id") -> Video:
        """The caller's video of a path, or of the field `param`.

        Raises `APIError` 404, also for the video of somebody else.
        """
        video = self.videos.get(self.video_id(video_id, param=param))
        if video is None or video.spec.owner != self.owner:
            raise no_video(param)
        return video

    def video_id(self, text: str, *, param: str = "video_id") -> str:
        """The id in a path, whoever's it is. Raises `APIError` 404 for what cannot be one."""
        if not VIDEO_ID.fullmatch(text):
            raise no_video(param)
        return text

    def create(self, spec: VideoSpec, *, idempotency: tuple[str, str] | None = None) -> Created:
        """Records and enqueues a video of the caller's, within its limits.

        Raises `APIError` 429, and `IdempotencyMismatch`.
        """
        spec = spec.model_copy(update={"owner": self.owner})
        limits = self.caller.limits
        try:
            return self.videos.create(spec, idempotency=idempotency, limits=limits)
        except QueueFull as error:
            raise too_many(
                f"{self.settings.max_queued} videos are waiting or paused already.",
                code="queue_full",
                retry_after_seconds=30,
            ) from error
        except TooManyQueued as error:
            raise too_many(
                f"{limits.max_queued} videos of this API key are waiting or paused already.",
                code="too_many_queued",
                retry_after_seconds=30,
            ) from error
        except DailySecondsExceeded as error:
            raise self._day_is_spent(error) from error

    def request(self, video_id: str, change: Callable[[Video], Video]) -> Video:
        """What the caller asks of a video of its own, within its limits. Raises `APIError` 429, and `VideoGone`."""
        try:
            return self.videos.request(video_id, change, limits=self.caller.limits)
        except DailySecondsExceeded as error:
            raise self._day_is_spent(error) from error

    def _day_is_spent(self, error: DailySecondsExceeded) -> APIError:
        refusal = too_many(
            f"This API key may ask for {format_seconds(self.caller.limits.seconds_per_day)} s of video a day; "
            f"{format_seconds(error.left_seconds)} s of today's are left.",
            code="daily_seconds_exceeded",
            retry_after_seconds=seconds_until_tomorrow(),
        )
        refusal.headers["x-should-retry"] = "false"  # SDKs would try again at once
        return refusal

    def wire(self, *videos: Video) -> list[VideoObject]:
        """Videos as clients see them now."""
        places = self.videos.places(videos)
        return [
            video_object(video, self.origin, places.get(video.id), query=self.playback_query(video.id))
            for video in videos
        ]

    def wire_chunk(self, video: Video, chunk: ChunkRecord) -> ChunkObject:
        """A chunk as clients see it now."""
        return chunk_object(video.id, chunk, video.spec.fps, self.origin, query=self.playback_query(video.id))

    def playback_query(self, video_id: str) -> str:
        """The query that opens the playback addresses of the caller's video to those without a key; "" if all may.

        It is signed for the key that asks, and ends with that one.
        """
        return "" if self.keyring is None else self.signer.sign(video_id, self.caller.key).query

    def playlist_query(self, video: Video) -> str:
        """The query of the segments in a playlist that the caller reads.

        While a video grows a signed URL does not end for who is watching, and its playlist brings a fresh signature,
        once more when the video has just ended. From then on a playlist repeats the signature that opened it: with a
        fresh one, which opens the playlist too, a link would never end.
        """
        signature = self.caller.signature
        if signature is not None and not video.state.status.terminal:
            self.signer.viewed(signature)
        elif signature is not None and not self.signer.watching(signature):
            return signature.query
        return self.playback_query(video.id)


class _LazyStore:
    """The object store, opened when it is first needed; shared by all callers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: ObjectStore | None = None
        self._opening = threading.Lock()

    def get(self) -> ObjectStore:
        with self._opening:
            if self._opened is None:
                self._opened = store_of(
                    self._settings, timeout_seconds=_STORE_SECONDS, max_attempts=_ATTEMPTS
                )
            return self._opened


def no_video(param: str = "video_id") -> APIError:
    """404 for an id that is not, or no longer, a video's."""
    return not_found("There is no such video.", code="video_not_found", param=param)


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context.of(getattr(request.state, "caller", None))


Ctx = Annotated[Context, Depends(_context)]
