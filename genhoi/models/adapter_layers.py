"""The weights that one block of a base gets: low-rank ones, and flow gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genhoi.models.adapter_config import AdapterConfig
from genhoi.models.placement import local_weight
from genhoi_kernels import FlowGate

__all__ = ["FramesLayer", "LowRank", "StreamLayer", "make_layer"]


class LowRank(nn.Module):
    """x -> up(down(x)), added to a projection's output: no bias, no scale.

    Plain parameters, not two ``nn.Linear``: what other tools do to every Linear of a model
    (casting to 8 bits, PEFT's "all-linear") leaves these alone.

    Args:
        width: of the input.
        rank: of the product. down ~ N(0, (1/rank)^2), up = 0, so that it starts as nothing.
        out_width: of the output; None: as the input.

    Attributes:
        casts: how often ``to`` changed the weights' dtype, which leaves their versions as they are.
    """

    casts = 0

    def __init__(self, width: int, rank: int, out_width: int | None = None) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(out_width or width, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise both matrices."""
        nn.init.normal_(self.down, std=1 / len(self.down))
        nn.init.zeros_(self.up)

    def _apply(self, fn: Any, recurse: bool = True) -> LowRank:
        """Count casts: of the weights' own module, for several transformers may share them."""
        before = self.down.dtype
        super()._apply(fn, recurse)
        self.casts += self.down.dtype != before
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x ``[..., width]`` of any dtype, in the weights' dtype; return x's."""
        down, up = local_weight(self.down, x), local_weight(self.up, x)
        return F.linear(F.linear(x.to(down.dtype), down), up).to(x.dtype)


class StreamLayer(nn.Module):
    """Of a base with a reference stream: q, k and v of the references, and every attention's gate.

    Attributes:
        of_queries_keys, gates: names of such parts.
    """

    of_queries_keys = ("lora_q", "lora_k")
    gates = ("self_gate", "text_gate", "image_gate")

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.lora_q = LowRank(config.dim, config.rank)
        self.lora_k = LowRank(config.dim, config.rank)
        self.lora_v = LowRank(config.dim, config.rank)
        gate = _gates(config)
        self.self_gate, self.text_gate = gate(), gate()
        self.image_gate = gate() if config.image_attention else None


class FramesLayer(nn.Module):
    """Of a base with references as frames: any of a block's layers for all rows, and both gates.

    Attributes:
        of_queries_keys, gates: names of such parts.
    """

    of_queries_keys = tuple(f"lora.{name}_{x}" for name in ("self", "text") for x in "qk")
    gates = ("self_gate", "text_gate")

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        assert config.ffn_dim is not None and config.lora_targets is not None
        widths = {"ffn_in": (config.dim, config.ffn_dim), "ffn_out": (config.ffn_dim, config.dim)}
        self.lora = nn.ModuleDict()
        if config.rank > 0:
            for name in config.lora_targets:
                width, out_width = widths.get(name, (config.dim, config.dim))
                self.lora[name] = LowRank(width, config.rank, out_width)
        gate = _gates(config)
        self.self_gate, self.text_gate = gate(), gate()


def make_layer(config: AdapterConfig) -> StreamLayer | FramesLayer:
    """Make one block's weights, in the form that the base has its references."""
    return StreamLayer(config) if config.references == "stream" else FramesLayer(config)


def _gates(config: AdapterConfig) -> Callable[[], FlowGate]:
    # How a gate reduces is an option of attach, not of the weights.
    return lambda: FlowGate(config.head_dim, init=config.gate_init)
