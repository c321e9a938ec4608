"""Progressive autoregressive sampling (PA-VDM, arXiv 2410.08151): one forward, and the whole loop.

The engine calls :func:`step` with the windows of several videos; :func:`sample` is the loop for one video.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.models.base import VideoModel
from worker.sampler.window import Emitted, PromptTimeline, SamplerConfig, WindowState, same_shape


def guided_velocity(
    model: VideoModel,
    latents: Tensor,
    sigmas: Tensor,
    prompts: Tensor,
    negatives: Tensor,
    *,
    scales: Sequence[float],
) -> Tensor:
    """Classifier-free guidance per row, ``v = v_neg + g * (v_pos - v_neg)``, in one batched evaluation.

    ``latents`` float32 ``(B, channels, F, h, w)``, ``sigmas`` float32 ``(B, F)``, ``prompts`` and ``negatives``
    ``(B, L, D)``, one scale per row; a row of scale 1 has no negative row. Returns float32 like ``latents``.
    """
    guided = [row for row, scale in enumerate(scales) if scale != 1.0]
    if not guided:
        return model.velocity(latents, sigmas, prompts)
    positive, negative = model.velocity(
        torch.cat([latents, latents[guided]]),
        torch.cat([sigmas, sigmas[guided]]),
        torch.cat([prompts, negatives[guided]]),
    ).tensor_split([len(scales)])
    scale = torch.tensor([scales[row] for row in guided], device=latents.device).view(-1, 1, 1, 1, 1)
    velocity = positive.clone()
    velocity[guided] = negative + scale * (positive[guided] - negative)
    return velocity


@torch.no_grad()
def step(
    model: VideoModel, states: Sequence[WindowState], prompts: Sequence[Tensor], negatives: Sequence[Tensor]
) -> list[Emitted | None]:
    """One network evaluation for the windows of one or several videos; advances every state.

    ``prompts[i]`` and ``negatives[i]``, each ``(1, L, D)``, are the embeddings in force for ``states[i]``; its
    guidance scale is its own. Stages, settings and seeds may differ, the window shape may not. Returns the
    chunk each video emitted, or None. Raises ``ValueError`` when shapes or counts differ.
    """
    same_shape(states)
    if not len(states) == len(prompts) == len(negatives):
        raise ValueError(
            f"{len(states)} windows, {len(prompts)} prompts and {len(negatives)} negative prompts"
        )
    views = [state.view() for state in states]
    velocity = guided_velocity(
        model,
        torch.cat([view.latents for view in views]),
        torch.cat([view.sigmas for view in views]),
        torch.cat(list(prompts)),
        torch.cat(list(negatives)),
        scales=[state.config.guidance_scale for state in states],
    )
    return [state.advance(velocity[row : row + 1]) for row, state in enumerate(states)]


@torch.no_grad()
def sample(
    model: VideoModel,
    prompt: str | PromptTimeline,
    *,
    chunks: int,
    seed: int,
    size: tuple[int, int] | None = None,
    config: SamplerConfig | None = None,
    negative_prompt: str = "",
    context: Tensor | None = None,
    on_chunk: Callable[[Emitted], None] | None = None,
) -> Tensor:
    """Normalised latents of a video, float32 ``(1, channels, chunks * C, h, w)``.

    ``size`` is ``(width, height)`` in pixels and ``config`` the sampler settings, both the model's own by
    default. ``context`` continues from given latents (:meth:`WindowState.start`). ``on_chunk`` sees each chunk
    as soon as it is clean.
    """
    config = config or model.sampler
    prompt = PromptTimeline(((0, prompt),)) if isinstance(prompt, str) else prompt
    texts = [text for _, text in prompt.changes]
    embeddings = model.encode_prompt([*texts, negative_prompt])
    embedding_of = {text: embeddings[row : row + 1] for row, text in enumerate(texts)}
    negative = embeddings[-1:]

    shape = model.geometry.latent_shape(*(size or model.geometry.default_size))
    state = WindowState.start(config, seed, shape, total=chunks, context=context, device=model.device)
    latents = []
    while not state.done:
        (emitted,) = step(model, [state], [embedding_of[prompt.at(state.newest_chunk)]], [negative])
        if emitted is not None:
            latents.append(emitted.latents)
            if on_chunk is not None:
                on_chunk(emitted)
    return torch.cat(latents, dim=2)
