"""What an edit will take, told from sizes alone, before any weights are loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from genhoi.editing.windows import windows
from genhoi.models.registry import empty_model
from genhoi_kernels import reference_attention

__all__ = ["Estimate", "estimate_edit"]


@dataclass(frozen=True)
class Estimate:
    """Sizes, memory and time of an edit.

    Args:
        windows: first and one-past-last frame of each.
        grid: tokens (f, h, w) of the first window.
        reference_tokens: of all objects.
        parameters: of the transformer, without the adapter.
        weight_bytes: of the transformer.
        cache_bytes: the references' keys and values in all layers.
        working_bytes: the widest activations of a block, roughly.
        flops: of all forward passes.
        seconds: at the speed just measured on the device; encoding and decoding come on top.
    """

    windows: tuple[tuple[int, int], ...]
    grid: tuple[int, int, int]
    reference_tokens: int
    parameters: int
    weight_bytes: int
    cache_bytes: int
    working_bytes: int
    flops: float
    seconds: float


def estimate_edit(
    config: Mapping[str, Any],
    *,
    frames: int,
    size: tuple[int, int],
    objects: int,
    steps: int,
    guidance: float,
    window: int,
    overlap: int = 1,
    dtype: torch.dtype,
    device: torch.device,
) -> Estimate:
    """Estimate an edit.

    Args:
        config: the transformer's.
        frames, size, objects: of the clip, size as (height, width); of the references.
        steps, guidance, window, overlap: as for `GenHOIPipeline`.
        dtype, device: computed in and on; the device is timed for a moment.
    """
    with torch.device("meta"):
        model = empty_model(config)
    parameters = sum(p.numel() for p in model.transformer.parameters())
    sizes = model.sizes
    dim, layers = sizes.dim, sizes.num_layers
    spans = windows(frames, window, overlap)
    grids = [sizes.strides.grid(end - begin, *size) for begin, end in spans]
    grid = grids[0]
    _, height, width = grid
    reference = objects * height * width
    branches = 1 if guidance == 1 else 2
    dense = sum(p.numel() for block in model.blocks for p in block.module.parameters())
    linear = attention = 0.0
    for f, h, w in grids:
        tokens = f * h * w
        linear += 2.0 * dense * tokens
        attention += 4.0 * tokens * (tokens + reference + 512) * dim * layers
    linear, attention = (x * steps * branches for x in (linear, attention))
    linear_speed, attention_speed = _speeds(sizes.head_dim, dtype, device)
    tokens = grid[0] * height * width
    size_of = dtype.itemsize
    return Estimate(
        windows=tuple(spans),
        grid=grid,
        reference_tokens=reference,
        parameters=parameters,
        weight_bytes=parameters * size_of,
        cache_bytes=2 * layers * reference * dim * size_of,
        working_bytes=tokens * (sizes.ffn_dim + 6 * dim) * size_of,
        flops=linear + attention,
        seconds=linear / linear_speed + attention / attention_speed,
    )


def _speeds(head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Measure operations a second, of a matrix product and of the op."""
    side = 1024 if device.type == "cpu" else 8192
    tokens = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    q = torch.randn(1, tokens, 4, head_dim, device=device).to(dtype)

    def seconds(call: Any) -> float:
        best = float("inf")
        for _ in range(4):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            best = min(best, time.perf_counter() - start)
        return best

    with torch.inference_mode():
        product = seconds(lambda: a @ a)
        attention = seconds(lambda: reference_attention(q, q, q))
    return 2 * side**3 / product, 4 * tokens**2 * 4 * head_dim / attention


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
