"""A video's durable record in the bucket: enough to restore it, and to go on with it, without Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from app.jobs.job import SCHEMA_VERSION, ChunkRecord, Video, VideoSpec, VideoState
from app.jobs.migrations import RecordDamaged, migrated
from app.storage import ObjectStore
from app.storage.objects import manifest_key

if TYPE_CHECKING:  # the store reads manifests
    from app.jobs.store import VideoStore


class Manifest(BaseModel):
    """The record and the chunk list of a video, as they were in Redis at one moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    spec: VideoSpec
    state: VideoState
    chunks: tuple[ChunkRecord, ...]

    @classmethod
    def of(cls, video: Video, chunks: Sequence[ChunkRecord]) -> Manifest:
        return cls(spec=video.spec, state=video.state, chunks=tuple(chunks))

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Reads this and every older version. Raises `RecordError`."""
        try:
            manifest = cls.model_validate(migrated("manifest", json.loads(data)))
        except (ValidationError, ValueError) as error:
            raise RecordDamaged from error
        whole = [chunk.index for chunk in manifest.chunks] == list(range(manifest.state.chunks_ready))
        if not whole:
            raise RecordDamaged
        return manifest

    @property
    def video(self) -> Video:
        """The video without its chunks."""
        return Video(spec=self.spec, state=self.state)


def keep_manifest(video_id: str, store: VideoStore, objects: ObjectStore) -> None:
    """Writes the manifest of a video that this process has not, or no longer, claimed; nothing if it is gone.

    Whoever has it may write its own meanwhile, so the record is read once more behind each writing, until its status
    is the written one: the last to write has written what is. Raises `StorageError` and `RedisError`.
    """
    video = store.get(video_id)
    while video is not None:
        chunks = store.chunks(video_id, 0, video.state.chunks_ready)
        objects.put(manifest_key(video_id), Manifest.of(video, chunks).to_json())
        written, video = video, store.get(video_id)
        if video is not None and video.state.status is written.state.status:
            return
        if video is None and store.was_deleted(video_id):
            objects.delete(manifest_key(video_id))
