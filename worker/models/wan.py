"""Wan-class models: Wan 2.1, Wan 2.2 (5B), SkyReels-V2 and the built-in model, from a diffusers pipeline folder.

Both transformer classes of diffusers hold the same network under the same weight names. Stock forwards repeat
the modulation of a latent frame for each of its tokens; :class:`FrameTransformer` runs the same weights with one
row of modulation per latent frame, which is all that a progressive window needs.
"""

import html
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from worker.devices import ran_out_of_memory
from worker.models.base import Geometry, ModelLoadError, SamplerConfig, VideoFrames
from worker.models.fingerprint import fingerprint
from worker.models.wan_vae import Untyped, WanAutoencoder, WanStreamedDecoder

TIMESTEPS: Final = 1000.0
"""Wan-class networks take ``1000 * sigma``."""

CACHED_PROMPT_BATCHES: Final = 2
"""Batches of prompts whose cross-attention keys and values are kept: the group in flight and the one before."""

CACHED_ROTARY_SHAPES: Final = 16
"""Window shapes whose rotary table is kept."""

CACHED_PROMPTS: Final = 16
"""Prompts whose embeddings are kept: a video that goes on after a rest asks for the same again."""

RESTING_SHARE: Final = 0.1
"""A text encoder larger than this share of the GPU's memory rests on the host between prompts."""

KeysValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values of every block's cross-attention."""


class FrameBlock(nn.Module):
    """One transformer block over ``(B, frames, tokens, D)`` with one modulation row per frame.

    Takes over the parameters of a stock block; the three projections of self-attention become one product.
    """

    def __init__(self, stock: Untyped) -> None:
        super().__init__()
        own, cross = stock.attn1, stock.attn2
        self.heads: int = own.heads
        self.eps: float = stock.norm1.eps
        self.qk_eps: float = own.norm_q.eps
        self.modulation = stock.scale_shift_table
        self.qkv = _fuse(own.to_q, own.to_k, own.to_v)
        # (2, D): queries and keys are normalised and rotated in one pass.
        self.qk_weight = nn.Parameter(torch.stack([own.norm_q.weight, own.norm_k.weight]).detach().float())
        self.out = own.to_out[0]
        self.norm_cross = stock.norm2
        self.cross_q, self.cross_kv = cross.to_q, _fuse(cross.to_k, cross.to_v)
        self.cross_norm_q, self.cross_norm_k = cross.norm_q, cross.norm_k
        self.cross_out = cross.to_out[0]
        self.feed_forward = stock.ffn

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values of projected text ``(B, L, D)``, each ``(B, L, heads, D / heads)``."""
        keys, values = self.cross_kv(text).chunk(2, dim=-1)
        return self.cross_norm_k(keys).unflatten(-1, (self.heads, -1)), values.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, rows: Tensor, rotary: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """``x`` (B, F, tokens, D); ``rows`` (B, F, 6, D); ``rotary`` complex (F*tokens, 1, 1, D/heads/2)."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            (self.modulation.unsqueeze(0) + rows.float()).unsqueeze(3).unbind(2)
        )
        y = self._attend(_modulate(x, shift, scale, self.eps), rotary)
        x = _gated(x, y, gate)
        queries = self.cross_norm_q(self.cross_q(self.norm_cross(x.float()).type_as(x).flatten(1, 2)))
        y = dispatch_attention_fn(queries.unflatten(-1, (self.heads, -1)), *text)
        x = x + self.cross_out(y.flatten(2).type_as(x)).view_as(x)
        y = self.feed_forward(_modulate(x, ff_shift, ff_scale, self.eps))
        return _gated(x, y, ff_gate)

    def _attend(self, y: Tensor, rotary: Tensor) -> Tensor:
        qkv = self.qkv(y.flatten(1, 2)).unflatten(-1, (3, -1))
        qk = qkv[:, :, :2].float()
        qk = qk * torch.rsqrt(qk.pow(2).mean(-1, keepdim=True) + self.qk_eps) * self.qk_weight
        pairs = torch.view_as_complex(qk.unflatten(-1, (self.heads, -1, 2)))
        queries, keys = torch.view_as_real(pairs * rotary).flatten(-2).type_as(y).unbind(2)
        values = qkv[:, :, 2].unflatten(-1, (self.heads, -1))
        attended = dispatch_attention_fn(queries, keys, values)
        return self.out(attended.flatten(2).type_as(y)).view_as(y)  # type: ignore[no-any-return]


class FrameTransformer(nn.Module):
    """A Wan-class transformer that takes a noise level per latent frame.

    Same function of the same weights as ``SkyReelsV2Transformer3DModel.forward(enable_diffusion_forcing=True)``
    and as ``WanTransformer3DModel.forward`` with a timestep per token, to rounding: modulation per frame instead
    of per token, one product for queries, keys and values, one pass for their norm and rotation. ``fps`` is folded
    into a bias for models that were trained with it (``inject_sample_info``). The stock module is taken apart and
    must not be used afterwards.
    """

    def __init__(self, stock: Untyped, fps: int) -> None:
        super().__init__()
        embedder = stock.condition_embedder
        if stock.config.get("inject_sample_info", False):
            # These networks add one learned row for 16 fps (index 0) or another rate (index 1) to every
            # modulation row: the same sum as a bias of the projection, for good.
            rate = torch.tensor([0 if fps == 16 else 1], device=stock.device)
            with torch.no_grad():
                embedder.time_proj.bias += stock.fps_projection(stock.fps_embedding(rate))[0]
        self.patch: tuple[int, int, int] = tuple(stock.config.patch_size)
        self.patch_embedding = stock.patch_embedding
        self.rope = stock.rope
        self.sinusoid = embedder.timesteps_proj
        self.time_embedder = embedder.time_embedder
        self.activation, self.time_proj = embedder.act_fn, embedder.time_proj
        self.text_embedder = embedder.text_embedder
        self.blocks = nn.ModuleList()
        for index, block in enumerate(stock.blocks):
            self.blocks.append(FrameBlock(block))
            # Frees the unfused projections before the next block is fused.
            stock.blocks[index] = nn.Identity()
        self.modulation = stock.scale_shift_table
        self.eps: float = stock.norm_out.eps
        self.proj_out = stock.proj_out

    def keys_values(self, prompt: Tensor) -> KeysValues:
        """Cross-attention keys and values of every block for ``prompt`` (B, L, text D)."""
        text = self.text_embedder(prompt)
        return [block.keys_values(text) for block in self.blocks]  # type: ignore[operator]

    def rotary(self, latents: Tensor) -> Tensor:
        """Rotary factors of a window shape, complex64 ``(tokens, 1, 1, D/heads/2)``; every window starts at 0."""
        cos, sin = self.rope(latents)
        return torch.complex(cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float()).unsqueeze(1)

    def forward(self, latents: Tensor, timesteps: Tensor, text: KeysValues, rotary: Tensor) -> Tensor:
        """``latents`` (B, C, F, h, w); ``timesteps`` float32 (B, F) in 0..1000. Returns (B, C, F, h, w)."""
        batch, channels, frames, height, width = latents.shape
        _, ph, pw = self.patch
        rows, columns = height // ph, width // pw
        # The patch convolution has kernel = stride, hence is one product over unfolded patches.
        x = latents.reshape(batch, channels, frames, rows, ph, columns, pw).permute(0, 2, 3, 5, 1, 4, 6)
        x = x.reshape(batch, frames, rows * columns, channels * ph * pw)
        x = F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

        waves = self.sinusoid(timesteps.flatten()).unflatten(0, (batch, frames))
        time = self.time_embedder(waves.to(self.time_embedder.linear_1.weight.dtype)).type_as(x)
        modulation = self.time_proj(self.activation(time)).unflatten(-1, (6, -1))
        for block, keys_values in zip(self.blocks, text, strict=True):
            x = block(x, modulation, rotary, keys_values)

        shift, scale = (self.modulation.unsqueeze(0) + time.unsqueeze(2)).unsqueeze(3).unbind(2)
        x = self.proj_out(_modulate(x, shift, scale, self.eps))
        x = x.view(batch, frames, rows, columns, ph, pw, -1).permute(0, 6, 1, 2, 4, 3, 5)
        velocity: Tensor = x.reshape(batch, -1, frames, height, width)
        return velocity


def _fuse(*layers: nn.Linear) -> nn.Linear:
    weight = torch.cat([layer.weight for layer in layers]).detach()
    fused = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    fused.weight = nn.Parameter(weight, requires_grad=False)
    fused.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]).detach(), requires_grad=False)
    return fused


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, scaled and shifted per frame, in float32."""
    normal = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return torch.addcmul(shift.float(), normal, 1 + scale.float()).type_as(x)


def _gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x.float(), y.float(), gate).type_as(x)


class TextEncoder:
    """UMT5 prompt embeddings as the Wan-class pipelines make them; safe to call from several threads."""

    def __init__(
        self,
        tokenizer: Untyped,
        encoder: Untyped,
        *,
        tokens: int,
        device: torch.device,
    ) -> None:
        self._tokenizer, self._encoder, self._tokens, self._device = tokenizer, encoder, tokens, device
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._rests = device.type == "cuda" and _bytes(encoder) > RESTING_SHARE * _total_memory(device)
        if not self._rests:
            encoder.to(device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(B, tokens, D), zero past the real length: no text mask exists, the network attends to the padding."""
        with self._lock:
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
            with self._at_work() if missing else nullcontext():
                # One by one: a prompt has the same embedding, bit for bit, whatever it is encoded with.
                self._known |= {prompt: self._embed(prompt) for prompt in missing}
            for prompt in prompts:
                self._known.move_to_end(prompt)
            embeddings = torch.cat([self._known[prompt] for prompt in prompts])
            while len(self._known) > CACHED_PROMPTS:
                self._known.popitem(last=False)
        return embeddings

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The encoder on its device. One that rests leaves its weights on the host, and goes back to those."""
        if not self._rests:
            yield
            return
        weights = [*self._encoder.parameters(), *self._encoder.buffers()]
        resting = [weight.data for weight in weights]
        try:
            for weight in weights:
                weight.data = weight.data.to(self._device)
            yield
        finally:
            for weight, data in zip(weights, resting, strict=True):
                weight.data = data

    def _embed(self, prompt: str) -> Tensor:
        tokens = self._tokenizer(
            [" ".join(html.unescape(html.unescape(prompt)).split())],
            padding="max_length",
            max_length=self._tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._device)
        hidden: Tensor = self._encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        masked: Tensor = hidden * tokens.attention_mask.unsqueeze(-1)
        return masked


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _total_memory(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


class WanModel:
    """A Wan-class pipeline as a :class:`worker.models.base.VideoModel`.

    ``velocity`` belongs to one thread; prompts, decoders and ``encode_video`` may run in others at the same time.
    """

    def __init__(
        self,
        *,
        name: str,
        fingerprint: str,
        geometry: Geometry,
        sampler: SamplerConfig,
        transformer: FrameTransformer,
        text_encoder: TextEncoder,
        autoencoder: WanAutoencoder,
        device: torch.device,
    ) -> None:
        self.name, self.geometry, self.sampler, self.device = name, geometry, sampler, device
        self.fingerprint = fingerprint
        self._transformer = transformer.to(device).eval().requires_grad_(False)
        self._dtype: torch.dtype = transformer.proj_out.weight.dtype
        self._text_encoder = text_encoder
        self._autoencoder = autoencoder
        self._texts: list[tuple[Tensor, KeysValues]] = []
        self._rotary: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """See :meth:`worker.models.base.VideoModel.encode_prompt`."""
        return self._text_encoder(prompts).to(self._dtype)

    @torch.no_grad()
    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        """See :meth:`worker.models.base.VideoModel.velocity`."""
        latents = latents.to(self.device, self._dtype)
        timesteps = sigmas.to(self.device) * TIMESTEPS
        text = self._keys_values(prompt.to(self.device, self._dtype))
        output: Tensor = self._transformer(latents, timesteps, text, self._rotary_of(latents))
        return output.float()

    def _keys_values(self, prompt: Tensor) -> KeysValues:
        # Compared by content: a key made of an address or an object could outlive the tensor it stood for.
        same = (
            keys_values
            for known, keys_values in self._texts
            if known.shape == prompt.shape and torch.equal(known, prompt)
        )
        if (found := next(same, None)) is not None:
            return found
        # The oldest goes first, and nothing here holds on to it: there is never memory for one more.
        self._texts = self._texts[: CACHED_PROMPT_BATCHES - 1]
        fresh = self._transformer.keys_values(prompt)
        self._texts = [(prompt.clone(), fresh), *self._texts]
        return fresh

    def _rotary_of(self, latents: Tensor) -> Tensor:
        shape = tuple(latents.shape[2:])
        if shape not in self._rotary:
            self._rotary[shape] = self._transformer.rotary(latents)
            if len(self._rotary) > CACHED_ROTARY_SHAPES:
                self._rotary.popitem(last=False)
        return self._rotary[shape]

    def open_decoder(self) -> WanStreamedDecoder:
        """See :meth:`worker.models.base.VideoModel.open_decoder`."""
        return self._autoencoder.open_decoder()

    def encode_video(self, frames: VideoFrames) -> Tensor:
        """See :meth:`worker.models.base.VideoModel.encode_video`."""
        if frames.ndim != 4 or frames.shape[3] != 3 or str(frames.dtype) != "uint8" or not len(frames):
            raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
        self.geometry.latent_shape(frames.shape[2], frames.shape[1])
        surplus = (len(frames) - 1) % self.geometry.temporal_factor
        return self._autoencoder.encode(frames[surplus:])


def load_wan(
    source: str,
    *,
    name: str,
    geometry: Geometry,
    sampler: SamplerConfig,
    prompt_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> WanModel:
    """Loads the components of a Wan-class pipeline, a folder or a hub id, onto ``device``.

    ``dtype`` is that of transformer and text encoder, less the modules that must stay float32, which only
    ``from_pretrained`` knows; a later cast would take them along. Raises :class:`ModelLoadError` with code
    ``model_corrupt`` for weights that are missing, left over, cut short or of other shapes.
    """

    try:
        network = WanTransformer3DModel.load_config(source, subfolder="transformer")["_class_name"]
    except OSError as error:
        raise ModelLoadError("model_not_found", f"model {name}: {_reason(error)}") from error
    networks = {cls.__name__: cls for cls in (WanTransformer3DModel, SkyReelsV2Transformer3DModel)}
    transformer = load_component(name, networks[network], source, "transformer", torch_dtype=dtype).to(device)
    text_encoder = load_component(name, UMT5EncoderModel, source, "text_encoder", dtype=dtype)
    vae = load_component(name, AutoencoderKLWan, source, "vae", torch_dtype=torch.float32)
    tokenizer = _part(name, AutoTokenizer, source, "tokenizer")
    tokens = min(prompt_tokens, tokenizer.model_max_length)
    return WanModel(
        name=name,
        fingerprint=fingerprint(source),
        geometry=geometry,
        sampler=sampler,
        transformer=FrameTransformer(transformer, geometry.fps),
        text_encoder=TextEncoder(tokenizer, text_encoder, tokens=tokens, device=device),
        autoencoder=WanAutoencoder(vae, device),
        device=device,
    )


def load_component(name: str, cls: Untyped, source: str, folder: str, **options: Any) -> Any:
    """A frozen network of a pipeline. ``name`` is for messages. Raises :class:`ModelLoadError`, ``model_corrupt``."""
    module, report = _part(name, cls, source, folder, output_loading_info=True, **options)
    # Only warnings to the loaders, which leave random numbers in the place of absent weights, and drop layers that the
    # configuration does not have. What a class is known to leave over is not among them; an encoder leaves a decoder.
    faults = {"missing": report["missing_keys"]}
    if cls is not UMT5EncoderModel:
        faults["left over"] = report["unexpected_keys"]
    for fault, keys in faults.items():
        if keys:
            raise ModelLoadError(
                "model_corrupt", f"model {name}: {folder}: {len(keys)} weights {fault}, {min(keys)} first"
            )
    return module.eval().requires_grad_(False)


def _part(name: str, cls: Untyped, source: str, folder: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, subfolder=folder, **options)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        if ran_out_of_memory(error):
            raise
        raise ModelLoadError("model_corrupt", f"model {name}: {folder}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
