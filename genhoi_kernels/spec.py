"""What a call asks for: the part of it that is not data, from which a backend is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, VideoRope


@dataclass(frozen=True)
class AttentionCall:
    """Sizes and options of one ``reference_attention`` call.

    gate_mode: "none", "token" or "sum" (out stays ungated; the logits' sum is handed back).
    needs_grad: a backward pass will follow. rows, keys: N and Nk, by which one of several able
    backends is chosen; 0 where they don't matter.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    ref_lengths: tuple[int, ...]
    rope: VideoRope | None
    ref_rope: HeadSlidingRope | None
    gate_mode: str
    scale: float
    needs_grad: bool
    rows: int = 0
    keys: int = 0


@dataclass(frozen=True)
class AttentionTensors:
    """The data of one ``reference_attention`` call, shapes as there; ``bits`` as MaskGate.bits.

    mask_gate: the MaskGate whose bits these are, where the caller built one.
    Also holds the gradients of such data.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    k_ref: Tensor | None
    v_ref: Tensor | None
    bits: Tensor | None
    ref_bias: Tensor | None
    gate: GateWeights | None
    mask_gate: MaskGate | None = None


@dataclass(frozen=True)
class AttentionGrads:
    """Gradients that reach the outputs of a call; None where none does."""

    out: Tensor | None
    lse: Tensor | None
    gate_sum: Tensor | None


@dataclass(frozen=True)
class RopeCall:
    """Sizes and options of one ``qk_norm_rope`` or ``apply_rope`` call."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int


def present(tensors: AttentionTensors) -> list[Tensor]:
    """The differentiable tensors that are there, in the order of the fields."""
    t = tensors
    every = (t.q, t.k, t.v, t.k_ref, t.v_ref, t.ref_bias, *(t.gate or ()))
    return [x for x in every if x is not None]
