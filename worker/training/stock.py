"""The stock classes that the built-in model is made of. Their libraries publish no types, so here they get none."""

from __future__ import annotations

from typing import Any, TypeAlias

from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.autoencoders import autoencoder_kl_wan
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

Autoencoder: TypeAlias = Any
Transformer: TypeAlias = Any
TextEncoder: TypeAlias = Any
Tokenizer: TypeAlias = Any

autoencoder: Any = AutoencoderKLWan
transformer: Any = SkyReelsV2Transformer3DModel
text_encoder: Any = UMT5EncoderModel
text_config: Any = UMT5Config
tokenizer: Any = PreTrainedTokenizerFast
scheduler: Any = UniPCMultistepScheduler
pipeline: Any = SkyReelsV2DiffusionForcingPipeline
patchify: Any = autoencoder_kl_wan.patchify
unpatchify: Any = autoencoder_kl_wan.unpatchify
