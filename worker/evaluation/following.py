"""How well a model's videos follow their prompts, and whether they decay: `python -m worker.evaluation.following`.

For models of the procedural scenes, whose videos `worker.evaluation.oracle` can judge. Prompts name combinations that
training never showed. Videos come out of the progressive sampler and the streamed decoder, as in serving.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.evaluation import oracle
from worker.models.base import VideoFrames, VideoModel
from worker.models.registry import load_model
from worker.sampler.progressive import step
from worker.sampler.window import SamplerConfig, WindowState
from worker.training import scenes

BATCH = 8
"""Videos that share a forward."""
SEGMENT_SECONDS = 4


def held_out_prompts(count: int, seed: int) -> list[tuple[str, scenes.SceneAttributes]]:
    """`count` captions of combinations that training never showed, motions in turn."""
    rng = np.random.default_rng(seed)
    pool = scenes.held_out_attributes()
    rng.shuffle(pool)
    by_motion = [[a for a in pool if a.motion == motion] for motion in scenes.MOTIONS]
    chosen = [by_motion[i % len(by_motion)][i // len(by_motion) % len(by_motion[0])] for i in range(count)]
    return [(scenes.caption(a, rng), a) for a in chosen]


def sample_videos(
    model: VideoModel, prompts: list[str], *, chunks: int, seed: int, config: SamplerConfig
) -> list[Tensor]:
    """Latents (1, z, chunks * C, h, w) of each prompt; prompt number i has the noise of seed + i."""
    shape = model.geometry.latent_shape(*model.geometry.default_size)
    videos: list[Tensor] = []
    for begin in range(0, len(prompts), BATCH):
        part = prompts[begin : begin + BATCH]
        embeddings = torch.split(model.encode_prompt(part), 1)
        negatives = [model.encode_prompt([""])] * len(part)
        states = [
            WindowState.start(config, seed + begin + i, shape, total=chunks, device=model.device)
            for i in range(len(part))
        ]
        latents: list[list[Tensor]] = [[] for _ in part]
        while not states[0].done:
            for own, emitted in zip(latents, step(model, states, embeddings, negatives), strict=True):
                if emitted is not None:
                    own.append(emitted.latents)
        videos += [torch.cat(own, 2) for own in latents]
    return videos


def _decode(model: VideoModel, latents: Tensor) -> VideoFrames:
    return model.open_decoder().push(latents)


def _rates(verdicts: list[oracle.Verdict]) -> dict[str, float]:
    """Share of clips for each yes-or-no figure, mean of each number."""
    names = [
        "background",
        "color",
        "shape",
        "motion",
        "follows",
        "present",
        "jumps",
        "color_error",
        "background_error",
    ]
    return {name: round(float(np.mean([getattr(v, name) for v in verdicts])), 4) for name in names}


def following(
    model: VideoModel, *, prompts: int, seconds: float, seed: int, config: SamplerConfig
) -> dict[str, Any]:
    """Prompt following over held-out prompts, one video each."""
    chosen = held_out_prompts(prompts, seed)
    fps = model.geometry.fps
    frames = round(seconds * fps)
    chunks = -(-model.geometry.latents_for_frames(frames) // config.chunk_latents)
    started = time.monotonic()
    videos = sample_videos(model, [text for text, _ in chosen], chunks=chunks, seed=seed, config=config)
    sampled = time.monotonic()
    verdicts = [
        oracle.judge(_decode(model, latents)[:frames], attributes, fps)
        for latents, (_, attributes) in zip(videos, chosen, strict=True)
    ]
    return {
        "prompts": prompts,
        "seconds": seconds,
        "sampling_seconds": round(sampled - started, 1),
        **_rates(verdicts),
        "videos": [
            {
                "prompt": text,
                "seed": seed + number,
                "follows": verdict.follows,
                "seen": [
                    verdict.seen_color,
                    verdict.seen_shape,
                    verdict.seen_motion,
                    round(verdict.present, 3),
                ],
            }
            for number, ((text, _), verdict) in enumerate(zip(chosen, verdicts, strict=True))
        ],
    }


def decay(
    model: VideoModel, *, prompts: int, seconds: float, seed: int, config: SamplerConfig
) -> dict[str, Any]:
    """The same figures in every four seconds of long videos, and the deviation of their latents (1 in training)."""
    chosen = held_out_prompts(prompts, seed)
    fps = model.geometry.fps
    length = round(SEGMENT_SECONDS * fps)
    chunks = -(-model.geometry.latents_for_frames(round(seconds * fps)) // config.chunk_latents)
    videos = sample_videos(model, [text for text, _ in chosen], chunks=chunks, seed=seed, config=config)
    rows: list[list[oracle.Verdict]] = [[] for _ in range(round(seconds) // SEGMENT_SECONDS)]
    for latents, (_, attributes) in zip(videos, chosen, strict=True):
        frames = _decode(model, latents)
        for number, row in enumerate(rows):
            row.append(oracle.judge(frames[number * length : (number + 1) * length], attributes, fps))
    per_segment = length // model.geometry.temporal_factor
    together = torch.cat(videos)
    return {
        "prompts": prompts,
        "seconds": seconds,
        "segments": [
            {
                "from_second": number * SEGMENT_SECONDS,
                **_rates(row),
                "latent_deviation": round(
                    float(together[:, :, number * per_segment : (number + 1) * per_segment].std()), 4
                ),
            }
            for number, row in enumerate(rows)
        ],
    }


def evaluate(
    model: VideoModel,
    *,
    prompts: int,
    long_prompts: int,
    seed: int = 0,
    guidance_scale: float | None = None,
    long_seconds: float = 60,
) -> dict[str, Any]:
    """Prompt following on four-second videos and, unless `long_prompts` is 0, decay over long ones."""
    config = (
        model.sampler if guidance_scale is None else replace(model.sampler, guidance_scale=guidance_scale)
    )
    result: dict[str, Any] = {
        "model": model.name,
        "seed": seed,
        "guidance_scale": config.guidance_scale,
        "following": following(model, prompts=prompts, seconds=SEGMENT_SECONDS, seed=seed, config=config),
    }
    if long_prompts:
        result["decay"] = decay(
            model, prompts=long_prompts, seconds=long_seconds, seed=seed + 1000, config=config
        )
    return result


def main(arguments: list[str] | None = None) -> None:
    """Evaluates a model and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m worker.evaluation.following", description=__doc__)
    parser.add_argument("--model", default="builtin", help="builtin, or a pipeline folder")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--long-prompts", type=int, default=4, help="videos of a minute for the decay check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves the choice to torch")
    parser.add_argument("--out", type=Path, help="JSON file (default: standard output)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = evaluate(
        load_model(options.model),
        prompts=options.prompts,
        long_prompts=options.long_prompts,
        seed=options.seed,
        guidance_scale=options.guidance,
    )
    content = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(content + "\n")
        figures = {k: v for k, v in result["following"].items() if k != "videos"}
        print(json.dumps(figures))
    else:
        print(content)


if __name__ == "__main__":
    main()
