"""One compiled form of a Triton kernel, described so that it can be compiled without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants and options, for one architecture.

    Attributes:
        name: what it computes, such as "forward".
        arch: "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120" or "gfx942".
        kernel: the function that `triton.jit` returned.
        signature: argument -> type: "*bf16", "i32", "fp32", "constexpr", "tensordesc<..>".
        constexprs: value of each argument whose type is "constexpr".
        divisible_by_16: arguments that are multiples of 16, or pointers aligned to 16 bytes.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline.
        extra_options: further options of `triton.compile`.
        dtype: of queries, keys and values, such as "bf16".
        head_dim: values of a head.
        tile: (queries, keys, values of a head) of one pass of the main loop; None without one.
        main_loop: a loop of tensor-core instructions is expected, pipelined if num_stages > 1.
        how: how the entry was chosen.
    """

    name: str
    arch: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible_by_16: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    extra_options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bf16"
    head_dim: int = 128
    tile: tuple[int, int, int] | None = None
    main_loop: bool = False
    how: str = ""
