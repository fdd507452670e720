"""What a training will take, told from sizes alone, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genhoi.bases.load import base_config
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.registry import empty_model
from genhoi.training.config import TrainConfig
from genhoi.training.trained_weights import freeze_unused, load_adapter

__all__ = ["TrainEstimate", "estimate_training"]

_STATE_WORDS = 4  # weight, gradient and AdamW's two moments, float32; the average is a fifth
_KEPT_OF_A_BLOCK = 14  # activations as wide as the model that autograd keeps, roughly
_WIDE_OF_A_BLOCK = 2  # and as wide as its feed-forward layer


@dataclass(frozen=True)
class TrainEstimate:
    """Sizes and memory of a training.

    Args:
        grid: tokens (f, h, w) of a clip.
        at_once: clips that one process takes at once.
        parameters: of the base's transformer.
        trained: parameters that get a gradient.
        weight_bytes: of the base's transformer.
        state_bytes: of the trained ones: weights, gradients, moments, moving average.
        working_bytes: activations that are kept for the backward pass, roughly.
        latent_bytes: of the encoded clips; of one where their number is not known.
        clips: that number.
    """

    grid: tuple[int, int, int]
    at_once: int
    parameters: int
    trained: int
    weight_bytes: int
    state_bytes: int
    working_bytes: int
    latent_bytes: int
    clips: int | None


def estimate_training(config: TrainConfig, *, processes: int = 1) -> TrainEstimate:
    """Estimate a training's needs, for every process where its weights are not sharded.

    Args:
        config: its settings.
        processes: that share the batch.

    Raises:
        FileNotFoundError, ValueError: no such base or adapter.
    """
    with torch.device("meta"):
        model = empty_model(base_config(config.base))
        transformer, sizes = model.transformer, model.sizes
        parameters = sum(p.numel() for p in transformer.parameters())
        trained = parameters if config.stage == "base" else _adapter_size(config, transformer)
    dim = sizes.dim
    trained += parameters if config.train_base else 0
    trained += config.video_rank * sizes.num_layers * 3 * 2 * dim
    grid = sizes.strides.grid(config.frames, config.height, config.width)
    tokens = grid[0] * grid[1] * grid[2] + grid[1] * grid[2]  # and the reference's
    at_once = min(config.micro_batch or config.batch, max(1, config.batch // processes))
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    block = tokens * (_KEPT_OF_A_BLOCK * dim + _WIDE_OF_A_BLOCK * sizes.ffn_dim)
    if config.checkpointing:
        kept = block + sizes.num_layers * tokens * dim
    else:
        kept = sizes.num_layers * block
    clips = config.clips if config.data == "synthetic" else None
    channels = 2 * sizes.latent_channels + sizes.strides.time
    latent = sizes.strides.patch**2 * tokens * channels * torch.float16.itemsize
    return TrainEstimate(
        grid=grid,
        at_once=at_once,
        parameters=parameters,
        trained=trained,
        weight_bytes=parameters * getattr(torch, config.base_dtype).itemsize,
        state_bytes=trained * (_STATE_WORDS + (config.ema > 0)) * torch.float32.itemsize,
        working_bytes=at_once * kept * dtype.itemsize,
        latent_bytes=latent * (clips or 1),
        clips=clips,
    )


def _adapter_size(config: TrainConfig, transformer: Any) -> int:
    """Count the adapter's trained weights; the current device is meta."""
    if config.adapter is not None:
        adapter = load_adapter(config.adapter)
        adapter.check_fits(transformer)
    else:
        adapter = GenHOIAdapter.for_transformer(
            transformer,
            rank=config.rank,
            gate_init=config.gate_init,
            flow_gate=config.flow_gate,
        )
    freeze_unused(adapter, queries_keys=config.queries_keys)
    return sum(p.numel() for p in adapter.parameters() if p.requires_grad)
