"""The model that comes with the package: its folder, and that stock diffusers makes of it what longtake does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from worker.evaluation.oracle import judge, parse_prompt
from worker.models.registry import BUILTIN_FOLDER, describe, load_model

LARGEST_BYTES = 40_000_000


def test_the_weights_fit_into_a_package() -> None:
    assert sum(path.stat().st_size for path in BUILTIN_FOLDER.rglob("*")) < LARGEST_BYTES


def test_the_examples_it_offers_are_prompts_it_was_trained_for() -> None:
    examples = describe("builtin").example_prompts
    assert examples
    for prompt in examples:
        wanted = parse_prompt(prompt)
        assert wanted is not None, prompt


@pytest.fixture(scope="module")
def stock() -> SkyReelsV2DiffusionForcingPipeline:
    pipeline = SkyReelsV2DiffusionForcingPipeline.from_pretrained(BUILTIN_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_stock_diffusers_makes_a_video_of_what_the_prompt_says(
    stock: SkyReelsV2DiffusionForcingPipeline,
) -> None:
    prompt = "a red ball drifting to the left on a black background"
    wanted = parse_prompt(prompt)
    assert wanted is not None
    frames = stock(
        prompt,
        height=32,  # it takes the spatial factor for 4, as the model card says
        width=32,
        max_sequence_length=32,
        num_frames=37,
        base_num_frames=37,
        num_inference_steps=16,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="np",
    ).frames[0]
    assert frames.shape == (37, 128, 128, 3)
    verdict = judge((frames * 255).round().astype(np.uint8), wanted)
    assert verdict.background, verdict
    assert verdict.color, verdict
    assert verdict.present > 0.9, verdict


def test_longtake_and_stock_diffusers_agree_on_prompt_and_velocity(
    stock: SkyReelsV2DiffusionForcingPipeline,
) -> None:
    model = load_model("builtin")
    prompt = "a yellow square orbiting the center on a navy background"
    embedded = model.encode_prompt([prompt])
    theirs, _ = stock.encode_prompt(
        prompt, do_classifier_free_guidance=False, max_sequence_length=embedded.shape[1]
    )
    torch.testing.assert_close(embedded, theirs, rtol=1e-5, atol=1e-5)
    latents = torch.randn(1, 8, 10, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = torch.tensor([[0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]])
    with torch.inference_mode():
        ours = model.velocity(latents, sigmas, embedded)
        (velocity,) = stock.transformer(
            latents,
            timestep=1000 * sigmas,
            encoder_hidden_states=embedded,
            enable_diffusion_forcing=True,
            return_dict=False,
        )
    torch.testing.assert_close(ours, velocity, rtol=1e-3, atol=1e-4)
