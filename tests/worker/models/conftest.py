"""Whole pipeline folders with small random weights, saved by diffusers itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

LATENTS_MEAN, LATENTS_STD = [0.1, -0.2, 0.3, -0.4], [1.5, 2.0, 0.5, 1.0]
VAES: dict[str, dict[str, Any]] = {
    "wan 2.1": {"base_dim": 4, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]},
    "wan 2.2": {
        "base_dim": 4,
        "decoder_base_dim": 4,
        "dim_mult": [1, 2, 4, 4],
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
    "two stages": {
        "base_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def make_vae(kind: str) -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(z_dim=4, latents_mean=LATENTS_MEAN, latents_std=LATENTS_STD, **VAES[kind]).eval()


def make_transformer(kind: str) -> Any:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 3,
        "cross_attn_norm": True,
        "rope_max_seq_len": 64,
    }
    if kind == "wan":
        network: Any = WanTransformer3DModel(**settings)
    else:
        network = SkyReelsV2Transformer3DModel(**settings, inject_sample_info=kind == "skyreels fps")
    for parameter in network.parameters():  # fresh norms and biases are 1 and 0 and would hide a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def make_text() -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    torch.manual_seed(2)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "on", "black", "&"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )
    config = UMT5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return fast, UMT5EncoderModel(config).eval()


SERVING: dict[str, Any] = {
    "name": "tiny",
    "fps": 24,
    "sizes": ["64x32", "32x32"],
    "default_size": "32x32",
    "window_latents": 10,
    "prompt_tokens": 8,
    "example_prompts": ["a red circle"],
    "sampler": {
        "chunk_latents": 2,
        "chunks_in_flight": 4,
        "forwards_per_shift": 2,
        "context_chunks": 1,
        "time_shift": 1.0,
        "guidance_scale": 2.0,
        "sink": False,
    },
}


@pytest.fixture
def serving() -> dict[str, Any]:
    """Content of a ``longtake.json``."""
    return json.loads(json.dumps(SERVING))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a pipeline folder, once per kind: ``skyreels``, ``skyreels fps`` or ``wan``, with one of the VAES."""

    @cache
    def make(kind: str = "skyreels", vae: str = "wan 2.1", described: bool = True) -> Path:
        folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
        tokenizer, text_encoder = make_text()
        parts = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "transformer": make_transformer(kind),
            "vae": make_vae(vae),
        }
        pipeline: Any
        if kind == "wan":
            pipeline = WanPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler())
        else:
            pipeline = SkyReelsV2DiffusionForcingPipeline(**parts, scheduler=UniPCMultistepScheduler())
        pipeline.save_pretrained(folder)
        if described:
            (folder / "longtake.json").write_text(json.dumps(SERVING))
        return folder

    return make


@pytest.fixture(scope="session")
def stock_vae() -> Callable[[str], Any]:
    """The autoencoder that the folders of a kind hold."""
    return make_vae


@pytest.fixture(scope="session")
def stock_transformer() -> Callable[[str], Any]:
    """The transformer that the folders of a kind hold, untouched."""
    return make_transformer
