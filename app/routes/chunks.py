"""Chunks: their list, each as a file, and the live playlist over them."""

from __future__ import annotations

import gzip
import math
import zlib
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.committed import Committed
from app.context import Context, Ctx, no_video
from app.errors import APIError, not_found
from app.jobs.job import ChunkRecord, Video
from app.jobs.store import VideoGone
from app.media_container import standalone_chunk
from app.object_response import (
    IMMUTABLE,
    REVALIDATE,
    Part,
    accepts_gzip,
    bytes_response,
    not_modified,
    object_response,
)
from app.routes.documentation import errors, file
from app.routes.videos import not_ready
from app.schemas import ChunkList, ChunkObject, chunk_seconds
from app.storage.objects import chunk_key, init_key

router = APIRouter(prefix="/v1/videos/{video_id}", tags=["chunks"])

SEGMENT_TYPE = "video/iso.segment"
PLAYLIST_TYPE = "application/vnd.apple.mpegurl"

_GZIP_LEVEL = 1  # the fastest

Index = Annotated[int, Path(ge=0, le=999_999, description="Number of the chunk, from 0.")]


@router.get("/chunks", response_model=ChunkList, responses=errors(400, 404, 503), summary="List chunks")
def list_chunks(
    video_id: str,
    ctx: Ctx,
    after: Annotated[int, Query(ge=-1, le=999_999, description="Index of the last chunk known.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ChunkList:
    """Chunks that are finished and will not change, in order. More may come while the video runs."""
    video = ctx.video(video_id)
    chunks = ctx.videos.chunks(video.id, after + 1, after + 1 + limit + 1)
    data = [ctx.wire_chunk(video, chunk) for chunk in chunks[:limit]]
    return ChunkList(
        data=data,
        has_more=len(chunks) > limit,
        first_index=data[0].index if data else None,
        last_index=data[-1].index if data else None,
    )


@router.get(
    "/chunks/{index}.m4s",
    response_class=Response,
    responses={**file("The segment.", SEGMENT_TYPE), **errors(404, 416, 503)},
    summary="A chunk's media segment, as playlists name it",
)
@router.head("/chunks/{index}.m4s", include_in_schema=False)
def chunk_segment(video_id: str, index: Index, request: Request, ctx: Ctx) -> Response:
    """The bare segment; playable after `init.mp4`."""
    video = ctx.video(video_id)
    return _segment(request, ctx, video, _chunk(ctx, video, index))


@router.get(
    "/chunks/{index}", response_model=ChunkObject, responses=errors(404, 503), summary="Look at a chunk"
)
def retrieve_chunk(video_id: str, index: Index, ctx: Ctx) -> ChunkObject:
    """What is known of a finished chunk."""
    video = ctx.video(video_id)
    return ctx.wire_chunk(video, _chunk(ctx, video, index))


@router.get(
    "/chunks/{index}/content",
    response_class=Response,
    responses={**file("The chunk.", "video/mp4", SEGMENT_TYPE), **errors(400, 404, 416, 503)},
    summary="Download a chunk",
)
@router.head("/chunks/{index}/content", include_in_schema=False)
def chunk_content(
    video_id: str,
    index: Index,
    request: Request,
    ctx: Ctx,
    form: Annotated[
        Literal["mp4", "m4s"],
        Query(alias="format", description="A playable file that starts at zero, or the bare media segment."),
    ] = "mp4",
) -> Response:
    """A chunk as a file. It never changes, so it may be cached for ever."""
    video = ctx.video(video_id)
    chunk = _chunk(ctx, video, index)
    if form == "m4s":
        return _segment(request, ctx, video, chunk)
    init = ctx.objects.get(init_key(video.id))
    return bytes_response(
        request,
        standalone_chunk(init, ctx.objects.get(chunk_key(video.id, index))),
        media_type="video/mp4",
        etag=f'"{chunk.sha256}-mp4"',
        cache_control=IMMUTABLE,
        filename=f"{video.id}-{index:06d}.mp4",
    )


@router.get(
    "/init.mp4",
    response_class=Response,
    responses={**file("The segment.", "video/mp4"), **errors(404, 416, 503)},
    summary="The initialisation segment of all chunks",
)
@router.head("/init.mp4", include_in_schema=False)
def init_segment(video_id: str, request: Request, ctx: Ctx) -> Response:
    """What a player reads before any media segment."""
    video = ctx.video(video_id)
    if not video.state.chunks_ready:
        raise not_ready(video)
    info = ctx.objects.head(init_key(video.id))
    return object_response(
        request,
        ctx.objects,
        [Part(info.key, info.size)],
        media_type="video/mp4",
        etag=f'"{info.etag}"',
        cache_control=IMMUTABLE,
    )


@router.get(
    "/stream.m3u8",
    response_class=Response,
    responses={
        200: {"description": "The playlist.", "content": {PLAYLIST_TYPE: {"schema": {"type": "string"}}}},
        304: {"description": "Nothing was added since."},
        **errors(404, 503),
    },
    summary="Watch a video while it is made",
)
@router.head("/stream.m3u8", include_in_schema=False)
async def live_playlist(video_id: str, request: Request, ctx: Ctx) -> Response:
    """An HLS playlist that grows with the video and ends with it.

    There is none before the first chunk, and players give up on an answer that says so. So a request that comes early
    waits some seconds for that chunk before it gets its 404.
    """
    video = await run_in_threadpool(ctx.video, video_id)
    if not (video.state.chunks_ready or video.state.status.terminal):
        try:
            await ctx.events.first_chunk(video.id, ctx.settings.playlist_wait_seconds)
        except VideoGone as error:
            raise no_video() from error
    return await run_in_threadpool(_playlist, request, ctx, video_id)


def _playlist(request: Request, ctx: Context, video_id: str) -> Response:
    video = ctx.video(video_id)
    if not video.state.chunks_ready:
        raise _too_early(video)
    ended = video.state.status.terminal
    # Segments inherit nothing from the playlist's address: each carries a signature itself.
    query = ctx.playlist_query(video)
    signed = f"-{zlib.crc32(query.encode()):08x}" if query else ""
    # Weak: the same for the text and its compressed form.
    etag = f'W/"{video.state.chunks_ready}{"-end" if ended else ""}{signed}"'
    headers = {"ETag": etag, "Cache-Control": REVALIDATE, "Vary": "Accept-Encoding"}
    if not_modified(request, etag):
        return Response(status_code=304, headers=headers)
    chunks = ctx.committed.of(video)
    text = chunks.playlist(_target_seconds(ctx, video, chunks), ended=ended, query=query)
    if not accepts_gzip(request):
        return Response(text, media_type=PLAYLIST_TYPE, headers=headers)
    # Each viewer of a growing video reads all of it about once a second, and its lines are nearly the same.
    packed = gzip.compress(text.encode(), _GZIP_LEVEL, mtime=0)
    return Response(packed, media_type=PLAYLIST_TYPE, headers={**headers, "Content-Encoding": "gzip"})


def _target_seconds(ctx: Context, video: Video, chunks: Committed) -> int:
    # It must not change while the playlist lives (6.2.1), and the first chunk is shorter than the others: so it comes
    # from the model, and from what was made only if no worker has ever told of that model.
    card = ctx.videos.models().get(video.spec.model)
    longest = chunks.longest_seconds
    return max(1, math.ceil(longest if card is None else max(longest, chunk_seconds(card))))


def _too_early(video: Video) -> APIError:
    error = not_ready(video)
    if not video.state.status.terminal:
        error.headers["Retry-After"] = "1"
    return error


def _chunk(ctx: Context, video: Video, index: int) -> ChunkRecord:
    chunk = ctx.videos.chunk(video.id, index)
    if chunk is None:
        raise not_found(f"The video has no chunk {index} (yet).", code="chunk_not_found", param="index")
    return chunk


def _segment(request: Request, ctx: Context, video: Video, chunk: ChunkRecord) -> Response:
    return object_response(
        request,
        ctx.objects,
        [Part(chunk_key(video.id, chunk.index), chunk.bytes)],
        media_type=SEGMENT_TYPE,
        etag=f'"{chunk.sha256}"',
        cache_control=IMMUTABLE,
    )
