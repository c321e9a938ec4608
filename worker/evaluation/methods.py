"""The ways to make a long video that an evaluation compares, each on the same weights at the same cost.

The progressive sampler, the baselines of its paper (PA-VDM, arXiv 2410.08151), the windowed diffusion forcing of stock
diffusers, and the paper's ablations as far as they are settings of the sampler. Cost is network evaluations: what the
progressive video pays, `m * (N + K - 1)`, every method spends as nearly as its steps divide, but for `abrupt-ends`,
which saves those of its ends; the number it really spent is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from worker.evaluation import oracle
from worker.evaluation.cases import Case, EvaluationError
from worker.models.base import Geometry, SamplerConfig, VideoFrames, VideoModel
from worker.models.registry import BUILTIN_FOLDER, describe
from worker.sampler import progressive, replacement
from worker.sampler.noise import chunk_noise
from worker.sampler.window import Chunk, Emitted, PromptTimeline, WindowState
from worker.training import scenes, stock
from worker.training.recipe import Recipe
from worker.training.windows import TURNING_AT_ONE_LEVEL, WindowMixture

RENDERED = "rendered"
"""The true scenes themselves: what every figure says of a perfect video."""
RECONSTRUCTED = "reconstructed"
"""The true scenes through the model's autoencoder: the best that any sampler can be."""
REFERENCE = "reference"
"""The same with other random numbers, which the Frechet distance compares against."""

RECIPE = Path(__file__).parents[1] / "training/configs/cpu-arms.toml"
"""The last part of the recipe of the built-in model."""

_REFERENCE_SEED = 500_000
_RENDERED_AT_ONCE = 48


class MethodError(EvaluationError):
    """A method that cannot make any video with a model."""


@dataclass(frozen=True)
class Wanted:
    """A video to make: `latents` latent frames of a case."""

    case: Case
    latents: int
    seed: int
    config: SamplerConfig
    """Settings of the progressive sampler that the others are derived from and whose cost they match."""

    @property
    def chunks(self) -> int:
        """Chunks of the progressive video."""
        return -(-self.latents // self.config.chunk_latents)

    @property
    def turn_latent(self) -> int | None:
        """The latent from which on the second prompt counts, the first of the middle chunk; None: there is none."""
        return None if self.case.turn is None else self.chunks // 2 * self.config.chunk_latents

    @property
    def budget(self) -> int:
        """Network evaluations of the progressive video."""
        return self.config.forwards(self.chunks)


Take = Callable[[Tensor], None]
"""Takes the next clean latents, `(1, channels, n, h, w)`."""
Sample = Callable[["CountedModel", Wanted, Take], None]


class CountedModel:
    """A model that counts what a sampler asks of it."""

    def __init__(self, model: VideoModel, spec: str) -> None:
        self.model, self.spec = model, spec
        self.forwards = 0
        """Network evaluations; the guided and the unguided half of one count once."""
        self.latent_forwards = 0
        """Latent frames that went through the network, guidance not counted twice."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        """As the model's own. One video is sampled at a time, so a second row is its unguided half."""
        self.count(latents.shape[2])
        return self.model.velocity(latents, sigmas, prompt)

    def count(self, latents: int) -> None:
        """One evaluation of a window of so many latent frames."""
        self.forwards += 1
        self.latent_forwards += latents


@dataclass(frozen=True)
class Method:
    """How a video is made. `sample` is None for what is rendered instead of sampled."""

    name: str
    words: str
    sample: Sample | None
    seam: Callable[[SamplerConfig], tuple[int, int]]
    """Latents before the first joint between what was made together, and from joint to joint."""
    ablation: str = ""
    """What of the paper's method is taken away; empty for a method in its own right."""
    own_weights: bool = False
    """Whether it exists only as weights trained for it."""
    trained: Callable[[WindowMixture], float] = lambda mixture: 0.0
    """Probability of training windows with the context and the noise levels of its full windows."""
    untrained: str = ""
    """What of it no training window is like, beside its full windows."""


def unchunked(config: SamplerConfig) -> SamplerConfig:
    """The same window, with a noise level for every latent frame, at the same number of evaluations per frame."""
    return replace(
        config,
        chunk_latents=1,
        chunks_in_flight=config.chunks_in_flight * config.chunk_latents,
        forwards_per_shift=max(1, round(config.forwards_per_shift / config.chunk_latents)),
        context_chunks=config.context_chunks * config.chunk_latents,
    )


def _progressive(change: Callable[[SamplerConfig], SamplerConfig]) -> Sample:
    def sample(model: CountedModel, wanted: Wanted, take: Take) -> None:
        config = change(wanted.config)
        prompts = [(0, wanted.case.prompt)]
        if wanted.case.turn is not None and wanted.turn_latent is not None:
            prompts.append((wanted.turn_latent // config.chunk_latents, wanted.case.turn.prompt))
        progressive.sample(
            cast(VideoModel, model),
            PromptTimeline(tuple(prompts)),
            chunks=-(-wanted.latents // config.chunk_latents),
            seed=wanted.seed,
            config=config,
            on_chunk=lambda emitted: take(emitted.latents),
        )

    return sample


def _replacement(renoise: bool) -> Sample:
    def sample(model: CountedModel, wanted: Wanted, take: Take) -> None:
        if not wanted.config.context_chunks:
            raise MethodError(
                "it replaces the frames in front of a window, and the model is served with none"
            )

        def on_chunk(emitted: Emitted) -> None:
            take(emitted.latents)

        replacement.sample_by_replacement(
            cast(VideoModel, model),
            wanted.case.prompt,
            chunks=wanted.chunks,
            seed=wanted.seed,
            renoise=renoise,
            config=wanted.config,
            on_chunk=on_chunk,
        )

    return sample


@torch.no_grad()
def _abrupt(model: CountedModel, wanted: Wanted, take: Take) -> None:
    """Starts with a full window of pure noise that is labelled as the ladder; ends by one long step from each level."""
    config = wanted.config
    shape = model.geometry.latent_shape(*model.geometry.default_size)
    state = WindowState.start(config, wanted.seed, shape, total=wanted.chunks, device=model.device)
    slots = min(config.chunks_in_flight, wanted.chunks)
    chunk_shape = (1, shape[0], config.chunk_latents, *shape[1:])
    state.active = [
        Chunk(
            number,
            (number + 1) * config.forwards_per_shift,
            chunk_noise(wanted.seed, number, chunk_shape).to(model.device),
        )
        for number in range(slots)
    ]
    state.next_chunk = slots
    prompt, negative = (model.encode_prompt([text]) for text in (wanted.case.prompt, ""))
    while state.next_chunk < wanted.chunks:
        (emitted,) = progressive.step(cast(VideoModel, model), [state], [prompt], [negative])
        if emitted is not None:
            take(emitted.latents)
    view = state.view()
    velocity = progressive.guided_velocity(
        cast(VideoModel, model), view.latents, view.sigmas, prompt, negative, scales=[config.guidance_scale]
    )
    clean = view.latents - view.sigmas[:, None, :, None, None] * velocity
    take(clean[:, :, view.active_from :])


@lru_cache(maxsize=1)
def _stock_pipeline(spec: str, device: torch.device) -> Any:
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        pipeline = stock.pipeline.from_pretrained(describe(spec).source).to(device)
    except (OSError, ValueError, TypeError) as error:
        raise MethodError(f"stock diffusers cannot load {spec}: {error}") from error
    if not isinstance(pipeline.transformer, stock.transformer):
        kind = type(pipeline.transformer).__name__
        raise MethodError(f"stock diffusers has no diffusion forcing for a {kind}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_steps(wanted: Wanted, *, lag: int) -> int:
    """Steps per latent frame with which stock diffusers costs what the progressive video does.

    With a `lag` every latent frame begins so many steps after the one before it, which lengthens each window.
    """
    window, new = wanted.config.window_latents, wanted.config.chunks_in_flight * wanted.config.chunk_latents
    windows = [min(window, wanted.latents)]
    windows += [min(new, wanted.latents - done) for done in range(window, wanted.latents, new)]
    waiting = lag * sum(latents - 1 for latents in windows)
    return max(1, round((wanted.budget - waiting) / len(windows)))


def _stock(lag: int) -> Sample:
    """Windows one after another, the end of each kept clean in front of the next, with the scheduler of the folder.

    The asynchronous mode staggers single latent frames: larger blocks switch these weights, which attend in both
    directions, to causal attention that they were never trained with.
    """

    def sample(model: CountedModel, wanted: Wanted, take: Take) -> None:
        pipeline = _stock_pipeline(model.spec, model.device)
        geometry, config = model.geometry, wanted.config
        # The pipeline derives its spatial factor from the number of stages, which a patchified VAE does not follow.
        width, height = (
            side * pipeline.vae_scale_factor_spatial // geometry.spatial_factor
            for side in geometry.default_size
        )
        halves = 2 if config.guidance_scale > 1 else 1
        calls = 0

        def count(_module: object, _given: object, options: dict[str, Any]) -> None:
            nonlocal calls
            if calls % halves == 0:
                model.count(options["hidden_states"].shape[2])
            calls += 1

        hook = pipeline.transformer.register_forward_pre_hook(count, with_kwargs=True)
        try:
            latents = pipeline(
                prompt=None,
                prompt_embeds=model.encode_prompt([wanted.case.prompt]),
                negative_prompt_embeds=model.encode_prompt([""]),
                width=width,
                height=height,
                num_frames=geometry.frames_for_latents(wanted.latents),
                base_num_frames=geometry.frames_for_latents(config.window_latents),
                overlap_history=geometry.frames_for_latents(config.context_chunks * config.chunk_latents),
                num_inference_steps=stock_steps(wanted, lag=lag),
                ar_step=lag,
                guidance_scale=config.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(wanted.seed),
                output_type="latent",
            ).frames
        finally:
            hook.remove()
        for part in torch.split(latents.float(), config.window_latents, dim=2):
            take(part)

    return sample


def _ladder(mixture: WindowMixture) -> float:
    return mixture.steady + (1 - TURNING_AT_ONE_LEVEL) * mixture.turning


def _chunked(mixture: WindowMixture) -> float:
    return (1 - mixture.graded) * _ladder(mixture)


def _graded(mixture: WindowMixture) -> float:
    return mixture.graded * _ladder(mixture)


def _at_one_level(mixture: WindowMixture) -> float:
    return mixture.context + TURNING_AT_ONE_LEVEL * mixture.turning


def _without_context(mixture: WindowMixture) -> float:
    return (1 - mixture.graded) * mixture.growing / mixture.chunks_in_flight


def training_shares(spec: str) -> dict[str, float] | None:
    """By method, the share of a model's training windows that were like its full ones; None where nobody knows."""
    if Path(describe(spec).source) != BUILTIN_FOLDER:
        return None
    mixture = Recipe.read(RECIPE).windows
    total = sum(mixture.kinds().values())
    return {
        name: round(method.trained(mixture) / total, 4)
        for name, method in METHODS.items()
        if method.sample is not None and not method.own_weights
    }


def _every(latents: Callable[[SamplerConfig], int]) -> Callable[[SamplerConfig], tuple[int, int]]:
    return lambda config: (latents(config), latents(config))


_chunk = _every(lambda config: config.chunk_latents)
_single = _every(lambda config: 1)
_windows = _every(lambda config: config.chunk_latents * config.chunks_in_flight)


def _stock_windows(config: SamplerConfig) -> tuple[int, int]:
    return config.window_latents, config.chunk_latents * config.chunks_in_flight


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(RENDERED, "the true scenes, rendered: the best that any figure can be", None, _chunk),
        Method(
            RECONSTRUCTED,
            "the true scenes through the model's autoencoder: the best that any sampler can be",
            None,
            _chunk,
        ),
        Method(
            "progressive",
            "the sampler of longtake (PA-VDM)",
            _progressive(lambda config: config),
            _chunk,
            trained=_chunked,
        ),
        Method(
            "replacement-with-noise",
            "window after window; the kept frames are re-noised to the level of the rest",
            _replacement(True),
            _windows,
            trained=lambda mixture: mixture.single,
        ),
        Method(
            "replacement-without-noise",
            "window after window; the kept frames stay clean",
            _replacement(False),
            _windows,
            trained=_at_one_level,
        ),
        Method(
            "stock-sync",
            "diffusers' SkyReelsV2DiffusionForcingPipeline, all latents of a window at one level, UniPC",
            _stock(0),
            _stock_windows,
            trained=_at_one_level,
        ),
        Method(
            "stock-async",
            "the same with ar_step 1: each latent of a window one step behind the one before it",
            _stock(1),
            _stock_windows,
        ),
        Method(
            "fifo-like",
            "one level per latent, no context, as in FIFO-Diffusion (but with a growing start)",
            _progressive(lambda config: replace(unchunked(config), context_chunks=0)),
            _single,
        ),
        Method(
            "no-chunks",
            "progressive with one level per latent, context kept",
            _progressive(unchunked),
            _single,
            ablation="chunked frames",
            trained=lambda mixture: mixture.single_latents,
        ),
        Method(
            "graded",
            "progressive with levels that rise within a chunk, too; chunks enter and leave as they do",
            _progressive(lambda config: replace(config, graded=True)),
            _chunk,
            ablation="one level for each chunk",
            trained=_graded,
        ),
        Method(
            "no-overlap",
            "progressive without clean context in front",
            _progressive(lambda config: replace(config, context_chunks=0)),
            _chunk,
            ablation="overlapped conditioning",
            trained=_without_context,
            untrained="its windows after the beginning of a video",
        ),
        Method(
            "padded-ends",
            "progressive, the window padded to one length: with noise at the start, with older context at the end",
            _progressive(lambda config: replace(config, constant_shape=True)),
            _chunk,
            ablation="variable length",
            trained=_chunked,
            untrained="its first and last windows",
        ),
        Method(
            "abrupt-ends",
            "a full window of noise at once, and one long step to clean at the end",
            _abrupt,
            _chunk,
            ablation="variable length",
            trained=_chunked,
            untrained="its first and last windows",
        ),
        Method(
            "no-variable-length",
            "progressive on weights that went on without growing and shrinking windows",
            _progressive(lambda config: config),
            _chunk,
            ablation="variable length in training",
            own_weights=True,
        ),
        Method(
            "no-level-shift",
            "progressive on weights that went on at the levels of the ladder alone, never between them",
            _progressive(lambda config: config),
            _chunk,
            ablation="level shift in training",
            own_weights=True,
        ),
        Method(REFERENCE, "the true scenes again, other random numbers", None, _chunk),
    )
}


def prepare(method: str, model: CountedModel) -> None:
    """Loads what a method needs beside the model, so that its first video does not pay for it."""
    if method.startswith("stock"):
        _stock_pipeline(model.spec, model.device)


def has_true_scenes(geometry: Geometry) -> bool:
    """Whether the procedural scenes can be rendered at a model's size and rate."""
    width, height = geometry.default_size
    return width == height and geometry.fps == scenes.FPS


def render(model: VideoModel, wanted: Wanted, frames: int, take: Callable[[VideoFrames], None]) -> None:
    """The true scene of a case, piece by piece, at the model's size. Raises EvaluationError where there is none."""
    width, height = model.geometry.default_size
    if wanted.case.attributes is None or not has_true_scenes(model.geometry):
        raise EvaluationError(f"no true scene can be rendered for {wanted.case.prompt!r} at {width}x{height}")
    rng = np.random.default_rng(wanted.seed)
    scene = scenes.opening(scenes.sample_scenes([wanted.case.attributes], rng))
    for first in range(0, frames, _RENDERED_AT_ONCE):
        places = torch.arange(first, min(first + _RENDERED_AT_ONCE, frames))
        take(oracle.to_uint8(scenes.render(scene, places, width)[0]))


def reconstruct(model: VideoModel, wanted: Wanted, take: Callable[[VideoFrames], None]) -> None:
    """The same, encoded and decoded. Holds the whole video, which is small where scenes are rendered."""
    frames: list[VideoFrames] = []
    render(model, wanted, model.geometry.frames_for_latents(wanted.latents), frames.append)
    decoder = model.open_decoder()
    for latents in torch.split(
        model.encode_video(np.concatenate(frames)), wanted.config.chunk_latents, dim=2
    ):
        take(decoder.push(latents))


def seed_of(method: str, seed: int) -> int:
    """Every method has the same random numbers, but for the reference, which must be another draw."""
    return seed + _REFERENCE_SEED if method == REFERENCE else seed
