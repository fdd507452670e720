"""Small tables that kernels on a GPU read, copied there once: no launch waits for the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genhoi_kernels.rope import Rope, token_places


class Angles(NamedTuple):
    """A rotation's tables of three axes, one after another.

    cosines, sines: float32. places: ``[tokens, 3]`` int32, see ``token_places``.
    row_table, col_table: where those axes' tables start.
    """

    cosines: Tensor
    sines: Tensor
    places: Tensor
    row_table: int
    col_table: int


@functools.lru_cache(maxsize=32)
def angles(rope: Rope, tokens: int, device: torch.device) -> Angles:
    """Return the tables of a rotation of so many tokens, in the device's memory."""
    tables = rope.tables(device=device, dtype=torch.float32)
    flat = [table.reshape(-1, 2) for table in tables]
    with torch.inference_mode(False), torch.no_grad():
        cosines_and_sines = torch.cat(flat)
        return Angles(
            cosines_and_sines[:, 0].contiguous(),
            cosines_and_sines[:, 1].contiguous(),
            token_places(rope, tokens, device),
            len(flat[0]),
            len(flat[0]) + len(flat[1]),
        )


def segments(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return where each reference starts, and the last one ends: ``[R + 1]`` int32."""
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return host_integers(tuple(ends), device)


@functools.lru_cache(maxsize=64)
def host_integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Return a few integers in the device's memory."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.int32).to(device)
