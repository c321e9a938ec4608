"""The weights that ship with the package, judged from pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from worker.evaluation import following, oracle
from worker.models.base import VideoModel
from worker.models.registry import BUILTIN_FOLDER, describe, load_model
from worker.training import scenes, text


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return load_model("builtin")


def test_the_shipped_model_follows_its_example_prompts(model: VideoModel) -> None:
    prompts = list(describe("builtin").example_prompts)
    videos = following.sample_videos(model, prompts, chunks=10, seed=1, config=model.sampler)
    verdicts = []
    for prompt, latents in zip(prompts, videos, strict=True):
        attributes = oracle.parse_prompt(prompt)
        assert attributes is not None
        verdicts.append(oracle.judge(model.open_decoder().push(latents), attributes))
    assert all(v.background for v in verdicts)
    assert sum(v.color for v in verdicts) >= len(verdicts) - 1
    assert sum(v.follows for v in verdicts) >= len(verdicts) // 2


def test_the_shipped_folder_loads_in_stock_diffusers() -> None:
    pipeline = SkyReelsV2DiffusionForcingPipeline.from_pretrained(BUILTIN_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    tokens = json.loads((BUILTIN_FOLDER / "longtake.json").read_text())["prompt_tokens"]
    prompts = text.embed_captions(
        pipeline.tokenizer, pipeline.text_encoder, ["a red circle bouncing on a black background", ""], tokens
    )
    # The stock pipeline believes in a spatial factor of 2 ** len(temperal_downsample) = 4; it is 8.
    video = pipeline(
        prompt=None,
        prompt_embeds=prompts[:1],
        negative_prompt_embeds=prompts[1:],
        guidance_scale=1.5,
        height=32,
        width=32,
        num_frames=37,
        base_num_frames=37,
        num_inference_steps=8,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    assert video.shape == (37, 64, 64, 3)
    verdict = oracle.judge(
        (video * 255).astype("uint8"), scenes.SceneAttributes("black", "red", "circle", "bounce")
    )
    assert verdict.background


def test_the_shipped_weights_are_small() -> None:
    size = sum(path.stat().st_size for path in Path(BUILTIN_FOLDER).rglob("*") if path.is_file())
    assert size < 20e6  # bytes


def test_evaluation_prompts_name_held_out_combinations_only() -> None:
    chosen = following.held_out_prompts(48, seed=0)
    assert all(scenes.is_held_out(attributes) for _, attributes in chosen)
    assert {attributes.motion for _, attributes in chosen} == set(scenes.MOTIONS)


def test_the_evaluation_reports_every_figure(model: VideoModel) -> None:
    result = following.evaluate(model, prompts=2, long_prompts=1, long_seconds=8)
    assert {"background", "color", "shape", "motion", "present"} <= result["following"].keys()
    assert [segment["from_second"] for segment in result["decay"]["segments"]] == [0, 4]
