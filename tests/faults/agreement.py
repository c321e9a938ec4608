"""What must be true of a video when all is over, whatever happened to the processes that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import pairwise

import av
import httpx
import numpy as np
from numpy.typing import NDArray

from app.client import NotFound, VideoEvent
from app.jobs.job import Priority, Status, Video
from app.jobs.manifest import Manifest
from app.jobs.queue import leases_key, queue_names, waiting_key
from app.jobs.store import ACTIVE_KEY, chunks_key, deleted_key, events_key
from app.storage.objects import checkpoint_key, manifest_key, video_prefix
from tests.faults.cluster import Cluster, until

ROUNDING = 1.0
"""Of 255: how far the pictures of shared forwards may be from those of a video alone, on the average."""

TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Request:
    """What is asked for; it determines every byte of the video."""

    prompt: str = "a red circle"
    seconds: float = 8.0
    seed: int = 1
    later: tuple[tuple[float, str], ...] = ()
    """Prompts that follow, each with the second from which it counts."""

    @property
    def frames(self) -> int:
        return round(self.seconds * 24)


@dataclass(frozen=True)
class Undisturbed:
    """The objects of a video that nothing happened to: SHA-256 by name, the manifest left out."""

    request: Request
    objects: dict[str, str]
    final: bytes = b""
    """Its file."""

    @property
    def segments(self) -> list[str]:
        return _segments(self.objects)


def create(cluster: Cluster, request: Request, replica: int = 0, priority: Priority = "normal") -> str:
    """Asks one of the replicas for a video and returns its id."""
    client = cluster.client(replica)
    prompts = [{"at": at, "text": text} for at, text in ((0.0, request.prompt), *request.later)]
    return client.create(prompts=prompts, seconds=request.seconds, seed=request.seed, priority=priority).id


def asked_of(video: Video) -> Request:
    """The request that says at once what was asked of a video bit by bit."""
    spec = video.spec
    assert video.seconds is not None
    later = tuple((prompt.at, prompt.text) for prompt in spec.prompts[1:])
    return Request(spec.prompt, video.seconds, spec.seed, later)


def objects_of(cluster: Cluster, video_id: str) -> dict[str, str]:
    """SHA-256 of each of a video's objects by the name below its prefix, the manifest left out."""
    prefix = video_prefix(video_id)
    keys = [info.key for info in cluster.objects.list(prefix) if info.key != manifest_key(video_id)]
    return {key.removeprefix(prefix): sha256(cluster.objects.get(key)).hexdigest() for key in keys}


def undisturbed(cluster: Cluster, requests: Iterable[Request]) -> dict[Request, Undisturbed]:
    """Makes each video once with a single worker that is left alone."""
    worker = cluster.worker(slots=1)
    ids = {request: create(cluster, request) for request in requests}
    made = {}
    for request, video_id in ids.items():
        video = cluster.wait(video_id, *TERMINAL, seconds=300)
        assert (video.state.status, video.state.attempts) == (Status.COMPLETED, 1), video.state
        final = cluster.client().read(video_id)
        made[request] = Undisturbed(request, objects_of(cluster, video_id), final)
        assert_agreement(cluster, video_id, made[request])
    cluster.end_workers()
    assert worker.code == 0
    return made


def assert_agreement(
    cluster: Cluster,
    video_id: str,
    expected: Undisturbed,
    *,
    watched: Sequence[VideoEvent] | None = None,
    redis_survived: bool = True,
    shared: bool = False,
    replica: int = 0,
) -> None:
    """Redis, bucket, events, playlist and files tell the same, and it is what the undisturbed video is.

    `watched` are the events that a client saw live, over however many connections. Without `redis_survived` a live
    client may have been told of a chunk again, because a killed Redis can forget what it had not yet written.
    With `shared`, forwards were shared with other videos: the pictures may differ by rounding.
    """
    video = cluster.video(video_id)
    state, frames = video.state, expected.request.frames
    assert state.status is Status.COMPLETED, (state, cluster.logs())
    assert (state.error, state.stalled, state.frames_ready) == (None, None, frames)

    # The bucket: every object that there should be, to the byte, and no other.
    objects = objects_of(cluster, video_id)
    if shared:
        assert objects.keys() == expected.objects.keys(), _difference(objects, expected.objects)
        expected = replace(expected, objects=objects)
    assert objects == expected.objects, _difference(objects, expected.objects)

    # Redis.
    chunks = cluster.store.chunks(video_id)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) == state.chunks_ready == state.chunks_total
    assert [chunk.sha256 for chunk in chunks] == _segments(objects)
    assert chunks[0].first_frame == 0
    assert all(b.first_frame == a.first_frame + a.frames for a, b in pairwise(chunks))
    assert sum(chunk.frames for chunk in chunks) == frames
    assert state.checkpoint == len(chunks) - 1
    assert cluster.objects.exists(checkpoint_key(video_id, len(chunks) - 1))

    # The manifest.
    manifest = Manifest.from_json(cluster.objects.get(manifest_key(video_id)))
    assert manifest.spec == video.spec
    assert manifest.state.status is Status.COMPLETED
    assert list(manifest.chunks) == chunks
    assert manifest.state.final_bytes == state.final_bytes

    # The event history, as a client that comes late gets it, and as Redis has it.
    client = cluster.client(replica)
    history = list(client.events(video_id))
    assert_history(history, expected)
    assert [event.chunk for event in history if event.chunk] == list(client.chunks(video_id))
    stored = [entry.decode() for entry, _ in cluster.store.redis.xrange(events_key(video_id))]
    assert [event.id for event in history] == stored
    if watched is not None:
        if redis_survived:
            assert_history(watched, expected)
            assert [event.id for event in watched] == stored
        seen = {event.chunk.index: event.chunk.sha256 for event in watched if event.chunk}
        assert list(seen.values()) == [chunk.sha256 for chunk in chunks]
        assert watched[-1].terminal

    # What is served.
    told = client.retrieve(video_id)
    assert (told.status, told.progress, told.frames, told.chunks_ready) == (
        Status.COMPLETED,
        100,
        frames,
        len(chunks),
    )
    _assert_playlist(cluster, video_id, objects, frames, replica)
    final = client.read(video_id)
    assert (len(final), sha256(final).hexdigest()) == (state.final_bytes, objects["video.mp4"])
    times = frame_times(final)
    assert len(times) == frames
    assert all(abs(time - number / 24) < 1e-3 for number, time in enumerate(times))
    if shared:
        apart = np.abs(_pixels(final) - _pixels(expected.final))
        assert apart.mean() < ROUNDING, (
            f"the pictures differ by {apart.mean():.2f} of 255, at most {apart.max():.0f}"
        )


def assert_cancelled(cluster: Cluster, video_id: str, expected: Undisturbed, shared: bool = False) -> None:
    """It ended as cancelled, and the chunks it has are the first ones of the undisturbed video, and can be played."""
    state = cluster.video(video_id).state
    assert (state.status, state.error, state.stalled) == (Status.CANCELLED, None, None)
    chunks = cluster.store.chunks(video_id)
    assert [chunk.index for chunk in chunks] == list(range(state.chunks_ready))
    assert sum(chunk.frames for chunk in chunks) == state.frames_ready
    if not shared:
        assert [chunk.sha256 for chunk in chunks] == expected.segments[: len(chunks)]
    client = cluster.client()
    history = list(client.events(video_id))
    assert [event.chunk.index for event in history if event.chunk] == list(range(len(chunks)))
    assert [event.type for event in history if event.terminal] == ["cancelled"]
    if chunks:
        manifest = Manifest.from_json(cluster.objects.get(manifest_key(video_id)))
        assert (manifest.state.status, list(manifest.chunks)) == (Status.CANCELLED, chunks)
        served = [client.read_chunk(video_id, chunk.index, form="m4s") for chunk in chunks]
        assert [sha256(data).hexdigest() for data in served] == [chunk.sha256 for chunk in chunks]
        assert len(frame_times(client.read_init(video_id) + b"".join(served))) == state.frames_ready
        assert len(frame_times(client.read(video_id, so_far=True))) == state.frames_ready


def assert_deleted(cluster: Cluster, video_id: str, seconds: float) -> None:
    """Nothing of it is served, and nothing is left in the bucket, nor in Redis but the mark that it was deleted."""
    client = cluster.client()
    for ask in (client.retrieve, client.read):
        try:
            ask(video_id)
        except NotFound:
            continue
        raise AssertionError(f"{video_id} was deleted and answers")
    redis = cluster.store.redis
    mark = deleted_key(video_id).encode()

    def left() -> list[str]:
        objects = [info.key for info in cluster.objects.list(video_prefix(video_id))]
        keys = [key for key in redis.scan_iter(match=f"*{video_id}*", count=1000) if key != mark]
        return [*objects, *map(bytes.decode, keys)]

    try:
        until(lambda: not left(), "nothing is left of a deleted video", seconds)
    except AssertionError as error:
        raise AssertionError(f"left of {video_id}, which was deleted: {left()}\n{cluster.logs()}") from error


def assert_history(events: Sequence[VideoEvent], expected: Undisturbed) -> None:
    """Every chunk once and in order, ids that rise, one terminal event, and that the last."""
    ids = [tuple(map(int, event.id.split("-"))) for event in events]
    assert all(a < b for a, b in pairwise(ids))
    chunks = [event.chunk for event in events if event.chunk]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.sha256 for chunk in chunks] == expected.segments
    assert [event.type for event in events if event.terminal] == ["completed"]
    assert events[-1].terminal


def assert_no_leftovers(cluster: Cluster, seconds: float = 30.0) -> None:
    """Nothing active, nothing waiting, no lease, no job and no execution of RQ, no temporary file.

    Some of it is removed when a lease has run out, some when the next worker starts.
    """
    redis = cluster.store.redis

    def left() -> list[str]:
        names = {name for model in cluster.store.models() for name in queue_names(model)}
        found = [f"active {name.decode()}" for name in redis.hkeys(ACTIVE_KEY)]
        found += [f"waiting {i.decode()}" for name in names for i in redis.lrange(waiting_key(name), 0, -1)]
        found += [f"lease {i.decode()}" for name in names for i in redis.zrange(leases_key(name), 0, -1)]
        for pattern in ("rq:job:*", "rq:execution*"):
            found += [key.decode() for key in redis.scan_iter(match=pattern, count=1000)]
        return [*found, *(path.name for path in cluster.temporary.iterdir())]

    try:
        until(lambda: not left(), "nothing is left over", seconds)
    except AssertionError as error:
        raise AssertionError(f"left over: {left()}") from error
    assert all(redis.exists(chunks_key(video_id)) for video_id in _completed(cluster))


def _completed(cluster: Cluster) -> list[str]:
    videos, _ = cluster.store.page("", limit=10_000, status=Status.COMPLETED)
    return [video.id for video in videos]


def _pixels(data: bytes) -> NDArray[np.float32]:
    with av.open(BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float32)


def frame_times(data: bytes) -> list[float]:
    """Presentation time in seconds of every frame that decodes."""
    with av.open(BytesIO(data)) as container:
        return [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]


def _segments(objects: dict[str, str]) -> list[str]:
    return [digest for name, digest in sorted(objects.items()) if name.startswith("chunks/")]


def _assert_playlist(
    cluster: Cluster, video_id: str, objects: dict[str, str], frames: int, replica: int
) -> None:
    base = f"{cluster.apis[replica % len(cluster.apis)].url}/v1/videos/{video_id}"
    with httpx.Client(trust_env=False, timeout=20, follow_redirects=True) as http:
        text = http.get(f"{base}/stream.m3u8").raise_for_status().text
        lines = text.splitlines()
        assert lines[-1] == "#EXT-X-ENDLIST"
        names = [line for line in lines if not line.startswith("#")]
        seconds = [float(line[8:].rstrip(",")) for line in lines if line.startswith("#EXTINF:")]
        assert names == [f"chunks/{number}.m4s" for number in range(len(names))]
        assert abs(sum(seconds) - frames / 24) < 1e-4
        served = [http.get(f"{base}/{name}").raise_for_status().content for name in ("init.mp4", *names)]
    assert [sha256(data).hexdigest() for data in served] == [objects["init.mp4"], *_segments(objects)]
    assert len(frame_times(b"".join(served))) == frames


def _difference(found: dict[str, str], expected: dict[str, str]) -> str:
    return json.dumps(
        {
            "missing": sorted(expected.keys() - found.keys()),
            "too many": sorted(found.keys() - expected.keys()),
            "other bytes": sorted(
                name for name in found.keys() & expected.keys() if found[name] != expected[name]
            ),
        }
    )
