"""Videos whose length and prompts change while they are made. The model is a stand-in; all else is real."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from app.jobs.job import Status, TimedPrompt, Video, VideoSpec
from app.jobs.manifest import Manifest
from app.jobs.store import VideoStore, events_key
from app.schemas import SteerVideo, UpdateVideo, video_object
from app.steering import finish, steer, update
from app.storage.objects import final_key, manifest_key, video_prefix
from worker.engine import Track
from worker.media.assemble import probe
from worker.models.registry import load_model


class Client:
    """Asks what the API's routes ask."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def _ask(self, spec: VideoSpec, change: Callable[[Video], Video]) -> Video:
        video: Video = self._work.store.request(spec.id, change)
        return video

    def finish(self, spec: VideoSpec) -> Video:
        return self._ask(spec, finish)

    def resize(self, spec: VideoSpec, seconds: float | str | Callable[[Video], float]) -> Video:
        def change(video: Video) -> Video:
            wanted = seconds(video) if callable(seconds) else seconds
            return update(video, UpdateVideo(seconds=wanted), self._work.settings(), None)

        return self._ask(spec, change)

    def steer(self, spec: VideoSpec, text: str, at: float | None = None) -> Video:
        return self._ask(
            spec, lambda video: steer(video, SteerVideo(text=text, at=at), self._work.settings())
        )


@pytest.fixture
def client(work: Any) -> Client:
    return Client(work)


def prompt_events(store: VideoStore, video_id: str) -> list[dict[str, Any]]:
    entries = store.redis.xrange(events_key(video_id))
    return [json.loads(fields[b"data"]) for _, fields in entries if fields[b"type"] == b"prompt"]


def shown(work: Any, spec: VideoSpec, text: str) -> bool:
    """Whether a chunk that began with this prompt is ready."""
    video = work.video(spec.id)
    return any(p.text == text and p.at < video.state.frames_ready / 24 for p in video.spec.prompts)


def again(work: Any, spec: VideoSpec) -> list[str]:
    """Digests of a new video with a video's timeline, length and seed, which nobody touches."""
    told: VideoSpec = work.video(spec.id).spec
    anew = work.spec(told.frames, **told.model_dump(exclude={"id", "created_at", "frames"}))
    work.store.create(anew)
    digests: list[str] = work.digests(work.wait(anew.id, "completed").id)
    return digests


def finished(work: Any, spec: VideoSpec, folder: Path) -> Video:
    """The completed video, its file checked against its record."""
    video: Video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert video.spec.frames == video.state.frames_ready == sum(c.frames for c in work.store.chunks(spec.id))
    assert video.state.chunks_total == video.state.chunks_ready
    path = folder / "final.mp4"
    path.write_bytes(work.objects.get(final_key(spec.id)))
    assert probe(path).frames == video.spec.frames
    assert Manifest.from_json(work.objects.get(manifest_key(spec.id))).spec == video.spec
    return video


def test_an_endless_video_runs_until_it_is_finished_with_all_that_was_begun(
    work: Any, client: Client, tmp_path: Path
) -> None:
    work.start(work.model(step_seconds=0.005))
    spec = work.spec(None)
    work.store.create(spec)
    running = work.wait(spec.id, chunks=4)
    work.eventually(lambda: work.video(spec.id).state.forwards_done)
    shown = video_object(work.video(spec.id))
    assert (shown.seconds, shown.frames, shown.chunks_total, shown.eta_seconds) == (
        "endless",
        None,
        None,
        None,
    )
    assert (shown.progress, running.state.ending) == (0, False)
    asked = client.finish(spec)
    assert client.finish(spec).state.finish_requested
    video = finished(work, spec, tmp_path)
    # All three chunks in flight and no more: what the engine has begun since is at most what the queues hold.
    assert asked.state.chunks_ready + 2 <= video.state.chunks_ready
    assert (video.spec.frames - 5) % 8 == 0
    assert float(video_object(video).seconds) == pytest.approx(video.spec.frames / 24, abs=1e-6)
    assert video.state.forwards_done == video.state.forwards_total == 2 * (video.state.chunks_ready + 2)
    assert again(work, spec) == work.digests(spec.id)


def test_an_endless_video_ends_by_itself_at_the_limit(work: Any, tmp_path: Path) -> None:
    work.start(max_endless_seconds=2.0)
    spec = work.spec(None)
    work.store.create(spec)
    assert finished(work, spec, tmp_path).spec.seconds == 2.0


def test_a_cancelled_endless_video_has_the_length_of_what_was_made(work: Any) -> None:
    work.start(work.model(step_seconds=0.005))
    spec = work.spec(None)
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    work.store.request_cancel(spec.id)
    video = work.wait(spec.id, "cancelled")
    assert video_object(video).frames == video.state.frames_ready > 0


def test_a_running_video_becomes_longer_and_shorter_to_the_same_bits(
    work: Any, client: Client, tmp_path: Path
) -> None:
    model = work.model(step_seconds=0.005)
    work.start(model)
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    assert client.resize(spec, "endless").spec.frames is None
    work.eventually(lambda: work.video(spec.id).state.chunks_total is None)
    model.hold.clear()
    ready = work.video(spec.id).state.chunks_ready
    seconds = (ready + 20) / 3 + 0.125  # some frames into a chunk
    assert client.resize(spec, seconds).spec.frames == round(seconds * 24)
    model.hold.set()
    video = finished(work, spec, tmp_path)
    assert (video.spec.seconds, video.spec.frames) == (seconds, round(seconds * 24))
    assert again(work, spec) == work.digests(spec.id)


def test_asked_to_be_shorter_than_it_is_begun_a_video_ends_there(
    work: Any, client: Client, tmp_path: Path
) -> None:
    work.start(work.model(step_seconds=0.01))
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    asked = client.resize(spec, lambda video: video.state.frames_ready / 24 + 0.25)
    video = finished(work, spec, tmp_path)
    assert asked.spec.frames < video.spec.frames < 24 * 600
    assert again(work, spec) == work.digests(spec.id)


def test_a_prompt_steers_from_the_next_chunk_that_is_begun_and_the_timeline_repeats_it_to_the_bit(
    work: Any, client: Client, tmp_path: Path
) -> None:
    work.start(work.model(step_seconds=0.005), manifest_seconds=600.0)
    plain, spec = work.spec(), work.spec(24 * 600)
    work.store.create(spec)
    begun = work.wait(spec.id, chunks=3).state.chunks_ready
    assert client.steer(spec, "a square").state.pending_prompts
    work.eventually(lambda: not work.video(spec.id).state.pending_prompts)
    work.wait(spec.id, chunks=work.video(spec.id).state.chunks_ready + 2)  # its chunk is begun
    for text in ("one", "two", "three"):
        client.steer(spec, text)
    client.steer(spec, "much later", at=400)
    work.eventually(lambda: not work.video(spec.id).state.pending_prompts)
    steered = work.video(spec.id)
    work.wait(spec.id, chunks=steered.state.chunks_ready + 5)
    told = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
    assert told.spec.prompts == steered.spec.prompts, "Redis may be lost at any time"
    client.finish(spec)
    video = finished(work, spec, tmp_path)

    *prompts, last = steered.spec.prompts
    assert [p.text for p in prompts[:2]] == ["a circle", "a square"]
    assert prompts[-1].text == "three"  # in the place of those that came for the same chunk
    assert last == TimedPrompt(at=400, text="much later")
    assert video.spec.prompts == tuple(prompts)  # it ended before that
    starts = [chunk.start_seconds(24) for chunk in work.store.chunks(spec.id)]
    assert prompts[1].at in starts[begun + 2 :]
    heard = {event["at"]: event["text"] for event in prompt_events(work.store, spec.id)}
    assert heard == {prompt.at: prompt.text for prompt in steered.spec.prompts[1:]}
    assert again(work, spec) == work.digests(spec.id)

    # It shows from the chunk on that was in the back of the window then, and not before.
    plain = work.spec(video.spec.frames)
    work.store.create(plain)
    unsteered = work.digests(work.wait(plain.id, "completed").id)
    at = 1 + starts.index(prompts[1].at)  # the init segment comes first
    assert work.digests(spec.id)[: at - 2] == unsteered[: at - 2]
    assert all(a != b for a, b in zip(work.digests(spec.id)[at:], unsteered[at:], strict=True))


@pytest.mark.parametrize("tiny", [False, True], ids=["stand-in", "real pipeline"])
def test_workers_that_die_after_every_request_change_nothing(
    work: Any, client: Client, tmp_path: Path, tiny_folder: Path, tiny: bool
) -> None:
    fields: dict[str, Any] = {"model": "tiny", "width": 32, "height": 32} if tiny else {}

    def start() -> Any:
        return work.start(load_model(str(tiny_folder)) if tiny else work.model(step_seconds=0.01))

    spec = work.spec(None, **fields)
    work.store.create(spec)
    worker = start()
    work.wait(spec.id, chunks=2)
    for text in ("a square", "a triangle"):
        client.steer(spec, text)
        worker.stop()  # some have settled it, some have not
        worker = start()
        work.eventually(partial(shown, work, spec, text))
    client.finish(spec)
    worker.stop()
    start()
    video = finished(work, spec, tmp_path)
    assert [p.text for p in video.spec.prompts] == ["a circle", "a square", "a triangle"]
    assert video.state.pending_prompts == ()
    assert again(work, spec) == work.digests(spec.id)


def test_a_worker_killed_in_the_middle_of_steering_and_of_the_end_changes_nothing(
    work: Any, client: Client, tmp_path: Path
) -> None:
    """Its process is killed without a word, once with the prompt settled and once with the end."""
    spec = work.spec(None)
    work.store.create(spec)
    process = work.process({"step_seconds": 0.02})
    work.wait(spec.id, chunks=3)
    client.steer(spec, "a square")
    work.eventually(lambda: prompt_events(work.store, spec.id))
    process.kill()
    settled = work.video(spec.id)
    process = work.process({"step_seconds": 0.02})
    work.wait(spec.id, chunks=settled.state.chunks_ready + 3)
    client.finish(spec)
    work.eventually(lambda: work.video(spec.id).state.ending)
    process.kill()
    end = work.video(spec.id).spec
    work.start()
    video = finished(work, spec, tmp_path)
    assert video.spec == end
    assert video.spec.prompts == settled.spec.prompts
    assert again(work, spec) == work.digests(spec.id)


def test_steering_after_the_checkpoints_are_lost_spares_what_is_committed(
    work: Any, client: Client, tmp_path: Path
) -> None:
    worker = work.start(work.model(step_seconds=0.01))
    spec = work.spec(150)
    work.store.create(spec)
    work.wait(spec.id, chunks=4)
    worker.stop()
    before = work.digests(spec.id)
    work.objects.delete_prefix(video_prefix(spec.id) + "checkpoints/")
    client.steer(spec, "a square")
    work.start()
    finished(work, spec, tmp_path)
    assert work.digests(spec.id)[: len(before)] == before
    assert again(work, spec) == work.digests(spec.id)


def test_an_answer_lost_while_steering_does_not_let_the_chunk_slip_by(
    work: Any, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has written it, the worker does not know: it must not begin that chunk before it does."""
    real, lost = VideoStore.settle, 0

    def losing(self: VideoStore, video_id: str, fence: str, change: Any) -> Any:
        nonlocal lost
        answer = real(self, video_id, fence, change)
        if len(answer[0].spec.prompts) > 1 and lost < 20:
            lost += 1
            raise RedisConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(VideoStore, "settle", losing)
    work.start(work.model(step_seconds=0.01))
    spec = work.spec(24 * 20)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    client.steer(spec, "a square")
    finished(work, spec, tmp_path)
    assert lost == 20
    assert again(work, spec) == work.digests(spec.id)


def test_a_length_that_changes_at_the_last_moment_is_refused_or_kept(
    work: Any, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last chunk's beginning and the record that says so, the client is faster."""
    grown: list[int] = []
    undecided = Track.undecided.fget
    spec = work.spec(60)

    def slower_than_the_client(track: Track) -> bool:
        due = bool(undecided(track))  # type: ignore[misc]
        if due and not grown:
            video = client.resize(spec, 5)
            assert video.spec.frames is not None
            grown.append(video.spec.frames)
        return due

    monkeypatch.setattr(Track, "undecided", property(slower_than_the_client))
    work.start()
    work.store.create(spec)
    assert finished(work, spec, tmp_path).spec.frames == 120
    assert grown == [120]
    assert again(work, spec) == work.digests(spec.id)
