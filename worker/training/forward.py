"""A differentiable forward of `SkyReelsV2Transformer3DModel` with one modulation row per latent frame.

The same function of the same parameters as `forward(enable_diffusion_forcing=True)`, which repeats the modulation of a
frame for each of its tokens and so spends most of a small model's training step on copies.
`worker.models.wan.FrameTransformer` does this for inference, with fused and frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def block(layer: Any, x: Tensor, modulation: Tensor, text: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One block over (B, F, tokens, D); `modulation` is (B, F, 6, D)."""
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (
        (layer.scale_shift_table[:, None] + modulation).unsqueeze(3).unbind(2)
    )
    own, cross, (cos, sin) = layer.attn1, layer.attn2, rotary
    y = _modulated(x, shift, scale, layer.norm1.eps).flatten(1, 2)
    query = _rotate(_heads(own.norm_q(own.to_q(y)), own.heads), cos, sin)
    key = _rotate(_heads(own.norm_k(own.to_k(y)), own.heads), cos, sin)
    value = _heads(own.to_v(y), own.heads)
    y = functional.scaled_dot_product_attention(query, key, value.to(query))
    x = torch.addcmul(x, own.to_out[0](y.transpose(1, 2).flatten(2)).view_as(x), gate)
    y = layer.norm2(x).flatten(1, 2)
    query = _heads(cross.norm_q(cross.to_q(y)), cross.heads)
    key = _heads(cross.norm_k(cross.to_k(text)), cross.heads)
    value = _heads(cross.to_v(text), cross.heads)
    y = functional.scaled_dot_product_attention(query, key.to(query), value.to(query))
    x = x + cross.to_out[0](y.transpose(1, 2).flatten(2)).view_as(x)
    y = layer.ffn(_modulated(x, ff_shift, ff_scale, layer.norm3.eps))
    return torch.addcmul(x, y.to(x), ff_gate)


Block = Callable[[Any, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]


def compiled_block() -> Block:
    """`block` through torch.compile: one graph serves every layer, another all window shapes; 15 % faster on a CPU."""
    compiled: Block = torch.compile(block)
    return compiled


def velocity(
    transformer: Any, latents: Tensor, sigmas: Tensor, prompt: Tensor, run_block: Block = block
) -> Tensor:
    """Predicted `noise - x0`, (B, z, F, h, w); `latents` of that shape, `sigmas` (B, F) in 0..1, `prompt` (B, L, D)."""
    batch, channels, frames, height, width = latents.shape
    _, patch_h, patch_w = transformer.config.patch_size
    rows, columns = height // patch_h, width // patch_w
    cos, sin = transformer.rope(latents)
    cos, sin = (
        cos[:, :, :, 0::2].transpose(1, 2),
        sin[:, :, :, 1::2].transpose(1, 2),
    )  # (1, 1, tokens, head / 2)
    x = latents.reshape(batch, channels, frames, rows, patch_h, columns, patch_w).permute(0, 2, 3, 5, 1, 4, 6)
    embedding = transformer.patch_embedding
    x = functional.linear(
        x.reshape(batch, frames, rows * columns, -1), embedding.weight.flatten(1), embedding.bias
    )
    time, modulation, text, _ = transformer.condition_embedder(sigmas * 1000, prompt)
    modulation = modulation.unflatten(-1, (6, -1))  # (B, F, 6, D)
    for layer in transformer.blocks:
        x = run_block(layer, x, modulation, text, (cos, sin))
    shift, scale = (transformer.scale_shift_table[:, None] + time.unsqueeze(2)).unsqueeze(3).unbind(2)
    x = transformer.proj_out(_modulated(x, shift, scale, transformer.norm_out.eps))
    x = x.view(batch, frames, rows, columns, patch_h, patch_w, -1).permute(0, 6, 1, 2, 4, 3, 5)
    predicted: Tensor = x.reshape(batch, -1, frames, height, width)
    return predicted
