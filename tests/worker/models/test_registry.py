from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from safetensors.torch import load, save_file

from worker.models import registry
from worker.models.base import ModelLoadError
from worker.models.registry import KNOWN, describe, load_model, model_folder
from worker.sampler.window import SamplerConfig

Folder = Callable[..., Path]


@pytest.fixture
def copy(pipeline_folder: Folder, tmp_path: Path) -> Path:
    """A pipeline folder to damage."""
    return Path(shutil.copytree(pipeline_folder(), tmp_path / "model"))


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path | str, *, load: bool = False) -> tuple[str, str]:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder)) if load else describe(str(folder))
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message or "tiny" in caught.value.message
    return caught.value.code, caught.value.message


def test_longtake_json_says_how_a_folder_is_served(pipeline_folder: Folder) -> None:
    folder = pipeline_folder()
    facts = describe(str(folder))
    assert (facts.name, facts.prompt_tokens, facts.example_prompts) == ("tiny", 8, ("a red circle",))
    assert facts.geometry.sizes == ((64, 32), (32, 32))
    assert facts.geometry.default_size == (32, 32)
    assert (facts.geometry.fps, facts.geometry.window_latents) == (24, 10)
    assert facts.sampler == SamplerConfig(
        chunk_latents=2,
        chunks_in_flight=4,
        forwards_per_shift=2,
        context_chunks=1,
        time_shift=1.0,
        guidance_scale=2.0,
    )


def test_a_loaded_model_is_what_its_description_says(pipeline_folder: Folder) -> None:
    facts, model = describe(str(pipeline_folder())), load_model(str(pipeline_folder()))
    assert (model.name, model.geometry, model.sampler) == (facts.name, facts.geometry, facts.sampler)


@pytest.mark.parametrize(
    ("kind", "vae", "rate_and_size", "channels_and_factors"),
    [
        ("skyreels", "wan 2.1", (24, (960, 544)), (4, 8, 4)),
        ("skyreels", "two stages", (24, (960, 544)), (4, 8, 4)),
        ("wan", "wan 2.2", (16, (832, 480)), (4, 16, 4)),
    ],
)
def test_without_longtake_json_the_class_and_the_configs_decide(
    pipeline_folder: Folder,
    kind: str,
    vae: str,
    rate_and_size: tuple[int, tuple[int, int]],
    channels_and_factors: tuple[int, int, int],
) -> None:
    facts = describe(str(pipeline_folder(kind, vae, described=False)))
    shape = facts.geometry
    assert (shape.latent_channels, shape.spatial_factor, shape.temporal_factor) == channels_and_factors
    assert ((shape.fps, shape.default_size), facts.prompt_tokens) == (rate_and_size, 512)
    assert facts.sampler.chunk_latents == 5


def test_prompts_are_never_longer_than_the_tokenizer_allows(pipeline_folder: Folder) -> None:
    model = load_model(str(pipeline_folder(described=False)))
    assert model.encode_prompt(["a"]).shape == (1, 16, 16)


def test_the_published_models_are_known_without_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(registry, "hf_hub_download", no_network)
    for name in KNOWN:
        facts = describe(f"someone/{name}")
        assert facts.name == name
        geometry, sampler = facts.geometry, facts.sampler
        assert sampler.window_latents <= geometry.window_latents
        assert sampler.levels >= 30
        for width, height in geometry.sizes:
            _, rows, columns = geometry.latent_shape(width, height)
            assert rows % 2 == columns % 2 == 0, "a latent patch is 2 x 2"


def test_a_folder_named_like_a_published_model_is_served_like_it(copy: Path) -> None:
    (copy / "longtake.json").unlink()
    folder = copy.rename(copy.parent / "SkyReels-V2-DF-14B-720P-Diffusers")
    assert describe(str(folder)).geometry.default_size == (1280, 720)


def test_an_unknown_hub_model_is_read_from_its_small_files(
    pipeline_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = pipeline_folder(), []

    def download(repository: str, path: str) -> str:
        """Stands in for the hub, which a test cannot reach."""
        asked.append((repository, path))
        return str(folder / path)

    monkeypatch.setattr(registry, "hf_hub_download", download)
    assert describe("someone/some-model").name == "tiny"
    assert {repository for repository, _ in asked} == {"someone/some-model"}
    assert all(path.endswith(".json") for _, path in asked)


def test_a_hub_model_that_was_loaded_before_is_described_without_a_network(
    pipeline_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is laid down as the hub's own client does, which notes the files that a repository does not have."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, cached = "c" * 40, tmp_path / "models--someone--some-model"
    snapshot = cached / "snapshots" / commit
    shutil.copytree(pipeline_folder(), snapshot)
    (snapshot / "longtake.json").unlink()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert refusal("someone/some-model")[0] == "model_not_found", (
        "whether it has a longtake.json is not known"
    )
    absent = cached / ".no_exist" / commit
    absent.mkdir(parents=True)
    (absent / "longtake.json").touch()
    described = describe("someone/some-model")
    assert (described.name, described.source) == ("some-model", "someone/some-model")


def test_an_unreachable_hub_is_a_model_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(registry, "hf_hub_download", offline)
    assert refusal("someone/some-model") == (
        "model_not_found",
        "model someone/some-model: hub: no route to host",
    )


def test_a_missing_folder_is_a_model_not_found(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == (
        "model_not_found",
        f"model {tmp_path / 'nowhere'}: neither a folder nor a hub id (owner/name)",
    )


def test_a_folder_without_a_pipeline_is_a_model_not_found(tmp_path: Path) -> None:
    code, message = refusal(tmp_path)
    assert code == "model_not_found"
    assert "no model_index.json" in message


def test_the_builtin_model_is_a_folder_of_the_package_like_any_other(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BUILTIN_FOLDER", copy)
    facts = describe("builtin")
    assert (facts.spec, facts.source, facts.name) == ("builtin", str(copy), "tiny")
    assert model_folder("builtin") == copy


def test_a_hub_model_has_no_folder() -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        model_folder("someone/some-model")


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "WanImageToVideoPipeline"),
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "two transformers"),
        ("transformer/config.json", {"_class_name": "LTXVideoTransformer3DModel"}, "LTXVideo"),
        ("transformer/config.json", {"image_dim": 1280}, "image embeddings"),
        ("transformer/config.json", {"in_channels": 36}, "takes 36 channels, latents have 4"),
        ("transformer/config.json", {"patch_size": [2, 2, 2]}, "joins latent frames"),
        ("transformer/config.json", {"num_frame_per_block": 5}, "causal attention"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "AutoencoderKL is not"),
    ],
)
def test_a_pipeline_that_cannot_run_a_progressive_window_is_refused_with_the_reason(
    copy: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    edit(copy, file, **changes)
    code, message = refusal(copy)
    assert code == "model_unsupported"
    assert reason in message
    assert refusal(copy, load=True) == (code, message)


def test_a_second_transformer_that_is_absent_does_not_matter(copy: Path) -> None:
    edit(copy, "model_index.json", transformer_2=[None, None], boundary_ratio=None)
    describe(str(copy))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fsp": 24}, "unknown keys ['fsp']"),
        ({"name": None}, "name must be a text"),
        ({"fps": 0}, "fps"),
        ({"fps": True}, "fps"),
        ({"example_prompts": "a red circle"}, "example_prompts"),
        ({"example_prompts": [3]}, "example_prompts"),
        ({"sizes": "64x64"}, "sizes"),
        ({"sizes": ["64 by 64"]}, "size '64 by 64'"),
        ({"default_size": 64}, "size '64'"),
        ({"sizes": ["72x64"], "default_size": "72x64"}, "72x64 is no multiple of 16x16"),
        ({"sizes": ["0x64"], "default_size": "0x64"}, "no multiple"),
        ({"sizes": []}, "sizes is empty"),
        ({"default_size": "128x128"}, "none of sizes"),
        ({"sampler": {"chunk_latents": 0}}, "chunk_latents"),
        ({"sampler": {"chunks": 2}}, "chunks"),
        ({"sampler": {"graded": "false"}}, "graded"),
        ({"sampler": {"time_shift": "1"}}, "time_shift"),
        ({"sampler": 3}, "sampler must be"),
    ],
)
def test_a_wrong_longtake_json_is_refused_with_the_reason(
    copy: Path, changes: dict[str, Any], reason: str
) -> None:
    edit(copy, "longtake.json", **changes)
    code, message = refusal(copy)
    assert code == "model_corrupt"
    assert "longtake.json" in message
    assert reason in message


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("transformer/config.json", {"num_layers": "3"}),
        ("transformer/config.json", {"num_attention_heads": True}),
        ("transformer/config.json", {"patch_size": 2}),
        ("transformer/config.json", {"patch_size": [1, 2]}),
        ("vae/config.json", {"z_dim": 4.0}),
        ("vae/config.json", {"scale_factor_spatial": None}),
        ("vae/config.json", {"scale_factor_temporal": 0}),
        ("vae/config.json", {"latents_mean": None}),
        ("vae/config.json", {"latents_mean": [0.0, 0.0, 0.0, "0"]}),
        ("vae/config.json", {"latents_std": [1.0, 1.0, 1.0]}),
    ],
)
def test_a_field_that_would_only_fail_in_use_is_corrupt(
    copy: Path, file: str, changes: dict[str, Any]
) -> None:
    edit(copy, file, **changes)
    code, message = refusal(copy)
    assert code == "model_corrupt"
    assert f"{file}: {next(iter(changes))} must be" in message


@pytest.mark.parametrize("channels", [4, 16])
def test_absent_statistics_of_the_latents_are_those_of_wan_which_has_16_channels(
    copy: Path, channels: int
) -> None:
    edit(copy, "transformer/config.json", in_channels=channels)
    edit(copy, "vae/config.json", z_dim=channels)
    for name in ("latents_mean", "latents_std"):
        config = json.loads((copy / "vae/config.json").read_text())
        del config[name]
        (copy / "vae/config.json").write_text(json.dumps(config))
    if channels == 16:
        assert describe(str(copy)).geometry.latent_channels == 16
    else:
        assert "vae/config.json: latents_mean" in refusal(copy)[1]


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "longtake.json"])
def test_a_file_that_is_not_json_is_corrupt(copy: Path, file: str) -> None:
    (copy / file).write_text('{"half": ')
    code, message = refusal(copy)
    assert code == "model_corrupt"
    assert file in message


def test_a_config_without_its_keys_is_corrupt(copy: Path) -> None:
    (copy / "vae/config.json").write_text("{}")
    assert refusal(copy)[0] == "model_corrupt"
    (copy / "vae/config.json").unlink()
    assert refusal(copy) == ("model_corrupt", f"model {copy}: no vae/config.json in {copy}")


WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_cut_short_absent_or_incomplete_are_corrupt(copy: Path, part: str) -> None:
    file = copy / WEIGHTS[part]
    whole = file.read_bytes()
    tensors = load(whole)

    file.write_bytes(whole[: len(whole) // 2])
    code, message = refusal(copy, load=True)
    assert (code, part in message) == ("model_corrupt", True)

    file.unlink()
    code, message = refusal(copy, load=True)
    assert (code, part in message) == ("model_corrupt", True)

    lost = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file, {"format": "pt"})
    code, message = refusal(copy, load=True)
    assert (code, f"1 weights missing, {lost} first" in message) == ("model_corrupt", True)


def test_weights_of_another_shape_are_corrupt(copy: Path) -> None:
    file = copy / WEIGHTS["transformer"]
    tensors = load(file.read_bytes())
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, file, {"format": "pt"})
    code, message = refusal(copy, load=True)
    assert (code, "transformer" in message) == ("model_corrupt", True)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"num_layers": 2}, "27 weights left over, blocks.2.attn1.norm_k.weight first"),
        ({"cross_attn_norm": False}, "6 weights left over, blocks.0.norm2.bias first"),
    ],
)
def test_weights_of_layers_that_the_configuration_lacks_are_corrupt(
    copy: Path, changes: dict[str, Any], left: str
) -> None:
    edit(copy, "transformer/config.json", **changes)
    code, message = refusal(copy, load=True)
    assert code == "model_corrupt"
    assert f"transformer: {left}" in message


def test_a_weight_that_no_layer_of_the_autoencoder_takes_is_corrupt(copy: Path) -> None:
    file = copy / WEIGHTS["vae"]
    save_file(load(file.read_bytes()) | {"decoder.spare": torch.ones(1)}, file, {"format": "pt"})
    code, message = refusal(copy, load=True)
    assert code == "model_corrupt"
    assert "vae: 1 weights left over, decoder.spare first" in message


def test_weights_that_diffusers_knows_to_be_left_over_do_not_matter(copy: Path) -> None:
    file = copy / WEIGHTS["transformer"]
    spare = {"blocks.0.attn2.norm_added_q.weight": torch.ones(24)}
    save_file(load(file.read_bytes()) | spare, file, {"format": "pt"})
    load_model(str(copy))


def test_weights_for_which_there_is_no_memory_are_not_corrupt(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(AutoencoderKLWan, "from_pretrained", failing)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(str(copy))


def test_a_missing_tokenizer_is_corrupt(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    code, message = refusal(copy, load=True)
    assert (code, "tokenizer" in message) == ("model_corrupt", True)


def test_bfloat16_weights_are_computed_in_float32_on_a_cpu(copy: Path) -> None:
    for network, part in ((SkyReelsV2Transformer3DModel, "transformer"), (AutoencoderKLWan, "vae")):
        network.from_pretrained(copy, subfolder=part).to(torch.bfloat16).save_pretrained(copy / part)
    model = load_model(str(copy))
    velocity = model.velocity(torch.randn(1, 4, 2, 4, 4), torch.rand(1, 2), model.encode_prompt(["a"]))
    assert velocity.dtype == torch.float32
    assert model.encode_prompt(["a"]).dtype == torch.float32
    assert model.open_decoder().push(torch.zeros(1, 4, 1, 4, 4)).shape == (1, 32, 32, 3)
