"""Videos whose last attempt came to nothing run alone, so that what ends a worker costs no other video an attempt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from app.jobs.job import Status
from worker.company import Company


def test_who_is_to_be_alone_closes_the_company_until_it_has_made_a_chunk_or_ends() -> None:
    company = Company()
    assert company.join("a", alone=False)
    assert company.join("suspect", alone=True)
    assert not company.join("b", alone=False)
    assert not company.join("another suspect", alone=True)
    assert company.makes_way("a")
    assert not company.makes_way("suspect")
    assert not company.is_alone("suspect")
    company.leave("a")
    company.leave("b")
    assert company.is_alone("suspect")
    assert company.closed
    company.open("suspect")
    assert company.join("b", alone=False)
    assert not company.makes_way("b")
    company.leave("suspect")
    assert company.join("another suspect", alone=True)
    company.leave("another suspect")
    assert not company.closed


def came_to_nothing(work: Any, spec: Any) -> None:
    """One attempt at a waiting video is lost."""
    taken = work.store.take(spec.model, "a worker that died", 60)
    assert taken.video_id == spec.id
    _, fence = work.store.claim(spec.id, "a worker that died")
    work.store.release(spec.id, fence, taken.member, count_attempt=True, standing="back")


@pytest.mark.parametrize("first", ["innocent", "suspect"])
def test_a_suspect_is_alone_in_its_process_until_its_first_chunk_and_no_attempt_is_used_up(
    work: Any, first: str
) -> None:
    model = work.model(step_seconds=0.01)
    (one, other), velocity = model.encode_prompt(["suspect", "a circle"]), model.velocity
    unproven = list[bool]()
    """Of each forward from the suspect's first to its first chunk: whether the other video was in it."""

    def watched(latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        begun = bool(unproven) or any(torch.equal(row, one) for row in prompt)
        if begun and not work.video(suspect.id).state.chunks_ready:
            unproven.append(any(torch.equal(row, other) for row in prompt))
        answer: Tensor = velocity(latents, sigmas, prompt)
        return answer

    model.velocity = watched
    innocent, suspect = work.spec(40_000), work.spec(80, prompt="suspect")
    work.store.create(suspect)
    came_to_nothing(work, suspect)
    if first == "innocent":
        work.store.request_pause(suspect.id)
    work.store.create(innocent)
    work.start(model, slots=2)
    if first == "innocent":
        work.wait(innocent.id, chunks=2)
        work.store.resume(suspect.id)
    work.wait(suspect.id, chunks=1)
    assert unproven
    assert not any(unproven)
    assert work.wait(suspect.id, "completed").state.attempts == 2
    before = work.video(innocent.id).state.chunks_ready
    video = work.wait(innocent.id, chunks=before + 2)
    assert video.state.status is Status.IN_PROGRESS
    assert (video.state.attempts, video.state.barren_attempts) == (1, 0)


def test_a_suspect_that_waits_to_be_alone_can_be_cancelled_and_lets_the_others_go_on(work: Any) -> None:
    model = work.model(step_seconds=0.01)
    innocent, suspect = work.spec(40_000), work.spec(prompt="suspect")
    work.store.create(suspect)
    came_to_nothing(work, suspect)
    work.store.request_pause(suspect.id)
    work.store.create(innocent)
    work.start(model, slots=2)
    work.wait(innocent.id, chunks=2)
    model.hold.clear()  # the innocent one cannot come to its next chunk
    work.store.resume(suspect.id)
    work.wait(suspect.id, "in_progress")
    work.store.request_cancel(suspect.id)
    assert work.wait(suspect.id, "cancelled").state.chunks_ready == 0
    before = work.video(innocent.id).state.chunks_ready
    model.hold.set()
    work.wait(innocent.id, chunks=before + 4)
