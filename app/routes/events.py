"""Server-sent events of a video (HTML Standard, section 9.2)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.context import Ctx, no_video
from app.errors import invalid, quoted
from app.jobs.events import EventHub, EventId, InvalidEventId, Watch, parse_event_id
from app.jobs.store import VideoGone
from app.routes.documentation import errors

router = APIRouter(prefix="/v1/videos", tags=["events"])

_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "id": {"type": "string", "description": "What `Last-Event-ID` goes on after."},
        "event": {
            "type": "string",
            "enum": ["status", "progress", "prompt", "chunk", "completed", "failed", "cancelled"],
        },
        "data": {"type": "string", "description": "An object as JSON."},
    },
    "required": ["id", "event", "data"],
}


@router.get(
    "/{video_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "Events `status`, `progress`, `prompt`, `chunk`, and one of `completed`, `failed`, "
            "`cancelled` as the last. The data of `chunk` is a chunk object, of `progress` what has changed, of "
            "`prompt` the `text` that steers the video and the second `at` from which on, of all others the video. "
            "Opened by a signed URL, without a key, the stream leaves out `text`, and of the video `prompt`, "
            "`prompts`, `pending_prompts`, `metadata` and `webhook_url`.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The video has ended and the client has had its last event: do not reconnect."},
        **errors(400, 404, 503),
    },
    summary="Follow a video",
)
async def video_events(
    video_id: str,
    ctx: Ctx,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event received: only later ones are sent.")
    ] = None,
    query_event_id: Annotated[
        str | None,
        Query(alias="last_event_id", description="The same for clients that cannot set headers."),
    ] = None,
) -> Response:
    """Everything that has happened to the video, then everything that happens, without gap or repeat.

    Of events that are too old to be kept (`LONGTAKE_MAX_EVENTS`) the chunks are told, and then one `status`.
    Each event has an id. A comment line keeps idle connections open. The stream ends after the last event.
    """
    # A browser that reconnects sends the header, which is newer than what its URL says.
    if last_event_id is not None:
        last = _event_id(last_event_id, "Last-Event-ID")
    else:
        last = _event_id(query_event_id, "last_event_id")
    try:
        video = await run_in_threadpool(ctx.video, video_id)
        watch = await ctx.events.watch(video.id, last, signed=ctx.caller.signature is not None)
    except VideoGone as error:
        raise no_video() from error
    if watch.exhausted:
        ctx.events.leave(watch)
        return Response(status_code=204)
    return _EventStream(ctx.events, watch)


def _event_id(text: str | None, param: str) -> EventId | None:
    if not text:
        return None  # browsers send none, or an empty one, before they had an event
    try:
        return parse_event_id(text)
    except InvalidEventId as error:
        raise invalid(
            f"{quoted(text)} is not the id of an event. Send the `id:` of an event of this stream, or none.",
            param=param,
            code="invalid_event_id",
        ) from error


class _EventStream(Response):
    """Sends a watch. It exists before the status line is sent, so Redis being away is a 503 and not a broken 200."""

    media_type = "text/event-stream"

    def __init__(self, hub: EventHub, watch: Watch) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-cache, no-transform"
        self.headers["X-Accel-Buffering"] = "no"
        self._hub = hub
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def until_the_client_leaves() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._watch.end()

        leaving = asyncio.create_task(until_the_client_leaves())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._hub.frames(self._watch)) as frames:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            self._hub.leave(self._watch)
