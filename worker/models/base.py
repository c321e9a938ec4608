"""What a video model is to the sampler, the engine and the pipeline: one convention, whatever the network.

Latents are normalised (about zero mean and unit variance per channel). Noise follows the flow convention
``x = (1 - sigma) * x0 + sigma * noise``; a model predicts ``v = noise - x0``. Signs, scales, layouts and fps
embeddings end in the adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.sampler.window import SamplerConfig

__all__ = [
    "Geometry",
    "ModelLoadError",
    "SamplerConfig",
    "StreamedDecoder",
    "VideoFrames",
    "VideoModel",
]

VideoFrames: TypeAlias = NDArray[np.uint8]
"""RGB frames, uint8 ``(T, height, width, 3)``."""


class ModelLoadError(Exception):
    """A model cannot be served. ``code`` is stable; the message is one line and names the model and the reason."""

    def __init__(
        self, code: Literal["model_not_found", "model_corrupt", "model_unsupported"], message: str
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Geometry:
    """How pixels, frames and latents of a model relate. Sizes are ``(width, height)`` in pixels."""

    latent_channels: int
    spatial_factor: int
    """Pixels per latent, in each direction."""
    temporal_factor: int
    """Frames per latent, except the first latent of a video, which is one frame."""
    window_latents: int
    """Latent frames the model was trained to see at once."""
    fps: int
    sizes: tuple[tuple[int, int], ...]
    default_size: tuple[int, int]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """``(channels, h, w)`` of a latent frame. Raises ``ValueError`` for a size that has no whole latents."""
        if min(width, height) < 1 or width % self.spatial_factor or height % self.spatial_factor:
            raise ValueError(f"{width}x{height} pixels is no multiple of {self.spatial_factor}")
        return self.latent_channels, height // self.spatial_factor, width // self.spatial_factor

    def latents_for_frames(self, frames: int) -> int:
        """Fewest latents that hold this many frames from the start of a video."""
        return 0 if frames < 1 else 1 + -(-(frames - 1) // self.temporal_factor)

    def frames_for_latents(self, latents: int) -> int:
        """Frames that this many latents from the start of a video decode to."""
        return 0 if latents < 1 else 1 + (latents - 1) * self.temporal_factor


class InvalidOutput(Exception):
    """The model made numbers that are not a picture: not finite, or nothing but black."""


class StreamedDecoder(Protocol):
    """Decodes one video, latents in order; equal to decoding them all at once, whatever the split.

    A decoder belongs to one video and one thread; several may be open on one model at the same time.
    """

    @property
    def memory_latents(self) -> int:
        """Previous latents that determine the state: replaying the last this many restores it bit for bit."""
        ...

    def push(self, latents: Tensor) -> VideoFrames:
        """Frames of the next ``n`` latents, ``(1, channels, n, h, w)`` normalised.

        The first latent of a video gives one frame, every other ``temporal_factor`` frames. Raises
        ``InvalidOutput`` when the pixels are not finite numbers.
        """
        ...

    def replay(self, latents: Tensor) -> None:
        """Brings a new decoder to where ``latents`` end: the video so far, or its last ``memory_latents`` or more.

        No latents at all is the start of a video. Raises ``ValueError`` on a decoder that was used before.
        """
        ...


class VideoModel(Protocol):
    """A network with its text encoder and autoencoder on one device."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """What tells its weights from others under the same name."""
        ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def sampler(self) -> SamplerConfig:
        """Settings this model is served with by default."""
        ...

    @property
    def device(self) -> torch.device: ...

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(B, L, D)``, zero past each prompt's real length. An empty prompt is a prompt.

        A prompt has the same embedding, bit for bit, whatever it is encoded with: a timeline must come to the same
        whether it was asked for at once or bit by bit.
        """
        ...

    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        """``v = noise - x0``, float32 like ``latents``.

        ``latents`` float32 ``(B, channels, F, h, w)``; ``sigmas`` float32 ``(B, F)``, a noise level in 0..1 per
        latent frame; ``prompt`` ``(B, L, D)`` from :meth:`encode_prompt`. Called from one thread at a time.
        """
        ...

    def open_decoder(self) -> StreamedDecoder:
        """A decoder for one new video."""
        ...

    def encode_video(self, frames: VideoFrames) -> Tensor:
        """Normalised latents ``(1, channels, n, h, w)`` of a clip or, with one frame, an image.

        Frames that fill no whole latent are dropped at the front: a continuation needs the clip's end.
        Raises ``ValueError`` for frames of another type or size.
        """
        ...
