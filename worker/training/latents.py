"""Encodes scenes once, so that the transformer trains on latents alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worker.training import run, scenes, stock
from worker.training.vae import LATENT_FRAMES, VideoStream

PIECE_FRAMES = 32


@dataclass(frozen=True)
class LatentSet:
    """How many videos are encoded. Long ones serve the middle of a video, short ones its start."""

    size: int  # pixels
    seed: int
    long_videos: int
    long_latents: int
    start_videos: int
    start_latents: int
    batch: int
    settle: int  # latents at the beginning of a long video that still depend on its being a beginning
    bf16: bool = False


@dataclass(frozen=True)
class Clips:
    """Encoded videos: N clips of n latents."""

    latents: Tensor  # (N, z, n, h, w), normalised
    near: Tensor  # (N, n, h, w) in 0..1: whether the shape comes near the latent's pixels
    attributes: list[scenes.SceneAttributes]


@dataclass(frozen=True)
class Latents:
    """The training set of the transformer, with the statistics that normalised it."""

    middle: Clips
    start: Clips
    mean: Tensor  # (z,)
    std: Tensor  # (z,)


@torch.no_grad()
def encode(
    vae: stock.Autoencoder, batch: scenes.Scenes, first_frame: int, latents: int, size: int
) -> tuple[Tensor, Tensor]:
    """Latents (B, z, n, h, w), not normalised, and nearness of the shape (B, n, h, w)."""
    stream = VideoStream(vae)
    total = 1 + LATENT_FRAMES * (latents - 1)
    device = batch.radius.device
    means, near, done = [], [], 0
    while done < total:
        count = min(PIECE_FRAMES, total - done) if done else 1
        pixels, alpha = scenes.render(
            batch, torch.arange(first_frame + done, first_frame + done + count, device=device), size
        )
        mean, _ = stream.encode(pixels)
        means.append(mean)
        alpha = alpha.view(len(alpha), mean.shape[2], -1, *alpha.shape[2:]).amax(2)
        near.append(torch.nn.functional.adaptive_max_pool2d(alpha, mean.shape[-2:]))
        done += count
    return torch.cat(means, 2), torch.cat(near, 1)


def _encode_part(
    vae: stock.Autoencoder, config: LatentSet, *, kind: int, length: int, number: int
) -> dict[str, Tensor]:
    """Batch `number` of videos of one kind; depends on nothing else."""
    rng = np.random.default_rng((config.seed, kind, number))
    attributes = scenes.sample_attributes(config.batch, rng)
    batch = scenes.sample_scenes(attributes, rng, vae.device)
    with run.autocast(vae.device, config.bf16):
        latents, near = encode(vae, batch, int(rng.integers(100_000)), length, config.size)
    indices = torch.tensor([a.indices() for a in attributes])
    return {"latents": latents.half().cpu(), "near": near.half().cpu(), "attributes": indices}


def make(vae: stock.Autoencoder, config: LatentSet, out: Path) -> Path:
    """Encodes the training set to `out/latents.pt`, every process its share."""
    ranks = run.Ranks(vae.device)
    kinds = {
        "middle": (config.long_videos, config.long_latents),
        "start": (config.start_videos, config.start_latents),
    }
    jobs = [
        (kind, number, length)
        for kind, (videos, length) in kinds.items()
        for number in range(-(-videos // config.batch))
    ]
    for done, (kind, number, length) in enumerate(jobs):
        path = out / "latents" / f"{kind}-{number:05}.pt"
        if done % ranks.count == ranks.rank and not path.exists():
            part = _encode_part(vae, config, kind=list(kinds).index(kind), length=length, number=number)
            run.save_checkpoint(path, part)
            if done % 10 < ranks.count:
                print(f"{kind}: batch {number}, job {done + 1} of {len(jobs)}", flush=True)
    ranks.wait()
    merged: dict[str, Tensor] = {}
    for kind in kinds:
        paths = [out / "latents" / f"{k}-{n:05}.pt" for k, n, _ in jobs if k == kind]
        parts = [torch.load(path, weights_only=True) for path in paths]
        merged |= {f"{kind}_{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}
    merged["middle_latents"] = merged["middle_latents"][:, :, config.settle :].clone()
    merged["middle_near"] = merged["middle_near"][:, config.settle :].clone()
    values = merged["middle_latents"].float().transpose(0, 1).flatten(1)
    merged["mean"], merged["std"] = values.mean(1), values.std(1)
    path = out / "latents.pt"
    if ranks.first:
        run.save_checkpoint(path, merged)
    return path


def load(path: Path, device: torch.device) -> Latents:
    """The training set, normalised, on `device`."""
    parts = run.load_checkpoint(path, torch.device("cpu"))
    if parts is None:
        raise FileNotFoundError(path)
    shape = (1, -1, 1, 1, 1)
    mean, std = parts["mean"].view(shape), parts["std"].view(shape)

    def clips(kind: str) -> Clips:
        return Clips(
            ((parts[f"{kind}_latents"].float() - mean) / std).to(device),
            parts[f"{kind}_near"].float().to(device),
            [scenes.SceneAttributes.from_indices(*row) for row in parts[f"{kind}_attributes"].tolist()],
        )

    return Latents(clips("middle"), clips("start"), parts["mean"].to(device), parts["std"].to(device))
