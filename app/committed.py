"""The committed chunks of videos as their players take them: the live playlist (HLS, RFC 8216), lengths, durations.

Players ask for the playlist of a growing video all the time, and it names every chunk. So what was read once is kept
in the memory of the process, and a request reads from Redis only what was committed since.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.jobs.job import Video
from app.jobs.migrations import RecordDamaged, migrated
from app.jobs.store import VideoStore, chunks_key
from app.schemas import with_query

# Chunks of all videos together that one process keeps: at some 50 bytes each, 25 MB.
MAX_CHUNKS = 500_000


@dataclass(frozen=True, slots=True)
class Committed:
    """The first chunks of a video, in order. Never changes: `grown` makes another one."""

    fps: int
    frames: array[int] = field(default_factory=lambda: array("I"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    """Bytes of each chunk's segment."""
    most_frames: int = 0
    """Frames of the longest chunk."""
    segments: str = ""
    """Lines of the playlist that name the chunks, without a query."""
    last: bytes = b""
    """The last record as it is stored."""

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def durations_seconds(self) -> list[float]:
        return [count / self.fps for count in self.frames]

    @property
    def longest_seconds(self) -> float:
        return self.most_frames / self.fps

    def grown(self, records: Sequence[bytes]) -> Committed:
        """These chunks and, behind them, those of the stored records. Raises `RecordError`."""
        if not records:
            return self
        measures = [_measured(record) for record in records]
        return self._with((frames for frames, _ in measures), (size for _, size in measures), records[-1])

    def first(self, count: int) -> Committed:
        """The first `count` of them."""
        if count >= len(self):
            return self
        return Committed(self.fps)._with(self.frames[:count], self.sizes[:count], b"")

    def playlist(self, target_seconds: int, *, ended: bool, query: str = "") -> str:
        """The text of an EVENT playlist (4.3.3.5) with addresses relative to the video's own, plus `query`."""
        head = (
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            f"#EXT-X-TARGETDURATION:{target_seconds}",
            "#EXT-X-MEDIA-SEQUENCE:0",
            "#EXT-X-PLAYLIST-TYPE:EVENT",
            "#EXT-X-INDEPENDENT-SEGMENTS",
            # From the beginning: without this players join at the live edge.
            "#EXT-X-START:TIME-OFFSET=0",
            f'#EXT-X-MAP:URI="{with_query("init.mp4", query)}"\n',
        )
        segments = self.segments.replace(".m4s\n", with_query(".m4s", query) + "\n")
        return "\n".join(head) + segments + ("#EXT-X-ENDLIST\n" if ended else "")

    def _with(self, frames: Iterable[int], sizes: Iterable[int], last: bytes) -> Committed:
        more = array("I", frames)
        lines = (
            f"#EXTINF:{count / self.fps:.6f},\nchunks/{index}.m4s\n"
            for index, count in enumerate(more, len(self))
        )
        return Committed(
            self.fps,
            self.frames + more,
            self.sizes + array("Q", sizes),
            max(self.most_frames, max(more, default=0)),
            self.segments + "".join(lines),
            last,
        )


class CommittedChunks:
    """Reads the committed chunks of videos, and keeps those that were asked for last. Safe to share between threads.

    A video's list of chunks grows at its end; only deletion and `VideoStore.restore` do anything else to it. A record
    says when it was committed, and was committed behind one certain list. So what is kept still holds as long as Redis
    has its last record in the same place, which the read of what follows it tells as well.
    """

    def __init__(self, store: VideoStore, max_chunks: int = MAX_CHUNKS) -> None:
        self._redis = store.redis
        self._max_chunks = max_chunks
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Committed] = OrderedDict()
        self._count = 0

    def of(self, video: Video) -> Committed:
        """The chunks that the video has by its record. Raises `RecordError` and `redis.exceptions.RedisError`."""
        with self._lock:
            known = self._kept.get(video.id)
        chunks = self._read(video, known)
        self._keep(video.id, chunks)
        return chunks.first(video.state.chunks_ready)

    def _read(self, video: Video, known: Committed | None) -> Committed:
        key, ready = chunks_key(video.id), video.state.chunks_ready
        if known is not None:
            last, *new = self._redis.lrange(key, len(known) - 1, max(len(known), ready) - 1) or [b""]
            if last == known.last:
                return known.grown(new)
        return Committed(video.spec.fps).grown(self._redis.lrange(key, 0, ready - 1))

    def _keep(self, video_id: str, chunks: Committed) -> None:
        with self._lock:
            self._count -= len(self._kept.pop(video_id, ()))
            if chunks:
                self._kept[video_id] = chunks
                self._count += len(chunks)
            while self._count > self._max_chunks:
                _, oldest = self._kept.popitem(last=False)
                self._count -= len(oldest)


def _measured(record: bytes) -> tuple[int, int]:
    """Frames and bytes of a stored chunk. `ChunkRecord` would check the rest, too, in twice the time."""
    try:
        chunk = migrated("chunk", json.loads(record))
        frames, size = chunk["frames"], chunk["bytes"]
    except (ValueError, KeyError) as error:
        raise RecordDamaged from error
    if not (isinstance(frames, int) and isinstance(size, int) and frames > 0 and size > 0):
        raise RecordDamaged
    return frames, size
