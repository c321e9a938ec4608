"""What becomes of the requests to a running video, by how much of it is begun. Pure.

A chunk is begun when it enters the window: from then on its prompt is fixed, and the length is once the last one is.
The answers are written to the record before the next chunk is begun, so whoever goes on with the video, or makes it
again, does the same.
"""

from __future__ import annotations

from app.jobs.job import PendingPrompt, TimedPrompt, Video, VideoSpec
from worker.pipeline import Layout
from worker.sampler.window import PromptTimeline


def prompt_timeline(spec: VideoSpec, layout: Layout) -> PromptTimeline:
    """The prompts by the chunk that holds the frame they begin at; of two in one chunk the later counts.

    Those behind the end are among them: the video may still become longer.
    """
    changes: dict[int, str] = {}
    for prompt in sorted(spec.prompts, key=lambda timed: timed.at):
        changes[_chunk_at(prompt.at, spec, layout) if changes else 0] = prompt.text
    return PromptTimeline(tuple(changes.items()))


def first_open_chunk(next_chunk: int, committed: int, chunks_in_flight: int) -> int:
    """First chunk whose prompt may change: not begun, and no committed chunk has seen it in the window.

    The two differ when the checkpoints are lost and what is committed is sampled once more, to the same bits.
    """
    return max(next_chunk, committed + chunks_in_flight - 1 if committed else 0)


def directed(video: Video, free: int, layout: Layout) -> Video:
    """The video with everything settled that can be when `free` is the first chunk not begun.

    `layout` has the frames that the video may have: those asked for, or the limit of an endless one. Steering counts
    from `free` on, or from the chunk of its second if that is later. The length is final when no further chunk is to
    be begun. Then it is what was asked for or, of a video that is begun further than that, all that is begun; prompts
    behind it go.
    """
    spec, state = video.spec, video.state
    if state.ending:
        return video
    ending = state.finish_requested or layout.chunks <= free
    if not ending:
        for pending in state.pending_prompts:
            video = _steered(video, pending, free, layout)
        spec, state = video.spec, video.state
    changes: dict[str, object] = {}
    if ending:
        frames = layout.frames if layout.chunks == free else layout.first_frame(free)
        if frames != spec.frames:
            changes |= {"frames": frames, "seconds": frames / spec.fps}
        shown = tuple(prompt for prompt in spec.prompts if round(prompt.at * spec.fps) < frames)
        if len(shown) < len(spec.prompts):
            changes["prompts"] = shown
    told = {"pending_prompts": state.pending_prompts if ending else (), "ending": ending}
    return Video(spec=spec.model_copy(update=changes), state=state.model_copy(update=told))


def _steered(video: Video, pending: PendingPrompt, free: int, layout: Layout) -> Video:
    """The video with a prompt put into its timeline, in the place of what this supersedes."""
    spec, steered_at = video.spec, video.state.steered_at
    wanted = 0 if pending.at is None else _chunk_at(pending.at, spec, layout)
    chunk = max(wanted, free)
    at = pending.at if pending.at is not None and wanted >= free else layout.first_frame(chunk) / spec.fps

    def stays(prompt: TimedPrompt) -> bool:
        start = _chunk_at(prompt.at, spec, layout)
        # A worker that was lost may have been further: what it was to show at once is not to follow what is now.
        overtaken = pending.at is None and prompt.at == steered_at and start >= free
        return start != chunk and not overtaken

    prompts = [*filter(stays, spec.prompts), TimedPrompt(at=at, text=pending.text)]
    told = {} if pending.at is not None else {"steered_at": at}
    return Video(
        spec=spec.model_copy(update={"prompts": tuple(sorted(prompts, key=lambda timed: timed.at))}),
        state=video.state.model_copy(update=told),
    )


def _chunk_at(second: float, spec: VideoSpec, layout: Layout) -> int:
    return layout.chunk_of(round(second * spec.fps))
