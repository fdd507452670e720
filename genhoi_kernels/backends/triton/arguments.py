"""An attention call's tensors and options as the arguments that the kernels have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends.device_tables import segments
from genhoi_kernels.backends.triton.launch import (
    ceil_div,
    descriptor,
    has_descriptor,
    power_of_two,
    strides,
)
from genhoi_kernels.backends.triton.tuning import configs
from genhoi_kernels.backends.triton.tuning.compiler import is_sound, safe_form
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import TILE_ROWS, tile_bits
from genhoi_kernels.spec import AttentionCall, AttentionTensors


def precision(arch: str, dtype: torch.dtype) -> str:
    """Say how tl.dot multiplies float32: on NVIDIA's tensor cores by parts of 11 bits."""
    if not arch.startswith("sm_") or (dtype == torch.float32 and not is_sound(arch)):
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def has_references(t: AttentionTensors) -> bool:
    """Say whether there is a reference token."""
    return t.k_ref is not None and t.k_ref.shape[1] > 0


def pipelined_config(kernel: str, copied: tuple[Tensor, Tensor], *, arch: str) -> Config:
    """Give the configuration of a kernel whose pipelined loop copies blocks of these tensors."""
    config = configs.config_for(arch, kernel, copied[0])
    return safe_form(config, arch, has_descriptors=all(map(has_descriptor, copied)))


def descriptors(config: Config, rows: int, **copied: Tensor) -> dict[str, Any]:
    """Describe what a loop copies, ``rows`` at a time, if the configuration asks for it."""
    usable = config.descriptors and all(map(has_descriptor, copied.values()))
    return {
        f"{name}_desc": descriptor(x, (rows, power_of_two(x.shape[3]))) if usable else None
        for name, x in copied.items()
    }


def reference_flags(t: AttentionTensors) -> dict[str, bool]:
    """Give the constants that say which of references, mask and bias there are."""
    references = has_references(t)
    return {
        "REFERENCES": references,
        "MASK": references and t.bits is not None,
        "BIAS": references and t.ref_bias is not None,
    }


def reference_arguments(call: AttentionCall, t: AttentionTensors) -> dict[str, Any]:
    """Describe the references to a kernel that goes through all of them."""
    flags = reference_flags(t)
    return {
        "K_ref": t.k_ref if flags["REFERENCES"] else None,
        "V_ref": t.v_ref if flags["REFERENCES"] else None,
        **mask_arguments(t, masked=flags["MASK"]),
        "segments": segments(call.ref_lengths, t.q.device) if flags["REFERENCES"] else None,
        "ref_bias": t.ref_bias if flags["BIAS"] else None,
    }


def mask_arguments(t: AttentionTensors, *, masked: bool) -> dict[str, Tensor | None]:
    """Give the rows' bits and the tiles' flags, where there is a mask."""
    if not masked or t.bits is None:
        return {"bits": None, "tile_bits": None}
    flags = tile_bits(t.bits) if t.mask_gate is None else t.mask_gate.tile_bits
    return {"bits": t.bits.contiguous(), "tile_bits": flags.contiguous()}


def mask_strides(t: AttentionTensors) -> dict[str, int]:
    """Give the strides from one sample's bits and flags to the next; 0 for a mask of all."""
    if t.bits is None or t.bits.shape[0] == 1:
        return {"bits_b": 0, "tile_bits_b": 0}
    rows = t.bits.shape[1]
    return {"bits_b": rows, "tile_bits_b": ceil_div(rows, TILE_ROWS)}


def all_strides(t: AttentionTensors) -> dict[str, int]:
    """Give the strides of the video's and the references' tensors, and of the mask."""
    return {
        **strides("q", t.q),
        **strides("k", t.k),
        **strides("v", t.v),
        **strides("k_ref", t.k_ref),
        **strides("v_ref", t.v_ref),
        **mask_strides(t),
    }


def gate_arguments(gate: GateWeights | None) -> dict[str, Tensor | None]:
    """Give the gate's weights by name."""
    if gate is None:
        return dict.fromkeys(GateWeights._fields)
    return {name: weight.contiguous() for name, weight in gate._asdict().items()}


def backward_scale(call: AttentionCall) -> dict[str, float]:
    """Give the scale, and the factor that ``probabilities`` multiplies q . k with."""
    exact = call.dtype == torch.float32
    return {"scale": call.scale, "factor": call.scale if exact else call.scale * math.log2(math.e)}
