"""The progressive window: its settings, and the state of one video. Pure; knows no model.

Source: Xie et al., "Progressive Autoregressive Video Diffusion Models", arXiv 2410.08151 (PA-VDM), with its
names: chunked frames, overlapped conditioning, variable length (initialisation and termination), Algorithm 1.

Front to back, a window is: an optional sink latent, clean context, active chunks of rising noise level, and,
in constant-shape mode only, chunks that still wait as pure noise::

    sink | context ... context | m-s  2m-s  ...  Km-s | waiting
    (0)  |  0             0    |  levels at stage s   |   S

Every forward moves each active chunk one level down. All its latents share its noise level, or, where the levels are
graded, those further back have more of it. After ``m`` forwards the front chunk is clean: it is
emitted and becomes context, and a chunk of fresh noise enters at the back.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final, Self

import torch
from torch import Tensor

from worker.sampler.noise import Draw, add_noise, chunk_noise, graded_table, sigma_table

CHECKPOINT_SCHEMA: Final = 1
"""Version of the layout that :meth:`WindowState.to_tensors` writes."""


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """Settings of the progressive sampler. Lengths are in latent frames or in chunks of them.

    Raises ``ValueError`` naming the field when a value makes no window.
    """

    chunk_latents: int
    """``C``: latent frames that enter and leave together (chunked frames), at one noise level unless ``graded``."""
    chunks_in_flight: int
    """``K``: chunks denoised at once."""
    forwards_per_shift: int
    """``m``: network evaluations between two emitted chunks."""
    context_chunks: int
    """``O``: clean chunks kept in front (overlapped conditioning)."""
    time_shift: float
    """``s`` of the level table, see :func:`worker.sampler.noise.sigma_table`."""
    guidance_scale: float
    """Classifier-free guidance ``g``; 1 costs no unconditional evaluation."""
    sink: bool = False
    """Keep the video's first latent in front once it has left the context (attention sink)."""
    constant_shape: bool = False
    """Pad the window at both ends of the video instead of growing and shrinking it: one shape throughout."""
    context_sigma: float = 0.0
    """Noise level of the context latents; 0 keeps them clean."""
    graded: bool = False
    """Let the noise levels rise within a chunk, too: a level for every latent frame (PA-VDM, section 3.1)."""

    def __post_init__(self) -> None:
        for name, least in (
            ("chunk_latents", 1),
            ("chunks_in_flight", 1),
            ("forwards_per_shift", 1),
            ("context_chunks", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("time_shift", "guidance_scale", "context_sigma"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name in ("sink", "constant_shape", "graded"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        if not (math.isfinite(self.time_shift) and self.time_shift > 0):
            raise ValueError(f"time_shift must be a finite number above 0, got {self.time_shift!r}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(
                f"guidance_scale must be a finite number of at least 0, got {self.guidance_scale!r}"
            )
        if not 0 <= self.context_sigma < 1:
            raise ValueError(f"context_sigma must be in [0, 1), got {self.context_sigma!r}")

    @property
    def levels(self) -> int:
        """``S = K * m``: forwards that a chunk spends in the window."""
        return self.chunks_in_flight * self.forwards_per_shift

    @property
    def window_latents(self) -> int:
        """Latent frames of a steady window, without the sink: ``(O + K) * C``."""
        return (self.context_chunks + self.chunks_in_flight) * self.chunk_latents

    @property
    def kept_context_latents(self) -> int:
        """Latent frames of context worth keeping; constant shape pads the shrinking end with older ones."""
        chunks = self.context_chunks + (self.chunks_in_flight - 1 if self.constant_shape else 0)
        return chunks * self.chunk_latents

    def sigmas(self) -> Tensor:
        """Noise level of each latent of a chunk by level, float32 ``(S + 1, C)``, from 0 (clean) to 1 (pure noise)."""
        if self.graded:
            return graded_table(
                self.chunks_in_flight, self.chunk_latents, self.forwards_per_shift, self.time_shift
            )
        return sigma_table(self.levels, self.time_shift)[:, None].expand(-1, self.chunk_latents)

    def forwards(self, chunks: int) -> int:
        """Forwards that a video of ``chunks`` chunks costs from pure noise: ``m * (N + K - 1)``, also for N < K."""
        return self.forwards_per_shift * (chunks + self.chunks_in_flight - 1) if chunks else 0


@dataclass(frozen=True, slots=True)
class PromptTimeline:
    """Prompts of a video by the chunk that each begins at.

    The prompt of a forward is the one of the newest chunk in the window (:attr:`WindowState.newest_chunk`):
    from its first forward to its last, a chunk sees its own prompt or a later one, never an earlier one. The
    ``K - 1`` chunks in flight when a prompt begins are finished under it, so the picture turns over them.
    The prompt is a function of the window alone, so a resumed or repeated run changes at the same forward.
    """

    changes: tuple[tuple[int, str], ...]
    """``(first chunk, prompt)``, in order, the first at chunk 0."""

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.changes]
        if not starts or starts[0] != 0:
            raise ValueError("a prompt timeline must begin at chunk 0")
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"the chunks of a prompt timeline must rise, got {starts}")

    def at(self, chunk: int) -> str:
        """Prompt in force when ``chunk`` is the newest of the window."""
        return self.changes[self._place(chunk)][1]

    def texts(self, since: int = 0) -> list[str]:
        """Prompts in force from chunk ``since`` on, each once."""
        return list(dict.fromkeys(text for _, text in self.changes[self._place(since) :]))

    def _place(self, chunk: int) -> int:
        return bisect_right(self.changes, chunk, key=lambda change: change[0]) - 1


def _column(values: Tensor) -> Tensor:
    """Values ``(C,)`` of the latents of a chunk, to go with ``(1, channels, C, h, w)``."""
    return values[:, None, None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk in flight: ``latents`` is float32 ``(1, channels, C, h, w)`` at noise level ``level``."""

    number: int
    level: int
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Emitted:
    """A finished chunk: clean normalised latents, float32 ``(1, channels, C, h, w)``."""

    chunk: int
    latents: Tensor


@dataclass(frozen=True, slots=True)
class WindowInput:
    """One row of a forward: ``latents`` float32 ``(1, channels, F, h, w)``, ``sigmas`` float32 ``(1, F)``.

    The active chunks start at latent frame ``active_from``; what lies before and after is never updated.
    """

    latents: Tensor
    sigmas: Tensor
    active_from: int


@dataclass(slots=True)
class WindowState:
    """Everything needed to go on with one video, bit for bit.

    :meth:`advance` replaces the tensors it changes and never writes into one, so what :meth:`to_tensors` or
    :meth:`advance` handed out may be saved or decoded in another thread while sampling goes on.
    """

    config: SamplerConfig
    seed: int
    frame_shape: tuple[int, int, int]
    """``(channels, h, w)`` of one latent frame."""
    device: torch.device
    total: int | None
    """Chunks of the whole video; None is endless."""
    active: list[Chunk]
    context: Tensor
    """Latents before the window as the network sees them, ``(1, channels, n, h, w)``; n may be 0."""
    sink: Tensor
    """First latent of the video, ``(1, channels, n, h, w)``; n is 0 while there is none."""
    known_latents: int
    """Latents of the video so far: given ones and emitted ones."""
    next_chunk: int
    stage: int = 0
    """Forwards since the last shift, ``0 .. m-1``."""
    forward: int = 0
    """Forwards done."""
    draining: bool = False
    """The window has begun to shrink; the length can no longer change."""

    @classmethod
    def start(
        cls,
        config: SamplerConfig,
        seed: int,
        frame_shape: tuple[int, int, int],
        *,
        total: int | None,
        context: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Window of a video that begins with one chunk of pure noise (PA-VDM, variable length: initialisation).

        ``context``, float32 ``(1, channels, n, h, w)`` normalised latents of an image, a clip or an earlier
        video's end, becomes the clean context: the last of it that fits, and its first latent as the sink.
        Raises ``ValueError`` when the length or a shape does not fit.
        """
        state = cls._empty(config, seed, frame_shape, total, torch.device(device))
        if context is not None:
            state._know(context, number=-1)
        state._append()
        return state

    @classmethod
    def start_after(
        cls,
        config: SamplerConfig,
        seed: int,
        frame_shape: tuple[int, int, int],
        *,
        given: int,
        load: Callable[[int], Tensor],
        total: int | None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Window of a video whose chunks ``0 .. given - 1`` exist: sampling begins with chunk ``given``.

        ``load(n)`` gives the clean latents of chunk n, float32 ``(1, channels, C, h, w)``; only those that the
        window can see are asked for. They count in ``total``, so a video that has them all is done. Context and
        sink are those of a window that emitted the given chunks itself. Raises ``ValueError`` when the length or
        a shape does not fit.
        """
        state = cls._empty(config, seed, frame_shape, total, torch.device(device))
        if given < 1 or (total is not None and given > total):
            raise ValueError(f"{given} chunks are given, total is {total}")
        size = config.chunk_latents
        seen = range(max(0, given - config.kept_context_latents // size), given)
        for number in sorted({0, *seen} if config.sink else seen):
            latents = load(number)
            state._check(latents)
            if latents.shape[2] != size:
                raise ValueError(f"a chunk has {size} latents, a given one has {latents.shape[2]}")
            state._know(latents, number)
        state.known_latents, state.next_chunk = given * size, given
        if given == total:
            state.draining = True
        else:
            state._append()
        return state

    @classmethod
    def _empty(
        cls,
        config: SamplerConfig,
        seed: int,
        frame_shape: tuple[int, int, int],
        total: int | None,
        device: torch.device,
    ) -> Self:
        if total is not None and total < 1:
            raise ValueError(f"a video has at least one chunk, total is {total}")
        channels, height, width = frame_shape
        nothing = torch.zeros((1, channels, 0, height, width), device=device)
        return cls(
            config, seed, frame_shape, device, total, [], nothing, nothing, known_latents=0, next_chunk=0
        )

    # What the next forward sees ------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """True once the last chunk was emitted."""
        return not self.active

    @property
    def newest_chunk(self) -> int:
        """Number of the chunk at the back of the window; decides the prompt (:class:`PromptTimeline`)."""
        return self.next_chunk - 1

    @property
    def shifts_next(self) -> bool:
        """True when the next forward ends with a shift: a chunk enters the window, or the window shrinks."""
        return self.stage == self.config.forwards_per_shift - 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(channels, F, h, w)`` of the next window. Windows of one shape share a forward, whatever their stage."""
        channels, height, width = self.frame_shape
        sink, context, waiting = self._layout()
        frames = sink + context + len(self.active) * self.config.chunk_latents + waiting
        return channels, frames, height, width

    @property
    def forwards_left(self) -> int | None:
        """Forwards until the video is done; None when it is endless."""
        if self.done:
            return 0
        if self.total is None:
            return None
        to_append = self.total - self.next_chunk
        if self.draining or to_append == 0:
            return self.active[-1].level
        return to_append * self.config.forwards_per_shift - self.stage + self.config.levels

    @property
    def forwards_total(self) -> int | None:
        """Forwards of the whole video, done ones included; None when it is endless."""
        left = self.forwards_left
        return None if left is None else self.forward + left

    def view(self) -> WindowInput:
        """The next forward's input. Changes nothing. Raises ``ValueError`` when the video is done."""
        if self.done:
            raise ValueError("the video is done: there is no window to look at")
        size, levels, table = self.config.chunk_latents, self.config.levels, self.config.sigmas()
        sink, context, waiting = self._layout()
        parts = [self.sink[:, :, :sink], self.context[:, :, self.context.shape[2] - context :]]
        parts += [chunk.latents for chunk in self.active]
        number = self.next_chunk
        for taken in range(0, waiting, size):
            parts.append(self._noise(number)[:, :, : waiting - taken])
            number += 1
        sigmas = [0.0] * sink + [self.config.context_sigma] * context
        for chunk in self.active:
            sigmas += table[chunk.level].tolist()
        sigmas += table[levels, :1].tolist() * waiting
        return WindowInput(
            latents=torch.cat(parts, dim=2),
            sigmas=torch.tensor([sigmas], dtype=torch.float32, device=self.device),
            active_from=sink + context,
        )

    def _layout(self) -> tuple[int, int, int]:
        """Latent frames of (sink, context, waiting noise) in the next window."""
        size, config = self.config.chunk_latents, self.config
        active = len(self.active) * size
        room = config.window_latents - active if config.constant_shape else config.context_chunks * size
        context = min(self.context.shape[2], room)
        # While the context still reaches back to the first latent, a sink would show it twice.
        sink = self.sink.shape[2] if self.known_latents > context else 0
        if not config.constant_shape:
            return sink, context, 0
        constant = config.window_latents + (1 if config.sink else 0)
        return sink, context, constant - sink - context - active

    def _noise(self, number: int) -> Tensor:
        channels, height, width = self.frame_shape
        shape = (1, channels, self.config.chunk_latents, height, width)
        return chunk_noise(self.seed, number, shape).to(self.device)

    # One forward ---------------------------------------------------------------------------------------------

    def advance(self, velocity: Tensor) -> Emitted | None:
        """Applies one forward: an Euler step per active chunk, then the shift when one is due.

        ``velocity`` is the model's answer to :meth:`view`, float32 ``(1, channels, F, h, w)``. Returns the chunk
        that became clean, if one did. Raises ``ValueError`` when the shape or dtype is another.
        """
        expected = (1, *self.shape)
        if tuple(velocity.shape) != expected or velocity.dtype != torch.float32:
            raise ValueError(
                f"velocity must be float32 {expected}, got {velocity.dtype} {tuple(velocity.shape)}"
            )
        size, table = self.config.chunk_latents, self.config.sigmas()
        sink, context, _ = self._layout()
        levels = torch.tensor([chunk.level for chunk in self.active])
        steps = (table[levels - 1] - table[levels]).to(self.device)
        moved = []
        for slot, chunk in enumerate(self.active):
            begin = sink + context + slot * size
            latents = chunk.latents + _column(steps[slot]) * velocity[:, :, begin : begin + size]
            moved.append(Chunk(chunk.number, chunk.level - 1, latents))
        self.active = moved
        self.forward += 1
        self.stage = (self.stage + 1) % self.config.forwards_per_shift
        return self._shift() if self.stage == 0 else None

    def _shift(self) -> Emitted | None:
        emitted = None
        if self.active[0].level == 0:
            front, *self.active = self.active
            emitted = Emitted(front.number, front.latents)
            self._know(front.latents, front.number)
        if self.total is None or self.next_chunk < self.total:
            self._append()
        else:
            self.draining = True
        return emitted

    def _append(self) -> None:
        self.active.append(Chunk(self.next_chunk, self.config.levels, self._noise(self.next_chunk)))
        self.next_chunk += 1

    def _know(self, latents: Tensor, number: int) -> None:
        """Clean latents join the video's known past: context, and sink if they are its first."""
        self._check(latents)
        latents = latents.to(self.device)
        if self.config.sink and self.known_latents == 0:
            self.sink = latents[:, :, :1].clone(memory_format=torch.contiguous_format)
        self.known_latents += latents.shape[2]
        if self.config.context_sigma:
            noise = chunk_noise(self.seed, number, tuple(latents.shape), Draw.CONTEXT)
            latents = add_noise(latents, noise, self.config.context_sigma)
        joined = torch.cat([self.context, latents], dim=2)
        keep = min(joined.shape[2], self.config.kept_context_latents)
        # A copy, not a view: a view would keep the whole past alive and could not be saved.
        self.context = joined[:, :, joined.shape[2] - keep :].clone(memory_format=torch.contiguous_format)

    def _check(self, latents: Tensor) -> None:
        channels, height, width = self.frame_shape
        shape = tuple(latents.shape)
        fits = (
            len(shape) == 5
            and shape[2] > 0
            and (shape[0], shape[1], *shape[3:]) == (1, channels, height, width)
        )
        if not fits or latents.dtype != torch.float32:
            raise ValueError(
                f"given latents must be float32 (1, {channels}, n, {height}, {width}), got {latents.dtype} {shape}"
            )

    # Length --------------------------------------------------------------------------------------------------

    def set_total(self, total: int | None) -> None:
        """Lengthens or shortens a running video; None makes it endless.

        Possible until the window begins to shrink, because up to then the window does not depend on the
        length: the result equals that of a video planned with this length. Raises ``ValueError`` after that,
        or when chunks beyond ``total`` are already in the window.
        """
        if self.draining:
            raise ValueError("the window is shrinking: the length can no longer change")
        if total is not None and total < self.next_chunk:
            raise ValueError(f"{self.next_chunk} chunks have entered the window, total cannot be {total}")
        self.total = total

    # Checkpoints ---------------------------------------------------------------------------------------------

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """State as safetensors content: named CPU tensors and a string table. Restores bit for bit."""
        tensors = {"context": self.context.cpu(), "sink": self.sink.cpu()}
        tensors |= {f"chunk.{chunk.number}": chunk.latents.contiguous().cpu() for chunk in self.active}
        facts = {
            "schema": CHECKPOINT_SCHEMA,
            "config": asdict(self.config),
            "seed": self.seed,
            "frame_shape": self.frame_shape,
            "total": self.total,
            "active": [(chunk.number, chunk.level) for chunk in self.active],
            "known_latents": self.known_latents,
            "next_chunk": self.next_chunk,
            "stage": self.stage,
            "forward": self.forward,
            "draining": self.draining,
        }
        return tensors, {"window": json.dumps(facts)}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], device: torch.device | str = "cpu"
    ) -> Self:
        """State saved by :meth:`to_tensors`. Raises ``ValueError`` for another schema or missing parts."""
        try:
            facts = json.loads(metadata["window"])
            schema = facts["schema"]
            if schema != CHECKPOINT_SCHEMA:
                raise ValueError(
                    f"window checkpoint has schema {schema}, this version reads {CHECKPOINT_SCHEMA}"
                )
            channels, height, width = facts["frame_shape"]
            return cls(
                config=SamplerConfig(**facts["config"]),
                seed=facts["seed"],
                frame_shape=(channels, height, width),
                device=torch.device(device),
                total=facts["total"],
                active=[Chunk(n, level, tensors[f"chunk.{n}"].to(device)) for n, level in facts["active"]],
                context=tensors["context"].to(device),
                sink=tensors["sink"].to(device),
                known_latents=facts["known_latents"],
                next_chunk=facts["next_chunk"],
                stage=facts["stage"],
                forward=facts["forward"],
                draining=facts["draining"],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"window checkpoint is incomplete: {error!r}") from error


def same_shape(states: Sequence[WindowState]) -> tuple[int, int, int, int]:
    """The one window shape of all states. Raises ``ValueError`` when there is none or more than one."""
    shapes = {state.shape for state in states}
    if len(shapes) != 1:
        raise ValueError(f"windows of one forward must have one shape, got {sorted(shapes)}")
    return shapes.pop()
