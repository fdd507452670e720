"""Times one attention call of the op beside PyTorch's SDPA with a dense mask."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi_kernels import HeadSlidingRope, MaskGate, VideoRope, apply_rope, reference_attention

__all__ = ["Timing", "time_attention"]


@dataclass(frozen=True)
class Timing:
    """Median seconds of one attention call, the ways taken in turn.

    Args:
        heads: heads of the timed call.
        repeats: calls behind each median; one more, untimed, came first.
        sdpa: `F.scaled_dot_product_attention` with a dense additive mask; rotation, joining of keys
            and values and the mask itself were made before the clock started.
        op: the op on keys and queries that come rotated.
        op_with_rotation: the op rotating them itself.
        mask_bytes: size of the dense mask that only the first way needs.
    """

    heads: int
    repeats: int
    sdpa: float
    op: float
    op_with_rotation: float
    mask_bytes: int


def time_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    *,
    gate: MaskGate,
    rope: VideoRope,
    ref_rope: HeadSlidingRope,
    backend: str,
    repeats: int,
    report: Callable[[str], None],
) -> Timing:
    """Time the op, and SDPA on the same numbers.

    Args:
        q, k, v: video tokens [1, N, H, D], not rotated.
        k_ref, v_ref: reference tokens [1, M, H, D], not rotated.
        gate: rows that see the reference.
        rope: rotation of q and k.
        ref_rope: rotation of k_ref.
        backend: of the op.
        repeats: timed calls of each.
        report: called before every call.
    """
    q_turned, k_turned = (apply_rope(x, rope, backend=backend) for x in (q, k))
    k_ref_turned = apply_rope(k_ref, ref_rope, backend=backend)
    bias = q.new_zeros(q.shape[1], q.shape[1] + k_ref.shape[1])
    bias[gate.bits[0] == 0, q.shape[1] :] = -math.inf
    query = q_turned.transpose(1, 2).contiguous()
    keys = torch.cat([k_turned, k_ref_turned], dim=1).transpose(1, 2).contiguous()
    values = torch.cat([v, v_ref], dim=1).transpose(1, 2).contiguous()

    def op() -> Any:
        return reference_attention(
            q_turned, k_turned, v, k_ref_turned, v_ref, mask=gate, backend=backend
        )

    def op_with_rotation() -> Any:
        return reference_attention(
            q, k, v, k_ref, v_ref, mask=gate, rope=rope, ref_rope=ref_rope, backend=backend
        )

    def sdpa() -> Any:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)

    calls = [sdpa, op, op_with_rotation]
    sdpa_time, op_time, rotating_time = _medians(calls, repeats, q.device, report)
    return Timing(
        heads=q.shape[2],
        repeats=repeats,
        sdpa=sdpa_time,
        op=op_time,
        op_with_rotation=rotating_time,
        mask_bytes=bias.numel() * bias.element_size(),
    )


def _medians(
    calls: Sequence[Callable[[], Any]],
    repeats: int,
    device: torch.device,
    report: Callable[[str], None],
) -> list[float]:
    """Median seconds of each call; in turn, so that a slow moment of the machine hits all."""
    seconds: list[list[float]] = [[] for _ in calls]
    for round_ in range(repeats + 1):
        for call, found in zip(calls, seconds, strict=True):
            report("timing")
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if round_ > 0:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
