from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.training import scenes, text

MODEL = text.TextModel(prompt_tokens=24, width=16, layers=1, heads=2)


def test_capitals_and_punctuation_do_not_matter() -> None:
    words = text.tokenizer(MODEL)
    plain = words("a red ball bouncing on black").input_ids
    assert words("A Red ball, bouncing -- on BLACK.").input_ids == plain


def test_every_word_of_every_caption_is_known() -> None:
    words = text.tokenizer(MODEL)
    rng = np.random.default_rng(0)
    for attributes in scenes.all_attributes():
        ids = words(scenes.caption(attributes, rng, filler=0.5)).input_ids
        assert words.unk_token_id not in ids
        assert len(ids) <= MODEL.prompt_tokens


@pytest.mark.parametrize("prompt", ["", "?!", "an octopus plays the violin", "красный шар", "a red " * 200])
def test_any_prompt_has_an_embedding(prompt: str) -> None:
    words = text.tokenizer(MODEL)
    encoder = text.build(MODEL, len(words)).eval()
    embedding = text.embed_captions(words, encoder, [prompt], MODEL.prompt_tokens)
    assert embedding.shape == (1, 24, 16)
    assert torch.isfinite(embedding).all()


def test_the_embedding_is_zero_past_the_prompt_and_blind_to_padding() -> None:
    words = text.tokenizer(MODEL)
    encoder = text.build(MODEL, len(words)).eval()
    embedding = text.embed_captions(words, encoder, ["a red ball"], 24)
    assert embedding[0, 4:].abs().max() == 0  # three words and the end
    assert torch.allclose(
        text.embed_captions(words, encoder, ["a red ball"], 8)[0, :4], embedding[0, :4], atol=1e-6
    )
