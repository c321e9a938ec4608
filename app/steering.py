"""What may still be asked of a video that was asked for before: its length, its prompts, its end.

Each function turns a video's record into the one that is wanted, or raises `APIError`. From which chunk on a change
counts is settled by the worker (`worker.direction`), which alone knows what has been begun.
"""

from __future__ import annotations

from typing import Any

from app.errors import APIError, conflict
from app.jobs.estimate import chunks_needed, forwards_needed
from app.jobs.job import ModelCard, PendingPrompt, Status, Video, VideoSpec
from app.schemas import SteerVideo, UpdateVideo, format_seconds
from app.settings import Settings
from app.specification import check_at, check_seconds, check_text, frames_of, longest


def finish(video: Video) -> Video:
    """Ends the video after the chunks that are begun; once more changes nothing. Raises `APIError` 409."""
    if video.state.finish_requested and video.state.status in (Status.IN_PROGRESS, Status.COMPLETED):
        return video
    _alive(video)
    if not video.state.chunks_ready and video.state.status is not Status.IN_PROGRESS:
        raise conflict(
            "Nothing of the video is made yet. Cancel it, or change its seconds.", code="video_not_started"
        )
    return video if video.state.ending else _with_state(video, finish_requested=True)


def update(video: Video, asked: UpdateVideo, settings: Settings, card: ModelCard | None) -> Video:
    """Changes the video's length or labels. `card` is that of its model, if known. Raises `APIError` 400, 409."""
    _alive(video)
    changes: dict[str, Any] = {}
    state = video.state
    if asked.metadata is not None:
        changes["metadata"] = asked.metadata
    if asked.seconds is not None:
        spec = video.spec
        seconds = check_seconds(asked.seconds, spec.fps, settings, most=longest(video, settings))
        frames = frames_of(seconds, spec.fps)
        if (frames, seconds) != (spec.frames, spec.seconds):
            _open(video)
            if frames is not None and frames < video.state.frames_ready:
                ready = format_seconds(video.state.frames_ready / spec.fps)
                raise conflict(f"{ready} s are made already.", code="video_longer_already", param="seconds")
            changes |= {"seconds": seconds, "frames": frames}
            if state.started_at is not None:
                # Nobody else tells it of a video that is paused.
                state = state.model_copy(update=_totals(spec, frames, card))
    return Video(spec=video.spec.model_copy(update=changes), state=state)


def steer(video: Video, asked: SteerVideo, settings: Settings) -> Video:
    """Puts a prompt in line for the next chunk that is begun, or a later one. Raises `APIError` 400, 409."""
    _alive(video)
    _open(video)
    check_text(asked.text, settings, "text")
    if asked.at is not None:
        check_at(asked.at, video.spec.seconds, settings, "at")
    pending = video.state.pending_prompts
    if len(video.spec.prompts) + len(pending) >= settings.max_prompts:
        raise conflict(
            f"The timeline has {settings.max_prompts} prompts, more are not allowed.", code="too_many_prompts"
        )
    return _with_state(video, pending_prompts=(*pending, PendingPrompt(at=asked.at, text=asked.text)))


def _totals(spec: VideoSpec, frames: int | None, card: ModelCard | None) -> dict[str, int | None]:
    """What there is to make of a begun video once it has another length; the worker tells it again."""
    if frames is None or card is None:
        return {"chunks_total": None, "forwards_total": None}
    forwards = forwards_needed(frames, card, spec.num_inference_steps, given_chunks=spec.given_chunks)
    return {"chunks_total": chunks_needed(frames, card), "forwards_total": forwards}


def ended(video: Video) -> APIError:
    """409 for a video in a terminal state."""
    return conflict(f"The video has {_HAS[video.state.status]} already.", code=f"video_{video.state.status}")


_HAS = {Status.COMPLETED: "completed", Status.FAILED: "failed", Status.CANCELLED: "been cancelled"}


def _alive(video: Video) -> None:
    if video.state.status.terminal:
        raise ended(video)
    if video.state.cancel_requested:
        raise conflict("The video is being cancelled.", code="video_ending")


def _open(video: Video) -> None:
    """The end of the video is not settled yet."""
    if video.state.ending:
        raise conflict("The last chunk of the video is being made.", code="video_ending")
    if video.state.finish_requested:
        raise conflict("The video is being finished.", code="video_ending")


def _with_state(video: Video, **changes: Any) -> Video:
    return Video(spec=video.spec, state=video.state.model_copy(update=changes))
