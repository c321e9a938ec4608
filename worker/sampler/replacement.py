"""The paper's two baselines: windows one after another, the end of each kept in front of the next.

PA-VDM (arXiv 2410.08151), Figure 1 top and the RN/RW rows of table 1. All new frames of a window share one noise
level. *With noise*, the kept frames are re-noised to that level at every step; *without noise*, they stay
clean at level 0. Both run on the same model, window length, noise draws and number of network evaluations
as :func:`worker.sampler.progressive.sample`, so a comparison shows the method alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.models.base import VideoModel
from worker.sampler.noise import Draw, add_noise, chunk_noise, sigma_table
from worker.sampler.progressive import guided_velocity
from worker.sampler.window import Emitted, SamplerConfig


def steps_per_window(config: SamplerConfig, chunks: int) -> list[int]:
    """Steps of each window of up to ``K`` new chunks; their sum is what the progressive video would cost.

    The progressive sampler pays ``m * (K - 1)`` forwards more than ``m`` per chunk for its growing start; here
    they become extra steps of the earliest windows.
    """
    windows = -(-chunks // config.chunks_in_flight)
    least, extra = divmod(config.forwards(chunks), windows)
    return [least + (1 if window < extra else 0) for window in range(windows)]


@torch.no_grad()
def sample_by_replacement(
    model: VideoModel,
    prompt: str,
    *,
    chunks: int,
    seed: int,
    renoise: bool,
    size: tuple[int, int] | None = None,
    config: SamplerConfig | None = None,
    negative_prompt: str = "",
    context: Tensor | None = None,
    on_chunk: Callable[[Emitted], None] | None = None,
) -> Tensor:
    """Normalised latents, float32 ``(1, channels, chunks * C, h, w)``; arguments as in ``progressive.sample``.

    ``renoise`` picks the baseline: True is replacement-with-noise, False replacement-without-noise. Each window
    keeps the last ``O * C`` latents and makes ``K * C`` new ones. Raises ``ValueError`` when ``O`` is 0, for then
    nothing is replaced, and when there is no chunk to make.
    """
    config = config or model.sampler
    if config.context_chunks < 1:
        raise ValueError("a replacement baseline keeps frames: context_chunks must be at least 1")
    if chunks < 1:
        raise ValueError(f"a video has at least one chunk, chunks is {chunks}")
    embeddings = model.encode_prompt([prompt, negative_prompt])
    channels, height, width = model.geometry.latent_shape(*(size or model.geometry.default_size))
    shape = (1, channels, config.chunk_latents, height, width)
    known = torch.zeros((1, channels, 0, height, width), device=model.device)
    if context is not None:
        known = context.to(model.device)
    given, chunk = known.shape[2], 0

    for steps in steps_per_window(config, chunks):
        numbers = range(chunk, min(chunk + config.chunks_in_flight, chunks))
        new = torch.cat([chunk_noise(seed, number, shape) for number in numbers], dim=2).to(model.device)
        kept = known[:, :, -config.context_chunks * config.chunk_latents :]
        # One draw per window: along its steps the kept frames then follow a straight path, as the new ones do.
        kept_noise = chunk_noise(seed, chunk, tuple(kept.shape), Draw.RENOISE).to(model.device)
        table = sigma_table(steps, config.time_shift).tolist()
        for level in range(steps, 0, -1):
            front = add_noise(kept, kept_noise, table[level]) if renoise else kept
            sigmas = torch.full((1, front.shape[2] + new.shape[2]), table[level], device=model.device)
            if not renoise:
                sigmas[:, : front.shape[2]] = 0.0
            velocity = guided_velocity(
                model,
                torch.cat([front, new], dim=2),
                sigmas,
                embeddings[:1],
                embeddings[1:],
                scales=[config.guidance_scale],
            )
            new = new + (table[level - 1] - table[level]) * velocity[:, :, front.shape[2] :]
        known = torch.cat([known, new], dim=2)
        if on_chunk is not None:
            for slot, number in enumerate(numbers):
                begin = slot * config.chunk_latents
                on_chunk(Emitted(number, new[:, :, begin : begin + config.chunk_latents].contiguous()))
        chunk = numbers.stop
    return known[:, :, given:]
