"""The words of the scenes: a word-level tokenizer and a small `UMT5EncoderModel`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from worker.training import run, scenes, stock

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class TextModel:
    """Shape of the text encoder."""

    prompt_tokens: run.Count  # length in training and in serving
    width: run.Count
    layers: run.Count
    heads: run.Count


def vocabulary() -> list[str]:
    """Every word of the captions, sorted."""
    phrases = [*scenes.TEMPLATES, *scenes.COLORS, *scenes.FILLER_WORDS]
    for words in (scenes.BACKGROUND_WORDS, scenes.SHAPE_WORDS, scenes.MOTION_WORDS):
        phrases += [phrase for synonyms in words.values() for phrase in synonyms]
    return sorted({word for phrase in phrases for word in phrase.split() if word.isalpha()})


def tokenizer(model: TextModel) -> stock.Tokenizer:
    """One token per word; capitals and punctuation do not matter, an unknown word is `<unk>`."""
    ids = {word: number for number, word in enumerate([PAD, END, UNKNOWN, *vocabulary()])}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]+"), " ")]
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return stock.tokenizer(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=model.prompt_tokens,
    )


def build(model: TextModel, words: int) -> stock.TextEncoder:
    """A randomly initialised encoder for a vocabulary of `words`."""
    config = stock.text_config(
        vocab_size=words,
        d_model=model.width,
        d_kv=model.width // model.heads,
        d_ff=2 * model.width,
        num_layers=model.layers,
        num_heads=model.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return stock.text_encoder(config)


def token_ids(words: stock.Tokenizer, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each (B, length)."""
    batch = words(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask


def embed(encoder: stock.TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, length, width), zero past the real length as in the Wan-class pipelines: no mask reaches the network."""
    hidden: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden * mask[:, :, None].to(hidden.dtype)


@torch.no_grad()
def embed_captions(
    words: stock.Tokenizer, encoder: stock.TextEncoder, captions: list[str], length: int
) -> Tensor:
    """Embeddings of captions on the encoder's device."""
    ids, mask = token_ids(words, captions, length)
    return embed(encoder, ids.to(encoder.device), mask.to(encoder.device))
