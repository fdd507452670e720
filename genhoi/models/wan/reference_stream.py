"""The reference stream: keys and values of the reference in every block, once a clip.

They depend on the reference, the grid and the weights alone, not on timestep, text or noise
(docs/model_layer.md), so they are kept until one of those changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genhoi.models.wan.processors import ReferencePass
from genhoi_kernels import HeadSlidingRope

__all__ = ["CacheKey", "complete_channels", "reference_keys_values"]

KeysValues = tuple[Tensor, Tensor]
Grid = tuple[int, int, int]

_MASK_CHANNELS = 4


def complete_channels(reference: Tensor, in_channels: int, latent_channels: int) -> Tensor:
    """Fill a reference's latent up to what the model's patch embedding takes.

    Args:
        reference: ``[b, C, 1, h, w]``; C is latent_channels or in_channels.
        in_channels, latent_channels: of the model.

    Returns:
        ``[b, in_channels, 1, h, w]``: [latent | 4 zeros | latent] for an image-to-video model.

    Raises:
        ValueError: another number of channels.
    """
    channels = reference.shape[1]
    if channels == in_channels:
        return reference
    if channels == latent_channels and in_channels == 2 * channels + _MASK_CHANNELS:
        zeros = torch.zeros_like(reference[:, :1]).expand(-1, _MASK_CHANNELS, -1, -1, -1)
        return torch.cat([reference, zeros, reference], dim=1)
    wanted = {in_channels}
    if in_channels == 2 * latent_channels + _MASK_CHANNELS:
        wanted.add(latent_channels)
    raise ValueError(
        f"references: got {channels} channels, wanted {' or '.join(map(str, sorted(wanted)))}"
    )


def reference_keys_values(
    transformer: Any, references: Sequence[Tensor], grid: Grid, schedule: Any, dtype: torch.dtype
) -> list[KeysValues]:
    """Run every reference through the blocks, each by itself: it attends to its own tokens only.

    Args:
        transformer: with its processors in place.
        references: ``[b, C, 1, h, w]`` each, as ``complete_channels`` takes them; b is 1 or one B.
        grid: the video's tokens (f, h, w).
        schedule: see ``genhoi_kernels.head_frames``.
        dtype: of the video's latents.

    Returns:
        For every block k (rotated) and v ``[b, M, H, D]``, M the tokens of all references.
    """
    batch = max(len(x) for x in references)
    streams = [_stream(transformer, x.to(dtype), grid, schedule) for x in references]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.expand(batch, -1, -1, -1) for x in parts], dim=1)

    return [
        (joined([k for k, _ in block]), joined([v for _, v in block]))
        for block in zip(*streams, strict=True)
    ]


def _stream(transformer: Any, reference: Tensor, grid: Grid, schedule: Any) -> list[KeysValues]:
    config = transformer.config
    reference = complete_channels(reference, config.in_channels, config.out_channels)
    x = transformer.patch_embedding(reference)
    rope = HeadSlidingRope(
        grid, (tuple(x.shape[-2:]),),
        head_dim=config.attention_head_dim,
        num_heads=config.num_attention_heads,
        schedule=schedule,
    )  # fmt: skip
    x = x.flatten(2).transpose(1, 2).contiguous()
    # The base's own modulation for timestep 0; it wants a text, whose embedding is not used.
    no_text = x.new_zeros(1, 1, config.text_dim)
    _, modulation, _, _ = transformer.condition_embedder(x.new_zeros(1), no_text, None)
    modulation = modulation.unflatten(1, (6, -1))

    found = []
    for block in transformer.blocks:
        if torch.is_grad_enabled() and transformer.gradient_checkpointing:
            # k and v come out of the checkpointed function, so autograd keeps what they need.
            x, k, v = transformer._gradient_checkpointing_func(_block, block, x, modulation, rope)
        else:
            x, k, v = _block(block, x, modulation, rope)
        found.append((k, v))
    return found


def _block(
    block: nn.Module, x: Tensor, modulation: Tensor, rope: HeadSlidingRope
) -> tuple[Tensor, Tensor, Tensor]:
    into = ReferencePass(rope)
    # Once a clip: compiling it would cost more than it saves.
    with _without_step_caches(block), torch.compiler.set_stance("force_eager"):
        x = block(x, None, modulation, into)
    assert into.k is not None and into.v is not None
    return x, into.k, into.v


@contextmanager
def _without_step_caches(block: nn.Module) -> Iterator[None]:
    """Keep a block's run from diffusers' caches over denoising steps, which compare it with the
    last step's. They replace a forward; hooks that move or cast weights wrap it, and stay."""
    registries = [getattr(module, "_diffusers_hook", None) for module in block.modules()]
    links = [
        link
        for registry in registries
        for link in getattr(registry, "_fn_refs", ())
        if link.original_forward is not None
    ]
    replaced = [(link, link.forward) for link in links]
    for link in links:
        link.forward = link.original_forward
    try:
        yield
    finally:
        for link, forward in replaced:
            link.forward = forward


class CacheKey:
    """Everything that cached keys and values depend on.

    Weights are told apart by identity and version, which every in-place change raises, not by
    address, dtype or device, which offloading and layerwise casting change within a forward pass.

    Args:
        transformer: with its processors in place.
        references: as they were given.
        grid, latents: of the forward pass.
        casts: how often the weights' dtype was changed, which raises no version.
    """

    def __init__(
        self,
        transformer: nn.Module,
        references: Sequence[Tensor],
        grid: Grid,
        latents: Tensor,
        casts: int,
    ) -> None:
        tensors = [*references, *transformer.parameters()]
        self._tensors = [weakref.ref(x) for x in tensors]
        self._rest = (
            [0 if x.is_inference() else x._version for x in tensors],
            casts,
            grid,
            latents.dtype,
            latents.device,
            _autocast_dtype(latents.device.type),
            torch.is_inference_mode_enabled(),
            _lora_settings(transformer),
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheKey)
            and self._rest == other._rest
            and len(self._tensors) == len(other._tensors)
            and all(
                a() is b() is not None for a, b in zip(self._tensors, other._tensors, strict=True)
            )
        )

    __hash__ = None  # type: ignore[assignment]


def _autocast_dtype(device: str) -> torch.dtype | None:
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def _lora_settings(transformer: nn.Module) -> list[Any]:
    """What PEFT's layers keep outside their parameters: scales, which are active, which merged."""
    modules: Iterator[Any] = transformer.modules()
    return [
        (
            sorted(module.scaling.items()),
            list(getattr(module, "active_adapters", ())),
            bool(getattr(module, "disable_adapters", False)),
            list(getattr(module, "merged_adapters", ())),
        )
        for module in modules
        if isinstance(module.__dict__.get("scaling"), dict)
    ]
