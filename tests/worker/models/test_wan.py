from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_diffusion_forcing
from torch import Tensor

from worker.models.base import InvalidOutput, StreamedDecoder, VideoModel
from worker.models.registry import load_model
from worker.models.wan import CACHED_PROMPT_BATCHES, CACHED_PROMPTS, WanModel
from worker.models.wan_vae import WanStreamedDecoder, memory_latents, quicken_on_cpu
from worker.sampler.progressive import sample, step
from worker.sampler.window import WindowState

Folder = Callable[..., Path]
VAE_KINDS = ("wan 2.1", "wan 2.2", "two stages")


@pytest.fixture(scope="module")
def model(pipeline_folder: Folder) -> WanModel:
    loaded = load_model(str(pipeline_folder()))
    assert isinstance(loaded, WanModel)
    return loaded


def window(rows: int = 2, frames: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, levels with a clean frame and a pure one, and prompts."""
    latents = torch.randn((rows, 4, frames, 4, 6), generator=torch.Generator().manual_seed(3))
    sigmas = torch.linspace(0, 1, rows * frames).view(frames, rows).T.contiguous()
    prompt = torch.randn((rows, 8, 16), generator=torch.Generator().manual_seed(4))
    return latents, sigmas, prompt


def mean_std() -> tuple[Tensor, Tensor]:
    shape = (1, 4, 1, 1, 1)
    return torch.tensor([0.1, -0.2, 0.3, -0.4]).view(shape), torch.tensor([1.5, 2.0, 0.5, 1.0]).view(shape)


def stream(vae: Any) -> WanStreamedDecoder:
    return WanStreamedDecoder(vae, *mean_std())


def video(n: int, height: int = 4) -> Tensor:
    return torch.randn((1, 4, n, height, 6), generator=torch.Generator().manual_seed(n))


def is_a_video_model(model: VideoModel, decoder: StreamedDecoder) -> bool:
    return model.geometry.temporal_factor == 4 and decoder.memory_latents > 0


# Velocity ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_velocity_equals_the_stock_diffusion_forcing_forward(
    model: WanModel, stock_transformer: Callable[[str], Any]
) -> None:
    latents, sigmas, prompt = window()
    (expected,) = stock_transformer("skyreels")(
        hidden_states=latents,
        timestep=1000 * sigmas,
        encoder_hidden_states=prompt,
        enable_diffusion_forcing=True,
        return_dict=False,
    )
    velocity = model.velocity(latents, sigmas, prompt)
    assert velocity.dtype == torch.float32
    assert torch.allclose(velocity, expected, atol=1e-5)


@torch.no_grad()
def test_velocity_equals_the_stock_forward_with_a_timestep_per_token(
    pipeline_folder: Folder, stock_transformer: Callable[[str], Any]
) -> None:
    latents, sigmas, prompt = window()
    (expected,) = stock_transformer("wan")(
        hidden_states=latents,
        timestep=(1000 * sigmas).repeat_interleave(2 * 3, dim=1),
        encoder_hidden_states=prompt,
        return_dict=False,
    )
    velocity = load_model(str(pipeline_folder("wan"))).velocity(latents, sigmas, prompt)
    assert torch.allclose(velocity, expected, atol=1e-5)


@torch.no_grad()
def test_the_frame_rate_embedding_is_part_of_the_weights_afterwards(
    pipeline_folder: Folder, stock_transformer: Callable[[str], Any]
) -> None:
    latents, sigmas, prompt = window(rows=1)
    (expected,) = stock_transformer("skyreels fps")(
        hidden_states=latents,
        timestep=1000 * sigmas,
        encoder_hidden_states=prompt,
        enable_diffusion_forcing=True,
        fps=[1],
        return_dict=False,
    )
    model = load_model(str(pipeline_folder("skyreels fps")))
    assert torch.allclose(model.velocity(latents, sigmas, prompt), expected, atol=1e-5)
    twice = model.velocity(*(torch.cat([x, x]) for x in (latents, sigmas, prompt)))
    assert torch.allclose(twice[1:], expected, atol=1e-5)


@torch.no_grad()
def test_bfloat16_keeps_the_float32_modules_and_the_stock_result(pipeline_folder: Folder) -> None:
    folder = pipeline_folder()
    model = load_model(str(folder), dtype=torch.bfloat16)
    assert isinstance(model, WanModel)
    network = model._transformer
    block = network.blocks[0]
    kept = (
        network.modulation,
        network.time_embedder.linear_1.weight,
        block.modulation,
        block.norm_cross.weight,
    )
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert block.qkv.weight.dtype == torch.bfloat16
    assert model.encode_prompt(["a"]).dtype == torch.bfloat16

    latents, sigmas, prompt = window()
    stock = SkyReelsV2Transformer3DModel.from_pretrained(
        folder, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    (expected,) = stock(
        hidden_states=latents.bfloat16(),
        timestep=1000 * sigmas,
        encoder_hidden_states=prompt.bfloat16(),
        enable_diffusion_forcing=True,
        return_dict=False,
    )
    velocity = model.velocity(latents, sigmas, prompt)
    assert velocity.dtype == torch.float32
    assert torch.allclose(velocity, expected.float(), atol=0.05, rtol=0.05)


def test_a_prompt_changed_in_place_is_a_new_prompt(model: WanModel) -> None:
    latents, sigmas, prompt = window()
    before = model.velocity(latents, sigmas, prompt)
    prompt.mul_(2)
    after = model.velocity(latents, sigmas, prompt)
    assert not torch.equal(before, after)
    prompt.div_(2)
    assert torch.equal(model.velocity(latents, sigmas, prompt), before)


def test_prompts_come_and_go_without_mixing_up_or_piling_up(model: WanModel) -> None:
    latents, sigmas, _ = window()
    prompts = [torch.randn(2, 8, 16) for _ in range(CACHED_PROMPT_BATCHES + 2)]
    first = [model.velocity(latents, sigmas, prompt) for prompt in prompts]
    again = [model.velocity(latents, sigmas, prompt) for prompt in prompts]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(first))
    assert len(model._texts) == CACHED_PROMPT_BATCHES


def test_an_old_batch_of_prompts_is_let_go_before_the_next_takes_memory(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, sigmas, _ = window()
    for _ in range(CACHED_PROMPT_BATCHES):
        model.velocity(latents, sigmas, torch.randn(2, 8, 16))
    oldest = weakref.ref(model._texts[-1][1][0][0])
    keys_values, gone = model._transformer.keys_values, list[bool]()

    def noted(prompt: torch.Tensor) -> Any:
        gone.append(oldest() is None)
        return keys_values(prompt)

    monkeypatch.setattr(model._transformer, "keys_values", noted)
    model.velocity(latents, sigmas, torch.randn(2, 8, 16))
    assert gone == [True]


def test_rows_of_a_batch_do_not_see_each_other(model: WanModel) -> None:
    latents, sigmas, prompt = window(rows=3)
    together = model.velocity(latents, sigmas, prompt)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.allclose(
            model.velocity(latents[one], sigmas[one], prompt[one]), together[one], atol=1e-5
        )


# Prompts -------------------------------------------------------------------------------------------------------


def test_prompt_embeddings_are_those_of_the_stock_pipeline(
    model: WanModel, pipeline_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stock clean-up needs ftfy, which mends broken encodings; a request body has none.
    monkeypatch.setattr(pipeline_skyreels_v2_diffusion_forcing, "prompt_clean", str.strip)
    stock = SkyReelsV2DiffusionForcingPipeline.from_pretrained(pipeline_folder())
    stock.text_encoder.eval()
    prompts = ["a red circle on black", "", "a " * 30]
    expected = torch.cat(
        [
            stock._get_t5_prompt_embeds([prompt], max_sequence_length=8, device=torch.device("cpu"))
            for prompt in prompts
        ]
    )
    embeddings = model.encode_prompt(prompts)
    assert embeddings.shape == (3, 8, 16)
    assert torch.allclose(embeddings, expected, atol=1e-6)
    assert bool((embeddings[0, 6:] == 0).all())
    assert bool((embeddings[1, 1:] == 0).all())


def test_a_prompt_has_the_same_embedding_whatever_it_is_encoded_with(model: WanModel) -> None:
    (alone,) = model.encode_prompt(["a red circle"])
    model._text_encoder._known.clear()
    _, among, _ = model.encode_prompt(["", "a red circle", "on black"])
    assert torch.equal(alone, among)


def test_a_prompt_is_encoded_once_while_it_is_asked_for(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, encoded = model._text_encoder, list[str]()
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda prompt: encoded.append(prompt) or embed(prompt))
    encoder._known.clear()
    texts = [f"a {number}" for number in range(CACHED_PROMPTS + 3)]
    first = model.encode_prompt([*texts, texts[0]])
    assert encoded == texts
    assert len(encoder._known) == CACHED_PROMPTS
    assert torch.equal(first[0], first[-1])
    again = model.encode_prompt([texts[0], texts[-1]])
    assert encoded == texts
    assert torch.equal(again, first[[0, len(texts) - 1]])


def test_a_text_encoder_that_rests_goes_back_to_the_weights_it_left_on_the_host(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not there is made up: what is moved to it is a copy."""
    encoder, weights = model._text_encoder, list(model._text_encoder._encoder.parameters())
    expected = model.encode_prompt(["a red circle"])
    encoder._known.clear()
    move = Tensor.to
    monkeypatch.setattr(encoder, "_rests", True)
    monkeypatch.setattr(Tensor, "to", lambda self, *to, **how: move(self, *to, **how).clone())

    def places() -> list[int]:
        return [weight.data_ptr() for weight in weights]

    host, used = places(), list[int]()
    watch = encoder._encoder.register_forward_pre_hook(lambda *_: used.extend(places()))
    with torch.inference_mode():  # as in the engine
        embeddings = model.encode_prompt(["a red circle"])
    watch.remove()
    assert torch.equal(embeddings, expected)
    assert len(used) == len(host)
    assert not set(used) & set(host)
    assert places() == host


def test_markup_and_spaces_in_a_prompt_do_not_matter(model: WanModel) -> None:
    plain, marked = model.encode_prompt(["a & red", " a  &amp;amp; \n red "])
    assert torch.equal(plain, marked)


# Decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_streamed_decode_equals_decoding_all_latents_at_once(
    stock_vae: Callable[[str], Any], kind: str
) -> None:
    vae, latents = stock_vae(kind), video(7)
    mean, std = mean_std()
    with torch.no_grad():
        whole = vae.decode(latents * std + mean, return_dict=False)[0]
    expected = ((whole[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    for split in ([7], [1] * 7, [2, 2, 2, 1], [3, 4]):
        decoder, frames, begin = stream(vae), [], 0
        for n in split:
            frames.append(decoder.push(latents[:, :, begin : begin + n]))
            assert len(frames[-1]) == (4 * (n - 1) + 1 if begin == 0 else 4 * n)
            begin += n
        assert np.array_equal(np.concatenate(frames), expected)


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_the_faster_kernels_of_a_cpu_agree_with_the_stock_ones(
    stock_vae: Callable[[str], Any], kind: str
) -> None:
    stock = stock_vae(kind)
    quick = copy.deepcopy(stock)
    quicken_on_cpu(quick)
    assert {type(m) for m in quick.modules()} != {type(m) for m in stock.modules()}
    for height in (2, 32):
        latents, decoders = video(4, height=height), [stream(stock), stream(quick)]
        with torch.no_grad():
            ours, others = (torch.cat(list(decoder._decode(latents)), 2) for decoder in decoders)
        assert torch.allclose(ours, others, atol=1e-4)


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_replaying_memory_latents_restores_the_decoder_bit_for_bit(
    stock_vae: Callable[[str], Any], kind: str
) -> None:
    vae = stock_vae(kind)
    memory = memory_latents(vae)
    latents = video(memory + 9, height=2)
    straight = stream(vae)
    straight.replay(latents[:, :, : memory + 5])

    resumed = stream(vae)
    assert resumed.memory_latents == memory
    resumed.replay(latents[:, :, 5 : memory + 5])
    for ours, others in zip(resumed._features, straight._features, strict=True):
        assert ours is others is None or torch.equal(ours, others)
    assert np.array_equal(
        resumed.push(latents[:, :, memory + 5 :]), straight.push(latents[:, :, memory + 5 :])
    )


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_no_fewer_than_memory_latents_determine_the_decoder(
    stock_vae: Callable[[str], Any], kind: str
) -> None:
    """NaN spreads wherever a latent has any say: the state depends on the last ``memory`` latents, on no older one."""
    vae = stock_vae(kind)
    memory = memory_latents(vae)
    for back, has_a_say in ((memory - 1, True), (memory, False)):
        latents = torch.zeros(1, 4, memory + 3, 2, 2)
        latents[:, :, memory + 2 - back] = float("nan")
        decoder = stream(vae)
        decoder.replay(latents)
        assert any(bool(f.isnan().any()) for f in decoder._features if f is not None) == has_a_say


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_replaying_a_short_video_from_its_start_restores_the_decoder(
    stock_vae: Callable[[str], Any], n: int
) -> None:
    latents = video(8)
    straight = stream(stock_vae("wan 2.1"))
    frames = straight.push(latents)
    resumed = stream(stock_vae("wan 2.1"))
    resumed.replay(latents[:, :, :n])
    rest = resumed.push(latents[:, :, n:])
    assert np.array_equal(rest, frames[len(frames) - len(rest) :])
    assert len(rest) == (4 * 7 + 1 if n == 0 else 4 * (8 - n))


def test_a_decoder_in_use_cannot_replay(model: WanModel) -> None:
    decoder = model.open_decoder()
    decoder.push(video(1))
    with pytest.raises(ValueError, match="new decoder"):
        decoder.replay(video(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_numbers_are_an_error_and_not_a_black_picture(
    model: WanModel, value: float
) -> None:
    latents = video(2)
    latents[0, 0, 1, 0, 0] = value
    with pytest.raises(InvalidOutput, match="not finite"):
        model.open_decoder().push(latents)


def test_decoders_velocity_and_encoding_run_in_threads_of_their_own(model: WanModel) -> None:
    """Nothing that one of them changes is seen by another."""
    clips = [video(6) * scale for scale in (0.5, 1.0, 1.5)]
    pictures = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    latents, sigmas, prompt = window()

    def decode(clip: Tensor) -> Any:
        decoder = model.open_decoder()
        return np.concatenate([decoder.push(clip[:, :, i : i + 2]) for i in range(0, 6, 2)])

    tasks: list[Callable[[], Any]] = [
        *(lambda clip=clip: decode(clip) for clip in clips),
        lambda: np.stack([model.velocity(latents, sigmas, prompt).numpy() for _ in range(5)]),
        lambda: model.encode_video(pictures).numpy(),
        lambda: model.encode_prompt(["a red circle"]).numpy(),
    ]
    alone = [task() for task in tasks]
    with ThreadPoolExecutor(len(tasks)) as pool:
        for _ in range(3):
            together = [future.result() for future in [pool.submit(task) for task in tasks]]
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# Encoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_encoded_video_is_the_normalised_mean_of_the_stock_encoder(
    pipeline_folder: Folder, stock_vae: Callable[[str], Any], kind: str
) -> None:
    model = load_model(str(pipeline_folder("skyreels", kind)))
    frames = np.random.default_rng(0).integers(0, 256, (11, 32, 48, 3), dtype=np.uint8)
    latents = model.encode_video(frames)
    factor = model.geometry.spatial_factor
    assert latents.shape == (1, 4, 3, 32 // factor, 48 // factor)

    kept = torch.from_numpy(frames[2:]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mean, std = mean_std()
    with torch.no_grad():
        expected = (stock_vae(kind).encode(kept).latent_dist.mode() - mean) / std
    assert torch.allclose(latents, expected, atol=1e-5)


def test_an_image_is_one_latent(model: WanModel) -> None:
    assert model.encode_video(np.zeros((1, 32, 32, 3), dtype=np.uint8)).shape == (1, 4, 1, 4, 4)


def test_frames_of_another_type_or_size_are_refused(model: WanModel) -> None:
    for wrong in (
        np.zeros((2, 32, 32, 3), dtype=np.float32),
        np.zeros((32, 32, 3), dtype=np.uint8),
        np.zeros((0, 32, 32, 3), dtype=np.uint8),
        np.zeros((1, 32, 32, 4), dtype=np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            model.encode_video(wrong)
    with pytest.raises(ValueError, match="30x32 pixels is no multiple of 8"):
        model.encode_video(np.zeros((1, 32, 30, 3), dtype=np.uint8))


# All of it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["skyreels", "skyreels fps", "wan"])
def test_a_loaded_pipeline_turns_a_prompt_into_frames(pipeline_folder: Folder, kind: str) -> None:
    model = load_model(str(pipeline_folder(kind)))
    decoder = model.open_decoder()
    assert is_a_video_model(model, decoder)
    frames = []
    latents = sample(
        model,
        "a red circle",
        chunks=3,
        seed=0,
        on_chunk=lambda emitted: frames.append(decoder.push(emitted.latents)),
    )
    assert latents.isfinite().all()
    assert np.concatenate(frames).shape == (model.geometry.frames_for_latents(6), 32, 32, 3)
    assert model.device == torch.device("cpu")


def test_a_resumed_video_has_the_same_latents_and_frames_bit_for_bit(model: WanModel) -> None:
    """Window restored from its checkpoint, decoder from the latents before it, on the real network classes."""
    settings = replace(model.sampler, chunks_in_flight=2, sink=True)
    shape, (prompt, negative) = model.geometry.latent_shape(32, 32), model.encode_prompt(["a red circle", ""])

    def run(state: WindowState, decoder: StreamedDecoder) -> tuple[list[Tensor], list[Any], list[Any]]:
        chunks, frames, checkpoints = [], [], []
        while not state.done:
            (emitted,) = step(model, [state], [prompt[None]], [negative[None]])
            if emitted is not None:
                chunks.append(emitted.latents)
                frames.append(decoder.push(emitted.latents))
                checkpoints.append(state.to_tensors())
        return chunks, frames, checkpoints

    start = WindowState.start(settings, 7, shape, total=4)
    chunks, frames, checkpoints = run(start, model.open_decoder())
    for done in (1, 3):
        decoder = model.open_decoder()
        decoder.replay(torch.cat(chunks[:done], dim=2))
        again, rest, _ = run(WindowState.from_tensors(*checkpoints[done - 1]), decoder)
        assert all(torch.equal(a, b) for a, b in zip(again, chunks[done:], strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(rest, frames[done:], strict=True))
