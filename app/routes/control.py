"""A video that waits or is being made: cancel, pause, resume or finish it, change its length, steer it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.context import Context, Ctx, no_video
from app.errors import conflict, invalid
from app.forms import read_body
from app.jobs.job import Status, Video
from app.jobs.manifest import keep_manifest
from app.jobs.store import NotPaused, VideoGone
from app.routes.documentation import body, errors
from app.schemas import SteerVideo, UpdateVideo, VideoObject
from app.specification import parse
from app.steering import ended, finish, steer, update
from app.storage import StorageError

router = APIRouter(prefix="/v1/videos/{video_id}", tags=["videos"])
log = logging.getLogger(__name__)


@router.post("/cancel", response_model=VideoObject, responses=errors(404, 409, 503), summary="Stop a video")
def cancel_video(video_id: str, ctx: Ctx) -> VideoObject:
    """A video that was never begun is cancelled at once; any other ends at its next forward and keeps its chunks.

    Cancelling it again changes nothing. A video that has completed or failed cannot be cancelled any more (409).
    """
    try:
        video = ctx.videos.request_cancel(ctx.video(video_id).id)
    except VideoGone as error:
        raise no_video() from error
    if video.state.status in (Status.COMPLETED, Status.FAILED):
        raise ended(video)
    _keep_wish(ctx, video)
    return ctx.wire(video)[0]


def _keep_wish(ctx: Context, video: Video) -> None:
    """Tells the manifest of a begun video what is wanted of it, while no worker has it that would do so."""
    if video.state.status not in (Status.QUEUED, Status.PAUSED) or not video.state.chunks_ready:
        return
    try:
        keep_manifest(video.id, ctx.videos, ctx.objects)
    except StorageError as error:
        # Redis has it; only the loss of both would undo it.
        log.warning("the manifest of a waiting video is not up to date: %s", error)


@router.post("/pause", response_model=VideoObject, responses=errors(404, 409, 503), summary="Pause a video")
def pause_video(video_id: str, ctx: Ctx) -> VideoObject:
    """A waiting video is paused at once. A running one finishes its next chunk first: until then it is `in_progress`
    with `pause_requested`; then its worker is free, and what it has made can be watched.

    Pausing it again changes nothing. A video that has ended or is being cancelled cannot be paused (409).
    """
    try:
        video = ctx.videos.request_pause(ctx.video(video_id).id)
    except VideoGone as error:
        raise no_video() from error
    if video.state.status.terminal:
        raise ended(video)
    if video.state.cancel_requested:
        raise conflict("The video is being cancelled.", code="video_cancelled")
    _keep_wish(ctx, video)
    return ctx.wire(video)[0]


@router.post("/resume", response_model=VideoObject, responses=errors(404, 409, 503), summary="Resume a video")
def resume_video(video_id: str, ctx: Ctx) -> VideoObject:
    """Puts a paused video back in line, before the others of its owner; it goes on where it stopped, bit for bit.

    A running video that was to be paused goes on. A video that is not paused, or has ended, cannot be resumed (409).
    """
    try:
        video = ctx.videos.resume(ctx.video(video_id).id)
    except VideoGone as error:
        raise no_video() from error
    except NotPaused as error:
        raise conflict("The video is not paused.", code="video_not_paused") from error
    if video.state.status.terminal:
        raise ended(video)
    _keep_wish(ctx, video)
    return ctx.wire(video)[0]


@router.post(
    "/finish",
    response_model=VideoObject,
    responses=errors(404, 409, 503),
    summary="Let a video come to its end",
)
def finish_video(video_id: str, ctx: Ctx) -> VideoObject:
    """Ends an endless or long video gracefully: no further chunk is begun, those begun are finished.

    The video completes with them and `seconds` becomes its true length. A video that waits or is paused after its
    first chunks ends this way when it goes on; one that waits and has none cannot be finished (409
    `video_not_started`). Finishing it again changes nothing.
    """
    return _ask(ctx, video_id, finish)


@router.patch(
    "",
    response_model=VideoObject,
    responses=errors(400, 404, 408, 409, 413, 415, 503),
    openapi_extra=body("UpdateVideo"),
    summary="Change a video's length or labels",
)
async def update_video(video_id: str, request: Request, ctx: Ctx) -> VideoObject:
    """Makes a video that has not ended longer or shorter, or `endless`, or labels it anew.

    The length can change until the last chunk is begun, some seconds of video before the end; after that it is a
    409 `video_ending`. What is made already stays as it is, to the bit. A video does not become shorter than what is
    begun of it: asked for less than that, it ends there, and `seconds` tells.
    """
    async with read_body(request) as fields:
        asked = await run_in_threadpool(parse, UpdateVideo, fields, ctx.settings)
    if not asked.model_fields_set:
        raise invalid("There is nothing to change.", param=None, code="missing_required_parameter")

    def change(video: Video) -> Video:
        return update(video, asked, ctx.settings, ctx.videos.models().get(video.spec.model))

    return await run_in_threadpool(_ask, ctx, video_id, change)


@router.post(
    "/prompts",
    response_model=VideoObject,
    responses=errors(400, 404, 408, 409, 413, 415, 503),
    openapi_extra=body("SteerVideo"),
    summary="Steer a video",
)
async def steer_video(video_id: str, request: Request, ctx: Ctx) -> VideoObject:
    """Changes what a video shows, from the next chunk that is begun, or from the one that holds second `at`.

    It is in `pending_prompts` until the worker has settled on that chunk; then an event `prompt` tells the second, and
    the prompt stands in `prompts`, in the place of an earlier one for the same chunk. The same timeline and seed give
    the same video again. A prompt that comes too late for any chunk stays in `pending_prompts`.
    """
    async with read_body(request) as fields:
        asked = await run_in_threadpool(parse, SteerVideo, fields, ctx.settings)
    return await run_in_threadpool(_ask, ctx, video_id, lambda video: steer(video, asked, ctx.settings))


def _ask(ctx: Context, video_id: str, change: Callable[[Video], Video]) -> VideoObject:
    try:
        video = ctx.request(ctx.video(video_id).id, change)
    except VideoGone as error:
        raise no_video() from error
    _keep_wish(ctx, video)
    return ctx.wire(video)[0]
