"""Videos: create, look at, list, delete, download."""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from app.context import Context, Ctx
from app.errors import APIError, invalid, not_found
from app.forms import FilePart, read_body
from app.jobs.job import Status, Video, VideoSpec
from app.media_container import partial_header
from app.object_response import IMMUTABLE, REVALIDATE, Part, not_modified, object_response
from app.removal import remove
from app.routes.creation import IdempotencyKey, answer, record, replayed
from app.routes.documentation import body, errors, file
from app.schemas import CreateVideo, VideoDeleted, VideoList, VideoObject
from app.specification import digest, parse, specify
from app.storage import ObjectNotFound
from app.storage.objects import (
    chunk_key,
    content_type_of,
    final_key,
    init_key,
    spritesheet_key,
    thumbnail_key,
)
from app.uploads import reference_of, store_reference

router = APIRouter(prefix="/v1/videos", tags=["videos"])

Variant = Literal["video", "thumbnail", "spritesheet"]

# Life of a redirect to the store, long enough for a slow client to begin, and to resume for a while.
_PRESIGNED_SECONDS = 3600


@router.post(
    "",
    response_model=VideoObject,
    responses=errors(400, 408, 413, 415, 422, 429, 503),
    openapi_extra=body("CreateVideo"),
    summary="Ask for a video",
)
async def create_video(
    request: Request, response: Response, ctx: Ctx, idempotency_key: IdempotencyKey
) -> VideoObject:
    """Puts a video in line. Poll the answer's id, follow its `events_url`, or play its `playlist_url`.

    With an `input_reference` the video begins with it: an image is held for one chunk, a clip gives as many frames as
    make whole chunks. It is scaled to cover the size, without distortion, and cropped around its centre.
    """
    limits = ctx.settings
    given = read_body(
        request,
        max_file_bytes=limits.max_upload_bytes,
        max_text_bytes=limits.max_body_bytes + limits.max_data_url_bytes,
    )
    async with given as fields:
        asked = await run_in_threadpool(parse, CreateVideo, fields, limits)
        upload = await run_in_threadpool(reference_of, asked, limits)
        with closing(upload) if upload is not None else nullcontext():
            file_digest = upload.sha256 if upload is not None else ""
            body_digest = await run_in_threadpool(digest, asked, "create", file_digest)
            created = await run_in_threadpool(replayed, ctx, idempotency_key, body_digest)
            if created is None:
                spec = await run_in_threadpool(lambda: specify(asked, ctx.videos.models(), limits))
                if upload is not None:
                    async with ctx.decoding():
                        spec = await run_in_threadpool(_with_reference, ctx, spec, upload)
                created = await run_in_threadpool(record, ctx, spec, idempotency_key, body_digest)
    return await run_in_threadpool(answer, ctx, response, created)


def _with_reference(ctx: Context, spec: VideoSpec, upload: FilePart) -> VideoSpec:
    return store_reference(upload, spec, ctx.videos.models()[spec.model], ctx.settings, ctx.objects)


@router.get("", response_model=VideoList, responses=errors(400, 503), summary="List videos")
def list_videos(
    ctx: Ctx,
    after: Annotated[
        str | None, Query(description="The `last_id` of the page before; it may be deleted by now.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
    status: Status | None = None,
) -> VideoList:
    """A page of videos, the newest first."""
    try:
        videos, more = ctx.videos.page(
            ctx.owner, limit=limit, after=after, newest_first=order == "desc", status=status
        )
    except KeyError as error:
        raise invalid("This is no id of a video.", param="after") from error
    data = ctx.wire(*videos)
    return VideoList(
        data=data,
        has_more=more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


@router.get("/{video_id}", response_model=VideoObject, responses=errors(404, 503), summary="Look at a video")
def retrieve_video(video_id: str, response: Response, ctx: Ctx) -> VideoObject:
    """The video as it is now. One that failed is an answer like any other, with `status: failed` and its `error`."""
    response.headers["openai-poll-after-ms"] = str(ctx.settings.poll_after_ms)
    response.headers["Cache-Control"] = "no-store"
    return ctx.wire(ctx.video(video_id))[0]


@router.delete(
    "/{video_id}", response_model=VideoDeleted, responses=errors(404, 503), summary="Delete a video"
)
def delete_video(video_id: str, ctx: Ctx) -> VideoDeleted:
    """Stops the video if it is being made, and removes its record and every file of it."""
    video = ctx.video(video_id)
    remove(video, ctx.videos, ctx.objects)
    return VideoDeleted(id=video.id)


@router.head("/{video_id}/content", include_in_schema=False)
@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses={
        **file("The file.", "video/mp4", "image/jpeg"),
        302: {"description": "The file is at this presigned URL."},
        **errors(400, 404, 416, 503),
    },
    summary="Download a video",
)
def video_content(
    video_id: str,
    request: Request,
    ctx: Ctx,
    variant: Annotated[
        Variant, Query(description="The video (MP4), a still picture, or a grid of stills (JPEG).")
    ] = "video",
    partial: Annotated[
        bool, Query(description="The part made so far, if the video is not complete, as a playable MP4.")
    ] = False,
) -> Response:
    """The finished file, with ranges; or, with `partial=true`, what there is of it now.

    The file of a cancelled video holds the chunks that were finished.
    """
    video = ctx.video(video_id)
    match variant:
        case "video" if video.state.status.terminal and video.state.final_bytes is not None:
            return _file(request, ctx, video, final_key(video.id), f"{video.id}.mp4")
        case "video" if partial and video.state.chunks_ready:
            return _made_so_far(request, ctx, video)
        case "video":
            raise not_ready(video)
        case "thumbnail":
            return _file(request, ctx, video, thumbnail_key(video.id), f"{video.id}.jpg")
        case "spritesheet":
            return _file(request, ctx, video, spritesheet_key(video.id), f"{video.id}-spritesheet.jpg")


def not_ready(video: Video) -> APIError:
    """404 for what a video has not made (yet)."""
    state = video.state
    if state.status.terminal:
        rest = " Its chunks can be had with ?partial=true." if state.chunks_ready else ""
        return not_found(f"The video was {state.status} before this was made.{rest}", code="video_not_ready")
    return not_found(f"The video is {state.status}; this is not made yet.", code="video_not_ready")


def _file(request: Request, ctx: Context, video: Video, key: str, name: str) -> Response:
    try:
        info = ctx.objects.head(key)
    except ObjectNotFound as error:
        raise not_ready(video) from error
    media_type = content_type_of(key)
    etag = f'"{info.etag}"'
    cache = IMMUTABLE if video.state.status.terminal else REVALIDATE
    # A presigned URL is for one method. HEAD and a copy that is still good need no bytes from the store anyway.
    if request.method == "GET" and ctx.settings.s3_presign and not not_modified(request, etag):
        url = ctx.objects.presign(key, _PRESIGNED_SECONDS, filename=name, content_type=media_type)
        if url is not None:
            return RedirectResponse(url, 302, {"Cache-Control": "no-store"})
    return object_response(
        request,
        ctx.objects,
        [Part(key, info.size)],
        media_type=media_type,
        etag=etag,
        cache_control=cache,
        modified=info.modified,
        filename=name,
    )


def _made_so_far(request: Request, ctx: Context, video: Video) -> Response:
    chunks = ctx.committed.of(video)
    segments = list(zip(chunks.sizes, chunks.durations_seconds, strict=True))
    header = partial_header(ctx.objects.get(init_key(video.id)), segments)
    parts = [Part(header, len(header))]
    parts += [Part(chunk_key(video.id, index), size) for index, size in enumerate(chunks.sizes)]
    return object_response(
        request,
        ctx.objects,
        parts,
        media_type="video/mp4",
        etag=f'"{video.id}-{len(chunks)}"',
        cache_control=REVALIDATE,
        filename=f"{video.id}-partial.mp4",
    )
