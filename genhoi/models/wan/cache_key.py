"""Whether cached keys and values of the references still hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genhoi.conditioning.grid import Grid

__all__ = ["CacheKey"]


class CacheKey:
    """Everything that cached keys and values depend on.

    Weights are told apart by identity and version, which every in-place change raises, not by
    address, dtype or device, which offloading and layerwise casting change within a forward pass.
    They are held, for nothing else keeps the identity of one that is gone from being another's:
    torch refuses to swap the contents of tensors with weak references.

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
        lora = [x for x in transformer.modules() if isinstance(x.__dict__.get("scaling"), dict)]
        self._tensors = [*references, *transformer.parameters(), *_scaling_tensors(lora)]
        self._rest = (
            [0 if x.is_inference() else x._version for x in self._tensors],
            casts,
            grid,
            latents.dtype,
            latents.device,
            _autocast_dtype(latents.device.type),
            torch.is_inference_mode_enabled(),
            _lora_settings(lora),
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheKey)
            and self._rest == other._rest
            and len(self._tensors) == len(other._tensors)
            and all(a is b for a, b in zip(self._tensors, other._tensors, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _autocast_dtype(device: str) -> torch.dtype | None:
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def _lora_settings(layers: Sequence[Any]) -> list[Any]:
    """Read what PEFT's layers keep outside their parameters: scales, what is active or merged."""
    return [
        (
            sorted((name, x) for name, x in module.scaling.items() if not isinstance(x, Tensor)),
            list(getattr(module, "active_adapters", ())),
            bool(getattr(module, "disable_adapters", False)),
            list(getattr(module, "merged_adapters", ())),
        )
        for module in layers
    ]


def _scaling_tensors(layers: Sequence[Any]) -> list[Tensor]:
    """List the scales that are tensors, as ``enable_lora_hotswap`` makes them."""
    scales = [x for module in layers for x in module.scaling.values()]
    return [x for x in scales if isinstance(x, Tensor)]
