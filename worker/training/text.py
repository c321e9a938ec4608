"""The words of the scenes: a word-level tokenizer and a small `UMT5EncoderModel`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    world: scenes.WorldName = "plain"  # of which it knows the words


def vocabulary(world: scenes.World) -> list[str]:
    """Every word of the captions of a world, sorted."""
    phrases = [*scenes.TEMPLATES, *scenes.COLORS, *scenes.FILLER_WORDS]
    spoken = [scenes.SHAPE_WORDS, scenes.MOTION_WORDS, scenes.PLAIN_WORDS]
    if world.landscapes:
        phrases += [*scenes.LAND_TEMPLATES, *scenes.LAND_WORDS]
        spoken.append(scenes.LANDSCAPE_WORDS)
    if world.second:
        spoken.append(scenes.RELATIONS)
    if world.fast:
        phrases += scenes.FAST_WORDS
    phrases += [phrase for words in spoken for synonyms in words.values() for phrase in synonyms]
    return sorted({word for phrase in phrases for word in phrase.split() if word.isalpha()})


def tokenizer(model: TextModel) -> stock.Tokenizer:
    """One token per word; capitals and punctuation do not matter, an unknown word is `<unk>`."""
    ids = {
        word: number
        for number, word in enumerate([PAD, END, UNKNOWN, *vocabulary(scenes.WORLDS[model.world])])
    }
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


def vocabulary_of(file: Path) -> dict[str, int]:
    """Ids of the words of a `tokenizer.json`. Raises `run.ConfigError` where it cannot be read."""
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8")).get_vocab()
    except Exception as error:  # the library raises no narrower one
        raise run.ConfigError(f"{file} cannot be read: {error}") from error


@torch.no_grad()
def with_vocabulary(encoder: stock.TextEncoder, old: dict[str, int], new: dict[str, int]) -> None:
    """Takes an encoder from the ids of one vocabulary to those of another, in place.

    Words of both keep their embeddings; the others begin at random, as far apart as those are. Raises
    `run.ConfigError` where the old vocabulary has ids that the encoder has no embedding of.
    """
    known = encoder.get_input_embeddings().weight
    if max(old.values(), default=0) >= len(known):
        raise run.ConfigError(f"the tokenizer has {len(old)} words, the text encoder {len(known)} embeddings")
    rows = known.mean(0) + known.std(0) * torch.randn(len(new), known.shape[1])
    for word in old.keys() & new.keys():
        rows[new[word]] = known[old[word]]
    encoder.resize_token_embeddings(len(new), mean_resizing=False)
    encoder.get_input_embeddings().weight.copy_(rows)


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
