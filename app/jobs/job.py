"""A video job as plain data: what was asked, how far it is, what it has made. Pure; knows no Redis and no HTTP."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

VIDEO_ID = re.compile(r"video_([0-9a-f]{12})[0-9a-f]{20}", re.ASCII)

SCHEMA_VERSION = 2
"""Version of every stored record; `app.jobs.migrations` reads the older ones."""

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

WebhookEvent = Literal["video.completed", "video.failed", "video.cancelled", "video.chunk"]
ENDED: Mapping[Literal["completed", "failed", "cancelled"], WebhookEvent] = {
    "completed": "video.completed",
    "failed": "video.failed",
    "cancelled": "video.cancelled",
}


class Status(StrEnum):
    """States of a video. A terminal state is never left."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimedPrompt(_Frozen):
    """A prompt in force from second ``at`` of the video on."""

    at: float = Field(ge=0)
    text: str


class Reference(_Frozen):
    """An uploaded image or clip that a video begins with, as stored under `reference_key`."""

    kind: Literal["image", "video"]
    width: int = Field(
        gt=0, description="Pixels of the upload, upright; what is stored has the video's size."
    )
    height: int = Field(gt=0)
    frames: int = Field(gt=0, description="Frames of the video that it gives: whole chunks.")
    sha256: str = Field(description="Of the uploaded file.")


class PendingPrompt(_Frozen):
    """A prompt for a running video that no chunk has been given yet: for second ``at``, or None for at once."""

    at: float | None = Field(None, ge=0)
    text: str


class VideoSpec(_Frozen):
    """What was asked for. Together with the model's weights it determines every frame of the video.

    It grows with what is asked of a running video: prompts, once it is settled where each begins, and its length.
    """

    id: str
    owner: str = ""
    created_at: float
    model: str
    prompts: tuple[TimedPrompt, ...] = Field(min_length=1)
    negative_prompt: str = ""
    seconds: float | None = Field(gt=0, description="None: endless, until somebody ends it.")
    fps: int = Field(gt=0)
    frames: int | None = Field(gt=0, description="None together with `seconds`.")
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    seed: int = Field(ge=0, le=2**63 - 1)
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    reference: Reference | None = None
    extended_from: str | None = Field(
        None, description="Video whose first `given_chunks` chunks begin this one."
    )
    remixed_from: str | None = None
    given_chunks: int = Field(
        0,
        ge=0,
        description="Chunks that come from `extended_from`, else from `reference`; the rest is sampled.",
    )
    priority: Priority = "normal"
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = tuple(ENDED.values())
    schema_version: int = SCHEMA_VERSION

    @property
    def prompt(self) -> str:
        """The first prompt of the timeline."""
        return self.prompts[0].text

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


class JobError(_Frozen):
    """Why a video failed, in words and as a stable code."""

    code: str
    message: str


class ChunkRecord(_Frozen):
    """A committed chunk: the segment exists in the store under its key, and will never change."""

    index: int = Field(ge=0)
    first_frame: int = Field(ge=0)
    frames: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str
    created_at: float
    schema_version: int = SCHEMA_VERSION

    def start_seconds(self, fps: int) -> float:
        return self.first_frame / fps

    def duration_seconds(self, fps: int) -> float:
        return self.frames / fps


class VideoState(_Frozen):
    """How far a video is. Written by the worker that holds the video's fence, or by the API while none does.

    What clients ask of it, the API writes at any time: `cancel_requested`, `finish_requested`, `pending_prompts`.
    """

    status: Status = Status.QUEUED
    attempts: int = 0
    barren_attempts: int = Field(
        0, description="Starts since the last committed chunk; too many end the video."
    )
    worker: str = ""
    started_at: float | None = None
    first_chunk_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = Field(None, description="When a video that has ended may be removed.")
    chunks_total: int | None = None
    chunks_ready: int = 0
    frames_ready: int = 0
    forwards_total: int | None = None
    forwards_done: int = 0
    seconds_per_forward: float | None = None
    checkpoint: int | None = Field(None, description="Index of the last committed chunk's checkpoint object.")
    stalled: str | None = Field(None, description="What a running video waits for, in words.")
    error: JobError | None = None
    cancel_requested: bool = False
    pause_requested: bool = Field(False, description="A running video that rests after its next chunk.")
    finish_requested: bool = Field(False, description="No further chunk shall be begun.")
    pending_prompts: tuple[PendingPrompt, ...] = ()
    steered_at: float | None = Field(
        None, description="Second of the newest prompt that was asked for at once."
    )
    ending: bool = Field(False, description="The last chunk is begun: length and prompts are final.")
    final_bytes: int | None = None


class Video(_Frozen):
    """A job: its specification and its state."""

    spec: VideoSpec
    state: VideoState

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def frames(self) -> int | None:
        """Frames of the whole video; None for an endless one until it has ended."""
        if self.spec.frames is None and self.state.status.terminal:
            return self.state.frames_ready
        return self.spec.frames

    @property
    def seconds(self) -> float | None:
        """Length of the whole video; None for an endless one until it has ended."""
        if self.spec.seconds is None and self.state.status.terminal:
            return self.state.frames_ready / self.spec.fps
        return self.spec.seconds

    @property
    def progress(self) -> int:
        """Percent of the work done, 100 only when completed, 0 while there is no end."""
        if self.state.status is Status.COMPLETED:
            return 100
        if not self.state.forwards_total or self.spec.frames is None:
            return 0
        return min(99, math.floor(100 * self.state.forwards_done / self.state.forwards_total))

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last chunk at the measured speed; None while nothing was measured, or without an end."""
        state = self.state
        if state.status is not Status.IN_PROGRESS or not state.forwards_total or self.spec.frames is None:
            return None
        if state.pause_requested:
            return None
        if state.seconds_per_forward is None:
            return None
        return max(0, state.forwards_total - state.forwards_done) * state.seconds_per_forward


class ModelCard(_Frozen):
    """What a worker tells about the model it has loaded; requests are validated against it."""

    name: str
    fps: int
    sizes: tuple[str, ...]
    default_size: str
    temporal_factor: int
    chunk_latents: int
    chunks_in_flight: int
    forwards_per_shift: int
    guidance_scale: float
    prompt_tokens: int
    created_at: float
    example_prompts: tuple[str, ...] = ()
    loaded_as: str = ""
    """What the worker's LONGTAKE_MODEL says."""
    schema_version: int = SCHEMA_VERSION

    def frames_of_chunks(self, chunks: int) -> int:
        """Frames that the first `chunks` chunks of a video hold; its first latent is one frame."""
        return 0 if chunks < 1 else 1 + (chunks * self.chunk_latents - 1) * self.temporal_factor

    @property
    def levels(self) -> int:
        """Noise levels S each chunk passes: the model's default number of inference steps."""
        return self.chunks_in_flight * self.forwards_per_shift


def new_video_id(created_at: float | None = None) -> str:
    """An id that sorts by time of creation (milliseconds; now by default) and cannot be guessed (80 random bits)."""
    seconds = time.time() if created_at is None else created_at
    return f"video_{int(seconds * 1000):012x}{secrets.token_hex(10)}"


def created_ms(video_id: str) -> int | None:
    """The time of creation that is in an id, in milliseconds; None for what has not the form of an id."""
    match = VIDEO_ID.fullmatch(video_id)
    return None if match is None else int(match[1], 16)
