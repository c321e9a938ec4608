"""The only owner of the model: one thread that advances the windows of all active videos.

A step takes the video whose turn it is and every other runnable video whose window has the same shape, and
advances them in one forward (`worker.sampler.progressive.step`). A video whose finished chunks nobody has taken is
not runnable, so a slow decoder, encoder or store stops its sampler and nothing piles up. Turns go round by chunks:
who has emitted one goes to the back. Flags are looked at before every forward.

Before a video's length or prompts change, `Track.hold` keeps it from beginning another chunk; `Track.direct` then
lets it go on. A video whose length is not settled waits the same way when it has begun its last chunk.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worker.devices import device_failed
from worker.models.base import InvalidOutput, VideoModel
from worker.sampler.progressive import step
from worker.sampler.window import PromptTimeline, WindowState

log = logging.getLogger(__name__)

T = TypeVar("T")


class Stopped(Exception):
    """The video was stopped from outside; what it was about to give is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Everything the prompts of one video come to: embeddings ``(1, L, D)`` by text, and the negative one."""

    timeline: PromptTimeline
    embeddings: dict[str, Tensor]
    negative: Tensor

    @classmethod
    def encode(
        cls,
        embed: Callable[[Sequence[str]], Tensor],
        timeline: PromptTimeline,
        negative_prompt: str,
        *,
        since: int = 0,
        known: Conditioning | None = None,
    ) -> Conditioning:
        """Embeds the prompts in force from chunk `since` on, but those that are `known`; earlier ones are dropped.

        `embed` gives the embeddings ``(B, L, D)`` of texts, and is called once at most.
        """
        texts, old = timeline.texts(since), {} if known is None else known.embeddings
        missing = [text for text in texts if text not in old]
        if known is None and negative_prompt not in missing:
            missing.append(negative_prompt)
        fresh: dict[str, Tensor] = {}
        if missing:
            rows = embed(missing).tensor_split(len(missing))
            # Clones: a slice would keep the embeddings of all texts for as long as that of one is needed.
            fresh = {text: row.clone() for text, row in zip(missing, rows, strict=True)}
        embeddings = {text: old[text] if text in old else fresh[text] for text in texts}
        return cls(timeline, embeddings, fresh[negative_prompt] if known is None else known.negative)

    def at(self, chunk: int) -> Tensor:
        """The embedding in force when `chunk` is the newest of the window."""
        return self.embeddings[self.timeline.at(chunk)]


@dataclass(frozen=True, slots=True)
class Emission:
    """A clean chunk as it left the window, and the window's state at that very moment."""

    chunk: int
    latents: Tensor
    """Float32 ``(1, channels, C, h, w)`` on the CPU."""
    state: tuple[dict[str, Tensor], dict[str, str]]
    """`WindowState.to_tensors`: with it the video goes on after this chunk."""
    forward: int
    """Forwards done so far."""


class Track:
    """One video in the engine. Its consumer calls `take` and `stop` from other threads."""

    def __init__(
        self,
        engine: Engine,
        state: WindowState,
        conditioning: Conditioning,
        *,
        capacity: int,
        settled: bool,
        wake: threading.Event | None,
    ) -> None:
        self.state = state
        self.conditioning = conditioning
        self.forwards_done, self.forwards_total = state.forward, state.forwards_total
        """As of the last forward that has ended: in the middle of one the window's own are neither old nor new."""
        self._capacity = capacity
        self._settled, self._wake = settled, wake
        self._held = False
        self._free = state.next_chunk
        self._emissions: deque[Emission] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._rest_after: int | None = None
        self._emitted: int | None = None
        """The newest emitted chunk, while no forward has been done since."""
        self._resting = False
        self._finished = state.done
        self._engine = engine
        self._changed = threading.Condition(engine.lock)

    def take(self) -> Emission | None:
        """The next chunk, waiting for it; None after the last one, and after the last before a rest.

        Raises `Stopped`, and whatever the model raised on this video.
        """
        with self._engine.lock:
            while True:
                if self._stopped:
                    raise Stopped
                if self._emissions:
                    emission = self._emissions.popleft()
                    self._engine.wake()
                    return emission
                if self._error is not None:
                    raise self._error
                if self._finished or self._resting:
                    return None
                self._changed.wait()

    @property
    def undecided(self) -> bool:
        """Whether `direct` is due: it is held, or has begun its last chunk without knowing that it is the last."""
        with self._engine.lock:
            return self._held or self._unsettled

    def hold(self) -> int:
        """Keeps the video from beginning another chunk until `direct` lets it. May be repeated.

        Returns the first chunk that is not begun, nor going to be by the forward that runs now.
        """
        with self._engine.lock:
            self._held = True
            return self._free

    def direct(self, total: int, conditioning: Conditioning, *, settled: bool) -> None:
        """Goes on with this length in chunks, for good if `settled`, and these prompts.

        To be called between two forwards, that is through `Engine.call`.
        """
        with self._engine.lock:
            if not self.state.draining:
                self.state.set_total(total)
            self.forwards_total = self.state.forwards_total
            self.conditioning = conditioning
            self._settled, self._held = settled, False

    def stop(self) -> None:
        """Takes the video out of the engine: at most the forward that runs now still has it. May be repeated."""
        with self._engine.lock:
            self._stopped = True
            self._emissions.clear()
            self._changed.notify_all()
            self._engine.wake()

    def rest_after(self, chunk: int) -> None:
        """Takes the video out of the engine once `chunk` or a later one has left the window; it continues from there.

        What was emitted is still to be taken. May be repeated.
        """
        with self._engine.lock:
            self._rest_after = chunk
            self._engine.wake()

    @property
    def resting(self) -> bool:
        """Whether it has left the engine by `rest_after`."""
        return self._resting

    # Called by the engine, with its lock held.

    @property
    def over(self) -> bool:
        return self._stopped or self._resting or self._error is not None or self.state.done

    def rest(self) -> None:
        """Ends the video's turn here if it is to rest and stands right behind a chunk. No forward may be running."""
        due = self._rest_after is not None and self._emitted is not None and self._emitted >= self._rest_after
        if due and not self.over:
            self._resting = True
            self._changed.notify_all()

    @property
    def runnable(self) -> bool:
        waits = self.state.shifts_next and not self.state.draining and (self._held or self._unsettled)
        return not self.over and len(self._emissions) < self._capacity and not waits

    @property
    def _unsettled(self) -> bool:
        return not self._settled and self._free == self.state.total

    def begin(self) -> None:
        """A forward is about to run."""
        if self.state.shifts_next and self.state.next_chunk != self.state.total:
            self._free = self.state.next_chunk + 1

    def give(self, emission: Emission | None) -> None:
        self.forwards_done, self.forwards_total = self.state.forward, self.state.forwards_total
        # Set here, under the lock and together with the last chunk, not when the window ran empty.
        self._finished = self.state.done
        self._emitted = None if emission is None else emission.chunk
        if emission is not None and not self._stopped:
            self._emissions.append(emission)
            self._changed.notify_all()
        if self._unsettled and self._wake is not None:
            self._wake.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._changed.notify_all()


def detached(error: Exception) -> Exception:
    """An error that was caught, to be kept: where it came from is a note in it and not its frames any more.

    Frames hold all that was worked on, and are held by the error that a video holds in its turn: a circle, which
    would keep the memory of a video that failed.
    """
    if not hasattr(error, "__notes__"):  # else it was kept before, and raised again
        error.add_note("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


class Engine:
    """Runs a model for any number of videos, at most `batch` of them in one forward."""

    def __init__(self, model: VideoModel, *, batch: int = 1) -> None:
        self.model = model
        self.batch = batch
        self.lock = threading.RLock()
        self._wake = threading.Condition(self.lock)
        self._ring: deque[Track] = deque()
        self._calls: deque[tuple[Callable[[VideoModel], object], Future[object]]] = deque()
        self._closed = self._device_failed = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # -- called from any thread -------------------------------------------------------------------------

    def add(
        self,
        state: WindowState,
        conditioning: Conditioning,
        *,
        capacity: int,
        settled: bool = True,
        wake: threading.Event | None = None,
    ) -> Track:
        """Starts sampling a video; `capacity` finished chunks may wait to be taken.

        Unless its length is `settled`, it waits with its last chunk begun for `Track.direct`, and sets `wake`.
        """
        track = Track(self, state, conditioning, capacity=capacity, settled=settled, wake=wake)
        with self.lock:
            self._ring.append(track)
            self.wake()
        return track

    def call(self, function: Callable[[VideoModel], T]) -> T:
        """Runs `function` on the model between two forwards (prompt encoding) and returns what it returns."""
        future: Future[T] = Future()
        with self.lock:
            if self._closed:
                raise Stopped
            self._calls.append((function, future))  # type: ignore[arg-type]
            self.wake()
        return future.result()

    def wake(self) -> None:
        """Makes the engine look again for something to do. Needs the lock."""
        self._wake.notify_all()

    def busy_seconds(self) -> float:
        """How long the forward or call that runs now has been running; 0 when none does."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def alive(self) -> bool:
        """False once its thread has ended: by `close`, or by a fault of its own."""
        return self._thread.is_alive()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Stops every video and ends the thread; False when it does not end in time."""
        with self.lock:
            self._closed = True
            for track in self._ring:
                track.stop()
            for _, future in self._calls:
                future.set_exception(Stopped())
            self._calls.clear()
            self.wake()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    # -- the engine's thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                call, group = None, list[Track]()
                with self.lock:
                    while not (self._closed or self._calls or (group := self._begin_next_group())):
                        self._wake.wait()
                    if self._closed:
                        return
                    if self._calls:
                        call = self._calls.popleft()
                self._busy_since = time.monotonic()
                try:
                    if call is not None:
                        _answer(self.model, *call)
                    else:
                        self._forward(group)
                finally:
                    self._busy_since = None

    def _begin_next_group(self) -> list[Track]:
        """The video whose turn it is and those that fit into its forward; empty when nobody can run."""
        for track in self._ring:
            track.rest()
        for track in [track for track in self._ring if track.over]:
            self._ring.remove(track)
        runnable = [track for track in self._ring if track.runnable]
        if not runnable or self._device_failed:
            return []
        shape = runnable[0].state.shape
        group = [track for track in runnable if track.state.shape == shape][: self.batch]
        for track in group:
            track.begin()
        return group

    def _forward(self, group: Sequence[Track]) -> None:
        before = [track.state.forward for track in group]
        try:
            emitted = self._step(group)
        except Exception as error:  # noqa: BLE001 - kept for the video it belongs to
            failure = detached(error)
        else:
            self._hand_out(group, emitted)
            return
        # Only here, behind the handler, has all that the failed forward held gone out of memory.
        if device_failed(failure):
            # Every forward would fail from now on, and the other videos are not at fault.
            self._device_failed = True
        untouched = all(track.state.forward == forward for track, forward in zip(group, before, strict=True))
        if len(group) > 1 and untouched and not self._device_failed:
            # One of them is at fault, or they are too many; alone, each answers for itself.
            log.warning("a shared forward of %d videos failed; trying each alone", len(group))
            if isinstance(failure, torch.OutOfMemoryError):
                self.batch = len(group) // 2
                log.warning("out of memory: from now on at most %d videos share a forward", self.batch)
            for track in group:
                self._forward([track])
            return
        with self.lock:
            for track in group:
                track.fail(failure)

    def _hand_out(self, group: Sequence[Track], emitted: Sequence[Emission | BaseException | None]) -> None:
        with self.lock:
            for track, emission in zip(group, emitted, strict=True):
                if isinstance(emission, BaseException):
                    track.fail(emission)
                    continue
                track.give(emission)
                if emission is not None and track in self._ring:
                    self._ring.remove(track)
                    self._ring.append(track)

    def _step(self, group: Sequence[Track]) -> list[Emission | BaseException | None]:
        answers = step(
            self.model,
            [track.state for track in group],
            [track.conditioning.at(track.state.newest_chunk) for track in group],
            [track.conditioning.negative for track in group],
        )
        results: list[Emission | BaseException | None] = []
        for track, emitted in zip(group, answers, strict=True):
            if emitted is None:
                results.append(None)
                continue
            latents = emitted.latents.cpu()
            if not bool(torch.isfinite(latents).all()):
                results.append(InvalidOutput(f"chunk {emitted.chunk} holds numbers that are not finite"))
                continue
            results.append(Emission(emitted.chunk, latents, track.state.to_tensors(), track.state.forward))
        return results


def _answer(model: VideoModel, function: Callable[[VideoModel], object], future: Future[object]) -> None:
    try:
        future.set_result(function(model))
    except Exception as error:  # noqa: BLE001 - kept for the video it belongs to
        future.set_exception(error)
