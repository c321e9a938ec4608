"""The whole recipe on tiny settings, and what it writes."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
)
from transformers import UMT5EncoderModel

from tests.worker.training.plain import plain_turns
from worker.models.registry import load_model
from worker.training import __main__ as command
from worker.training import (
    backdrops,
    export,
    forward,
    latents,
    run,
    scenes,
    text,
    transformer,
    turns,
    vae,
    windows,
)
from worker.training.recipe import Recipe

CONFIG = Path(vae.__file__).parent / "configs" / "tiny.toml"
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.read(CONFIG)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage of the recipe, run as the command runs it."""
    folder = tmp_path_factory.mktemp("tiny")
    for stage in ("vae", "latents", "transformer", "decoder", "export"):
        command.main([*stage.split(), "--config", str(CONFIG), "--out", str(folder)])
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that ends the command."""
    with pytest.raises(SystemExit) as ended:
        command.main([*map(str, arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("longtake training: ")
    assert error.count("\n") == 1
    return error


def train_transformer(recipe: Recipe, out: Path, stop: int) -> None:
    """Trains, or goes on, until this step."""
    transformer.train(
        recipe.transformer,
        recipe.text,
        recipe.windows,
        recipe.transformer_training,
        out=out,
        device=CPU,
        stop=stop,
    )


def test_training_as_a_stream_equals_encoding_and_decoding_whole_videos(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = vae.build(recipe.vae).eval()
    pixels = torch.rand(2, 3, 21, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
        stream = vae.VideoStream(model)
        parts = [stream.encode(pixels[:, :, :9])[0], stream.encode(pixels[:, :, 9:])[0]]
        assert torch.allclose(torch.cat(parts, 2), posterior.mean, atol=1e-5)
        decoded = torch.cat(
            [stream.decode(posterior.mean[:, :, :2]), stream.decode(posterior.mean[:, :, 2:])], 2
        )
        assert torch.allclose(decoded.clamp(-1, 1), model.decode(posterior.mean).sample, atol=1e-5)


def test_the_training_forward_equals_the_stock_forward(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = transformer.build(recipe.transformer, channels=8, text_width=16)
    torch.nn.init.normal_(model.proj_out.weight)
    x, sigmas, prompt = torch.randn(2, 8, 4, 4, 6), torch.rand(2, 4), torch.randn(2, 24, 16)
    stock = model(x, sigmas * 1000, prompt, enable_diffusion_forcing=True, return_dict=False)[0]
    assert torch.allclose(forward.velocity(model, x, sigmas, prompt), stock, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_and_their_gradients_equal_the_plain_ones(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = transformer.build(recipe.transformer, channels=8, text_width=16)
    torch.nn.init.normal_(model.proj_out.weight)
    compiled, prompt = forward.compiled_block(), torch.randn(2, 24, 16)
    for frames in (4, 6):  # windows differ in length
        x, sigmas = torch.randn(2, 8, frames, 4, 6), torch.rand(2, frames)
        results = []
        for run_block in (forward.block, compiled):
            model.zero_grad()
            velocity = forward.velocity(model, x, sigmas, prompt, run_block)
            velocity.square().mean().backward()
            results.append([velocity, *(p.grad for p in model.parameters() if p.grad is not None)])
        plain, fused = results
        assert len(plain) == len(fused) > 20
        assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(plain, fused, strict=True))


def test_training_the_autoencoder_raises_its_quality(recipe: Recipe, tmp_path: Path) -> None:
    settings = replace(
        recipe.vae_training, steps=60, checkpoint_steps=15, batch=2, crop=32, piece_latents=(2,)
    )
    vae.train(recipe.vae, settings, tmp_path, CPU)
    rows = [json.loads(line) for line in (tmp_path / "vae.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr_9"] > rows[0]["psnr_9"] + 2  # dB, on held-out scenes

    vae.train(recipe.vae, replace(settings, seed=5), tmp_path, CPU, decoder_only=True)
    whole, refined = (vae.load(recipe.vae, tmp_path / f"{name}.pt", CPU) for name in ("vae", "decoder"))
    assert vae.psnr(refined, 32, 9).mean() > vae.psnr(whole, 32, 9).mean() + 0.3
    changed = {
        name.partition(".")[0]
        for (name, before), after in zip(
            whole.state_dict().items(), refined.state_dict().values(), strict=True
        )
        if not torch.equal(before, after)
    }
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(("own", "wanted"), [(2.0, [9.0, 2.0]), (0.0, [9.0, 9.0])])
def test_the_decoder_may_have_a_budget_of_its_own(
    own: float, wanted: list[float], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(recipe.vae_training, steps=1, minutes=9.0, decoder_minutes=own)
    budgets, schedule = [], run.Schedule

    def noted(steps: int, minutes: float, **rest: float) -> run.Schedule:
        budgets.append(minutes)
        return schedule(steps, minutes, **rest)

    monkeypatch.setattr(run, "Schedule", noted)
    for decoder_only in (False, True):
        vae.train(recipe.vae, settings, tmp_path, CPU, decoder_only=decoder_only)
    assert budgets == wanted


def test_training_the_transformer_lowers_its_loss(recipe: Recipe, out: Path, tmp_path: Path) -> None:
    (tmp_path / "latents.pt").write_bytes((out / "latents.pt").read_bytes())
    settings = replace(recipe.transformer_training, steps=200, checkpoint_steps=20)
    transformer.train(recipe.transformer, recipe.text, recipe.windows, settings, out=tmp_path, device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "transformer.jsonl").read_text().splitlines()]
    assert rows[-1]["steady"] < 0.9 * rows[0]["steady"]


def test_a_run_that_was_interrupted_ends_bit_equal(recipe: Recipe, out: Path, tmp_path: Path) -> None:
    for name in ("vae", "transformer", "decoder"):
        (tmp_path / "latents.pt").write_bytes((out / "latents.pt").read_bytes())
        whole = run.load_checkpoint(out / f"{name}.pt")
        for stop in (8, 16):  # steps: a first process that ends at a checkpoint, and a second that goes on
            torch.manual_seed(stop)
            if name != "transformer":
                vae.train(
                    recipe.vae,
                    replace(recipe.vae_training, steps=16),
                    tmp_path,
                    CPU,
                    decoder_only=name == "decoder",
                    stop=stop,
                )
            else:
                train_transformer(recipe, tmp_path, stop)
        continued = run.load_checkpoint(tmp_path / f"{name}.pt")
        assert whole is not None
        assert continued is not None
        assert continued["step"] == whole["step"] == 16
        for key, value in whole["average"].items():
            assert torch.equal(value, continued["average"][key]), key


@pytest.mark.parametrize("stage", ["vae", "transformer"])
def test_steps_in_bfloat16_are_nearly_those_in_float32(
    recipe: Recipe, out: Path, tmp_path: Path, stage: str
) -> None:
    weights, losses = [], []
    for bf16 in (False, True):
        folder = tmp_path / str(bf16)
        folder.mkdir()
        shutil.copy(out / "latents.pt", folder)
        short = {"steps": 3, "checkpoint_steps": 3, "bf16": bf16}
        if stage == "vae":
            vae.train(recipe.vae, replace(recipe.vae_training, **short), folder, CPU)
        else:
            transformer.train(
                recipe.transformer,
                recipe.text,
                recipe.windows,
                replace(recipe.transformer_training, **short),
                out=folder,
                device=CPU,
            )
        saved = run.load_checkpoint(folder / f"{stage}.pt")
        assert saved is not None
        weights.append(saved["model"])
        assert {weight.dtype for weight in weights[-1].values()} == {torch.float32}
        row = json.loads((folder / f"{stage}.jsonl").read_text())
        losses.append({name: value for name, value in row.items() if name not in ("minutes", "step", "rate")})
    assert not all(torch.equal(weight, weights[0][name]) for name, weight in weights[1].items())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("looks", [4, 5, 6])
def test_a_run_that_the_clock_ends_is_saved_at_its_last_step(
    recipe: Recipe, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """The clock is over at one look or another: for the rate, for the checkpoint, for the next step."""
    shutil.copy(out / "latents.pt", tmp_path)
    clock = iter(range(1, 100))
    monkeypatch.setattr(run.Schedule, "fraction", lambda *_: min(1.0, next(clock) / looks))
    settings = replace(recipe.transformer_training, checkpoint_steps=1000)
    transformer.train(
        recipe.transformer, recipe.text, recipe.windows, settings, out=tmp_path, device=CPU, stop=10
    )
    saved = run.load_checkpoint(tmp_path / "transformer.pt")
    assert saved is not None
    assert 0 < saved["step"] < 10


def test_latents_are_normalised_and_reproducible(recipe: Recipe, out: Path, tmp_path: Path) -> None:
    data = latents.load(out / "latents.pt", CPU)
    spread = data.middle.latents.std(dim=(0, 2, 3, 4))
    assert torch.allclose(spread, torch.ones(8), atol=0.02)
    autoencoder = vae.load(recipe.vae, out / "vae.pt", CPU)
    again = latents.load(latents.make(autoencoder, recipe.latents, tmp_path), CPU)
    assert torch.equal(data.start.latents, again.start.latents)


def test_latents_of_another_autoencoder_seed_or_scene_are_made_again_and_no_others(
    recipe: Recipe, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(recipe.latents, long_videos=2, start_videos=2, turning_videos=0, batch=2)
    autoencoder = vae.load(recipe.vae, out / "vae.pt", CPU)
    part = tmp_path / "latents" / "start-00000.pt"

    def made(config: latents.LatentSet) -> tuple[torch.Tensor, int]:
        data = latents.load(latents.make(autoencoder, config, tmp_path), CPU)
        return data.start.latents * data.std.view(1, -1, 1, 1, 1), part.stat().st_mtime_ns

    first, written = made(few)
    with torch.no_grad():
        next(p for name, p in autoencoder.named_parameters() if name.startswith("decoder.")).mul_(1.1)
    more, unchanged = made(replace(few, start_videos=4))
    assert unchanged == written
    assert len(more) == 4

    seeded, written_again = made(replace(few, seed=few.seed + 1))
    assert written_again > written
    assert not torch.allclose(seeded, first)
    made(few)
    with torch.no_grad():
        next(p for name, p in autoencoder.named_parameters() if name.startswith("encoder.")).mul_(1.1)
    again, written = made(few)
    assert not torch.allclose(again, first)
    source, changed = inspect.getsource, list[object]()
    monkeypatch.setattr(inspect, "getsource", lambda of: source(of) + "FPS = 12\n" * (of in changed))
    for module in (backdrops, scenes, turns):
        changed.append(module)
        _, written_again = made(few)
        assert written_again > written
        written = written_again


def test_latents_that_a_checkpoint_was_not_trained_on_are_refused(
    recipe: Recipe, out: Path, tmp_path: Path
) -> None:
    parts = torch.load(out / "latents.pt", weights_only=True)
    torch.save({name: part for name, part in parts.items() if "turning" not in name}, tmp_path / "latents.pt")
    with pytest.raises(run.ConfigError, match="turning_videos"):
        train_transformer(recipe, tmp_path, stop=0)
    shutil.copy(out / "transformer.pt", tmp_path)
    torch.save(parts, tmp_path / "latents.pt")
    train_transformer(recipe, tmp_path, stop=0)
    for name in ("mean", "std"):
        torch.save(parts | {name: parts[name] * 1.01}, tmp_path / "latents.pt")
        with pytest.raises(run.ConfigError, match="normalised otherwise"):
            train_transformer(recipe, tmp_path, stop=0)


def test_a_decoder_of_another_autoencoder_is_refused(
    recipe: Recipe, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("decoder", "transformer"):
        shutil.copy(out / f"{name}.pt", tmp_path)
    saved = torch.load(out / "vae.pt", weights_only=True)
    saved["average"]["quant_conv.bias"] += 0.1
    torch.save(saved, tmp_path / "vae.pt")
    for stage in ("decoder", "export"):
        told = refused(capsys, stage, "--config", CONFIG, "--out", tmp_path)
        assert "decoder.pt was trained for another" in told
    (tmp_path / "vae.pt").unlink()
    (tmp_path / "transformer.pt").unlink()
    with pytest.raises(run.ConfigError, match=r"decoder.pt exists already"):
        export.read(recipe.vae, recipe.text, recipe.transformer, folder=out / "model", checkpoints=tmp_path)


def test_the_turns_of_encoded_videos_are_where_their_latents_change(recipe: Recipe, out: Path) -> None:
    autoencoder = vae.load(recipe.vae, out / "vae.pt", CPU)
    batch = scenes.sample_scenes([scenes.SceneAttributes("black", "red", "circle", "pulse")] * 2, RNG)
    begin, ones = torch.tensor([17.0, 20.0]), torch.ones(2)
    after = replace(batch, background=batch.background + 1)
    changing = plain_turns(batch, after, begin, 4 * ones)
    encoded, plain = (
        latents.encode(autoencoder, partial(kind.render, scene, size=32), 0, 9)[0]
        for kind, scene in ((turns, changing), (scenes, batch))
    )
    marks = latents.turn_marks(changing, 0)
    assert marks.tolist() == [[5, 6], [6, 7]]
    for row, (begun, turned) in enumerate(marks.tolist()):
        assert torch.allclose(encoded[row, :, :begun], plain[row, :, :begun], atol=1e-5)
        assert not torch.allclose(encoded[row, :, begun], plain[row, :, begun], atol=1e-2)
        frames = torch.arange(latents.LATENT_FRAMES) + 1 + latents.LATENT_FRAMES * (turned - 1)
        assert (changing.done(frames)[row] == 1).all()
        assert (changing.done(frames - latents.LATENT_FRAMES)[row] < 1).any()


def test_exported_weights_can_be_trained_further_without_their_checkpoints(
    recipe: Recipe, out: Path, tmp_path: Path
) -> None:
    arguments = ["--config", str(CONFIG), "--out", str(tmp_path), "--model", str(out / "model")]
    command.main(["import", *arguments])
    for name in ("vae", "transformer"):
        imported = run.load_checkpoint(tmp_path / f"{name}.pt")
        source = run.load_checkpoint(out / ("decoder.pt" if name == "vae" else "transformer.pt"))
        assert imported is not None
        assert source is not None
        assert all(torch.equal(value, source["average"][key]) for key, value in imported["model"].items())
    command.main(["latents", *arguments])
    made, known = (latents.load(folder / "latents.pt", CPU) for folder in (tmp_path, out))
    assert torch.allclose(made.mean, known.mean), "normalised as the imported network knows it"
    command.main(["transformer", *arguments])
    assert len((tmp_path / "transformer.jsonl").read_text().splitlines()) == 2
    with pytest.raises(run.ConfigError, match="exists already"):
        export.read(recipe.vae, recipe.text, recipe.transformer, folder=out / "model", checkpoints=tmp_path)
    other = replace(recipe.transformer, ffn_width=96)
    with pytest.raises(run.ConfigError, match="does not hold the models"):
        export.read(recipe.vae, recipe.text, other, folder=out / "model", checkpoints=tmp_path / "other")


@pytest.fixture
def older(recipe: Recipe, out: Path, tmp_path: Path) -> Path:
    """An exported folder whose vocabulary lacks words of today and has one that went out of use."""
    folder = tmp_path / "older"
    shutil.copytree(out / "model", folder)
    kept = [word for word in text.vocabulary(scenes.LIVELY) if word not in ("meadow", "sunset", "past")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "vocabulary", lambda _: ["aardvark", *kept])
        words = text.tokenizer(recipe.text)
    words.save_pretrained(folder / "tokenizer")
    text.build(recipe.text, len(words)).save_pretrained(folder / "text_encoder")
    return folder


def with_patches(recipe: Recipe, pixels: int, path: Path) -> Recipe:
    """The same recipe for patches of this many pixels, written to `path`."""
    path.write_text(CONFIG.read_text().replace("patch_size = 2", f"patch_size = {pixels}", 1))
    larger = Recipe.read(path)
    assert larger == replace(recipe, vae=replace(recipe.vae, patch_size=pixels))
    return larger


def test_an_autoencoder_goes_on_at_frames_of_twice_the_size(
    recipe: Recipe, older: Path, tmp_path: Path
) -> None:
    config, checkpoints = tmp_path / "larger.toml", tmp_path / "larger"
    larger = with_patches(recipe, 4, config)
    command.main(
        ["import", "--config", str(config), "--out", str(checkpoints), "--model", str(older)],
    )
    before = AutoencoderKLWan.from_pretrained(older / "vae").eval()
    after = vae.load(larger.vae, checkpoints / "vae.pt", CPU)
    rng = np.random.default_rng(3)
    batch = scenes.sample_scenes(scenes.accompanied(scenes.sample_attributes(4, rng), rng, 1.0), rng)
    frames = torch.arange(9)
    pixels = scenes.render(batch, frames, 64)[0]
    halved = torch.nn.functional.avg_pool3d(pixels, (1, 2, 2))
    with torch.no_grad():
        small, rendered = (
            vae.VideoStream(before).encode(of)[0] for of in (halved, scenes.render(batch, frames, 32)[0])
        )
        large = vae.VideoStream(after).encode(pixels)[0]
        assert torch.allclose(large, small, atol=1e-5)
        assert (large - rendered).abs().mean() < 0.03 * rendered.std()
        decoded = vae.VideoStream(before).decode(small)
        enlarged = decoded.repeat_interleave(2, 3).repeat_interleave(2, 4)
        assert torch.allclose(vae.VideoStream(after).decode(large), enlarged, atol=1e-5)
    vae.train(larger.vae, replace(larger.vae_training, size=64, crop=32), checkpoints, CPU, stop=1)


def test_an_import_with_another_vocabulary_keeps_the_words_of_both(
    recipe: Recipe, older: Path, tmp_path: Path
) -> None:
    export.read(recipe.vae, recipe.text, recipe.transformer, folder=older, checkpoints=tmp_path)
    network, encoder, _, _ = transformer.load(
        recipe.transformer, recipe.text, tmp_path / "transformer.pt", CPU
    )
    known = UMT5EncoderModel.from_pretrained(older / "text_encoder").get_input_embeddings().weight
    old, new = text.vocabulary_of(older / "tokenizer" / "tokenizer.json"), text.tokenizer(recipe.text)
    ids, rows = new.get_vocab(), encoder.get_input_embeddings().weight
    assert old["red"] != ids["red"]
    for word in ids.keys() & old.keys():
        assert torch.equal(rows[ids[word]], known[old[word]]), word
    fresh = ids.keys() - old.keys()
    assert fresh == {"meadow", "sunset", "past"}
    apart = torch.cdist(rows[[ids[word] for word in sorted(fresh)]], torch.cat([known, rows])).sort(1).values
    assert (apart[:, 1] > 0.1).all()  # from every other word, each other and those of the old vocabulary
    untouched = SkyReelsV2Transformer3DModel.from_pretrained(older / "transformer").state_dict()
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in untouched.items())


def test_an_import_with_more_layers_does_the_same_until_it_is_trained(
    recipe: Recipe, out: Path, tmp_path: Path
) -> None:
    larger = replace(recipe.transformer, layers=2 * recipe.transformer.layers + 1)
    export.read(recipe.vae, recipe.text, larger, folder=out / "model", checkpoints=tmp_path)
    grown, *_ = transformer.load(larger, recipe.text, tmp_path / "transformer.pt", CPU)
    assert len(grown.blocks) == larger.layers
    network = SkyReelsV2Transformer3DModel.from_pretrained(out / "model" / "transformer").eval()
    torch.manual_seed(0)
    x, sigmas, prompt = torch.randn(2, 8, 4, 4, 6), torch.rand(2, 4), torch.randn(2, 24, recipe.text.width)
    with torch.no_grad():
        before, after = (forward.velocity(one, x, sigmas, prompt) for one in (network, grown))
    assert before.abs().max() > 0.01
    assert torch.allclose(before, after, atol=1e-6)
    grown.requires_grad_(True)
    forward.velocity(grown, x, sigmas, prompt).square().mean().backward()
    for layer in grown.blocks:  # none is cut off from learning
        assert min(part.weight.grad.abs().max() for part in (layer.attn1.to_out[0], layer.ffn.net[2])) > 0


def test_fewer_layers_than_those_of_a_folder_are_refused_in_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "fewer.toml"
    config.write_text(CONFIG.read_text().replace("layers = 2", "layers = 1"))
    told = refused(capsys, "import", "--config", config, "--out", tmp_path / "new", "--model", out / "model")
    assert "layers 1 are fewer than the 2" in told


@pytest.mark.parametrize("pixels", [1, 3])
def test_patches_that_are_no_multiple_of_those_of_a_folder_are_refused_in_one_line(
    recipe: Recipe, older: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: int
) -> None:
    config, checkpoints = tmp_path / "other.toml", tmp_path / "out"
    with_patches(recipe, pixels, config)
    told = refused(capsys, "import", "--config", config, "--out", checkpoints, "--model", older)
    assert f"patch_size {pixels} is no multiple of the 2" in told
    assert not checkpoints.exists()


@pytest.mark.parametrize("broken", ["cut", "empty", "gone", "other"])
def test_a_tokenizer_that_is_broken_or_of_another_model_is_refused_in_one_line(
    older: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    file, checkpoints = older / "tokenizer" / "tokenizer.json", tmp_path / "out"
    whole = file.read_bytes()
    if broken == "gone":
        file.unlink()
    elif broken == "other":
        shutil.copy(out / "model" / "tokenizer" / "tokenizer.json", file)
    else:
        file.write_bytes(whole[: len(whole) // 2] if broken == "cut" else b"")
    told = refused(capsys, "import", "--config", CONFIG, "--out", checkpoints, "--model", older)
    assert ("embeddings" if broken == "other" else "tokenizer.json cannot be read") in told
    assert not checkpoints.exists()


def test_stock_diffusers_loads_and_runs_the_exported_folder(recipe: Recipe, out: Path) -> None:
    pipeline = SkyReelsV2DiffusionForcingPipeline.from_pretrained(out / "model")
    pipeline.set_progress_bar_config(disable=True)
    # The stock pipeline cleans prompts with a package of its own choice (ftfy), so it gets embeddings.
    prompts = text.embed_captions(
        pipeline.tokenizer,
        pipeline.text_encoder,
        ["a red ball bouncing on black", ""],
        recipe.text.prompt_tokens,
    )
    side = spatial_request(pipeline.vae, 32)
    video = pipeline(
        prompt=None,
        prompt_embeds=prompts[:1],
        negative_prompt_embeds=prompts[1:],
        guidance_scale=1.5,
        height=side,
        width=side,
        num_frames=17,
        base_num_frames=17,
        num_inference_steps=2,
        output_type="np",
    ).frames
    assert video.shape == (1, 17, 32, 32, 3)


def spatial_request(autoencoder: AutoencoderKLWan, pixels: int) -> int:
    """The size to ask the stock pipeline for: it takes 2 ** len(temperal_downsample) for the spatial factor."""
    believed = 2 ** len(autoencoder.temperal_downsample)
    return int(pixels * believed // autoencoder.config.scale_factor_spatial)


def test_the_exported_folder_is_a_model_that_can_be_served(recipe: Recipe, out: Path) -> None:
    model = load_model(str(out / "model"))
    written = AutoencoderKLWan.from_pretrained(out / "model" / "vae").state_dict()
    refined = vae.load(recipe.vae, out / "decoder.pt", CPU).state_dict()
    assert all(torch.equal(written[name], value) for name, value in refined.items())
    assert model.name == "tiny"
    assert model.geometry.default_size == (32, 32)
    assert model.encode_prompt(["A red ball!"]).shape == (1, 32, 16)
    frames = model.open_decoder().push(torch.zeros(1, 8, 3, 4, 4))
    assert frames.shape == (9, 32, 32, 3)


def test_the_last_stage_evaluates_what_was_exported(out: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'segment_seconds = 2\n[[sets]]\nseconds = 2\nprompts = 1\nmethods = ["rendered", "progressive"]\n'
    )
    arguments = ["evaluate", "--config", str(CONFIG), "--model", str(out / "model"), "--plan", str(plan)]
    fresh = tmp_path / "fresh"
    command.main([*arguments, "--out", str(fresh)])
    assert json.loads((fresh / "autoencoder.json").read_text())["psnr_97_frames"] > 0
    results = json.loads((fresh / "evaluation" / "results.json").read_text())
    assert results["model"]["name"] == "tiny"
    assert {video["row"] for video in results["videos"]} == {"rendered", "progressive", "reference"}


def test_an_evaluation_that_cannot_be_made_is_one_line_and_exit_code_2(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "pick_device", lambda _: torch.device("cuda:9"))
    monkeypatch.setattr(vae, "quality", lambda *_: {})
    arguments = ["evaluate", "--config", str(CONFIG), "--out", str(tmp_path), "--model", str(out / "model")]
    assert "--device cuda:9: " in refused(capsys, *arguments)


@pytest.mark.parametrize("path", sorted(CONFIG.parent.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path: Path) -> None:
    Recipe.read(path)


def test_a_configuration_holds_what_differs_from_the_one_it_extends() -> None:
    whole = Recipe.read(CONFIG.with_name("cpu-arms.toml"))
    base = Recipe.read(CONFIG.parent / "ablations" / "progressive.toml")
    variant = Recipe.read(CONFIG.parent / "ablations" / "no-chunks.toml")
    assert base.transformer_training == replace(
        whole.transformer_training,
        seed=7,
        steps=200,
        minutes=0,
        learning_rate=1.0e-3,
        hold=0.4,
        average=0.98,
        checkpoint_steps=50,
    )
    assert variant.transformer_training == base.transformer_training
    assert variant.windows.chunk_latents == 1
    assert (base.vae, base.windows, base.text) == (whole.vae, whole.windows, whole.text)


@pytest.mark.parametrize(
    "path", sorted((CONFIG.parent / "ablations").glob("*.toml")), ids=lambda path: path.stem
)
def test_an_ablation_trains_on_windows_of_its_own_kind(path: Path, out: Path) -> None:
    mixture, data = Recipe.read(path).windows, latents.load(out / "latents.pt", CPU)
    rng = np.random.default_rng(0)
    drawn = [windows.draw(data, mixture, 2, rng) for _ in range(60)]
    kinds = {window.kind for window in drawn}
    steady = next(window for window in drawn if window.kind == "steady")
    levels = [len(row.unique()) for row in steady.sigmas]
    assert levels[0] == mixture.chunks_in_flight + bool(mixture.context_chunks)
    if path.stem == "no-variable-length":
        assert not kinds & {"growing", "shrinking", "continued"}
    if path.stem == "no-overlap":
        assert not any((window.sigmas == 0).any() for window in drawn)
    if path.stem == "no-level-shift":
        on_ladder = steady.sigmas * mixture.chunks_in_flight * mixture.forwards_per_shift
        assert torch.allclose(on_ladder, on_ladder.round(), atol=1e-4)


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIG.read_text().replace("kl_weight", "kl_wait"))
    with pytest.raises(run.ConfigError, match="kl_wait"):
        Recipe.read(path)


@pytest.mark.parametrize(
    ("stage", "change", "told"),
    [
        ("transformer", ("", ""), "latents.pt"),
        ("latents", ("", ""), "vae.pt"),
        ("import", ("", ""), "no folder"),
        ("evaluate --plan fortnight --model worker/models/builtin", ("", ""), "fortnight"),
        ("evaluate", ("", ""), "no folder"),
        ("vae", ("kl_weight", "kl_wait"), "kl_wait"),
        ("vae", ("seed = 1", 'seed = "one"'), "seed"),
        ("vae", ("[vae]", "[vae"), "wrong.toml"),
        ("vae", ('device = "cpu"', 'device = "abacus"'), "abacus"),
        ("vae", ("steps = 16", "steps = 0"), "[vae_training] steps"),
        ("vae", ("piece_latents = [1, 2]", "piece_latents = []"), "[vae_training] piece_latents"),
        ("vae", ("hold = 0.5", "hold = 1.0"), "[transformer_training] hold"),
        ("vae", ("minutes = 0", "minutes = inf"), "minutes: "),
        ("vae", ('dtype = "float32"', 'dtype = "float31"'), "[export] dtype"),
        ("vae", ("long_latents = 14", "long_latents = 11"), "middle videos 9"),
        ("vae", ("start_latents = 10", "start_latents = 9"), "start videos 9"),
        ("vae", ("turning_latents = 16", "turning_latents = 11"), "turning videos 9"),
        ("vae", ("chunks_in_flight = 4", "chunks_in_flight = 1"), "[windows]: shrinking"),
        ("vae", ("turning = 0.1", 'emphasis = ["cros"]'), "[windows]: emphasis"),
        ("vae", ('world = "lively"', 'world = "plain"'), "are of different worlds"),
        ("vae", ('world = "lively"', 'world = "flat"'), "[vae_training] world"),
        ("vae", None, "wrong.toml"),
        ("vae", ("[machine]", 'extends = "wrong.toml"\n[machine]'), "extends itself"),
        ("vae", ("[machine]", 'device = "cpu"\n[machine]'), "device is outside"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, change: tuple[str, str] | None, told: str
) -> None:
    path = tmp_path / "wrong.toml"
    if change is not None:
        text = CONFIG.read_text()
        assert change[0] in text
        path.write_text(text.replace(*change, 1))
    assert told in refused(capsys, *stage.split(), "--config", path, "--out", tmp_path / "out")


def test_files_that_are_no_text_or_no_folder_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    told = refused(capsys, "vae", "--config", tmp_path / "file", "--out", tmp_path / "out")
    assert "file: 'utf-8' codec can't decode" in told
    told = refused(capsys, "vae", "--config", CONFIG, "--out", tmp_path / "file")
    assert told.endswith("file is no folder\n")


@pytest.mark.parametrize("stage", ["vae", "transformer"])
def test_training_that_diverges_ends_before_it_spoils_the_checkpoint(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    (tmp_path / "latents.pt").write_bytes((out / "latents.pt").read_bytes())
    text = CONFIG.read_text()
    path = tmp_path / "wild.toml"
    path.write_text(re.sub("^learning_rate = .*", "learning_rate = 1e30", text, flags=re.MULTILINE))
    assert "the gradient is not finite" in refused(capsys, stage, "--config", path, "--out", tmp_path)
    assert not (tmp_path / f"{stage}.pt").exists()


def test_an_import_that_was_interrupted_is_no_beginning_from_nothing(
    recipe: Recipe,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = run.save_checkpoint

    def first_alone(path: Path, state: Any) -> None:
        if any(tmp_path.iterdir()):
            raise KeyboardInterrupt
        save(path, state)

    monkeypatch.setattr(run, "save_checkpoint", first_alone)
    with pytest.raises(KeyboardInterrupt):
        export.read(recipe.vae, recipe.text, recipe.transformer, folder=out / "model", checkpoints=tmp_path)
    assert "vae.pt" in refused(capsys, "latents", "--config", CONFIG, "--out", tmp_path)


@pytest.mark.parametrize("stage", ["vae", "latents", "transformer", "decoder", "export", "import"])
def test_checkpoints_of_another_configuration_are_refused_in_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    part = ("ffn_width = 48", "ffn_width = 96") if stage == "transformer" else ("dim = 8", "dim = 16")
    path = tmp_path / "other.toml"
    path.write_text(CONFIG.read_text().replace(*part, 1))
    arguments = (stage, "--config", path, "--out", tmp_path / "empty" if stage == "import" else out)
    assert "does not hold the models" in refused(capsys, *arguments, "--model", out / "model")


def test_a_checkpoint_that_is_cut_short_is_refused_in_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (out / "vae.pt").read_bytes()
    for part in (b"", whole[:10], whole[: len(whole) // 2], b"{}"):
        (tmp_path / "vae.pt").write_bytes(part)
        for stage in ("vae", "latents"):
            assert "vae.pt cannot be read" in refused(capsys, stage, "--config", CONFIG, "--out", tmp_path)


@pytest.mark.parametrize("stage", ["import", "evaluate"])
def test_a_folder_without_a_model_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    arguments = (stage, "--config", CONFIG, "--out", tmp_path / "out", "--model", tmp_path)
    assert f"model {tmp_path}: vae: " in refused(capsys, *arguments)


def test_every_process_tells_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert "wrong.toml" in refused(capsys, "vae", "--config", tmp_path / "wrong.toml", "--out", tmp_path)
