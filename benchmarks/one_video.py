"""Makes one video without the service and prints what it cost, as one line of JSON.

    python -m benchmarks.one_video stock --seconds 60     diffusers' SkyReelsV2DiffusionForcingPipeline
    python -m benchmarks.one_video bare --seconds 60      longtake's sampler, decoder and encoder, one after the other

Same weights, same window, same number of network evaluations. Loading is not counted; writing the MP4 is. A process
makes one video, so that its peak memory is that video's.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worker.media.assemble import assemble_final
from worker.media.encode import encode_chunk
from worker.models.base import VideoFrames, VideoModel
from worker.models.registry import load_model, model_folder
from worker.sampler.progressive import sample
from worker.sampler.window import Emitted

PROMPT = "a red ball bouncing off the walls on a black background"
SEED = 1


@dataclass(frozen=True)
class Cost:
    """Seconds from the call, forwards of the network, peak memory of the process in MB."""

    seconds: float
    first_chunk_seconds: float
    forwards: int
    frames: int
    peak_mb: float


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS tells bytes, Linux KiB


def write_mp4(chunks: Iterator[VideoFrames], fps: int, frames: int, path: Path) -> Iterator[float]:
    """Encodes chunk after chunk as the worker does, then the final file; yields the time each chunk was ready."""
    init, segments, first = b"", [], 0
    for index, piece in enumerate(chunks):
        kept = piece[: frames - first]
        if not len(kept):
            break
        encoded = encode_chunk(kept, index, first, fps)
        init = encoded.init
        segments.append(encoded.segment)
        first += len(kept)
        yield time.perf_counter()
    assemble_final(init, iter(segments), path, expected_frames=frames, fps=fps)


def bare(model: VideoModel, seconds: float, path: Path) -> Cost:
    """Sample, then decode and encode each chunk as it comes, in one thread."""
    frames = round(seconds * model.geometry.fps)
    latents = model.geometry.latents_for_frames(frames)
    chunks = math.ceil(latents / model.sampler.chunk_latents)
    decoder = model.open_decoder()
    start = time.perf_counter()
    init, segments, first, first_at = b"", [], 0, 0.0

    def on_chunk(emitted: Emitted) -> None:
        nonlocal init, first, first_at
        piece = decoder.push(emitted.latents)[: frames - first]
        if not len(piece):
            return
        encoded = encode_chunk(piece, emitted.chunk, first, model.geometry.fps)
        init = encoded.init
        segments.append(encoded.segment)
        first += len(piece)
        first_at = first_at or time.perf_counter()

    sample(model, PROMPT, chunks=chunks, seed=SEED, on_chunk=on_chunk)
    assemble_final(init, iter(segments), path, expected_frames=frames, fps=model.geometry.fps)
    return Cost(
        seconds=time.perf_counter() - start,
        first_chunk_seconds=first_at - start,
        forwards=model.sampler.forwards(chunks),
        frames=frames,
        peak_mb=peak_mb(),
    )


def stock(spec: str, seconds: float, path: Path) -> Cost:
    """diffusers' pipeline on the same folder: windowed diffusion forcing, frames out at the end."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = model_folder(spec)
    facts = json.loads((folder / "longtake.json").read_text())
    sampler = facts["sampler"]
    pipeline = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    frames = round(seconds * facts["fps"])
    window = (sampler["chunks_in_flight"] + sampler["context_chunks"]) * sampler["chunk_latents"]
    context = sampler["context_chunks"] * sampler["chunk_latents"]
    factor = pipeline.vae.config.scale_factor_temporal
    # The pipeline derives its spatial factor from the number of stages, which a patchified VAE does not follow.
    scale = pipeline.vae_scale_factor_spatial / pipeline.vae.config.scale_factor_spatial
    width, height = (int(int(side) * scale) for side in facts["default_size"].split("x"))
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    pipeline.transformer.register_forward_pre_hook(count)
    guided = sampler["guidance_scale"] != 1
    start = time.perf_counter()
    with torch.no_grad():
        video = pipeline(
            PROMPT,
            negative_prompt="",
            width=width,
            height=height,
            num_frames=(math.ceil((frames - 1) / factor)) * factor + 1,
            base_num_frames=(window - 1) * factor + 1,
            overlap_history=(context - 1) * factor + 1,
            num_inference_steps=sampler["chunks_in_flight"] * sampler["forwards_per_shift"],
            guidance_scale=sampler["guidance_scale"],
            max_sequence_length=facts["prompt_tokens"],
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        ).frames[0]
    first_at = 0.0
    size = sampler["chunk_latents"] * factor
    pieces = (np.round(video[i : i + size] * 255).astype(np.uint8) for i in range(0, frames, size))
    for at in write_mp4(pieces, facts["fps"], frames, path):
        first_at = first_at or at
    return Cost(
        seconds=time.perf_counter() - start,
        first_chunk_seconds=first_at - start,
        forwards=forwards // (2 if guided else 1),
        frames=frames,
        peak_mb=peak_mb(),
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["stock", "bare"])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the video")
    parser.add_argument(
        "--model", default="builtin", help="builtin or a pipeline folder with a longtake.json"
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        if arguments.what == "stock":
            cost = stock(arguments.model, arguments.seconds, path)
        else:
            cost = bare(load_model(arguments.model, device="cpu"), arguments.seconds, path)
    print(json.dumps(cost.__dict__))


if __name__ == "__main__":
    main()
