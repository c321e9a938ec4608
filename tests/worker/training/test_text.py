from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from worker.training import scenes, text

MODEL = text.TextModel(prompt_tokens=24, width=16, layers=1, heads=2, world="lively")


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


def test_every_caption_of_a_lively_scene_fits_into_32_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    words, uncut = (text.tokenizer(replace(MODEL, prompt_tokens=tokens)) for tokens in (32, 100))
    rng = np.random.default_rng(0)

    def length(attributes: scenes.SceneAttributes) -> int:
        told = [scenes.caption(attributes, rng, filler=1.0)]
        ids, mask = text.token_ids(words, told, 32)
        whole, whole_mask = text.token_ids(uncut, told, 100)
        assert words.unk_token_id not in ids
        assert torch.equal(ids[mask == 1], whole[whole_mask == 1]), told
        return int(mask.sum())

    lengths = [
        length(a) for a in replace(scenes.LIVELY, second=1.0, fast=1.0).dressed(scenes.all_attributes(), rng)
    ]
    for table in ("BACKGROUND_WORDS", "SHAPE_WORDS", "MOTION_WORDS", "RELATIONS"):
        longest = {
            name: (max(phrases, key=lambda phrase: len(phrase.split())),)
            for name, phrases in getattr(scenes, table).items()
        }
        monkeypatch.setattr(scenes, table, longest)
    at_worst = scenes.SceneAttributes("nightfall", "red", "cross", "left", ("green", "cross"), True)
    assert max(lengths) < max(length(at_worst) for _ in range(200)) <= 32


def test_an_encoder_with_another_vocabulary_says_the_same_of_the_words_of_both() -> None:
    torch.manual_seed(0)
    words = text.tokenizer(MODEL)
    new = words.get_vocab()
    kept = [word for word in new if word not in ("meadow", "sunset")]
    old = {word: number for number, word in enumerate([*kept[::-1], "whale"])}
    encoder = text.build(MODEL, len(old)).eval()
    prompt = ["a", "red", "ball", "bouncing", "on", "black"]
    before = encoder(input_ids=torch.tensor([[old[word] for word in prompt]])).last_hidden_state
    known = encoder.get_input_embeddings().weight.clone()
    text.with_vocabulary(encoder, old, new)
    after = encoder(input_ids=torch.tensor([[new[word] for word in prompt]])).last_hidden_state
    assert torch.allclose(after, before, atol=1e-6)

    rows = encoder.get_input_embeddings().weight
    assert rows.shape == (len(new), MODEL.width)
    assert all(torch.equal(rows[new[word]], known[old[word]]) for word in kept)
    for word in ("meadow", "sunset"):
        assert (known - rows[new[word]]).norm(dim=1).min() > 0.3 * known.norm(dim=1).mean()
    fresh = text.build(MODEL, len(new))
    fresh.load_state_dict(encoder.state_dict())
    ids = torch.tensor([[new["meadow"]]])
    assert torch.equal(fresh.eval()(input_ids=ids)[0], encoder(input_ids=ids)[0])


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


def test_a_vocabulary_has_the_words_of_the_captions_of_its_world_alone() -> None:
    plain, rich, lively = (set(text.vocabulary(world)) for world in scenes.WORLDS.values())
    assert plain < rich < lively
    rng = np.random.default_rng(0)
    spoken = {
        word
        for a in scenes.PLAIN.sample(2000, rng)
        for word in scenes.caption(a, rng, filler=0.5).split()
        if word.isalpha()
    }
    assert spoken == plain
    assert {"meadow", "night", "past"} <= rich - plain
    assert lively - rich == {"fast", "quickly"}
