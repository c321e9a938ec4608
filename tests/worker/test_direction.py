"""What requests to a running video come to, by how much of it is begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs.job import PendingPrompt, Video, VideoSpec, VideoState
from worker.direction import directed, first_open_chunk, prompt_timeline
from worker.models.base import Geometry
from worker.pipeline import Layout

# Chunks of two latents begin at frames 0, 5, 13, 21, 29, 37, 45, ...
GEOMETRY = Geometry(3, 8, 4, 8, 24, ((16, 16),), (16, 16))


@pytest.fixture
def ask(make_spec: Callable[..., VideoSpec]) -> Callable[..., Video]:
    """A video of 100 frames (13 chunks) under way, of which this is asked; `limit` is what an endless one may have."""

    def make(
        free: int,
        *,
        limit: int = 100,
        endless: bool = False,
        prompts: tuple[dict[str, Any], ...] | None = None,
        **state: Any,
    ) -> Video:
        planned = {} if prompts is None else {"prompts": prompts}
        spec = make_spec(None if endless else limit, **planned)
        video = Video(spec=spec, state=VideoState(**state))
        return directed(video, free, Layout(limit, 2, GEOMETRY))

    return make


def timeline(video: Video) -> list[tuple[float, str]]:
    return [(prompt.at, prompt.text) for prompt in video.spec.prompts]


def test_steering_counts_from_the_first_chunk_not_begun_or_from_a_later_second(ask: Any) -> None:
    now, soon, later = (PendingPrompt(at=at, text=text) for at, text in ((None, "b"), (0.1, "c"), (3, "d")))
    assert timeline(ask(4, pending_prompts=(now, later))) == [(0, "a circle"), (29 / 24, "b"), (3, "d")]
    assert timeline(ask(4, pending_prompts=(later, now))) == [(0, "a circle"), (29 / 24, "b"), (3, "d")]
    assert timeline(ask(4, pending_prompts=(soon,))) == [(0, "a circle"), (29 / 24, "c")]
    video = ask(4, pending_prompts=(now, later))
    assert video.state.pending_prompts == ()
    assert prompt_timeline(video.spec, Layout(100, 2, GEOMETRY)).changes == (
        (0, "a circle"),
        (4, "b"),
        (9, "d"),
    )


def test_of_several_prompts_for_one_chunk_the_last_asked_for_counts(ask: Any) -> None:
    first, second = PendingPrompt(text="b"), PendingPrompt(text="c")
    assert timeline(ask(4, pending_prompts=(first, second))) == [(0, "a circle"), (29 / 24, "c")]
    planned = ({"at": 0, "text": "a"}, {"at": 1.25, "text": "in chunk 4"}, {"at": 2, "text": "z"})
    assert timeline(ask(4, prompts=planned, pending_prompts=(first,))) == [(0, "a"), (29 / 24, "b"), (2, "z")]


def test_what_a_lost_worker_had_not_begun_to_show_does_not_follow_a_newer_prompt(ask: Any) -> None:
    """It settled on chunk 9; its successor goes on with chunk 4."""
    planned = ({"at": 0, "text": "a"}, {"at": 69 / 24, "text": "old"}, {"at": 4, "text": "planned"})
    new, later = PendingPrompt(text="new"), PendingPrompt(at=3.5, text="later")
    steered = {"prompts": planned, "steered_at": 69 / 24}
    video = ask(4, **steered, pending_prompts=(new,))
    assert timeline(video) == [(0, "a"), (29 / 24, "new"), (4, "planned")]
    assert video.state.steered_at == 29 / 24
    assert timeline(ask(10, **steered, pending_prompts=(new,)))[1:3] == [(69 / 24, "old"), (77 / 24, "new")]
    assert timeline(ask(4, **steered, pending_prompts=(later,)))[1:3] == [(69 / 24, "old"), (3.5, "later")]


@pytest.mark.parametrize("chunk", range(1, 40))
def test_a_chunks_own_second_names_that_chunk(ask: Any, chunk: int) -> None:
    video = ask(chunk, limit=24 * 60, pending_prompts=(PendingPrompt(text="b"),))
    assert prompt_timeline(video.spec, Layout(24 * 60, 2, GEOMETRY)).changes == (
        (0, "a circle"),
        (chunk, "b"),
    )


def test_a_video_that_is_not_begun_to_its_end_stays_open(ask: Any) -> None:
    video = ask(12)
    assert (video.state.ending, video.spec.frames) == (False, 100)
    assert directed(video, 12, Layout(100, 2, GEOMETRY)) == video


def test_the_length_is_final_with_its_last_chunk_begun(ask: Any) -> None:
    video = ask(13, pending_prompts=(PendingPrompt(text="too late"),))
    assert (video.state.ending, video.spec.frames, video.spec.seconds) == (True, 100, 100 / 24)
    assert timeline(video) == [(0, "a circle")]
    assert video.state.pending_prompts == (PendingPrompt(text="too late"),)
    again = Video(spec=video.spec, state=video.state.model_copy(update={"finish_requested": True}))
    assert directed(again, 13, Layout(100, 2, GEOMETRY)) == again


@pytest.mark.parametrize(("free", "frames"), [(1, 5), (6, 45), (13, 100)])
def test_finishing_ends_with_whole_chunks_and_never_after_what_was_asked_for(
    ask: Any, free: int, frames: int
) -> None:
    video = ask(free, finish_requested=True)
    assert (video.state.ending, video.spec.frames, video.spec.seconds) == (True, frames, frames / 24)


def test_prompts_behind_the_end_go_when_the_length_is_final(ask: Any) -> None:
    planned = (
        {"at": 0, "text": "a"},
        {"at": 28 / 24, "text": "b"},
        {"at": 29 / 24, "text": "c"},
        {"at": 4, "text": "d"},
    )
    assert len(timeline(ask(4, prompts=planned))) == 4  # it may still become longer
    assert timeline(ask(4, prompts=planned, finish_requested=True)) == [(0, "a"), (28 / 24, "b")]


def test_a_video_does_not_become_shorter_than_what_is_begun(ask: Any) -> None:
    assert ask(6, limit=40).spec.frames == 40  # in chunk 5, the last that is begun
    assert ask(6, limit=30).spec.frames == 45


def test_an_endless_video_gets_a_length_at_its_limit_or_when_finished(ask: Any) -> None:
    video = ask(12, endless=True)
    assert (video.state.ending, video.spec.frames) == (False, None)
    video = ask(13, endless=True)
    assert (video.state.ending, video.spec.frames, video.spec.seconds) == (True, 100, 100 / 24)
    video = ask(6, endless=True, finish_requested=True)
    assert (video.spec.frames, video.spec.seconds) == (45, 45 / 24)


def test_what_committed_chunks_have_seen_stays_when_they_are_sampled_again() -> None:
    assert first_open_chunk(1, 0, 3) == 1
    assert first_open_chunk(8, 5, 3) == 8
    assert first_open_chunk(1, 5, 3) == 7
