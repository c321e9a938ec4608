"""What the API and the process that decodes an upload tell each other, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Task(BaseModel):
    """What to make of an upload, and what it may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int
    height: int
    fps: int
    first_chunk_frames: int
    chunk_frames: int
    max_pixels: int
    max_video_pixels: int
    max_seconds: float
    max_frames: int
    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float


class Decoded(BaseModel):
    """An upload that was taken: its own upright size, and the frames that were written."""

    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int


class Refused(BaseModel):
    """Why an upload was not taken, in words for the client and as a stable code."""

    code: str
    message: str


UNDECODABLE = Refused(
    code="decoding_failed",
    message="The file cannot be decoded with the time and memory that this server allows.",
)
