"""What a training will take, told from sizes alone, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from genhoi.bases.load import base_config
from genhoi.conditioning.grid import STRIDES
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.registry import empty_model
from genhoi.training.config import TrainConfig
from genhoi.training.optimizer import hidden_matrices
from genhoi.training.trained_weights import freeze_unused, load_adapter

__all__ = ["TrainEstimate", "estimate_training", "what_fits"]

_STATE_WORDS = 4  # weight, gradient and AdamW's two moments, float32; the average is a fifth
_MUON_STATE_WORDS = 3  # one moment
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
        weight_bytes: of the base's transformer, on one device.
        state_bytes: there, of the trained ones: weights, gradients, moments, moving average.
        working_bytes: activations that are kept for the backward pass, roughly.
        latent_bytes: of the encoded clips; of one where their number is not known.
        clips: that number.
        passes: of a step, counted in forward passes: forward, backward to the inputs, backward to
            the weights where the base is trained, and the forward pass again for checkpointing.
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
    passes: int

    @property
    def memory_bytes(self) -> int:
        """Add up what a device holds while it trains; the encoders are away then."""
        return self.weight_bytes + self.state_bytes + self.working_bytes


@dataclass(frozen=True)
class _Sizes:
    """What of a base and an adapter counts, whatever is trained how: loaded once."""

    model: Any
    parameters: int
    trained: int
    by_muon: int  # of those


def estimate_training(config: TrainConfig, *, processes: int = 1) -> TrainEstimate:
    """Estimate a training's needs, for each of its processes.

    Args:
        config: its settings.
        processes: that share the batch, and with `parallel="fsdp"` the weights and their state.

    Raises:
        FileNotFoundError, ValueError: no such base or adapter.
    """
    return _estimate(config, _load_sizes(config), processes)


def what_fits(config: TrainConfig, memory: int, *, processes: int = 1) -> str | None:
    """Find flags of `genhoi train` with which a training fits into a device's memory.

    The fewest flags are looked for that leave the clips as they are; then more devices, which share
    the weights; then shorter clips.

    Args:
        config: of the run that does not fit.
        memory: of a device, in bytes.
        processes: that there are.

    Returns:
        The flags as text, such as "--checkpointing --micro-batch 1"; None where nothing helps.

    Raises:
        FileNotFoundError, ValueError: no such base or adapter.
    """
    sizes = _load_sizes(config)

    def fits(changed: TrainConfig, devices: int = processes) -> bool:
        return _estimate(changed, sizes, devices).memory_bytes <= memory

    savings = _savings(config)
    for count in range(1, len(savings) + 1):
        for chosen in combinations(savings, count):
            if fits(replace(config, **_joined(chosen))):
                return " ".join(flag for flag, _ in chosen)
    flags, smallest = " ".join(flag for flag, _ in savings), replace(config, **_joined(savings))
    many = (2, 4, 8, 16, 32, 64) if config.optimizer == "adamw" else ()  # Muon is not sharded
    for devices in many:
        shared = replace(smallest, parallel="fsdp")
        if devices > processes and config.batch % devices == 0 and fits(shared, devices):
            return f"{flags} --parallel fsdp on {devices} GPUs (accelerate launch)".strip()
    for frames in range(config.frames - STRIDES.time, STRIDES.time, -STRIDES.time):
        if fits(replace(smallest, frames=frames)):
            return f"{flags} --frames {frames}".strip()
    return None


def _savings(config: TrainConfig) -> list[tuple[str, dict[str, Any]]]:
    """List the flags that save memory, the cheapest in time and exactness first."""
    savings: list[tuple[str, dict[str, Any]]] = []
    if (config.micro_batch or config.batch) > 1:
        savings.append(("--micro-batch 1", {"micro_batch": 1}))
    if not config.checkpointing:
        savings.append(("--checkpointing", {"checkpointing": True}))
    if config.base_dtype == "float32" and config.stage == "adapter" and not config.train_base:
        savings.append(("--base-dtype bfloat16", {"base_dtype": "bfloat16"}))
    return savings


def _joined(savings: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {name: value for _, changes in savings for name, value in changes.items()}


def _load_sizes(config: TrainConfig) -> _Sizes:
    with torch.device("meta"):
        model = empty_model(base_config(config.base))
        transformer, sizes = model.transformer, model.sizes
        adapter = None if config.stage == "base" else _adapter(config, transformer)
        matrices = hidden_matrices(transformer, adapter)
    weights = list(transformer.parameters())
    parameters = sum(weight.numel() for weight in weights)
    trained = [] if adapter is None else [p for p in adapter.parameters() if p.requires_grad]
    trained += weights if config.stage == "base" or config.train_base else []
    of_video = config.video_rank * sizes.num_layers * 3 * 2 * sizes.dim
    by_muon = of_video + sum(weight.numel() for weight in trained if weight in matrices)
    return _Sizes(
        model,
        parameters,
        of_video + sum(weight.numel() for weight in trained),
        by_muon if config.optimizer == "muon" else 0,
    )


def _estimate(config: TrainConfig, loaded: _Sizes, processes: int) -> TrainEstimate:
    sizes = loaded.model.sizes
    dim = sizes.dim
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
    shards = processes if config.parallel == "fsdp" else 1
    state_words = (
        (loaded.trained - loaded.by_muon) * _STATE_WORDS
        + loaded.by_muon * _MUON_STATE_WORDS
        + loaded.trained * (config.ema > 0)
    )
    return TrainEstimate(
        grid=grid,
        at_once=at_once,
        parameters=loaded.parameters,
        trained=loaded.trained,
        weight_bytes=loaded.parameters * getattr(torch, config.base_dtype).itemsize // shards,
        state_bytes=state_words * torch.float32.itemsize // shards,
        working_bytes=at_once * kept * dtype.itemsize,
        latent_bytes=latent * (clips or 1),
        clips=clips,
        passes=2 + (config.stage == "base" or config.train_base) + config.checkpointing,
    )


def _adapter(config: TrainConfig, transformer: Any) -> GenHOIAdapter:
    """Make the adapter that is trained; the current device is meta."""
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
    return adapter
