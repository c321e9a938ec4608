"""Committed chunks kept in memory: a long playlist costs what is new of it, and says what Redis has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from app import committed
from app.committed import Committed, CommittedChunks
from app.jobs.job import ChunkRecord, Video
from app.jobs.manifest import Manifest
from app.jobs.migrations import RecordDamaged, RecordTooNew
from app.jobs.store import chunks_key, events_key, video_key
from app.settings import Settings
from app.storage.objects import init_key
from tests.app.conftest import FPS, Api, chunk_bounds, encoded, running_api


def lay_down(api: Api, video_id: str, *indices: int) -> None:
    """Records of chunks without their files."""
    pipe = api.worker.videos.redis.pipeline()
    for index in indices:
        first, frames = chunk_bounds(index)
        chunk = ChunkRecord(
            index=index, first_frame=first, frames=frames, bytes=1000, sha256="0" * 64, created_at=time.time()
        )
        pipe.rpush(chunks_key(video_id), chunk.model_dump_json())
        pipe.hset(video_key(video_id), "chunks_ready", index + 1)
    pipe.execute()


def begun(api: Api, chunks: int) -> str:
    video_id: str = api.create(seconds=3600)["id"]
    api.worker.claim(video_id)
    lay_down(api, video_id, *range(chunks))
    return video_id


def video_of(api: Api, video_id: str) -> Video:
    video = api.worker.videos.get(video_id)
    assert video is not None
    return video


def playlist_of(api: Api, video_id: str) -> str:
    answer = api.http.get(f"/v1/videos/{video_id}/stream.m3u8")
    assert answer.status_code == 200, answer.text
    return answer.text


def segments(chunks: list[ChunkRecord]) -> str:
    return "".join(f"#EXTINF:{c.duration_seconds(FPS):.6f},\nchunks/{c.index}.m4s\n" for c in chunks)


@pytest.fixture
def newcomer(api: Api, settings: Callable[..., Settings]) -> Iterator[Api]:
    """Another process on the same Redis, which has read nothing yet."""
    with running_api(settings()) as other:
        yield other


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The records that were parsed."""
    records: list[bytes] = []
    measured = committed._measured

    def noted(record: bytes) -> tuple[int, int]:
        records.append(record)
        return measured(record)

    monkeypatch.setattr(committed, "_measured", noted)
    return records


def test_a_poll_of_a_long_playlist_reads_only_the_chunks_that_are_new(
    api: Api, newcomer: Api, read: list[bytes]
) -> None:
    video_id = begun(api, 5000)
    playlist_of(api, video_id)
    assert len(read) == 5000
    read.clear()
    lay_down(api, video_id, 5000, 5001, 5002)
    grown = playlist_of(api, video_id)
    assert len(read) == 3
    assert grown == playlist_of(api, video_id)
    assert len(read) == 3
    chunks = api.worker.videos.chunks(video_id)
    assert grown.endswith(f'#EXT-X-MAP:URI="init.mp4"\n{segments(chunks)}')
    assert grown == playlist_of(newcomer, video_id)


def test_a_range_of_what_was_made_so_far_reads_no_record_again(
    api: Api, newcomer: Api, read: list[bytes]
) -> None:
    video_id = begun(api, 200)
    api.worker.objects.put(init_key(video_id), encoded(0, 17).init)
    newcomer.worker.objects.put(init_key(video_id), encoded(0, 17).init)
    url, some = f"/v1/videos/{video_id}/content?partial=true", {"Range": "bytes=0-2999"}
    header = api.http.get(url, headers=some)
    assert (header.status_code, len(read)) == (206, 200)
    assert api.http.get(url, headers=some).content == header.content
    lay_down(api, video_id, 200)
    longer = api.http.get(url, headers=some)
    assert len(read) == 201
    assert longer.content == newcomer.http.get(url, headers=some).content != header.content


def test_a_video_that_comes_back_shorter_and_grows_otherwise_is_read_anew(api: Api, newcomer: Api) -> None:
    video_id = api.create(seconds=10)["id"]
    api.worker.claim(video_id)
    for index in range(2):
        api.worker.commit(video_id, index)
    manifest = Manifest.of(video_of(api, video_id), api.worker.videos.chunks(video_id))
    for index in range(2, 5):
        api.worker.commit(video_id, index)
    before = playlist_of(api, video_id)
    for chunks in ((), (2,), (2, 3, 4), (2, 3, 4, 5)):
        api.worker.videos.redis.delete(*(name(video_id) for name in (video_key, chunks_key, events_key)))
        api.worker.videos.restore(manifest)
        api.worker.claim(video_id)
        for index in chunks:
            api.worker.commit(video_id, index, frames=12)
        after = playlist_of(api, video_id)
        assert after.endswith(segments(api.worker.videos.chunks(video_id)))
        assert after == playlist_of(newcomer, video_id) != before


def test_a_deleted_video_has_no_playlist_although_it_was_read_before(api: Api) -> None:
    video_id = begun(api, 3)
    playlist_of(api, video_id)
    video = video_of(api, video_id)
    assert api.http.delete(f"/v1/videos/{video_id}").status_code == 200
    api.error(api.http.get(f"/v1/videos/{video_id}/stream.m3u8"), 404, "video_not_found", "video_id")
    assert len(api.context.committed.of(video)) == 0, "also to a request that had its record before"


def test_a_request_that_knows_of_fewer_chunks_than_another_gets_those(api: Api) -> None:
    video_id = begun(api, 3)
    chunks, earlier = CommittedChunks(api.worker.videos), video_of(api, video_id)
    text = chunks.of(earlier).playlist(1, ended=False)
    lay_down(api, video_id, 3, 4)
    assert len(chunks.of(video_of(api, video_id))) == 5
    assert chunks.of(earlier).playlist(1, ended=False) == text
    assert list(chunks.of(earlier).sizes) == [1000] * 3


def test_no_more_chunks_are_kept_than_there_is_room_for(api: Api, read: list[bytes]) -> None:
    one, two, three, long = (video_of(api, begun(api, count)) for count in (4, 4, 4, 11))
    chunks = CommittedChunks(api.worker.videos, max_chunks=10)

    def parsed(video: Video) -> int:
        read.clear()
        assert len(chunks.of(video)) == video.state.chunks_ready
        return len(read)

    assert [parsed(video) for video in (one, two, one, three, one, two)] == [4, 4, 0, 4, 0, 4]
    assert [parsed(long), parsed(long)] == [11, 11]


def test_a_query_is_put_behind_every_address_of_a_playlist() -> None:
    record = ChunkRecord(index=0, first_frame=0, frames=24, bytes=1, sha256="", created_at=0)
    text = (
        Committed(24).grown([record.model_dump_json().encode()]).playlist(1, ended=True, query="signature=x")
    )
    assert (
        '#EXT-X-MAP:URI="init.mp4?signature=x"\n#EXTINF:1.000000,\nchunks/0.m4s?signature=x\n#EXT-X-END'
        in text
    )


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"not JSON", RecordDamaged),
        (b"[]", RecordDamaged),
        (b'{"schema_version": 2, "frames": 1}', RecordDamaged),
        (b'{"schema_version": 2, "frames": "1", "bytes": 1}', RecordDamaged),
        (b'{"schema_version": 2, "frames": 0, "bytes": 1}', RecordDamaged),
        (b'{"schema_version": 99, "frames": 1, "bytes": 1}', RecordTooNew),
    ],
)
def test_a_chunk_that_cannot_be_read_is_told(record: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Committed(24).grown([record])
