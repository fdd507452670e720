"""Configurations worth a try, for the table's maker and for autotuning."""

from __future__ import annotations

from typing import Any

from genhoi_kernels.backends.triton.tuning.compiler import allows
from genhoi_kernels.backends.triton.tuning.configs import Config

# (block_m, block_n, block_r, warps, stages), the most wanted first. Large tiles read K and V less
# often and give each warp work enough to hide what is not a product; they also spill first.
_FORWARD = {
    "sm_80": [
        (128, 64, 16, 8, 3), (128, 64, 64, 8, 3), (128, 64, 32, 8, 2), (128, 64, 16, 8, 2),
        (128, 32, 64, 8, 2), (128, 32, 16, 8, 3), (128, 32, 32, 8, 2), (64, 32, 16, 4, 2),
        (64, 16, 16, 4, 2), (64, 16, 16, 8, 2), (64, 16, 16, 8, 1),
    ],
    "sm_90": [
        (128, 128, 64, 8, 2), (128, 128, 32, 8, 2), (128, 64, 32, 8, 3), (128, 64, 64, 8, 2),
        (128, 64, 16, 8, 2), (128, 32, 32, 8, 2), (64, 64, 32, 4, 2), (64, 32, 32, 4, 2),
        (64, 32, 16, 8, 2), (64, 16, 16, 8, 1),
    ],
}  # fmt: skip
_BACKWARD = {
    "sm_80": [
        (64, 128, 64, 8, 2), (64, 64, 32, 8, 2), (64, 64, 16, 4, 2), (64, 32, 16, 4, 2),
        (64, 32, 16, 8, 2), (64, 16, 16, 4, 2), (64, 16, 16, 8, 1),
    ],
    "sm_90": [
        (64, 128, 64, 8, 2), (64, 128, 32, 8, 2), (64, 64, 32, 8, 2), (64, 64, 64, 4, 2),
        (64, 32, 32, 4, 2), (64, 32, 16, 8, 2), (64, 16, 16, 8, 1),
    ],
}  # fmt: skip
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
    """In the order in which they are tried; none that this Triton compiles wrongly."""
    family = "sm_90" if arch in ("sm_90", "sm_100") else "sm_80"
    sizes = {
        "forward": _FORWARD[family],
        "queries": _QUERIES[family] + _BACKWARD[family],
        "keys": _BACKWARD[family],
        "reference_keys": _BACKWARD[family],
        "gate_backward": _GATE,
        "delta": _DELTA,
    }[kernel]
    forms: tuple[dict[str, Any], ...] = ({},)
    if kernel == "forward":
        forms = _FORMS[family]
    elif kernel in ("queries", "keys", "reference_keys"):
        forms = _COPIES[family]
    found = [Config(*size, **form) for size in sizes for form in forms]
    return [cut for cut in found if allows(cut, arch)]
