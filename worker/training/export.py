"""Writes trained weights as a pipeline folder that `SkyReelsV2DiffusionForcingPipeline.from_pretrained` loads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from worker.models.wan import load_component
from worker.training import run, scenes, stock, text, transformer, vae, windows

EXAMPLE_PROMPTS: dict[scenes.WorldName, tuple[str, ...]] = {
    "plain": (
        "a red circle bouncing off the walls on a black background",
        "a cyan triangle drifting to the left on a black background",
        "a yellow square orbiting the center on a navy background",
        "a white triangle drifting to the right on a maroon background",
        "a green circle pulsing in place on a black background",
        "a purple square bouncing on a teal background",
    ),
    "rich": (
        "a red ball bouncing past a green square over a meadow by day",
        "a white triangle drifting to the left over a field at sunset",
        "a cyan circle pulsing above a yellow square over a meadow at night",
        "a yellow square orbiting the center on a navy background",
        "a purple triangle bouncing over a meadow as day turns to night",
        "a red circle drifting to the right past a white cross on a teal background",
    ),
    "lively": (
        "a red ball bouncing past a green square over a meadow by day",
        "a white triangle drifting to the left over a field at sunset",
        "a cyan circle pulsing above a yellow square over a meadow at night",
        "a yellow square orbiting the center on a navy background",
        "a purple triangle bouncing fast over a meadow as day turns to night",
        "a red circle moving right quickly past a white cross on a teal background",
    ),
}


@dataclass(frozen=True)
class Export:
    """What is written beside the weights."""

    name: str
    dtype: Literal["float32", "bfloat16", "float16"]  # of all weights
    guidance_scale: run.Amount
    graded: bool = False  # levels rise within a chunk, too


def write(
    vae_model: vae.VaeModel,
    text_model: text.TextModel,
    transformer_model: transformer.TransformerModel,
    mixture: windows.WindowMixture,
    *,
    size: int,
    config: Export,
    checkpoints: Path,
    folder: Path,
) -> Path:
    """Writes the averaged weights of `checkpoints` to `folder` and returns it. `size` is the frame size in pixels.

    The autoencoder is that of `decoder.pt`, where a decoder was trained on its own. Raises `run.ConfigError` where it
    was trained for another encoder than that of `vae.pt`.
    """
    device = torch.device("cpu")
    autoencoder = vae.load(vae_model, checkpoints / "vae.pt", device)
    if (checkpoints / "decoder.pt").exists():
        whole, autoencoder = autoencoder, vae.load(vae_model, checkpoints / "decoder.pt", device)
        vae.check_decoder(autoencoder.state_dict(), whole.state_dict(), checkpoints)
    network, encoder, mean, std = transformer.load(
        transformer_model, text_model, checkpoints / "transformer.pt", device
    )
    autoencoder.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    dtype: torch.dtype = getattr(torch, config.dtype)
    pipeline = stock.pipeline(
        tokenizer=text.tokenizer(text_model),
        text_encoder=encoder.to(dtype),
        transformer=network.to(dtype),
        vae=autoencoder.to(dtype),
        scheduler=stock.scheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=1.0
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # as every other file of the package
    serving = {
        "name": config.name,
        "fps": scenes.FPS,
        "sizes": [f"{size}x{size}"],
        "default_size": f"{size}x{size}",
        "window_latents": mixture.chunk_latents * (mixture.chunks_in_flight + mixture.context_chunks),
        "prompt_tokens": text_model.prompt_tokens,
        "sampler": {
            "chunk_latents": mixture.chunk_latents,
            "chunks_in_flight": mixture.chunks_in_flight,
            "forwards_per_shift": mixture.forwards_per_shift,
            "context_chunks": mixture.context_chunks,
            "time_shift": 1.0,
            "guidance_scale": config.guidance_scale,
            "sink": False,
            "graded": config.graded,
        },
        "example_prompts": list(EXAMPLE_PROMPTS[text_model.world]),
    }
    (folder / "longtake.json").write_text(json.dumps(serving, indent=2) + "\n")
    return folder


def read(
    vae_model: vae.VaeModel,
    text_model: text.TextModel,
    transformer_model: transformer.TransformerModel,
    *,
    folder: Path,
    checkpoints: Path,
) -> None:
    """Makes `vae.pt` and `transformer.pt` in `checkpoints` from a folder that `write` wrote, to train on from there.

    They hold the averaged weights and no state of an optimizer; the steps count from 0 again. The new model may have
    larger patches of pixels (`vae.at_patch_size`), more layers (`transformer.at_layers`) and another vocabulary
    (`text.with_vocabulary`). Raises `run.ConfigError` when the folder's weights are not of these shapes or checkpoints
    are there, and `ModelLoadError`.
    """
    name, single = str(folder), torch.float32
    autoencoder = load_component(name, stock.autoencoder, name, "vae", torch_dtype=single)
    network = load_component(name, stock.transformer, name, "transformer", torch_dtype=single)
    encoder = load_component(name, stock.text_encoder, name, "text_encoder", dtype=single)
    words = text.vocabulary_of(folder / "tokenizer" / "tokenizer.json")
    torch.manual_seed(0)  # of the words that the folder does not know
    fresh = torch.nn.ModuleDict(
        {
            "transformer": transformer.build(transformer_model, vae_model.z_dim, text_model.width),
            "text_encoder": text.build(text_model, len(text.tokenizer(text_model))),
        }
    )
    text.with_vocabulary(encoder, words, text.tokenizer(text_model).get_vocab())
    patch = autoencoder.config.patch_size or 1
    run.load_weights(vae.build(replace(vae_model, patch_size=patch)), autoencoder.state_dict(), folder)
    pixels = vae.at_patch_size(autoencoder.state_dict(), patch, vae_model.patch_size)
    grown = transformer.at_layers(network.state_dict(), transformer_model.layers)
    run.load_weights(fresh["transformer"], grown, folder)
    run.load_weights(fresh["text_encoder"], encoder.state_dict(), folder)
    weights = fresh.state_dict()
    for name in ("vae", "transformer", "decoder"):
        if (checkpoints / f"{name}.pt").exists():
            raise run.ConfigError(f"{checkpoints / name}.pt exists already: it is what training goes on from")
    start = {"step": 0, "seconds": 0.0}
    # In this order: the stages that come next do not begin without vae.pt, whenever this is interrupted.
    run.save_checkpoint(
        checkpoints / "transformer.pt",
        start
        | {
            "model": weights,
            "average": weights,
            "mean": torch.tensor(autoencoder.config.latents_mean),
            "std": torch.tensor(autoencoder.config.latents_std),
        },
    )
    run.save_checkpoint(checkpoints / "vae.pt", start | {"model": pixels, "average": pixels})
