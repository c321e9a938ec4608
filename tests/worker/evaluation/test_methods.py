"""The methods of an evaluation on a tiny model: what they make, and what they spend."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.evaluation import cases, oracle, study
from worker.evaluation.cases import Case, EvaluationError
from worker.evaluation.methods import (
    METHODS,
    RECIPE,
    CountedModel,
    Wanted,
    reconstruct,
    render,
    training_shares,
    unchunked,
)
from worker.models.base import SamplerConfig, VideoFrames, VideoModel
from worker.models.registry import BUILTIN_FOLDER, load_model
from worker.sampler import progressive
from worker.training import backdrops, scenes
from worker.training.recipe import Recipe

LATENTS = 37
SAMPLED = [name for name, method in METHODS.items() if method.sample and not method.own_weights]


CONFIG = SamplerConfig(
    chunk_latents=2,
    chunks_in_flight=4,
    forwards_per_shift=4,
    context_chunks=1,
    time_shift=1.0,
    guidance_scale=2.0,
)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> VideoModel:
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def wanted(model: VideoModel) -> Wanted:
    return Wanted(cases.held_out(1, 0)[0], LATENTS, seed=3, config=model.sampler)


Video = tuple[Tensor, CountedModel]


def made(name: str, model: VideoModel, spec: Path, wanted: Wanted) -> Video:
    counted, parts = CountedModel(model, str(spec)), list[Tensor]()
    sample = METHODS[name].sample
    assert sample is not None
    sample(counted, wanted, parts.append)
    return torch.cat(parts, 2), counted


@pytest.fixture(scope="module")
def videos(model: VideoModel, tiny_folder: Path, wanted: Wanted) -> dict[str, Video]:
    """Every method's video of one prompt and seed."""
    return {name: made(name, model, tiny_folder, wanted) for name in SAMPLED}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_method_makes_the_video_at_the_cost_of_the_progressive_one(
    name: str, videos: dict[str, Video], model: VideoModel, wanted: Wanted
) -> None:
    latents, counted = videos[name]
    assert LATENTS <= latents.shape[2] <= LATENTS + model.sampler.window_latents
    assert latents.isfinite().all()
    if name == "abrupt-ends":
        slots, chunks = model.sampler.chunks_in_flight, wanted.chunks
        assert counted.forwards == model.sampler.forwards_per_shift * (chunks - slots) + 1
    else:
        assert counted.forwards == pytest.approx(wanted.budget, rel=0.12)
    assert counted.latent_forwards <= counted.forwards * model.sampler.window_latents


def test_no_two_methods_make_the_same_video(videos: dict[str, Video]) -> None:
    latents = {name: video[:, :, :LATENTS] for name, (video, _) in videos.items()}
    for name, one in latents.items():
        assert [other for other, found in latents.items() if torch.equal(found, one)] == [name]


@pytest.mark.parametrize("name", ["stock-async", "abrupt-ends"])
def test_a_video_is_a_function_of_its_seed(
    name: str, videos: dict[str, Video], model: VideoModel, tiny_folder: Path, wanted: Wanted
) -> None:
    assert torch.equal(made(name, model, tiny_folder, wanted)[0], videos[name][0])
    assert not torch.equal(made(name, model, tiny_folder, replace(wanted, seed=4))[0], videos[name][0])


def test_progressive_is_the_sampler_that_is_served(
    videos: dict[str, Video], model: VideoModel, wanted: Wanted
) -> None:
    served = progressive.sample(model, wanted.case.prompt, chunks=wanted.chunks, seed=wanted.seed)
    assert torch.equal(videos["progressive"][0], served)
    assert videos["progressive"][1].forwards == wanted.budget


def test_without_chunks_window_and_cost_stay() -> None:
    single = unchunked(CONFIG)
    assert (single.window_latents, single.levels) == (CONFIG.window_latents, CONFIG.levels)
    assert single.forwards(40) == pytest.approx(CONFIG.forwards(20), rel=0.05)


def test_the_recipe_that_shares_of_training_windows_are_taken_from_is_that_of_the_built_in_model() -> None:
    card = (BUILTIN_FOLDER / "README.md").read_text()
    assert RECIPE.name == re.findall(r"config=worker/training/configs/(cpu-[a-z]+\.toml)", card)[-1]


def test_shares_of_training_windows_are_those_of_the_recipe(tiny_folder: Path) -> None:
    shares = training_shares("builtin")
    assert shares is not None
    assert set(shares) == set(SAMPLED)
    total = sum(Recipe.read(RECIPE).windows.kinds().values())
    assert total == pytest.approx(1.02)
    assert shares["replacement-with-noise"] == pytest.approx(0.03 / total, abs=1e-4)
    assert shares["no-chunks"] == pytest.approx(0.02 / total, abs=1e-4)
    assert shares["replacement-without-noise"] == pytest.approx((0.03 + 0.15 * 0.28) / total, abs=1e-4)
    assert shares["replacement-without-noise"] == shares["stock-sync"]
    assert shares["progressive"] == pytest.approx((0.20 + 0.85 * 0.28) / total, abs=1e-4)
    assert shares["graded"] == shares["fifo-like"] == shares["stock-async"] == 0
    assert training_shares(str(tiny_folder)) is None


def test_rendered_scenes_are_what_their_prompt_says() -> None:
    model = load_model("builtin")
    for number, case in enumerate(cases.held_out(6, 0)):
        frames: list[VideoFrames] = []
        wanted = Wanted(case, 25, number, model.sampler)
        render(model, wanted, 96, frames.append)
        assert case.attributes is not None
        assert oracle.judge(np.concatenate(frames), case.attributes).follows


def test_reconstructed_scenes_still_are() -> None:
    model = load_model("builtin")
    frames: list[VideoFrames] = []
    wanted = Wanted(cases.held_out(3, 0, cases.world_of("builtin"))[2], 25, 0, model.sampler)
    reconstruct(model, wanted, frames.append)
    video = np.concatenate(frames)
    assert len(video) == 97
    assert wanted.case.attributes is not None
    assert oracle.judge(video[:96], wanted.case.attributes).follows


def test_a_prompt_without_a_true_scene_cannot_be_rendered(model: VideoModel) -> None:
    wanted = Wanted(Case("a cat", "rich background", None), 5, 0, model.sampler)
    with pytest.raises(EvaluationError, match="a cat"):
        render(model, wanted, 17, lambda frames: None)


def test_held_out_prompts_name_held_out_combinations_only() -> None:
    chosen = [case.attributes for case in cases.held_out(48, seed=0)]
    assert all(a is not None and scenes.is_held_out(a) for a in chosen)
    assert {a.motion for a in chosen if a is not None} == set(scenes.MOTIONS)
    found = cases.held_out(48, seed=0)
    assert {case.scene_class for case in found} == {*cases.SCENE_CLASSES}
    assert found[:6] == cases.held_out(6, seed=0)
    assert 0.2 < np.mean([a is not None and a.second is not None for a in chosen]) < 0.5
    for case in found:
        assert case.attributes is not None
        assert (case.scene_class == "fast motion") == case.attributes.fast
        if not case.attributes.fast:
            assert (case.scene_class == "several objects") == (case.attributes.second is not None)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_motion_is_asked_for_with_and_without_a_second_object_and_a_landscape(seed: int) -> None:
    chosen = [case.attributes for case in cases.held_out(64, seed) if case.attributes is not None]
    for motion in scenes.MOTIONS:
        these = [a for a in chosen if a.motion == motion]
        assert 3 <= sum(a.second is not None for a in these) <= 5
        assert 3 <= sum(a.background in backdrops.LANDSCAPES for a in these) <= 7
        assert (1 <= sum(a.fast for a in these) <= 4) == (motion not in scenes.IN_PLACE)


def test_prompts_of_a_file_are_judged_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(
        '[[prompts]]\ntext = "a red ball bouncing on a black background"\nclass = "one object moving"\n'
        '[[prompts]]\ntext = "a red ball bouncing on a black background"\nclass = "fast motion"\n'
        '[[prompts]]\ntext = "a red ball bouncing past a green box on a black background"\nclass = "several objects"\n'
        '[[prompts]]\ntext = "a cat in the rain"\nclass = "rich background"\n'
    )
    one, fast, several, rich = cases.read(path)
    assert one.attributes == fast.attributes == scenes.SceneAttributes("black", "red", "circle", "bounce")
    assert several.attributes == scenes.SceneAttributes(
        "black", "red", "circle", "bounce", ("green", "square")
    )
    assert rich.attributes is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "prompts"),
        ("prompts = []", "no prompts"),
        ("[[prompts]]\ntext = 'a cat'", "class"),
        ("[[prompts]]\ntext = 'a cat'\nclass = 'cats'", "cats"),
        ("[[prompts]]\ntext = ' '\nclass = 'fast motion'", "empty"),
        ("not TOML", "prompts"),
    ],
)
def test_a_bad_file_of_prompts_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        cases.read(path)


def test_a_model_is_asked_for_the_scenes_that_it_has_the_words_for(tiny_folder: Path, tmp_path: Path) -> None:
    assert cases.world_of("builtin") == scenes.LIVELY
    assert cases.world_of(str(tiny_folder)) == scenes.PLAIN
    plain = cases.held_out(48, 0, scenes.PLAIN)
    assert all(case.attributes is not None and scenes.PLAIN.knows(case.attributes) for case in plain)
    assert {case.attributes.second for case in cases.turning(8, 0, scenes.PLAIN) if case.attributes} == {None}
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"tokenizer\.json cannot be read"):
        cases.world_of(str(broken))
    (tmp_path / "plan.toml").write_text(
        'world = "flat"\n[[sets]]\nseconds = 4\nprompts = 1\nmethods = ["rendered"]'
    )
    with pytest.raises(EvaluationError, match="world: choose from plain, rich, lively, got 'flat'"):
        study.Plan.read(str(tmp_path / "plan.toml"))
