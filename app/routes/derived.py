"""Videos made from an earlier one: extensions, which begin with it, and remixes, which take its settings."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.context import Context, Ctx
from app.errors import conflict
from app.forms import read_body
from app.jobs.job import Status, Video, VideoSpec
from app.routes.creation import IdempotencyKey, answer, forget, record, replayed
from app.routes.documentation import body, errors
from app.schemas import ExtendVideo, RemixVideo, VideoObject
from app.specification import digest, parse, specify_extension, specify_remix
from app.storage import StorageError
from app.storage.objects import reference_key

router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post(
    "/extensions",
    response_model=VideoObject,
    responses=errors(400, 404, 408, 409, 413, 415, 422, 429, 503),
    openapi_extra=body("ExtendVideo"),
    summary="Continue a video",
)
async def extend_video(
    request: Request, response: Response, ctx: Ctx, idempotency_key: IdempotencyKey
) -> VideoObject:
    """Makes a new video that begins with a finished one and goes on from there, under the new prompt.

    `seconds` is the length of the whole, so it is more than the source has. The source stays as it is; once the new
    video's first new chunk is there, the source may be deleted. A cancelled video is continued after its last chunk.
    """
    async with read_body(request) as fields:
        asked = await run_in_threadpool(parse, ExtendVideo, fields, ctx.settings)

    def make() -> VideoObject:
        body_digest = digest(asked, "extend")
        if (earlier := replayed(ctx, idempotency_key, body_digest)) is not None:
            return answer(ctx, response, earlier)
        source = _ended(ctx.video(asked.video.id, param="video"))
        spec = specify_extension(source, asked, ctx.videos.models(), ctx.settings)
        _keep_reference(ctx, source.spec, spec)
        return answer(ctx, response, record(ctx, spec, idempotency_key, body_digest))

    return await run_in_threadpool(make)


@router.post(
    "/{video_id}/remix",
    response_model=VideoObject,
    responses=errors(400, 404, 408, 413, 415, 422, 429, 503),
    openapi_extra=body("RemixVideo"),
    summary="Make a video again with another prompt",
)
async def remix_video(
    video_id: str, request: Request, response: Response, ctx: Ctx, idempotency_key: IdempotencyKey
) -> VideoObject:
    """Makes a new video with the seed, the settings and the reference of another, and this prompt alone.

    It is as long as the other is, if a video of that length may be asked for; endless, if the other still is.
    """
    async with read_body(request) as fields:
        asked = await run_in_threadpool(parse, RemixVideo, fields, ctx.settings)

    def make() -> VideoObject:
        body_digest = digest(asked, "remix", video_id)
        if (earlier := replayed(ctx, idempotency_key, body_digest)) is not None:
            return answer(ctx, response, earlier)
        source = ctx.video(video_id)
        spec = specify_remix(source, asked, ctx.videos.models(), ctx.settings)
        _keep_reference(ctx, source.spec, spec)
        return answer(ctx, response, record(ctx, spec, idempotency_key, body_digest))

    return await run_in_threadpool(make)


def _ended(source: Video) -> Video:
    """The video, if it can be continued. Raises `APIError` 409."""
    status = source.state.status
    if not status.terminal:
        raise conflict(
            f"The video is {status}: PATCH its seconds to make it longer, or extend it when it is completed.",
            code="video_not_finished",
            param="video",
        )
    if status is Status.FAILED or not source.state.chunks_ready:
        raise conflict(
            f"The video has {status} and cannot be continued.", code=f"video_{status}", param="video"
        )
    return source


def _keep_reference(ctx: Context, source: VideoSpec, spec: VideoSpec) -> None:
    """Gives a new video the reference of its source, so that it needs the source no more for that."""
    if spec.reference is None:
        return
    try:
        ctx.objects.copy(reference_key(source.id), reference_key(spec.id))
    except StorageError:
        forget(ctx, spec)
        raise
