"""Argument checks of the public functions: every message names the argument, what came, what was
wanted. Only shapes, dtypes, devices and lengths are looked at, never values."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights, gate_shapes
from genhoi_kernels.mask_gate import MAX_SEGMENTS, MaskGate
from genhoi_kernels.rope import HeadSlidingRope, ReferenceFramesRope, VideoRope, heads_fit

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
        choices = choice if isinstance(choice, tuple) else (choice,)
        # torch.compile, which may take sizes for variables, traces == but not `in`.
        if not any([size == one for one in choices]):
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


def check_rope(name: str, rope: VideoRope | ReferenceFramesRope | None, x: Tensor) -> None:
    """Check that a rotation of video tokens, or of reference frames too, fits ``[B, N, H, D]``."""
    if rope is None:
        return
    if not isinstance(rope, (VideoRope, ReferenceFramesRope)):
        wanted = "VideoRope, ReferenceFramesRope or None"
        raise TypeError(f"{name}: got {type(rope).__name__}, wanted {wanted}")
    check_head_dim(name, rope.head_dim, x.shape[-1])
    if isinstance(rope, ReferenceFramesRope):
        check_heads(name, x.shape[2], rope.num_heads, rope.first_head)
    if rope.fits(x.shape[1]):
        return
    if rope.token_offset is None:
        raise ValueError(
            f"{name}: got grid {rope.grid}, {rope.grid_tokens} tokens in all, wanted N = "
            f"{x.shape[1]}; a shard of the sequence is said by token_offset=0, or its first row"
        )
    raise ValueError(
        f"{name}: got grid {rope.grid} with token_offset {rope.token_offset}, which has room "
        f"for {rope.max_tokens} tokens; wanted room for {x.shape[1]}"
    )


def check_ref_rope(name: str | None, rope: HeadSlidingRope | None, x: Tensor) -> None:
    """Check that a reference rotation fits x ``[B, M, H, D]``.

    Of this and the next three, a name of None says that what is wrong is a module's own option.
    """
    if rope is None:
        return
    if not isinstance(rope, HeadSlidingRope):
        raise TypeError(f"{name}: got {type(rope).__name__}, wanted HeadSlidingRope or None")
    check_head_dim(name, rope.head_dim, x.shape[-1])
    check_heads(name, x.shape[2], rope.num_heads, rope.first_head)
    check_ref_tokens(name, rope, x.shape[1])


def check_heads(name: str | None, heads: int, num_heads: int, first_head: int | None) -> None:
    """Check that ``heads`` are all of ``num_heads``, or a shard of them from ``first_head`` on."""
    if heads_fit(heads, num_heads, first_head):
        return
    if first_head is None:
        raise ValueError(
            f"{_got(name, 'num_heads')} {num_heads}, wanted H = {heads}; a shard of the heads is "
            f"said by first_head=0, or its first head"
        )
    raise ValueError(
        f"{_got(name, 'num_heads')} {num_heads} and first_head {first_head}, wanted "
        f"num_heads of at least {first_head + heads} (global count) for {heads} heads"
    )


def check_ref_tokens(name: str | None, rope: HeadSlidingRope, tokens: int) -> None:
    """Check that the references of a rotation have so many tokens in all."""
    if sum(rope.lengths) != tokens:
        raise ValueError(
            f"{_got(name, 'ref_grids')} {rope.ref_grids}, {sum(rope.lengths)} tokens in all, "
            f"wanted M = {tokens}"
        )


def check_head_dim(name: str | None, got: int, wanted: int) -> None:
    """Check a head dim against that of the tensors."""
    if got != wanted:
        raise ValueError(f"{_got(name, 'head_dim')} {got}, wanted D = {wanted}")


def _got(name: str | None, attribute: str) -> str:
    """Begin a message on an attribute of the argument ``name``, or on a module's option."""
    return f"{name}: got {attribute}" if name else f"{attribute}: got"


def check_same_positions(
    rope: VideoRope | ReferenceFramesRope | None, ref_rope: HeadSlidingRope | None
) -> None:
    """Check that video and references are placed in one and the same space.

    A logit depends on the distance between query and key alone only where both are rotated by the
    same angles; and references start just past the grid of their own video.
    """
    if rope is None or ref_rope is None:
        return
    if rope.grid != ref_rope.video_grid:
        raise ValueError(
            f"ref_rope: got video_grid {ref_rope.video_grid}, wanted {rope.grid}, the grid of rope"
        )
    if rope.theta != ref_rope.theta:
        raise ValueError(f"ref_rope: got theta {ref_rope.theta}, wanted {rope.theta} as rope")


def check_segments(
    k_ref: Tensor, ref_lengths: Sequence[int] | None, ref_rope: HeadSlidingRope | None
) -> tuple[int, ...]:
    """Return the lengths of the references, after checking them against M."""
    tokens = k_ref.shape[1]
    if ref_lengths is None:
        return (tokens,) if ref_rope is None else ref_rope.lengths
    try:
        lengths = tuple([operator.index(n) for n in ref_lengths])
    except TypeError:
        raise TypeError(f"ref_lengths: got {ref_lengths!r}, wanted integers") from None
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


def check_scale(scale: object) -> float:
    """Return the scale as a float: a finite number other than 0."""
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale: got {type(scale).__name__}, wanted a number or None")
    value = float(scale)
    if not 0 < abs(value) < math.inf:  # nan is neither
        raise ValueError(f"scale: got {value}, wanted a finite number other than 0")
    return value


def check_eps(eps: float) -> float:
    """Return the eps of a norm as a float: finite, and not below 0."""
    value = float(eps)
    if not 0 <= value < math.inf:
        raise ValueError(f"eps: got {value}, wanted a finite number of at least 0")
    return value


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless value is one of the choices."""
    if value not in choices:
        shown = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name}: got {value!r}, wanted one of {shown}")


def check_gate_options(gate: object, gate_reduction: str, return_gate_sum: bool) -> None:
    """Check that the reduction is known, and that a sum is asked for only where there is one."""
    check_choice("gate_reduction", gate_reduction, GATE_REDUCTIONS)
    if return_gate_sum and (gate is None or gate_reduction != "sequence"):
        raise ValueError(
            "return_gate_sum: got True, wanted False unless there is a gate with "
            "gate_reduction='sequence'"
        )
