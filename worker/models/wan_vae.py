"""The Wan autoencoder, streamed: causal in time, one latent after another, state owned by the caller.

Nothing here touches the feature maps of the shared module, so any number of videos can be decoded and
encoded in threads of their own while another thread runs the transformer.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanRMS_norm,
    patchify,
    unpatchify,
)
from torch import Tensor

from worker.models.base import InvalidOutput, VideoFrames

Untyped: TypeAlias = Any
"""A diffusers or transformers object; the two publish no types that hold."""


class WanAutoencoder:
    """``AutoencoderKLWan`` in normalised latents ``(z - mean) / std``."""

    def __init__(self, vae: Untyped, device: torch.device) -> None:
        self._vae = vae.to(device).eval().requires_grad_(False)
        if device.type == "cpu" and vae.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            quicken_on_cpu(vae)
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, dtype=vae.dtype, device=device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, dtype=vae.dtype, device=device).view(shape)

    def open_decoder(self) -> "WanStreamedDecoder":
        """A decoder for one new video."""
        return WanStreamedDecoder(self._vae, self._mean, self._std)

    @torch.no_grad()
    def encode(self, frames: VideoFrames) -> Tensor:
        """Latents ``(1, channels, n, h, w)`` of uint8 frames ``(1 + (n - 1) * temporal_factor, H, W, 3)``."""
        vae, step = self._vae, self._vae.config.scale_factor_temporal
        features: list[Any] = [None] * vae._cached_conv_counts["encoder"]

        def encoded(part: VideoFrames) -> Tensor:
            pixels = torch.from_numpy(part.copy()).to(self._mean.device)
            x = pixels.permute(3, 0, 1, 2).unsqueeze(0).to(self._mean.dtype) / 127.5 - 1
            if vae.config.patch_size is not None:
                x = patchify(x, patch_size=vae.config.patch_size)  # type: ignore[no-untyped-call]
            hidden: Tensor = vae.encoder(x, feat_cache=features, feat_idx=[0])
            return hidden

        # One latent's frames at a time: as floats, all of a long clip would fill the memory.
        parts = [frames[:1], *(frames[i : i + step] for i in range(1, len(frames), step))]
        hidden = torch.cat([encoded(part) for part in parts], dim=2)
        mean = vae.quant_conv(hidden).chunk(2, dim=1)[0]
        latents: Tensor = (mean - self._mean) / self._std
        return latents


class WanStreamedDecoder:
    """Causal decode of one video, latent by latent, with a feature cache of its own.

    Bit-equal to decoding all latents at once. The autoencoder's own cache is never used: it is shared by every
    user of the module and reset by each call.
    """

    def __init__(self, vae: Untyped, mean: Tensor, std: Tensor) -> None:
        self._vae, self._mean, self._std = vae, mean, std
        self._features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        self._fresh = True
        self.memory_latents = memory_latents(vae)

    @torch.no_grad()
    def push(self, latents: Tensor) -> VideoFrames:
        """See :meth:`worker.models.base.StreamedDecoder.push`."""
        frames, finite = [], []
        for pixels in self._decode(latents):
            frames.append(_to_uint8(pixels))
            finite.append(torch.isfinite(pixels).all())
        # As bytes they would be a picture like any other, most likely a black one.
        if not bool(torch.stack(finite).all()):
            raise InvalidOutput("the decoder made numbers that are not finite")
        return torch.cat(frames).cpu().numpy()

    @torch.no_grad()
    def replay(self, latents: Tensor) -> None:
        """See :meth:`worker.models.base.StreamedDecoder.replay`."""
        if not self._fresh:
            raise ValueError("only a new decoder can replay latents")
        for _ in self._decode(latents):
            pass

    def _decode(self, latents: Tensor) -> Iterator[Tensor]:
        for index in range(latents.shape[2]):
            latent = latents[:, :, index : index + 1].to(self._mean) * self._std + self._mean
            pixels = self._vae.decoder(
                self._vae.post_quant_conv(latent),
                feat_cache=self._features,
                feat_idx=[0],
                first_chunk=self._fresh,
            )
            self._fresh = False
            if self._vae.config.patch_size is not None:
                pixels = unpatchify(  # type: ignore[no-untyped-call]
                    pixels, patch_size=self._vae.config.patch_size
                )
            yield pixels


def _to_uint8(pixels: Tensor) -> Tensor:
    """(1, 3, T, H, W) in -1..1 to uint8 (T, H, W, 3)."""
    return pixels[0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


def memory_latents(vae: Untyped) -> int:
    """Latents whose replay restores the decoder's feature cache bit for bit.

    Walks the causal convolutions (kernel 3 in time) in order and follows the first frame that no longer depends
    on what came before the replay, zero padding and first-latent special cases included: each convolution
    moves it by two frames of its own rate, each temporal upsampling doubles it. A cache holds the last two
    input frames of its convolution, so after ``n`` latents it is right when ``n * rate - 2`` has reached that frame.
    """
    needed, clean_from, rate = 0, 0, 1

    def convolution() -> None:
        nonlocal needed, clean_from
        needed = max(needed, -(-(clean_from + 2) // rate))
        clean_from += 2

    def residual_blocks(count: int) -> None:
        for _ in range(2 * count):
            convolution()

    decoder = vae.decoder
    convolution()
    residual_blocks(len(decoder.mid_block.resnets))
    for block in decoder.up_blocks:
        residual_blocks(len(block.resnets))
        upsamplers = getattr(block, "upsamplers", None) or [getattr(block, "upsampler", None)]
        if upsamplers[0] is not None and upsamplers[0].mode == "upsample3d":
            convolution()
            clean_from, rate = 2 * clean_from, 2 * rate
    convolution()
    return needed


class _OneDnnCausalConv3d(WanCausalConv3d):
    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        columns, _, rows, _, before, _ = (int(side) for side in self._padding)
        if cache_x is not None and before > 0:
            x = torch.cat([cache_x, x], dim=2)
            before -= cache_x.shape[2]
        if before:
            x = F.pad(x, (0, 0, 0, 0, before, 0))
        padding = (0, rows, columns)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
        )


class _SquaredRmsNorm(WanRMS_norm):
    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        return x / norm * self.scale * self.gamma + self.bias  # type: ignore[no-any-return]


def quicken_on_cpu(vae: Untyped) -> None:
    """Same maths through faster kernels, for float32 on a CPU; results agree to rounding.

    For a single small picture PyTorch picks its naive 3D convolution, and its vector norm over channels reads
    memory across the grain. oneDNN and a plain sum of squares do not.
    """
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = _OneDnnCausalConv3d
        elif type(module) is WanRMS_norm and module.channel_first:
            module.__class__ = _SquaredRmsNorm
