"""The transformer and the text encoder of the built-in model, trained for progressive noise levels."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.training import forward, muon, run, scenes, stock, text, windows
from worker.training import latents as latent_sets


@dataclass(frozen=True)
class TransformerModel:
    """Shape of the transformer."""

    heads: run.Count
    head_width: run.Count
    layers: run.Count
    ffn_width: run.Count
    frequencies: run.Count  # of the noise-level embedding


@dataclass(frozen=True)
class TransformerTraining:
    """How transformer and text encoder are trained."""

    seed: run.Whole
    steps: run.Count
    minutes: run.Amount  # wall-clock budget, 0 for none
    learning_rate: run.Rate
    weight_decay: run.Amount
    hold: run.Part  # fraction of the run at full learning rate
    batch: run.Count  # full windows per step
    near_weight: run.Amount  # extra loss weight of latents near the shape
    caption_dropout: run.Share
    filler: run.Share  # share of captions with meaningless words
    average: run.Part
    checkpoint_steps: run.Count
    compile: bool
    bf16: bool


def build(model: TransformerModel, channels: int, text_width: int) -> stock.Transformer:
    """A transformer whose output is zero at first. Without `inject_sample_info`, so it also loads as a Wan one."""
    transformer = stock.transformer(
        patch_size=(1, 2, 2),
        num_attention_heads=model.heads,
        attention_head_dim=model.head_width,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_width,
        freq_dim=model.frequencies,
        ffn_dim=model.ffn_width,
        num_layers=model.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
        inject_sample_info=False,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def at_layers(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights of a transformer with more layers that does the same: each new one repeats the one before it, but adds
    nothing to what goes through it yet. Raises `run.ConfigError` for fewer layers.
    """
    blocks = [name for name in weights if name.startswith("blocks.")]
    had = 1 + max(int(name.split(".")[1]) for name in blocks)
    if layers < had:
        raise run.ConfigError(f"[transformer] layers {layers} are fewer than the {had} of the weights")
    grown = {name: weight for name, weight in weights.items() if name not in blocks}
    sources = [number * had // layers for number in range(layers)]
    for number, source in enumerate(sources):
        repeats = number > 0 and sources[number - 1] == source
        for name in blocks:
            _, of, rest = name.split(".", 2)
            if int(of) == source:
                silent = repeats and rest.startswith(("attn1.to_out.", "attn2.to_out.", "ffn.net.2."))
                grown[f"blocks.{number}.{rest}"] = (
                    torch.zeros_like(weights[name]) if silent else weights[name].clone()
                )
    return grown


def velocity_loss(predicted: Tensor, target: Tensor, window: windows.Window, near_weight: float) -> Tensor:
    """Mean squared error of the velocity over active latents; those near the shape weigh 1 + `near_weight`."""
    active = (window.sigmas > 0)[:, None, :, None, None]
    weight = active * (1 + near_weight * window.near[:, None])
    loss: Tensor = ((predicted - target).square() * weight).sum() / (weight.sum() * target.shape[1])
    return loss


def _split(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Inner matrices, for Muon; and embeddings, first and last layers, modulation tables, gains and biases."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            matrix = (
                parameter.ndim == 2 and ("block" in name) and "relative" not in name and "table" not in name
            )
            (inner if matrix else rest).append(parameter)
    return inner, rest


def train(
    model: TransformerModel,
    text_model: text.TextModel,
    mixture: windows.WindowMixture,
    config: TransformerTraining,
    *,
    out: Path,
    device: torch.device,
    stop: int | None = None,
) -> Path:
    """Trains, or continues, transformer and text encoder on `out/latents.pt`; returns the checkpoint.

    `stop` ends this process at that step, short of the schedule. With `minutes` 0 a run that was stopped at a
    checkpoint and continued equals one that was not, bit for bit.
    """
    checkpoint, log = out / "transformer.pt", out / "transformer.jsonl"
    ranks = run.Ranks(device)
    torch.manual_seed(config.seed)
    data = latent_sets.load(out / "latents.pt", device)
    if mixture.turning and data.turning is None:
        raise run.ConfigError("[windows] turning needs [latents] turning_videos")
    words = text.tokenizer(text_model)
    encoder = text.build(text_model, len(words)).to(device)
    transformer = build(model, data.mean.shape[0], text_model.width).to(device)
    both = nn.ModuleDict({"transformer": transformer, "text_encoder": encoder})
    optimizers = muon.optimizers(
        *_split(transformer, encoder), learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = run.Schedule(config.steps, config.minutes, warmup_steps=100, hold=config.hold)
    average, step = copy.deepcopy(both).requires_grad_(False), 0
    saved = run.load_checkpoint(checkpoint)
    if saved:
        run.load_weights(both, saved["model"], checkpoint)
        run.load_weights(average, saved["average"], checkpoint)
        if not all(torch.allclose(saved[name], getattr(data, name).cpu()) for name in ("mean", "std")):
            raise run.ConfigError(f"{checkpoint} was trained on latents normalised otherwise than latents.pt")
        if "optimizers" in saved:  # not in imported weights
            muon.restore(optimizers, saved["optimizers"])
        step, schedule.earlier_seconds = saved["step"], saved["seconds"]
    trained = list(both.parameters())
    run_block = forward.compiled_block() if config.compile else forward.block
    for name, module in both.items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters on {device}", flush=True)

    losses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=100))
    done = ranks.agree(schedule.fraction(step))
    while done < 1 and step != stop:
        rng, noise = ranks.rng(config.seed, step), ranks.noise(config.seed, step)
        window = windows.draw(data, mixture, config.batch, rng)
        captions = [
            "" if rng.random() < config.caption_dropout else scenes.caption(a, rng, config.filler)
            for a in window.attributes
        ]
        ids, mask = text.token_ids(words, captions, text_model.prompt_tokens)
        fresh = torch.randn(window.latents.shape, generator=noise, device=device)
        level = window.sigmas[:, None, :, None, None]
        with run.autocast(device, config.bf16):
            prompt = text.embed(encoder, ids.to(device), mask.to(device))
            noisy = torch.lerp(window.latents, fresh, level)
            predicted = forward.velocity(transformer, noisy, window.sigmas, prompt, run_block).float()
        loss = velocity_loss(predicted, fresh - window.latents, window, config.near_weight)
        both.zero_grad()
        torch.autograd.backward(loss)
        ranks.average_gradients(trained)
        run.clip_gradients(trained, step)
        factor = ranks.agree(schedule.factor(step))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
        run.update_average(average, both, config.average, step)
        losses[window.kind].append(loss.item())
        step += 1
        done = ranks.agree(schedule.fraction(step))
        if ranks.first and (step % config.checkpoint_steps == 0 or done >= 1):
            run.save_checkpoint(
                checkpoint,
                {
                    "model": both.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step,
                    "seconds": schedule.seconds,
                    "mean": data.mean,
                    "std": data.std,
                },
            )
            recent = {kind: sum(v) / len(v) for kind, v in sorted(losses.items())}
            run.report(
                log,
                minutes=schedule.seconds / 60,
                step=step,
                rate=config.learning_rate * factor,
                **recent,
            )
    return checkpoint


def statistics(checkpoint: Path) -> tuple[Tensor, Tensor] | None:
    """Mean and std (z,) of the latents that a checkpoint was trained on; None where there is none."""
    saved = run.load_checkpoint(checkpoint)
    return (saved["mean"], saved["std"]) if saved else None


def load(
    model: TransformerModel, text_model: text.TextModel, checkpoint: Path, device: torch.device
) -> tuple[stock.Transformer, stock.TextEncoder, Tensor, Tensor]:
    """Averaged transformer and text encoder of a training checkpoint, and mean and std of the latents, each (z,)."""
    saved = run.load_checkpoint(checkpoint)
    if saved is None:
        raise FileNotFoundError(checkpoint)
    transformer = build(model, saved["mean"].shape[0], text_model.width)
    encoder = text.build(text_model, len(text.tokenizer(text_model)))
    both = nn.ModuleDict({"transformer": transformer, "text_encoder": encoder}).to(device)
    run.load_weights(both, saved["average"], checkpoint)
    both.eval().requires_grad_(False)
    return transformer, encoder, saved["mean"], saved["std"]
