"""Objects on the wire: the shape of the OpenAI videos API plus what long video needs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from app.jobs.job import ChunkRecord, JobError, Status, Video


class VideoObject(BaseModel):
    """A video as clients see it. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    error: JobError | None = None
    remixed_from_video_id: str | None = None

    queue_position: int | None = None
    eta_seconds: float | None = None
    chunks_ready: int = 0
    chunks_total: int | None = None
    seconds_ready: float = 0.0
    first_chunk_at: float | None = None
    stalled: str | None = None
    seed: int
    fps: int
    frames: int
    metadata: dict[str, str] = Field(default_factory=dict)
    attempts: int = 0
    playlist_url: str
    events_url: str


class ChunkObject(BaseModel):
    """A committed chunk as clients see it."""

    object: Literal["video.chunk"] = "video.chunk"
    index: int
    start_seconds: float
    duration_seconds: float
    frames: int
    bytes: int
    sha256: str
    url: str
    created_at: float


def format_seconds(seconds: float) -> str:
    """A duration as the API writes it: no trailing zeros (``60``, ``2.5``)."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def video_object(video: Video, origin: str = "", queue_position: int | None = None) -> VideoObject:
    """The wire form of a job; `origin` is put before its URLs."""
    spec, state = video.spec, video.state
    base = f"{origin}/v1/videos/{spec.id}"
    eta = video.eta_seconds
    return VideoObject(
        id=spec.id,
        model=spec.model,
        status=state.status,
        progress=video.progress,
        created_at=int(spec.created_at),
        completed_at=None if state.completed_at is None else int(state.completed_at),
        prompt=spec.prompt,
        seconds=format_seconds(spec.seconds),
        size=spec.size,
        error=state.error,
        queue_position=queue_position,
        eta_seconds=None if eta is None else round(eta, 1),
        chunks_ready=state.chunks_ready,
        chunks_total=state.chunks_total,
        seconds_ready=round(state.frames_ready / spec.fps, 3),
        first_chunk_at=state.first_chunk_at,
        stalled=state.stalled,
        seed=spec.seed,
        fps=spec.fps,
        frames=spec.frames,
        metadata=spec.metadata,
        attempts=state.attempts,
        playlist_url=f"{base}/stream.m3u8",
        events_url=f"{base}/events",
    )


def chunk_object(video_id: str, chunk: ChunkRecord, fps: int, origin: str = "") -> ChunkObject:
    """The wire form of a committed chunk."""
    return ChunkObject(
        index=chunk.index,
        start_seconds=round(chunk.start_seconds(fps), 6),
        duration_seconds=round(chunk.duration_seconds(fps), 6),
        frames=chunk.frames,
        bytes=chunk.bytes,
        sha256=chunk.sha256,
        url=f"{origin}/v1/videos/{video_id}/chunks/{chunk.index}/content",
        created_at=chunk.created_at,
    )
