"""Argument checks of the public functions: every message names the argument, what came, what was
wanted. Only shapes, dtypes, devices and lengths are looked at, never values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights, gate_shapes
from genhoi_kernels.mask_gate import MAX_SEGMENTS, MaskGate
from genhoi_kernels.rope import HeadSlidingRope, VideoRope

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GATE_REDUCTIONS = ("token", "sequence")


def check_tensor(name: str, x: object, dims: str, like: Tensor | None = None) -> None:
    """Check that x is a floating-point tensor of ``dims`` ("B N H D"), the last one contiguous.

    Raises:
        TypeError: not a tensor, a dtype outside DTYPES or not that of ``like``.
        ValueError: number of dimensions, device, or strides.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wanted a tensor")
    wanted_dtypes = DTYPES if like is None else (like.dtype,)
    if x.dtype not in wanted_dtypes:
        wanted = " or ".join(str(d) for d in wanted_dtypes)
        raise TypeError(f"{name}: got {x.dtype}, wanted {wanted}")
    if x.dim() != len(dims.split()):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted [{dims.replace(' ', ', ')}]")
    if like is not None:
        check_device(name, x, like)
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(
            f"{name}: got strides {x.stride()}, wanted the last dimension contiguous (stride 1)"
        )


def check_device(name: str, x: Tensor, like: Tensor) -> None:
    """Raise ValueError unless x is on the device of ``like``."""
    if x.device != like.device:
        raise ValueError(f"{name}: got device {x.device}, wanted {like.device} as q")


def check_shape(name: str, x: Tensor, wanted: Sequence[int | tuple[int, ...]], dims: str) -> None:
    """Raise ValueError unless each size is the one wanted, or one of several."""
    if x.shape == wanted:
        return
    for size, choice in zip(x.shape, wanted, strict=True):
        if size not in (choice if isinstance(choice, tuple) else (choice,)):
            shown = ", ".join(
                " or ".join(map(str, sorted(set(c)))) if isinstance(c, tuple) else str(c)
                for c in wanted
            )
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted [{shown}] ({dims})")


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check shapes, dtypes and devices of q ``[B, N, H, D]`` and k, v ``[B, Nk, H, D]``."""
    check_tensor("q", q, "B N H D")
    batch, _, heads, head_dim = q.shape
    if head_dim < 1:
        raise ValueError(f"q: got head dim {head_dim}, wanted at least 1")
    check_tensor("k", k, "B Nk H D", like=q)
    check_shape("k", k, (batch, k.shape[1], heads, head_dim), "B, Nk, H, D as q")
    check_tensor("v", v, "B Nk H D", like=q)
    check_shape("v", v, tuple(k.shape), "B, Nk, H, D as k")


def check_references(q: Tensor, k_ref: Tensor | None, v_ref: Tensor | None) -> None:
    """Check shapes, dtypes and devices of k_ref, v_ref ``[B or 1, M, H, D]``; both or neither."""
    if (k_ref is None) != (v_ref is None):
        given, missing = ("k_ref", "v_ref") if v_ref is None else ("v_ref", "k_ref")
        raise ValueError(f"{missing}: got None beside {given}, wanted both or neither")
    if k_ref is None or v_ref is None:
        return
    batch, _, heads, head_dim = q.shape
    check_tensor("k_ref", k_ref, "B M H D", like=q)
    wanted = ((1, batch), k_ref.shape[1], heads, head_dim)
    check_shape("k_ref", k_ref, wanted, "B or 1, M, H, D as q")
    check_tensor("v_ref", v_ref, "B M H D", like=q)
    check_shape("v_ref", v_ref, tuple(k_ref.shape), "B or 1, M, H, D as k_ref")


def check_rope(name: str, rope: VideoRope | None, x: Tensor) -> None:
    """Check that a video rotation fits x ``[B, N, H, D]``."""
    if rope is None:
        return
    if not isinstance(rope, VideoRope):
        raise TypeError(f"{name}: got {type(rope).__name__}, wanted VideoRope or None")
    _check_head_dim(name, rope.head_dim, x.shape[-1])
    if x.shape[1] > rope.max_tokens:
        raise ValueError(
            f"{name}: got grid {rope.grid} with token_offset {rope.token_offset}, which has room "
            f"for {rope.max_tokens} tokens; wanted room for {x.shape[1]}"
        )


def check_ref_rope(name: str, rope: HeadSlidingRope | None, x: Tensor) -> None:
    """Check that a reference rotation fits x ``[B, M, H, D]``."""
    if rope is None:
        return
    if not isinstance(rope, HeadSlidingRope):
        raise TypeError(f"{name}: got {type(rope).__name__}, wanted HeadSlidingRope or None")
    _check_head_dim(name, rope.head_dim, x.shape[-1])
    if rope.first_head + x.shape[2] > rope.num_heads:
        raise ValueError(
            f"{name}: got num_heads {rope.num_heads} and first_head {rope.first_head}, wanted "
            f"num_heads of at least {rope.first_head + x.shape[2]} (global count) for "
            f"{x.shape[2]} heads"
        )
    if sum(rope.lengths) != x.shape[1]:
        raise ValueError(
            f"{name}: got ref_grids {rope.ref_grids}, {sum(rope.lengths)} tokens in all, wanted "
            f"{x.shape[1]}"
        )


def _check_head_dim(name: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise ValueError(f"{name}: got head_dim {got}, wanted {wanted}")


def check_segments(
    k_ref: Tensor, ref_lengths: Sequence[int] | None, ref_rope: HeadSlidingRope | None
) -> tuple[int, ...]:
    """Return the lengths of the references, after checking them against M."""
    tokens = k_ref.shape[1]
    if ref_lengths is None:
        return (tokens,) if ref_rope is None else ref_rope.lengths
    lengths = tuple(int(n) for n in ref_lengths)
    if not lengths or any(n < 0 for n in lengths) or sum(lengths) != tokens:
        raise ValueError(
            f"ref_lengths: got {lengths}, {sum(lengths)} in all, wanted one or "
            f"more non-negative lengths with sum {tokens} (M of k_ref)"
        )
    return lengths


def check_mask(mask: Tensor | MaskGate, q: Tensor, segments: int) -> None:
    """Check that a mask or MaskGate fits q and the number of references."""
    if not isinstance(mask, (Tensor, MaskGate)):
        raise TypeError(f"mask: got {type(mask).__name__}, wanted a tensor, MaskGate or None")
    bits = mask.bits if isinstance(mask, MaskGate) else mask
    if bits.dim() != 2:
        raise ValueError(f"mask: got shape {tuple(bits.shape)}, wanted [B or 1, N]")
    check_shape("mask", bits, ((1, q.shape[0]), q.shape[1]), "B or 1, N as q")
    check_device("mask", bits, q)
    most = 8 if bits.dtype == torch.uint8 else MAX_SEGMENTS
    if segments > most:
        raise ValueError(
            f"mask: got {bits.dtype}, whose bits tell {most} references apart, wanted a mask for "
            f"{segments} (at most {MAX_SEGMENTS})"
        )


def check_ref_bias(ref_bias: Tensor, q: Tensor, segments: int) -> None:
    """Check for one float32 bias for each reference (float64 beside float64 queries)."""
    wanted = (torch.float32, torch.float64) if q.dtype == torch.float64 else (torch.float32,)
    if not isinstance(ref_bias, Tensor) or ref_bias.dtype not in wanted:
        came = ref_bias.dtype if isinstance(ref_bias, Tensor) else type(ref_bias).__name__
        raise TypeError(f"ref_bias: got {came}, wanted torch.float32")
    if tuple(ref_bias.shape) != (segments,):
        raise ValueError(
            f"ref_bias: got shape {tuple(ref_bias.shape)}, wanted ({segments},), one per reference"
        )
    check_device("ref_bias", ref_bias, q)


def check_weight(name: str, weight: object, shape: tuple[int, ...], q: Tensor) -> None:
    """Check that a weight has float32 or q's dtype, one shape, and q's device."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: got {type(weight).__name__}, wanted a tensor")
    if weight.dtype not in (torch.float32, q.dtype):
        raise TypeError(f"{name}: got {weight.dtype}, wanted torch.float32 or {q.dtype} as q")
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}, wanted {shape}")
    check_device(name, weight, q)


def check_gate(gate: GateWeights, q: Tensor) -> None:
    """Check that all six weights of a flow gate fit the head dim."""
    if not isinstance(gate, GateWeights):
        raise TypeError(f"gate: got {type(gate).__name__}, wanted GateWeights, FlowGate or None")
    if q.shape[-1] < 2:
        raise ValueError(f"gate: got head dim {q.shape[-1]}, wanted at least 2")
    for (name, shape), weight in zip(gate_shapes(q.shape[-1]).items(), gate, strict=True):
        check_weight(f"gate.{name}", weight, shape, q)


def check_gate_options(gate: object, gate_reduction: str, return_gate_sum: bool) -> None:
    """Check that the reduction is known, and that a sum is asked for only where there is one."""
    if gate_reduction not in GATE_REDUCTIONS:
        raise ValueError(
            f"gate_reduction: got {gate_reduction!r}, wanted one of {', '.join(GATE_REDUCTIONS)}"
        )
    if return_gate_sum and (gate is None or gate_reduction != "sequence"):
        raise ValueError(
            "return_gate_sum: got True, wanted False unless there is a gate with "
            "gate_reduction='sequence'"
        )
