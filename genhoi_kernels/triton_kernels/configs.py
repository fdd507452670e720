"""Block sizes, warps and pipeline stages, per GPU architecture, kernel, dtype and head dim."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How a kernel is cut up.

    block_m: query rows of a tile. block_n: keys of a block; block_r: keys of a block of references,
    and of what whole blocks of video keys leave. how: how this entry was chosen.
    """

    block_m: int
    block_n: int
    block_r: int
    num_warps: int
    num_stages: int
    how: str


def config(arch: str, kernel: str, itemsize: int, block_d: int) -> Config:
    return Config(64, 32, 16, 4, 2, "")
