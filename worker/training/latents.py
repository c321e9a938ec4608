"""Encodes scenes once, so that the transformer trains on latents alone."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worker.training import backdrops, run, scenes, stock, turns
from worker.training.vae import LATENT_FRAMES, VideoStream

PIECE_FRAMES = 32


@dataclass(frozen=True)
class LatentSet:
    """How many videos are encoded. Long ones serve the middle of a video, short ones its start, and some turn."""

    size: run.Count  # pixels
    seed: run.Whole
    long_videos: run.Count
    long_latents: run.Count
    start_videos: run.Count
    start_latents: run.Count
    batch: run.Count
    settle: run.Whole  # latents at the beginning of all but start videos that still depend on its being one
    turning_videos: run.Whole = 0  # of `worker.training.turns`
    turning_latents: run.Count = 20
    bf16: bool = False
    world: scenes.WorldName = "plain"

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Videos and latents in each, by kind."""
        return {
            "middle": (self.long_videos, self.long_latents),
            "start": (self.start_videos, self.start_latents),
            "turning": (self.turning_videos, self.turning_latents),
        }


@dataclass(frozen=True)
class Clips:
    """Encoded videos: N clips of n latents."""

    latents: Tensor  # (N, z, n, h, w), normalised
    near: Tensor  # (N, n, h, w) in 0..1: whether the shape comes near the latent's pixels
    attributes: list[scenes.SceneAttributes]  # of clips that turn: after the turn
    turn: Tensor | None = None  # (N, 2) where clips turn: first latent that has begun to, first that has


@dataclass(frozen=True)
class Latents:
    """The training set of the transformer, with the statistics that normalised it."""

    middle: Clips
    start: Clips
    turning: Clips | None
    mean: Tensor  # (z,)
    std: Tensor  # (z,)


Render = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From frame indices (T,): pixels (B, 3, T, H, W) in -1..1 and coverage (B, T, H, W)."""


@torch.no_grad()
def encode(vae: stock.Autoencoder, render: Render, first_frame: int, latents: int) -> tuple[Tensor, Tensor]:
    """Latents (B, z, n, h, w), not normalised, and nearness of the shape (B, n, h, w)."""
    stream = VideoStream(vae)
    total = 1 + LATENT_FRAMES * (latents - 1)
    means, near, done = [], [], 0
    while done < total:
        count = min(PIECE_FRAMES, total - done) if done else 1
        frames = torch.arange(first_frame + done, first_frame + done + count, device=vae.device)
        pixels, alpha = render(frames)
        mean, _ = stream.encode(pixels)
        means.append(mean)
        alpha = alpha.view(len(alpha), mean.shape[2], -1, *alpha.shape[2:]).amax(2)
        near.append(torch.nn.functional.adaptive_max_pool2d(alpha, mean.shape[-2:]))
        done += count
    return torch.cat(means, 2), torch.cat(near, 1)


def turn_marks(batch: turns.Turns, first_frame: int) -> Tensor:
    """`Clips.turn` of clips that begin with this frame: (B, 2). The first latent holds one frame."""

    def latent(frame: Tensor) -> Tensor:
        return ((frame - first_frame - 1) / LATENT_FRAMES).floor().long() + 1

    # The first frame that differs, and the first that is wholly turned.
    return torch.stack([latent(batch.begin.floor() + 1), latent((batch.begin + batch.length).ceil() + 3)], 1)


def _encode_part(vae: stock.Autoencoder, config: LatentSet, *, kind: str, number: int) -> dict[str, Tensor]:
    """Batch `number` of videos of one kind; depends on nothing else."""
    kinds = config.kinds()
    rng = np.random.default_rng((config.seed, list(kinds).index(kind), number))
    world = scenes.WORLDS[config.world]
    attributes = world.sample(config.batch, rng)
    part = {"attributes": torch.tensor([a.indices() for a in attributes])}
    render: Render
    if kind == "turning":
        first, length = int(rng.integers(100_000)), kinds[kind][1]
        # From behind the settled beginning to the middle: a window finds room before the turn and behind it.
        latest = max(config.settle + 3.0, (length + config.settle) / 2)
        begin = torch.from_numpy(rng.uniform(config.settle + 2, latest, config.batch) * LATENT_FRAMES)
        batch = turns.sample(attributes, first + begin, rng, vae.device, world)
        part["turn"] = turn_marks(batch, first).cpu()
        render = partial(turns.render, batch, size=config.size)
    else:
        first = int(rng.integers(100_000))
        plain = scenes.sample_scenes(attributes, rng, vae.device, first)
        if kind == "start":
            plain, first = scenes.opening(plain), 0
        render = partial(scenes.render, plain, size=config.size)
    with run.autocast(vae.device, config.bf16):
        latents, near = encode(vae, render, first, kinds[kind][1])
    return part | {"latents": latents.half().cpu(), "near": near.half().cpu()}


def _origin(vae: stock.Autoencoder, config: LatentSet) -> Tensor:
    """A digest of what every batch depends on.

    The encoder, the code of the scenes, and all settings but how many videos there are.
    """
    digest = hashlib.sha256()
    settings = {name: value for name, value in vars(config).items() if not name.endswith("_videos")}
    digest.update(repr(sorted(settings.items())).encode())
    for module in (backdrops, scenes, turns):
        digest.update(inspect.getsource(module).encode())
    for name, weight in sorted(vae.state_dict().items()):
        if name.startswith(("decoder.", "post_quant_conv.")):
            continue
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _is_of(path: Path, origin: Tensor) -> bool:
    """Whether the batch at `path` is there and of this origin; one of another is told, and made again."""
    part = run.load_checkpoint(path)
    if part is None:
        return False
    if "origin" in part and torch.equal(part["origin"], origin):
        return True
    print(f"{path.name} is of another autoencoder, set or version: made again", flush=True)
    return False


def make(
    vae: stock.Autoencoder,
    config: LatentSet,
    out: Path,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Path:
    """Encodes the training set to `out/latents.pt`, every process its share.

    `statistics` are the mean and std (z,) by which a network that goes on with this set was trained; by default those
    of the set itself.
    """
    ranks, origin = run.Ranks(vae.device), _origin(vae, config)
    counts = {kind: -(-videos // config.batch) for kind, (videos, _) in config.kinds().items() if videos}
    jobs = [(kind, number) for kind, count in counts.items() for number in range(count)]
    for done, (kind, number) in enumerate(jobs):
        path = out / "latents" / f"{kind}-{number:05}.pt"
        if done % ranks.count == ranks.rank and not _is_of(path, origin):
            part = _encode_part(vae, config, kind=kind, number=number)
            run.save_checkpoint(path, part | {"origin": origin})
            if done % 10 < ranks.count:
                print(f"{kind}: batch {number}, job {done + 1} of {len(jobs)}", flush=True)
    ranks.wait()
    merged: dict[str, Tensor] = {}
    for kind, count in counts.items():
        paths = [out / "latents" / f"{kind}-{number:05}.pt" for number in range(count)]
        parts = [torch.load(path, weights_only=True) for path in paths]
        names = parts[0].keys() - {"origin"}
        merged |= {f"{kind}_{name}": torch.cat([part[name] for part in parts]) for name in names}
        if kind != "start":
            merged[f"{kind}_latents"] = merged[f"{kind}_latents"][:, :, config.settle :].clone()
            merged[f"{kind}_near"] = merged[f"{kind}_near"][:, config.settle :].clone()
    if "turning_turn" in merged:
        merged["turning_turn"] -= config.settle
    values = merged["middle_latents"].float().transpose(0, 1).flatten(1)
    merged["mean"], merged["std"] = statistics or (values.mean(1), values.std(1))
    path = out / "latents.pt"
    if ranks.first:
        run.save_checkpoint(path, merged)
    return path


def load(path: Path, device: torch.device) -> Latents:
    """The training set, normalised, on `device`."""
    parts = run.load_checkpoint(path)
    if parts is None:
        raise FileNotFoundError(path)
    shape = (1, -1, 1, 1, 1)
    mean, std = parts["mean"].view(shape), parts["std"].view(shape)

    def clips(kind: str) -> Clips:
        return Clips(
            ((parts[f"{kind}_latents"].float() - mean) / std).to(device),
            parts[f"{kind}_near"].float().to(device),
            [scenes.SceneAttributes.from_indices(*row) for row in parts[f"{kind}_attributes"].tolist()],
            parts.get(f"{kind}_turn"),
        )

    return Latents(
        clips("middle"),
        clips("start"),
        clips("turning") if "turning_latents" in parts else None,
        parts["mean"].to(device),
        parts["std"].to(device),
    )
