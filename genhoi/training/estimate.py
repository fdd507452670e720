"""What a training will take, told from sizes alone, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from genhoi.bases.load import base_config
from genhoi.models.adapter import GenHOIAdapter
from genhoi.training.config import TrainConfig
from genhoi.training.trainer import freeze_unused, load_adapter

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
    sizes = {k: v for k, v in base_config(config.base).items() if k[0] != "_"}
    with torch.device("meta"):
        model = WanTransformer3DModel(**sizes)
        parameters = sum(p.numel() for p in model.parameters())
        trained = parameters if config.stage == "base" else _adapter_size(config, model)
    full = model.config
    dim = full.num_attention_heads * full.attention_head_dim
    trained += parameters if config.train_base else 0
    trained += config.video_rank * full.num_layers * 3 * 2 * dim
    grid = (1 + (config.frames - 1) // 4, config.height // 16, config.width // 16)
    tokens = grid[0] * grid[1] * grid[2] + grid[1] * grid[2]  # and the reference's
    at_once = min(config.micro_batch or config.batch, max(1, config.batch // processes))
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    block = tokens * (_KEPT_OF_A_BLOCK * dim + _WIDE_OF_A_BLOCK * full.ffn_dim)
    kept = block + full.num_layers * tokens * dim if config.checkpointing else (
        full.num_layers * block
    )  # fmt: skip
    clips = config.clips if config.data == "synthetic" else None
    latent = 4 * tokens * (2 * full.out_channels + 4) * torch.float16.itemsize
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


def _adapter_size(config: TrainConfig, model: WanTransformer3DModel) -> int:
    """Trained weights of the adapter; the current device is meta."""
    if config.adapter is not None:
        adapter = load_adapter(config.adapter)
        adapter.check_fits(model)
    else:
        adapter = GenHOIAdapter.for_transformer(
            model, rank=config.rank, gate_init=config.gate_init, flow_gate=config.flow_gate
        )
    freeze_unused(adapter, queries_keys=config.queries_keys)
    return sum(p.numel() for p in adapter.parameters() if p.requires_grad)
