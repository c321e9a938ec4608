"""`longtake recover`: the records of a Redis that was lost, from the bucket alone.

Each video's manifest is its record as of its last chunks. Videos that have ended come first, so that they are served
again while the unfinished ones are put back in line. Chunks that were committed after the manifest was written are
made again, from the newest checkpoint that the manifest knows, to the same bytes. Videos that no worker had begun
have no manifest: they were in Redis only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice

from app.jobs.manifest import Manifest
from app.jobs.migrations import RecordError
from app.jobs.store import Restored, VideoStore
from app.storage import ObjectNotFound, ObjectStore
from app.storage.objects import VIDEOS, InvalidKey, chunk_key, final_key, init_key, manifest_key, video_prefix

# Manifests that are read at the same time, and videos that are looked at together.
_READERS = 16
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Found:
    """One video of the bucket and what became of it. `problem` is what a person should look at."""

    video_id: str
    outcome: Restored | None
    status: str = ""
    chunks: int = 0
    problem: str = ""

    def __str__(self) -> str:
        outcome = self.outcome or "left alone"
        state = (
            f" ({self.status}, {self.chunks} chunk{'' if self.chunks == 1 else 's'})" if self.status else ""
        )
        return f"{self.video_id}  {outcome}{state}{f': {self.problem}' if self.problem else ''}"


@dataclass(slots=True)
class Summary:
    """How many videos had which outcome."""

    outcomes: dict[Restored, int] = field(default_factory=lambda: dict.fromkeys(Restored, 0))
    problems: int = 0

    def add(self, found: Found) -> None:
        if found.outcome is not None:
            self.outcomes[found.outcome] += 1
        self.problems += bool(found.problem)

    def __str__(self) -> str:
        counts = [f"{count} {outcome}" for outcome, count in self.outcomes.items() if count]
        if self.problems:
            counts.append(f"{self.problems} with a problem")
        return ", ".join(counts) or "no videos"


def recover(
    store: VideoStore, objects: ObjectStore, *, dry_run: bool = False, tell: Callable[[Found], None]
) -> Summary:
    """Restores every video of the bucket that Redis does not know, or knows less of; `tell` is told of each.

    May be repeated, and run beside a working service. Writes nothing to the bucket, and with `dry_run` nothing at
    all. Raises `StorageError` and `redis.exceptions.RedisError`; what was restored by then stays.
    """
    summary = Summary()

    def settle(found: Found) -> None:
        summary.add(found)
        tell(found)

    unfinished: list[tuple[float, str, str]] = []
    with ThreadPoolExecutor(_READERS) as readers:
        for batch in _batches(_videos(objects)):
            manifests = readers.map(lambda one: _read(objects, one.id), batch)
            for stored, manifest in zip(batch, manifests, strict=True):
                if isinstance(manifest, Found):
                    settle(manifest)
                    continue
                problem = _missing(objects, manifest, stored.sizes)
                if manifest.state.status.terminal:
                    settle(_restore(store, manifest, problem, dry_run))
                else:
                    unfinished.append((manifest.spec.created_at, stored.id, problem))
    for _, video_id, problem in sorted(unfinished):  # as they stood in line
        manifest = _read(objects, video_id)  # a worker may have gone on meanwhile
        settle(manifest if isinstance(manifest, Found) else _restore(store, manifest, problem, dry_run))
    return summary


@dataclass(frozen=True, slots=True)
class _Stored:
    """A video's folder in the bucket: the length in bytes of each of its objects, by key."""

    id: str
    sizes: dict[str, int]


def _videos(objects: ObjectStore) -> Iterator[_Stored]:
    for video_id, infos in groupby(objects.list(VIDEOS), lambda info: info.key.split("/")[1]):
        yield _Stored(video_id, {info.key: info.size for info in infos})


def _batches(videos: Iterator[_Stored]) -> Iterator[list[_Stored]]:
    while batch := list(islice(videos, _BATCH)):
        yield batch


def _read(objects: ObjectStore, video_id: str) -> Manifest | Found:
    try:
        manifest = Manifest.from_json(objects.get(manifest_key(video_id)))
    except (ObjectNotFound, InvalidKey):
        return Found(video_id, None, problem="there is no manifest, so it was removed, or never begun")
    except RecordError as error:
        return Found(video_id, None, problem=f"the manifest: {error}")
    if manifest.spec.id != video_id:
        return Found(video_id, None, problem=f"the manifest is that of {manifest.spec.id}")
    return manifest


def _missing(objects: ObjectStore, manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Which files a manifest names that the bucket does not have, in words; empty when all are there."""
    video_id = manifest.spec.id
    wanted: dict[str, int | None] = {
        chunk_key(video_id, chunk.index): chunk.bytes for chunk in manifest.chunks
    }
    if manifest.chunks:
        wanted[init_key(video_id)] = sizes.get(init_key(video_id))
    if manifest.state.final_bytes is not None:
        wanted[final_key(video_id)] = manifest.state.final_bytes
    # What the listing lacks may have been written after it.
    suspects = (key for key, size in wanted.items() if size is None or sizes.get(key) != size)
    missing = islice((key for key in suspects if not _is_there(objects, key, wanted[key])), 4)
    names = [key.removeprefix(video_prefix(video_id)) for key in missing]
    more = " and more" if len(names) > 3 else ""
    return f"files are missing or cut short: {', '.join(names[:3])}{more}" if names else ""


def _is_there(objects: ObjectStore, key: str, size: int | None) -> bool:
    try:
        found = objects.head(key).size
    except ObjectNotFound:
        return False
    return size is None or found == size


def _restore(store: VideoStore, manifest: Manifest, problem: str, dry_run: bool) -> Found:
    state = manifest.state
    try:
        outcome = store.restore(manifest, dry_run=dry_run)
    except RecordError as error:
        outcome, problem = None, f"the record in Redis: {error}"
    return Found(manifest.spec.id, outcome, state.status, state.chunks_ready, problem)
