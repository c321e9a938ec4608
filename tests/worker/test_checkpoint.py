"""What a video is continued from: windows, latents, the decoder's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from worker.checkpoint import (
    CheckpointError,
    CheckpointTooNew,
    pack_checkpoint,
    pack_latents,
    replay,
    unpack_checkpoint,
    unpack_latents,
)
from worker.engine import Conditioning
from worker.media.encode import EncoderSettings
from worker.sampler.progressive import step
from worker.sampler.window import PromptTimeline, WindowState


@pytest.fixture
def window(stand_in: Any) -> WindowState:
    """A window in mid-video."""
    model = stand_in.StandIn()
    state = WindowState.start(model.sampler, 3, (3, 2, 2), total=9)
    conditioning = Conditioning.encode(model.encode_prompt, PromptTimeline(((0, "a circle"),)), "")
    for _ in range(9):
        step(model, [state], [conditioning.at(state.newest_chunk)], [conditioning.negative])
    return state


def test_a_checkpoint_gives_back_the_window_and_the_encoder_to_the_bit(window: WindowState) -> None:
    encoder = EncoderSettings("av1", 33, 1)
    data = pack_checkpoint(4, window.to_tensors(), encoder, "of a model")
    found = unpack_checkpoint(data, "cpu")
    assert (found.chunk, found.encoder, found.model) == (4, encoder, "of a model")
    tensors, facts = window.to_tensors()
    again, same = found.window.to_tensors()
    assert facts == same
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_the_same_state_is_the_same_bytes(window: WindowState) -> None:
    packed = {pack_checkpoint(4, window.to_tensors(), EncoderSettings(), "of a model") for _ in range(5)}
    assert len(packed) == 1


def test_a_checkpoint_of_an_earlier_version_does_not_tell_its_model(window: WindowState) -> None:
    data = pack_checkpoint(4, window.to_tensors(), EncoderSettings(), "of a model")
    earlier = data.replace(b'\\"model\\"', b'\\"other\\"')
    assert earlier != data
    assert unpack_checkpoint(earlier, "cpu").model is None


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "schema"])
def test_a_damaged_checkpoint_is_an_error_of_its_own(window: WindowState, damage: str) -> None:
    data = pack_checkpoint(4, window.to_tensors(), EncoderSettings(), "of a model")
    bad = {
        "cut": data[:-5],
        "empty": b"",
        "garbage": b"\x10" * 64,
        "schema": data.replace(b'\\"schema\\": 1, \\"chunk\\"', b'\\"schema\\": 2, \\"chunk\\"'),
    }[damage]
    assert bad != data
    with pytest.raises(CheckpointTooNew if damage == "schema" else CheckpointError):
        unpack_checkpoint(bad, "cpu")
    with pytest.raises(CheckpointError):
        unpack_latents(bad[:20])


def test_latents_come_back_to_the_bit() -> None:
    latents = torch.randn(1, 3, 2, 4, 4)
    assert torch.equal(unpack_latents(pack_latents(latents)), latents)


@pytest.mark.parametrize("chunk", [-1, 0, 1, 2, 5])
def test_a_replayed_decoder_stands_where_the_old_one_did_and_reads_no_more_than_it_must(
    stand_in: Any, chunk: int
) -> None:
    model = stand_in.StandIn()
    chunks = [torch.randn(1, 3, 2, 2, 2) for _ in range(8)]
    whole = model.open_decoder()
    for number in range(chunk + 1):
        whole.push(chunks[number])
    read: list[int] = []

    def load(number: int) -> torch.Tensor:
        read.append(number)
        return chunks[number]

    fresh = model.open_decoder()
    replay(fresh, chunk, 2, load)
    assert read == list(range(max(0, chunk - 1), chunk + 1))
    assert np.array_equal(whole.push(chunks[chunk + 1]), fresh.push(chunks[chunk + 1]))
