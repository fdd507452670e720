"""Configurations worth a try, for the table's maker and for autotuning."""

from __future__ import annotations

from typing import Any

from genhoi_kernels.backends.triton.tuning.compiler import allows, is_sound
from genhoi_kernels.backends.triton.tuning.configs import Config

# (block_m, block_n, block_r, warps, stages), the most wanted first. Large tiles read K and V less
# often and give each warp work enough to hide what is not a product; they also spill first.
_FORWARD = {
    "sm_80": [
        (128, 64, 16, 8, 3),
        (128, 64, 64, 8, 3),
        (128, 64, 32, 8, 2),
        (128, 64, 16, 8, 2),
        (128, 32, 64, 8, 2),
        (128, 32, 16, 8, 3),
        (128, 32, 32, 8, 2),
        (64, 32, 16, 4, 2),
        (64, 16, 16, 4, 2),
        (64, 16, 16, 8, 2),
        (64, 16, 16, 8, 1),
    ],
    "sm_90": [
        (128, 128, 64, 8, 2),
        (128, 128, 32, 8, 2),
        (128, 64, 32, 8, 3),
        (128, 64, 64, 8, 2),
        (128, 64, 16, 8, 2),
        (128, 32, 32, 8, 2),
        (64, 64, 32, 4, 2),
        (64, 32, 32, 4, 2),
        (64, 32, 16, 8, 2),
        (64, 16, 16, 8, 1),
    ],
}
_BACKWARD = {
    "sm_80": [
        (64, 128, 64, 8, 2),
        (64, 64, 32, 8, 2),
        (64, 64, 16, 4, 2),
        (64, 32, 16, 4, 2),
        (64, 32, 16, 8, 2),
        (64, 16, 16, 4, 2),
        (64, 16, 16, 4, 1),
        (64, 16, 16, 8, 1),
    ],
    "sm_90": [
        (64, 128, 64, 8, 2),
        (64, 128, 32, 8, 2),
        (64, 64, 32, 8, 2),
        (64, 64, 64, 4, 2),
        (64, 32, 32, 4, 2),
        (64, 32, 16, 8, 2),
        (64, 16, 16, 8, 1),
    ],
}
# With as many keys as the head dim a warp has whole rows of P^T, which stay in its registers as the
# operand of dV; with fewer keys Triton has warps share rows, and P^T goes through shared memory.
# So that 128 keys fit, rows are fewer: the video's keys alone may go by less than the mask gate's
# tiles.
_KEYS = {
    "sm_80": [_BACKWARD["sm_80"][0], (32, 128, 64, 8, 2), *_BACKWARD["sm_80"][1:]],
    "sm_90": _BACKWARD["sm_90"],
}
_QUERIES = {
    "sm_80": [(128, 64, 32, 8, 2), (128, 64, 16, 8, 2), (128, 32, 16, 8, 2)],
    "sm_90": [(128, 64, 32, 8, 2), (128, 64, 64, 8, 2), (128, 32, 32, 8, 2)],
}
_GATE = [(64, 0, 0, 8, 1), (32, 0, 0, 8, 1), (32, 0, 0, 4, 1), (16, 0, 0, 8, 1), (16, 0, 0, 4, 1)]
_DELTA = [(128, 0, 0, 4, 1), (64, 0, 0, 4, 1), (64, 0, 0, 8, 1)]
# How a pipelined loop copies; in forward also how registers are spared in the flow gate.
_COPIES: dict[str, tuple[dict[str, Any], ...]] = {
    "sm_80": ({},),
    "sm_90": ({"descriptors": True}, {}),
}
_FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "sm_80": ({}, {"block_f": 32}, {"block_f": 16}),
    "sm_90": ({"descriptors": True}, {}, {"descriptors": True, "block_f": 32}, {"block_f": 32}),
}


def candidates(kernel: str, arch: str) -> list[Config]:
    """List configurations in the order of trying; none that this Triton compiles wrongly."""
    family = "sm_90" if arch in ("sm_90", "sm_100") else "sm_80"
    sizes = {
        "forward": _FORWARD[family],
        "queries": _QUERIES[family] + _BACKWARD[family],
        "keys": _KEYS[family],
        "reference_keys": _BACKWARD[family],
        "gate_backward": _GATE,
        "delta": _DELTA,
    }[kernel]
    forms: tuple[dict[str, Any], ...] = ({},)
    if kernel == "forward":
        forms = _FORMS[family]
    elif kernel in ("queries", "keys", "reference_keys"):
        forms = _COPIES[family]
    stages_r = 2 if kernel in ("forward", "queries") and is_sound(arch) else 1
    every = [Config(*size, **form, stages_r=stages_r) for size in sizes for form in forms]
    return [config for config in every if allows(config, arch)]
