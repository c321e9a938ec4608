"""Finds, describes and loads models: the built-in one, a pipeline folder, or a hub id.

A folder is a diffusers pipeline; an optional ``longtake.json`` beside its ``model_index.json`` says how to serve it::

    {"name": "...", "fps": 24, "sizes": ["64x64"], "default_size": "64x64", "window_latents": 10,
     "prompt_tokens": 16, "example_prompts": ["..."],
     "sampler": {"chunk_latents": 2, "chunks_in_flight": 4, "forwards_per_shift": 4, "context_chunks": 1,
                 "time_shift": 1.0, "guidance_scale": 2.0, "sink": false, "graded": false}}

Every key is optional; what is missing comes from the table of known models, else from the pipeline's class.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from worker.models.base import Geometry, ModelLoadError, SamplerConfig, VideoModel

BUILTIN: Final = "builtin"
BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin"

SERVED_PIPELINES: Final = ("WanPipeline", "SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2Pipeline")
SERVED_TRANSFORMERS: Final = ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel")

_TRANSFORMER: Final = "transformer/config.json"
_VAE: Final = "vae/config.json"

_COUNTS: Final = {
    _TRANSFORMER: (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "text_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
    ),
    _VAE: ("z_dim", "base_dim", "num_res_blocks", "scale_factor_spatial", "scale_factor_temporal"),
}
"""Fields that are whole numbers of at least 1 where a configuration has them."""

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served; the content of ``longtake.json``. Sizes are ``(width, height)`` pixels."""

    fps: int
    sizes: tuple[tuple[int, int], ...]
    default_size: tuple[int, int]
    window_latents: int
    sampler: SamplerConfig
    prompt_tokens: int = 512
    example_prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model is, without its weights."""

    spec: str
    name: str
    source: str
    """Folder or hub id that the weights come from."""
    geometry: Geometry
    sampler: SamplerConfig
    prompt_tokens: int
    example_prompts: tuple[str, ...]


def _serving(
    fps: int, sizes: tuple[tuple[int, int], ...], *, window: int, forwards: int, shift: float, guidance: float
) -> Serving:
    """The paper's shape, chunks of 5 latents and one of context, with as many in flight as the window holds."""
    sampler = SamplerConfig(
        chunk_latents=5,
        chunks_in_flight=window // 5 - 1,
        forwards_per_shift=forwards,
        context_chunks=1,
        time_shift=shift,
        guidance_scale=guidance,
    )
    return Serving(fps, sizes, sizes[0], window, sampler)


_480P: Final = ((832, 480), (480, 832))
_540P: Final = ((960, 544), (544, 960))
_720P: Final = ((1280, 720), (720, 1280))
_SKYREELS_540P: Final = _serving(24, _540P, window=25, forwards=8, shift=8.0, guidance=6.0)
_SKYREELS_720P: Final = _serving(24, _720P, window=31, forwards=6, shift=8.0, guidance=6.0)
_WAN_480P: Final = _serving(16, _480P, window=21, forwards=10, shift=3.0, guidance=5.0)
_WAN_720P: Final = _serving(16, _720P + _480P, window=21, forwards=10, shift=5.0, guidance=5.0)
_WAN22_5B: Final = _serving(24, ((1280, 704), (704, 1280)), window=31, forwards=6, shift=5.0, guidance=5.0)

_16_CHANNELS: Final = (16, 8, 4)
_48_CHANNELS: Final = (48, 16, 4)

KNOWN: Final[dict[str, tuple[Serving, tuple[int, int, int]]]] = {
    "SkyReels-V2-DF-1.3B-540P-Diffusers": (_SKYREELS_540P, _16_CHANNELS),
    "SkyReels-V2-DF-14B-540P-Diffusers": (_SKYREELS_540P, _16_CHANNELS),
    "SkyReels-V2-DF-14B-720P-Diffusers": (_SKYREELS_720P, _16_CHANNELS),
    "Wan2.1-T2V-1.3B-Diffusers": (_WAN_480P, _16_CHANNELS),
    "Wan2.1-T2V-14B-Diffusers": (_WAN_720P, _16_CHANNELS),
    "Wan2.2-TI2V-5B-Diffusers": (_WAN22_5B, _48_CHANNELS),
}
"""Last part of a hub id or folder -> (how to serve it, (latent channels, spatial factor, temporal factor)).

The SkyReels-V2-DF models are trained on rising per-frame noise behind a clean prefix, so the progressive window
is what they know; the Wan models take per-frame noise without having been trained on it.
"""


def describe(spec: str) -> ModelDescription:
    """Name, sizes, rates and settings of a model, from its metadata alone.

    ``spec`` is ``"builtin"``, a folder or a hub id. A known hub id costs no network access, another one the
    download of its small JSON files. Raises :class:`ModelLoadError`.
    """
    source = _source(spec)
    short = source.rstrip("/").rpartition("/")[2]
    if short in KNOWN and not Path(source).is_dir():
        serving, factors = KNOWN[short]
        return _description(spec, source, short, serving, factors)
    index, transformer, vae = (
        _read_needed(spec, source, path) for path in ("model_index.json", _TRANSFORMER, _VAE)
    )
    try:
        _check(spec, index, transformer, vae)
        factors = (vae["z_dim"], vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4))
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError("model_corrupt", f"model {spec}: its configuration lacks {error}") from error
    except ValueError as error:
        raise ModelLoadError("model_corrupt", f"model {spec}: {error}") from error
    if short in KNOWN:
        serving = KNOWN[short][0]
    elif index["_class_name"].startswith("SkyReels"):
        serving = _SKYREELS_540P
    else:
        serving = _WAN22_5B if factors == _48_CHANNELS else _WAN_480P
    own = _read(spec, source, "longtake.json") or {}
    try:
        name = own.pop("name", short)
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a text, got {name!r}")
        served = _served_as(own, serving)
        _check_sizes(served, factors[1], transformer["patch_size"])
        return _description(spec, source, name, served, factors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError("model_corrupt", f"model {spec}: longtake.json: {error}") from error


def load_model(
    spec: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VideoModel:
    """A model ready to sample. ``dtype`` is that of transformer and text encoder: float32 on a CPU and bfloat16
    elsewhere by default; the autoencoder always computes in float32. Raises :class:`ModelLoadError`.
    """
    from worker.models.wan import load_wan

    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    facts = describe(spec)
    return load_wan(
        facts.source,
        name=facts.name,
        geometry=facts.geometry,
        sampler=facts.sampler,
        prompt_tokens=facts.prompt_tokens,
        device=device,
        dtype=dtype,
    )


def model_folder(spec: str) -> Path:
    """Folder of the built-in model or of a model given as a folder. Raises :class:`ModelLoadError` for a hub id."""
    folder = BUILTIN_FOLDER if spec == BUILTIN else Path(spec)
    if not folder.is_dir():
        raise ModelLoadError("model_not_found", f"model {spec}: no such folder")
    return folder


def _source(spec: str) -> str:
    if spec == BUILTIN or Path(spec).is_dir():
        return str(model_folder(spec))
    if _HUB_ID.fullmatch(spec):
        return spec
    raise ModelLoadError("model_not_found", f"model {spec}: neither a folder nor a hub id (owner/name)")


def _read(spec: str, source: str, path: str) -> dict[str, Any] | None:
    """A JSON object of the pipeline, or None when there is no such file."""
    file = Path(source, path)
    if not Path(source).is_dir():
        try:
            file = Path(hf_hub_download(source, path))
        except RemoteEntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            # Without a network the cache still knows which files the repository did not have.
            if try_to_load_from_cache(source, path) is _CACHED_NO_EXIST:
                return None
            reason = str(error).strip().partition("\n")[0]
            raise ModelLoadError("model_not_found", f"model {spec}: hub: {reason}") from error
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError("model_corrupt", f"model {spec}: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError("model_corrupt", f"model {spec}: {path} is not a JSON object")
    return content


def _read_needed(spec: str, source: str, path: str) -> dict[str, Any]:
    content = _read(spec, source, path)
    if content is None:
        code: Final = "model_not_found" if path == "model_index.json" else "model_corrupt"
        raise ModelLoadError(code, f"model {spec}: no {path} in {source}")
    return content


def _check(
    spec: str, index: Mapping[str, Any], transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> None:
    """Raises ``model_unsupported`` with the first reason why this pipeline cannot run a progressive window.

    Raises ``ValueError`` for a field that would only fail in use.
    """
    pipeline, network, autoencoder = index["_class_name"], transformer["_class_name"], vae["_class_name"]
    reason = None
    if pipeline not in SERVED_PIPELINES:
        reason = f"pipeline class {pipeline} is none of {', '.join(SERVED_PIPELINES)}"
    elif network not in SERVED_TRANSFORMERS:
        reason = f"transformer class {network} is none of {', '.join(SERVED_TRANSFORMERS)}"
    elif autoencoder != "AutoencoderKLWan":
        reason = f"autoencoder class {autoencoder} is not AutoencoderKLWan"
    else:
        _check_fields(transformer, vae)
        if any(index.get("transformer_2") or ()):
            reason = "two transformers that split the noise levels cannot share one window"
        elif transformer.get("image_dim") is not None or transformer.get("added_kv_proj_dim") is not None:
            reason = "the transformer needs image embeddings"
        elif transformer["in_channels"] != vae["z_dim"]:
            reason = (
                f"the transformer takes {transformer['in_channels']} channels, latents have {vae['z_dim']}"
            )
        elif transformer["patch_size"][0] != 1:
            reason = "the transformer joins latent frames, which then cannot have noise levels of their own"
        elif transformer.get("num_frame_per_block", 1) != 1:
            reason = "the transformer is set to causal attention"
    if reason is not None:
        raise ModelLoadError("model_unsupported", f"model {spec}: {reason}")


def _check_fields(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` naming the file and the field. What is absent is for diffusers to fill in."""
    for file, config in ((_TRANSFORMER, transformer), (_VAE, vae)):
        for field in _COUNTS[file]:
            if field in config and not _is_count(config[field]):
                raise ValueError(
                    f"{file}: {field} must be a whole number of at least 1, got {config[field]!r}"
                )
    patch = transformer["patch_size"]
    if not (isinstance(patch, list) and len(patch) == 3 and all(map(_is_count, patch))):
        raise ValueError(f"{_TRANSFORMER}: patch_size must be three whole numbers, got {patch!r}")
    for field in ("latents_mean", "latents_std"):
        values = vae.get(field, [0.0] * 16)  # diffusers fills in the 16 of Wan 2.1
        if not (isinstance(values, list) and len(values) == vae["z_dim"] and all(map(_is_number, values))):
            raise ValueError(f"{_VAE}: {field} must be {vae['z_dim']} numbers, one for each channel")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _served_as(own: dict[str, Any], otherwise: Serving) -> Serving:
    """``longtake.json`` over the known or derived settings. Raises ``ValueError`` or ``TypeError`` for bad content."""
    known = {"fps", "sizes", "default_size", "window_latents", "prompt_tokens", "sampler", "example_prompts"}
    if unknown := sorted(own.keys() - known):
        raise ValueError(f"unknown keys {unknown}")
    changes: dict[str, Any] = {}
    for key in ("fps", "window_latents", "prompt_tokens"):
        if key in own:
            if not _is_count(own[key]):
                raise ValueError(f"{key} must be a whole number of at least 1, got {own[key]!r}")
            changes[key] = own[key]
    if "sizes" in own:
        changes["sizes"] = tuple(_size(text) for text in _texts(own, "sizes"))
        if not changes["sizes"]:
            raise ValueError("sizes is empty")
        changes["default_size"] = changes["sizes"][0]
    if "default_size" in own:
        changes["default_size"] = _size(str(own["default_size"]))
    if "sampler" in own:
        if not isinstance(own["sampler"], dict):
            raise ValueError(f"sampler must be an object, got {own['sampler']!r}")
        changes["sampler"] = replace(otherwise.sampler, **own["sampler"])
    if "example_prompts" in own:
        changes["example_prompts"] = _texts(own, "example_prompts")
    served = replace(otherwise, **changes)
    if served.default_size not in served.sizes:
        raise ValueError(f"default_size {served.default_size} is none of sizes")
    return served


def _check_sizes(serving: Serving, spatial_factor: int, patch: Sequence[int]) -> None:
    """Raises ``ValueError`` for a size that the transformer cannot cut into whole patches."""
    rows, columns = spatial_factor * patch[1], spatial_factor * patch[2]
    for width, height in serving.sizes:
        if min(width, height) < 1 or width % columns or height % rows:
            raise ValueError(f"size {width}x{height} is no multiple of {columns}x{rows}")


def _texts(own: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if not isinstance(own[key], list) or not all(isinstance(text, str) for text in own[key]):
        raise ValueError(f"{key} must be a list of texts, got {own[key]!r}")
    return tuple(own[key])


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        return int(width), int(height)
    except ValueError as error:
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT") from error


def _description(
    spec: str, source: str, name: str, serving: Serving, factors: tuple[int, int, int]
) -> ModelDescription:
    channels, spatial, temporal = factors
    geometry = Geometry(
        latent_channels=channels,
        spatial_factor=spatial,
        temporal_factor=temporal,
        window_latents=serving.window_latents,
        fps=serving.fps,
        sizes=serving.sizes,
        default_size=serving.default_size,
    )
    return ModelDescription(
        spec=spec,
        name=name,
        source=source,
        geometry=geometry,
        sampler=serving.sampler,
        prompt_tokens=serving.prompt_tokens,
        example_prompts=serving.example_prompts,
    )
