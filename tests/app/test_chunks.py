from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import av
import httpx
import pytest

from app.settings import Settings
from tests.app.conftest import CARD, CHUNK_FRAMES, FIRST_CHUNK_FRAMES, FPS, Api, chunk_bounds, running_api

FRAMES = FIRST_CHUNK_FRAMES + 2 * CHUNK_FRAMES


@pytest.fixture
def finished(api: Api) -> tuple[Api, str]:
    video_id = api.create()["id"]
    api.worker.make(video_id)
    return api, f"/v1/videos/{video_id}"


def test_chunks_are_listed_in_pages_as_they_are_made(api: Api) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/chunks"
    empty = {"object": "list", "data": [], "has_more": False, "first_index": None, "last_index": None}
    assert api.http.get(url).json() == empty
    api.worker.claim(video_id)
    for index in range(5):
        api.worker.commit(video_id, index)
        assert len(api.http.get(url).json()["data"]) == index + 1
    page = api.http.get(f"{url}?limit=2").json()
    assert (page["has_more"], page["first_index"], page["last_index"]) == (True, 0, 1)
    page = api.http.get(f"{url}?limit=2&after=2").json()
    assert ([c["index"] for c in page["data"]], page["has_more"]) == ([3, 4], False)
    assert api.http.get(f"{url}?after=4").json() == empty
    chunk = api.http.get(f"{url}/3").json()
    assert chunk == page["data"][0]
    assert chunk["start_seconds"] == pytest.approx(chunk_bounds(3)[0] / FPS, abs=1e-6)
    assert chunk["duration_seconds"] == pytest.approx(CHUNK_FRAMES / FPS, abs=1e-6)
    for query in ("limit=0", "limit=1001", "after=-2", "after=x"):
        answer = api.http.get(f"{url}?{query}")
        api.error(answer, 400, "invalid_value", query.split("=")[0])


@pytest.mark.parametrize("index", ["5", "999999", "1000000", "-1", "x", "1.5", "%00", "9" * 100])
@pytest.mark.parametrize("rest", ["", "/content", ".m4s"])
def test_a_chunk_that_is_not_there_is_not_found(finished: tuple[Api, str], index: str, rest: str) -> None:
    api, url = finished
    answer = api.http.get(f"{url}/chunks/{index}{rest}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("chunk_not_found", "not_found")


def test_each_chunk_is_a_playable_file_that_starts_at_zero(finished: tuple[Api, str]) -> None:
    api, url = finished
    for index in range(3):
        answer = api.http.get(f"{url}/chunks/{index}/content")
        assert answer.headers["content-type"] == "video/mp4"
        assert "immutable" in answer.headers["cache-control"]
        with av.open(io.BytesIO(answer.content)) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert times == pytest.approx([n / FPS for n in range(chunk_bounds(index)[1])])
        part = api.http.get(f"{url}/chunks/{index}/content", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")


def test_the_bare_segment_is_the_stored_object(finished: tuple[Api, str]) -> None:
    api, url = finished
    record = api.http.get(f"{url}/chunks/1").json()
    segment = api.http.get(f"{url}/chunks/1/content?format=m4s")
    assert hashlib.sha256(segment.content).hexdigest() == record["sha256"]
    assert len(segment.content) == record["bytes"]
    named = api.http.get(f"{url}/chunks/1.m4s")
    assert named.content == segment.content
    assert named.headers["content-type"] == "video/iso.segment"
    assert "immutable" in named.headers["cache-control"]
    again = api.http.get(f"{url}/chunks/1.m4s", headers={"If-None-Match": named.headers["etag"]})
    assert again.status_code == 304
    assert api.http.head(f"{url}/chunks/1.m4s").headers["content-length"] == str(record["bytes"])
    api.error(api.http.get(f"{url}/chunks/1/content?format=gif"), 400, "invalid_value", "format")


def test_init_and_any_run_of_segments_is_a_playable_file(finished: tuple[Api, str]) -> None:
    api, url = finished
    init = api.http.get(f"{url}/init.mp4").content
    segments = [api.http.get(f"{url}/chunks/{index}.m4s").content for index in range(3)]
    for first in range(3):
        with av.open(io.BytesIO(init + b"".join(segments[first:]))) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert times == pytest.approx([n / FPS for n in range(chunk_bounds(first)[0], FRAMES)])


def test_the_playlist_grows_by_whole_lines_with_a_constant_target_and_ends_with_the_video(api: Api) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/stream.m3u8"
    for _ in range(2):  # waiting, and running without a chunk
        early = api.http.get(url)
        api.error(early, 404, "video_not_ready")
        assert early.headers["retry-after"] == "1"
        api.worker.claim(video_id)
    previous, etag = "", ""
    for index in range(4):
        api.worker.commit(video_id, index)
        answer = api.http.get(url, headers={"If-None-Match": etag})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/vnd.apple.mpegurl"
        assert answer.headers["cache-control"] == "no-cache"
        assert "#EXT-X-TARGETDURATION:1\n" in answer.text
        assert answer.text.startswith(previous)
        assert answer.text.endswith(f"chunks/{index}.m4s\n")
        previous, etag = answer.text, answer.headers["etag"]
        assert api.http.get(url, headers={"If-None-Match": etag}).status_code == 304
    api.worker.finish(video_id)
    answer = api.http.get(url, headers={"If-None-Match": etag})
    assert answer.text == previous + "#EXT-X-ENDLIST\n"
    lengths = [float(n) for n in re.findall(r"#EXTINF:([\d.]+),", answer.text)]
    assert lengths == pytest.approx([chunk_bounds(n)[1] / FPS for n in range(4)], abs=1e-6)


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("x-gzipped", False),
    ],
)
def test_the_playlist_is_compressed_for_who_takes_that(
    finished: tuple[Api, str], accepted: str, packed: bool
) -> None:
    api, url = finished
    plain = api.http.get(f"{url}/stream.m3u8", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    answer = api.http.get(f"{url}/stream.m3u8", headers={"Accept-Encoding": accepted})
    assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
    assert answer.text == plain.text
    assert answer.headers["content-type"] == plain.headers["content-type"]
    assert (int(answer.headers["content-length"]) < len(plain.text)) is packed
    # Caches keep the two apart, and ask after both by one name.
    assert answer.headers["etag"] == plain.headers["etag"]
    assert answer.headers["etag"].startswith("W/")
    known = {"If-None-Match": answer.headers["etag"], "Accept-Encoding": accepted}
    again = api.http.get(f"{url}/stream.m3u8", headers=known)
    assert again.status_code == 304
    for one in (plain, answer, again):
        assert one.headers["vary"] == "Accept-Encoding"
    head = api.http.head(f"{url}/stream.m3u8", headers={"Accept-Encoding": accepted})
    assert head.headers["content-length"] == answer.headers["content-length"]


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_video_that_stopped_early_stays_watchable(api: Api, status: str) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/stream.m3u8"
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    api.worker.finish(video_id, status)
    assert api.http.get(url).text.endswith("#EXT-X-ENDLIST\n")


def test_the_target_duration_is_that_of_a_full_chunk_from_the_first_playlist_on(api: Api) -> None:
    # 20 latents of 4 frames at 24 fps: 3.3 s, while the first chunk (1 + 19 * 4 frames) has 3.2 s.
    api.worker.register(CARD.model_copy(update={"chunk_latents": 20}))
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    assert "#EXT-X-TARGETDURATION:4\n" in api.http.get(f"/v1/videos/{video_id}/stream.m3u8").text


def test_ffmpeg_plays_the_live_playlist_over_http(finished: tuple[Api, str]) -> None:
    api, url = finished
    with av.open(f"{api.url}{url}/stream.m3u8", timeout=60) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == FRAMES
    assert times == pytest.approx([n / FPS for n in range(FRAMES)], abs=1e-3)


def test_a_player_may_open_the_playlist_before_there_is_anything_to_play(
    settings: Callable[..., Settings],
) -> None:
    with running_api(settings()) as api, ThreadPoolExecutor() as pool:
        api.worker.register()
        made, cancelled = (api.create()["id"] for _ in range(2))

        def play() -> int:
            with av.open(f"{api.url}/v1/videos/{made}/stream.m3u8", timeout=60) as container:
                return sum(1 for _ in container.decode(video=0))

        playing = pool.submit(play)
        waiting = pool.submit(httpx.get, f"{api.url}/v1/videos/{cancelled}/stream.m3u8", timeout=60)
        time.sleep(0.5)
        assert not playing.done()
        api.worker.make(made)
        assert playing.result(60) == FRAMES
        api.http.post(f"/v1/videos/{cancelled}/cancel")
        api.error(waiting.result(60), 404, "video_not_ready")
        assert api.context.events.watchers == 0


def test_players_on_other_origins_are_let_in_only_if_the_operator_says_so(
    api: Api, settings: Callable[..., Settings]
) -> None:
    player = {"Origin": "https://player.example"}
    assert "access-control-allow-origin" not in api.http.get("/v1/models", headers=player).headers
    asked = {**player, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    with running_api(settings(cors_origins="https://player.example, https://b.example")) as open_api:
        allowed = open_api.http.get("/v1/models", headers=player).headers
        assert allowed["access-control-allow-origin"] == "https://player.example"
        assert "Content-Range" in allowed["access-control-expose-headers"]
        preflight = open_api.http.options("/v1/videos/x/stream.m3u8", headers=asked)
        assert preflight.status_code == 200
        assert "range" in preflight.headers["access-control-allow-headers"].lower()
        other = open_api.http.get("/v1/models", headers={"Origin": "https://evil.example"}).headers
        assert "access-control-allow-origin" not in other
