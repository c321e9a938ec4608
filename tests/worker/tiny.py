"""A whole pipeline folder with small random weights, saved by diffusers: real classes, seconds to make, no picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "square"]

SERVING = {
    "name": "tiny",
    "fps": 24,
    "sizes": ["32x32"],
    "window_latents": 10,
    "prompt_tokens": 8,
    "sampler": {
        "chunk_latents": 2,
        "chunks_in_flight": 4,
        "forwards_per_shift": 2,
        "context_chunks": 1,
        "time_shift": 3.0,
        "guidance_scale": 2.0,
    },
}


def save(folder: Path) -> Path:
    """Writes the pipeline and returns its folder."""
    torch.manual_seed(0)
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    for parameter in transformer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    SkyReelsV2DiffusionForcingPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=16,
        ),
        text_encoder=UMT5EncoderModel(config).eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(),
    ).save_pretrained(folder)
    (folder / "longtake.json").write_text(json.dumps(SERVING))
    return folder
