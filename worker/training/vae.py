"""The video autoencoder of the built-in model: an `AutoencoderKLWan` trained as a stream.

A causal video VAE is used latent after latent for a minute, so it is trained that way: each step continues the same
videos where the last one stopped, with the feature caches of encoder and decoder carried over and cut off from the
gradient (truncated back-propagation through time). Training on short clips alone is good on short clips and loses half
of its PSNR after a second or two.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from worker.models.wan import load_component
from worker.training import muon, run, scenes, stock

LATENT_FRAMES = 4
"""Frames per latent; the first latent of a video holds one frame."""

FeatureCache = list[Any]
"""One slot per causal convolution: a tensor, None before the first call, or the string "Rep" after the first latent."""


@dataclass(frozen=True)
class VaeModel:
    """Shape of the autoencoder (arguments of `AutoencoderKLWan`)."""

    base_dim: run.Count
    z_dim: run.Count
    dim_mult: tuple[run.Count, ...]
    num_res_blocks: run.Count
    temporal_downsample: tuple[bool, ...]
    patch_size: run.Count
    is_residual: bool = False


@dataclass(frozen=True)
class VaeTraining:
    """How the autoencoder is trained."""

    size: run.Count  # pixels
    seed: run.Whole
    steps: run.Count
    minutes: run.Amount  # wall-clock budget, 0 for none
    learning_rate: run.Rate
    batch: run.Count  # videos per step at full size; crops get more, with half as many pixels in all
    crop: run.Count  # pixels
    full_from: run.Share  # fraction of the run from which only whole frames are used
    piece_latents: Annotated[tuple[run.Count, ...], Field(min_length=1)]  # latents per step, drawn at random
    restart: run.Share  # probability per step that the videos are replaced by new ones
    shape_weight: run.Amount  # extra loss weight of pixels at the shape
    kl_weight: run.Amount
    average: run.Part  # decay of the weight average
    checkpoint_steps: run.Count
    bf16: bool
    world: scenes.WorldName = "plain"
    decoder_minutes: run.Amount = 0  # budget of the decoder's own stage, 0 for `minutes`


def build(model: VaeModel) -> stock.Autoencoder:
    """A randomly initialised autoencoder. The library's default initialisation hardly learns: N(0, 1 / fan_in) does."""
    pixels = 3 * model.patch_size**2
    spatial = model.patch_size * 2 ** (len(model.dim_mult) - 1)
    vae = stock.autoencoder(
        base_dim=model.base_dim,
        z_dim=model.z_dim,
        dim_mult=list(model.dim_mult),
        num_res_blocks=model.num_res_blocks,
        temperal_downsample=list(model.temporal_downsample),
        is_residual=model.is_residual,
        in_channels=pixels,
        out_channels=pixels,
        patch_size=model.patch_size if model.patch_size > 1 else None,
        scale_factor_temporal=LATENT_FRAMES,
        scale_factor_spatial=spatial,
        latents_mean=[0.0] * model.z_dim,
        latents_std=[1.0] * model.z_dim,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return vae


def at_patch_size(weights: dict[str, Tensor], patch: int, larger: int) -> dict[str, Tensor]:
    """Weights of an autoencoder for patches of `patch` pixels, so that they take and give patches of `larger`.

    All between the patches stays: a video of larger frames has the latents that it had when it was scaled down by
    averages, and comes back scaled up by copies. Raises `run.ConfigError` where one is no multiple of the other.
    """
    if larger % patch:
        raise run.ConfigError(f"[vae] patch_size {larger} is no multiple of the {patch} of the weights")
    factor = larger // patch

    def spread(weight: Tensor, dim: int) -> Tensor:
        before, behind = weight.shape[:dim], weight.shape[dim + 1 :]
        apart = weight.reshape(*before, 3, patch, 1, patch, 1, *behind)
        whole = apart.expand(*before, 3, patch, factor, patch, factor, *behind)
        return whole.reshape(*before, 3 * larger**2, *behind)

    ends = {
        "encoder.conv_in.weight": spread(weights["encoder.conv_in.weight"], 1) / factor**2,
        "decoder.conv_out.weight": spread(weights["decoder.conv_out.weight"], 0),
        "decoder.conv_out.bias": spread(weights["decoder.conv_out.bias"], 0),
    }
    return weights | ends


class VideoStream:
    """Encoder and decoder of one batch of videos, piece after piece, with gradients inside a piece."""

    def __init__(self, vae: stock.Autoencoder) -> None:
        self.vae = vae
        self.encoder_cache: FeatureCache = [None] * vae._cached_conv_counts["encoder"]
        self.decoder_cache: FeatureCache = [None] * vae._cached_conv_counts["decoder"]
        self.encoded = 0  # latents
        self.decoded = 0

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (B, z, n, h, w), of the next frames (B, 3, T, H, W) in -1..1.

        T is 4n, or 4(n-1)+1 for the first piece of a video.
        """
        vae = self.vae
        patches: Tensor = stock.patchify(pixels, vae.config.patch_size or 1)
        parts = [patches] if self.encoded else [patches[:, :, :1], patches[:, :, 1:]]
        hidden = torch.cat(
            [vae.encoder(p, feat_cache=self.encoder_cache, feat_idx=[0]) for p in parts if p.shape[2]], 2
        )
        self.encoded += hidden.shape[2]
        mean, log_variance = vae.quant_conv(hidden).float().chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W), not clamped, of the next latents (B, z, n, h, w)."""
        vae = self.vae
        hidden = vae.post_quant_conv(latents)
        parts = [(hidden, False)] if self.decoded else [(hidden[:, :, :1], True), (hidden[:, :, 1:], False)]
        frames = [
            vae.decoder(p, feat_cache=self.decoder_cache, feat_idx=[0], first_chunk=first)
            for p, first in parts
            if p.shape[2]
        ]
        self.decoded += latents.shape[2]
        pixels: Tensor = stock.unpatchify(torch.cat(frames, 2), vae.config.patch_size or 1)
        return pixels.float()

    def detach(self) -> None:
        """Cuts the caches off from the gradient."""
        for cache in (self.encoder_cache, self.decoder_cache):
            cache[:] = [slot.detach() if isinstance(slot, Tensor) else slot for slot in cache]


def _standardise(vae: stock.Autoencoder, pixels: Tensor, z_dim: int) -> None:
    """Rescales `quant_conv` so that every mean channel has unit deviation on data and the variance starts small."""
    with torch.no_grad():
        mean, _ = VideoStream(vae).encode(pixels)
        scale = mean.std(dim=(0, 2, 3, 4))
        vae.quant_conv.weight[:z_dim] /= scale[:, None, None, None, None]
        vae.quant_conv.bias[:z_dim] = -mean.mean(dim=(0, 2, 3, 4)) / scale
        vae.quant_conv.weight[z_dim:] *= 0.1
        vae.quant_conv.bias[z_dim:] = -4.0


class _Lane:
    """Videos in training, all at the same frame."""

    def __init__(
        self, vae: stock.Autoencoder, config: VaeTraining, side: int, rng: np.random.Generator
    ) -> None:
        device = next(vae.parameters()).device
        batch = config.batch * max(1, (config.size // side) ** 2 // 2)
        self.frame = int(rng.integers(0, 100_000))
        attributes = scenes.WORLDS[config.world].sample(batch, rng)
        self.scenes = scenes.sample_scenes(attributes, rng, device, self.frame)
        self.stream = VideoStream(vae)
        self.size = config.size
        self.crop: scenes.Crop | None = None
        if side < config.size:
            # Around a place that the shape reaches soon, give or take half a shape.
            where = scenes.track(
                self.scenes, torch.tensor([self.frame + int(rng.integers(0, 40))], device=device)
            )
            jitter = torch.from_numpy(rng.uniform(-0.2, 0.2, (2, batch))).float().to(device)
            left, top = (
                ((centre[:, 0] + shift) * config.size - side / 2).clamp(0, config.size - side).round()
                for centre, shift in zip((where.x, where.y), jitter, strict=True)
            )
            self.crop = (left, top, side)

    def next(self, latents: int) -> tuple[Tensor, Tensor]:
        """The next frames of the videos and their coverage."""
        count = LATENT_FRAMES * latents
        if not self.stream.encoded:
            count += 1 - LATENT_FRAMES
        frames = torch.arange(self.frame, self.frame + count, device=self.scenes.radius.device)
        self.frame += count
        return scenes.render(self.scenes, frames, self.size, self.crop)


def reconstruction_loss(output: Tensor, pixels: Tensor, alpha: Tensor, shape_weight: float) -> Tensor:
    """Weighted L1 plus twice the squared error; pixels within 2 of the shape weigh 1 + `shape_weight`."""
    near = torch.nn.functional.max_pool2d(alpha, 5, 1, 2)[:, None]
    weight = 1 + shape_weight * near
    error = output - pixels
    total: Tensor = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    return total


@torch.no_grad()
def psnr(
    vae: stock.Autoencoder, size: int, frames: int, count: int = 4, *, world: scenes.World = scenes.PLAIN
) -> np.ndarray:
    """Reconstruction PSNR in dB per frame, (frames,), over `count` streamed videos of held-out scenes."""
    device = next(vae.parameters()).device
    rng = np.random.default_rng(123)
    batch = scenes.sample_scenes(world.sample(count, rng, held_out=True), rng, device, 500)
    stream, errors, start = VideoStream(vae), [], 0
    while start < frames:
        length = 1 if start == 0 else min(32, frames - start)
        pixels, _ = scenes.render(batch, torch.arange(start, start + length, device=device) + 500, size)
        mean, _ = stream.encode(pixels)
        errors.append(((stream.decode(mean).clamp(-1, 1) - pixels) / 2).square().mean(dim=(1, 3, 4)))
        start += length
    values: np.ndarray = (-10 * torch.log10(torch.cat(errors, 1))).mean(0).cpu().numpy()
    return values


def _split(vae: stock.Autoencoder) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What is trained: inner kernels, for Muon; and first and last layers, gains and biases."""
    trained = [p for p in vae.parameters() if p.requires_grad]
    outer = {
        id(m.weight) for m in (vae.encoder.conv_in, vae.quant_conv, vae.post_quant_conv, vae.decoder.conv_out)
    }
    inner = [p for p in trained if p.ndim >= 4 and p.shape[0] > 1 and p[0].numel() > 1 and id(p) not in outer]
    chosen = {id(p) for p in inner}
    return inner, [p for p in trained if id(p) not in chosen]


def check_decoder(refined: dict[str, Tensor], whole: dict[str, Tensor], folder: Path) -> None:
    """Raises `run.ConfigError` where the weights of `decoder.pt` have another encoder than those of `vae.pt`."""
    for name, weight in whole.items():
        if name.startswith(("encoder.", "quant_conv.")) and not torch.equal(refined[name], weight.cpu()):
            raise run.ConfigError(f"{folder / 'decoder.pt'} was trained for another {folder / 'vae.pt'}")


def train(
    model: VaeModel,
    config: VaeTraining,
    out: Path,
    device: torch.device,
    *,
    decoder_only: bool = False,
    stop: int | None = None,
) -> Path:
    """Trains, or continues, the autoencoder; returns the checkpoint (`model`, `average`, ...).

    `decoder_only` goes on from the averaged weights of `out/vae.pt` with its own checkpoint, `out/decoder.pt`; the
    encoder stays as it is, and so do the latents that the transformer was trained on. `stop` ends this process at that
    step, short of the schedule. With `minutes` 0 a run that was stopped at a checkpoint and continued equals one that
    was not, bit for bit.
    """
    name = "decoder" if decoder_only else "vae"
    checkpoint, log = out / f"{name}.pt", out / f"{name}.jsonl"
    ranks = run.Ranks(device)
    torch.manual_seed(config.seed)
    vae = build(model).to(device)
    if decoder_only:
        vae.load_state_dict(load(model, out / "vae.pt", device).state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizers = muon.optimizers(*_split(vae), config.learning_rate, weight_decay=0.0)
    minutes = (decoder_only and config.decoder_minutes) or config.minutes
    schedule = run.Schedule(config.steps, minutes, warmup_steps=50, hold=0.3)
    trained = [p for p in vae.parameters() if p.requires_grad]
    average, step = copy.deepcopy(vae).requires_grad_(False), 0
    saved = run.load_checkpoint(checkpoint)
    if saved:
        run.load_weights(average, saved["average"], checkpoint)
        if decoder_only:
            check_decoder(saved["average"], vae.state_dict(), out)
        run.load_weights(vae, saved["model"], checkpoint)
        if "optimizers" in saved:  # not in imported weights
            muon.restore(optimizers, saved["optimizers"])
        step, schedule.earlier_seconds = saved["step"], saved["seconds"]
    elif not decoder_only:
        rng = np.random.default_rng((config.seed, config.steps))
        batch = scenes.sample_scenes(scenes.WORLDS[config.world].sample(16, rng), rng, device)
        _standardise(vae, scenes.render(batch, torch.arange(9, device=device), config.size)[0], model.z_dim)
        average.load_state_dict(vae.state_dict())
    print(f"{name}: {sum(p.numel() for p in trained):,} parameters on {device}", flush=True)

    lanes: dict[int, _Lane] = {}
    done = ranks.agree(schedule.fraction(step))
    while done < 1 and step != stop:
        rng, noise = ranks.rng(config.seed, step), ranks.noise(config.seed, step)
        if step % config.checkpoint_steps == 0:
            lanes.clear()  # what a resumed run begins with
        side = config.size if done >= config.full_from or rng.random() < 0.25 else config.crop
        if side not in lanes or rng.random() < config.restart:
            lanes[side] = _Lane(vae, config, side, rng)
        lane = lanes[side]
        pixels, alpha = lane.next(int(rng.choice(config.piece_latents)))
        with run.autocast(device, config.bf16):
            with torch.set_grad_enabled(not decoder_only):
                mean, log_variance = lane.stream.encode(pixels)
            latents = mean + (0.5 * log_variance).exp() * torch.randn(
                mean.shape, generator=noise, device=device
            )
            output = lane.stream.decode(latents)
        reconstruction = reconstruction_loss(output, pixels, alpha, config.shape_weight)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        factor = ranks.agree(schedule.factor(step))
        vae.zero_grad()
        torch.autograd.backward(reconstruction + config.kl_weight * divergence)
        ranks.average_gradients(trained)
        run.clip_gradients(trained, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
        lane.stream.detach()
        run.update_average(average, vae, config.average, step)
        step += 1
        done = ranks.agree(schedule.fraction(step))
        if ranks.first and (step % config.checkpoint_steps == 0 or done >= 1):
            run.save_checkpoint(
                checkpoint,
                {
                    "model": vae.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step,
                    "seconds": schedule.seconds,
                },
            )
            quality = psnr(average, config.size, 49, world=scenes.WORLDS[config.world])
            run.report(
                log,
                minutes=schedule.seconds / 60,
                step=step,
                loss=reconstruction.item(),
                divergence=divergence.item(),
                rate=config.learning_rate * factor,
                psnr_9=float(quality[:9].mean()),
                psnr_49=float(quality.mean()),
                psnr_last=float(quality[-8:].mean()),
            )
    return checkpoint


def load(model: VaeModel, checkpoint: Path, device: torch.device) -> stock.Autoencoder:
    """The averaged weights of a training checkpoint, ready to use."""
    saved = run.load_checkpoint(checkpoint)
    if saved is None:
        raise FileNotFoundError(checkpoint)
    vae = build(model).to(device).eval().requires_grad_(False)
    run.load_weights(vae, saved["average"], checkpoint)
    return vae


def quality(folder: Path, size: int, device: torch.device, world: scenes.World) -> dict[str, Any]:
    """Reconstruction PSNR in dB of an exported autoencoder on held-out scenes: short clips, and every 10 s of 60 s.

    `folder` is that of the whole pipeline. Raises `ModelLoadError`.
    """
    vae = load_component(str(folder), stock.autoencoder, str(folder), "vae").to(device)
    minute = psnr(vae, size, 60 * scenes.FPS + 1, count=2, world=world)
    return {
        "psnr_9_frames": round(float(psnr(vae, size, 9, count=16, world=world).mean()), 2),
        "psnr_97_frames": round(float(psnr(vae, size, 97, count=16, world=world).mean()), 2),
        "psnr_by_10_seconds": [round(float(part.mean()), 2) for part in np.array_split(minute, 6)],
    }
