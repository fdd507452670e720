"""Variants for test_static.py: one that is well, and one for each thing that can be wrong.

Imported by the processes that compile, not by the tests, which may run kernels in an interpreter.
"""

from __future__ import annotations

import os
from dataclasses import replace

import triton
import triton.language as tl

from benchmarks.static.variant import Variant


@triton.jit
def product(A, B, C, K, SIZE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    """C = A B for a tile of SIZE x SIZE, K values at a time in STEPs."""
    row, step = tl.arange(0, SIZE), tl.arange(0, STEP)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, K, STEP):
        a = tl.load(A + row[:, None] * K + (k + step)[None, :])
        b = tl.load(B + (k + step)[:, None] * SIZE + row[None, :])
        total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(C + row[:, None] * SIZE + row[None, :], total)


class Crash:
    """A kernel that takes the compiling process along."""

    @property
    def arg_names(self) -> list[str]:
        os._exit(1)


def variants() -> list[Variant]:
    well = Variant(
        name="well",
        arch="sm_80",
        kernel=product,
        signature={
            "A": "*bf16",
            "B": "*bf16",
            "C": "*fp32",
            "K": "i32",
            "SIZE": "constexpr",
            "STEP": "constexpr",
            "PRECISION": "constexpr",
        },
        constexprs={"SIZE": 64, "STEP": 32, "PRECISION": "tf32"},
        divisible_by_16=("A", "B", "C", "K"),
        num_stages=3,
        tile=(64, 64, 32),
        main_loop=True,
        how="for the tests",
    )
    floats = dict(well.signature) | {"A": "*fp32", "B": "*fp32"}
    exact = dict(well.constexprs) | {"PRECISION": "ieee"}
    large = dict(well.constexprs) | {"SIZE": 128, "STEP": 64}
    return [
        well,
        replace(well, name="well on Hopper", arch="sm_90"),
        replace(well, name="well on AMD", arch="gfx942", num_stages=2),
        replace(well, name="crashes", kernel=Crash()),
        replace(well, name="spills", constexprs=large, num_warps=1),
        replace(well, name="too large", arch="sm_86", constexprs=large, num_stages=6),
        replace(well, name="scalar", signature=floats, constexprs=exact, dtype="fp32"),
        replace(well, name="in step", divisible_by_16=()),
        replace(well, name="wrong", constexprs={"SIZE": 60, "STEP": 32, "PRECISION": "tf32"}),
    ]
