"""Rotary positions of video and reference tokens (docs/op.md, "Rotation").

A rotation is described by a small immutable object, never by an N x D table: ``VideoRope`` places
video tokens on their grid, ``HeadSlidingRope`` places reference tokens at another frame in every
head. Kernels read the compact per-axis tables that ``axis_tables`` makes of either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Schedule = str | float | Sequence[float]


class AxisTables(NamedTuple):
    """Cosine and sine of every angle an axis can have: ``[positions, pairs, 2]`` each.

    ``frame`` holds one row per latent frame (video) or per head (reference); ``row`` and ``col``
    one row per grid row and column.
    """

    frame: Tensor
    row: Tensor
    col: Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Split ``head_dim`` into its (time, row, column) parts; each is even (128 -> 44, 42, 42)."""
    spatial = head_dim // 3 // 2 * 2
    return head_dim - 2 * spatial, spatial, spatial


def head_frames(schedule: Schedule, frames: int, num_heads: int) -> tuple[float, ...]:
    """Return the frame at which each of ``num_heads`` heads places the reference.

    Args:
        schedule: ``"paper"``: ceil(frames * n / num_heads) for n = 0..num_heads-1, in exact
            integers; ``"release"``: the authors' code, an integer linspace without its two ends;
            a number: every head at that frame (-1.0 is the paper's ablation); or one number per
            head.
        frames: latent frames of the video.
        num_heads: heads of the whole model, before any sharding.

    Raises:
        TypeError: neither a name, a number nor a sequence.
        ValueError: unknown name, or a sequence whose length is not ``num_heads``.
    """
    wanted = "'paper', 'release', a number or one number a head"
    if isinstance(schedule, str):
        if schedule == "paper":
            return tuple(float(-(-frames * n // num_heads)) for n in range(num_heads))
        if schedule == "release":
            # On the CPU whatever the default device: other devices round an integer linspace
            # differently.
            line = torch.linspace(0, frames, num_heads + 2, dtype=torch.int64, device="cpu")
            return tuple(float(t) for t in line[1:-1].tolist())
        raise ValueError(f"schedule: got {schedule!r}, wanted {wanted}")
    if isinstance(schedule, (int, float)):
        return (float(schedule),) * num_heads
    if not isinstance(schedule, Iterable):
        raise TypeError(f"schedule: got {schedule!r}, wanted {wanted}")
    values = tuple(float(t) for t in schedule)
    if len(values) != num_heads:
        raise ValueError(f"schedule: got {len(values)} frames, wanted num_heads = {num_heads}")
    return values


def _check_grid(name: str, grid: Sequence[int], size: int) -> tuple[int, ...]:
    values = tuple(int(n) for n in grid)
    if len(values) != size or any(n < 1 for n in values):
        raise ValueError(f"{name}: got {tuple(grid)}, wanted {size} sizes of at least 1")
    return values


def _check_head_dim(head_dim: int) -> None:
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim: got {head_dim}, wanted an even number of at least 2")


def _check_theta(theta: float) -> None:
    if not (theta > 0 and math.isfinite(theta)):
        raise ValueError(f"theta: got {theta}, wanted a positive finite base")


@dataclass(frozen=True)
class VideoRope:
    """3D rotation of video tokens: token i sits at the i-th (frame, row, column) of ``grid``.

    Args:
        grid: (f, h, w) of the whole video, after the patch embedding.
        head_dim: D.
        theta: base of the angles, n * theta**(-2i/p) for pair i of a part of size p.
        token_offset: index in the grid of the first token given, for a shard of the sequence.

    Raises:
        ValueError: a grid that is not three positive sizes, an odd head_dim, a bad theta or offset.
    """

    grid: tuple[int, int, int]
    head_dim: int = 128
    theta: float = 10000.0
    token_offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _check_grid("grid", self.grid, 3))
        _check_head_dim(self.head_dim)
        _check_theta(self.theta)
        if not 0 <= self.token_offset <= self.grid_tokens:
            raise ValueError(
                f"token_offset: got {self.token_offset}, wanted 0 to {self.grid_tokens} "
                f"(the tokens of grid {self.grid})"
            )

    @property
    def grid_tokens(self) -> int:
        """Count the tokens of the whole grid, f * h * w."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def max_tokens(self) -> int:
        """Count the tokens from ``token_offset`` to the end of the grid."""
        return self.grid_tokens - self.token_offset

    def tables(self, *, device: torch.device, dtype: torch.dtype) -> AxisTables:
        """Return angle tables of the three axes; ``frame`` has one row per latent frame."""
        f, h, w = self.grid
        positions = (tuple(map(float, range(n))) for n in (f, h, w))
        return _axis_tables(*positions, self.head_dim, self.theta, device, dtype)

    def token_indices(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's rows of the (frame, row, col) tables: three ``[tokens]``."""
        _, h, w = self.grid
        index = torch.arange(self.token_offset, self.token_offset + tokens, device=device)
        return index // (h * w), index // w % h, index % w


@dataclass(frozen=True)
class HeadSlidingRope:
    """Head-sliding rotation of reference tokens: another frame in every head.

    Source: GenHOI, arXiv 2603.06048, "Head-Sliding RoPE".

    Rows and columns of every reference start just past the video's grid, so that no reference
    token shares a position with a video token.

    Args:
        video_grid: (f, h, w) of the video.
        ref_grids: (h_r, w_r) of each reference, in the order of their tokens.
        head_dim: D.
        num_heads: heads of the whole model, over all shards.
        schedule: see ``head_frames``.
        theta: base of the angles.
        first_head: global index of the first head given, under head sharding.

    Attributes:
        frames: frame of every head from ``first_head`` on.

    Raises:
        ValueError: grids, head_dim, theta, schedule or first_head out of range.
    """

    video_grid: tuple[int, int, int]
    ref_grids: tuple[tuple[int, int], ...]
    head_dim: int = 128
    num_heads: int = 40
    schedule: Schedule = "paper"
    theta: float = 10000.0
    first_head: int = 0
    frames: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "video_grid", _check_grid("video_grid", self.video_grid, 3))
        grids = tuple(_check_grid("ref_grids", grid, 2) for grid in self.ref_grids)
        if not grids:
            raise ValueError("ref_grids: got no grid, wanted (h_r, w_r) of at least one reference")
        object.__setattr__(self, "ref_grids", grids)
        if not isinstance(self.schedule, (str, int, float)):
            object.__setattr__(self, "schedule", tuple(float(t) for t in self.schedule))
        _check_head_dim(self.head_dim)
        _check_theta(self.theta)
        if self.num_heads < 1:
            raise ValueError(f"num_heads: got {self.num_heads}, wanted at least 1")
        if not 0 <= self.first_head < self.num_heads:
            raise ValueError(
                f"first_head: got {self.first_head}, wanted 0 to {self.num_heads - 1} (num_heads "
                f"is the global count)"
            )
        every_head = head_frames(self.schedule, self.video_grid[0], self.num_heads)
        object.__setattr__(self, "frames", every_head[self.first_head :])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Count the tokens of each reference, h_r * w_r."""
        return tuple(h * w for h, w in self.ref_grids)

    def tables(self, *, device: torch.device, dtype: torch.dtype) -> AxisTables:
        """Return angle tables of the three axes; ``frame`` has a row per head given."""
        _, h, w = self.video_grid
        rows = tuple(float(h + y) for y in range(max(grid[0] for grid in self.ref_grids)))
        cols = tuple(float(w + x) for x in range(max(grid[1] for grid in self.ref_grids)))
        return _axis_tables(self.frames, rows, cols, self.head_dim, self.theta, device, dtype)

    def token_indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each reference token's rows of the (row, col) tables: two ``[M]``."""
        rows, cols = [], []
        for h, w in self.ref_grids:
            index = torch.arange(h * w, device=device)
            rows.append(index // w)
            cols.append(index % w)
        return torch.cat(rows), torch.cat(cols)


Rope = VideoRope | HeadSlidingRope


def token_places(rope: Rope, tokens: int, device: torch.device) -> Tensor:
    """Return each token's rows in the three tables of ``rope.tables``: ``[tokens, 3]`` int32.

    A reference token's row in ``frame`` is its head's number, which is not in here: 0.
    """
    if isinstance(rope, VideoRope):
        return torch.stack(rope.token_indices(tokens, device), dim=1).to(torch.int32)
    y, x = rope.token_indices(device)
    return torch.stack((torch.zeros_like(y), y, x), dim=1).to(torch.int32)


@functools.lru_cache(maxsize=64)
def _axis_tables(
    frames: tuple[float, ...],
    rows: tuple[float, ...],
    cols: tuple[float, ...],
    head_dim: int,
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
) -> AxisTables:
    parts = zip((frames, rows, cols), axis_dims(head_dim), strict=True)
    # inference_mode(False): a cached inference tensor could not be saved for a later backward.
    with torch.inference_mode(False), torch.no_grad():
        return AxisTables(*(_angle_table(n, part, theta).to(device, dtype) for n, part in parts))


def _angle_table(positions: tuple[float, ...], part: int, theta: float) -> Tensor:
    """Return cosine and sine of n * theta**(-2i/p), pair i of a part of size p: ``[n, p/2, 2]``."""
    pair = torch.arange(part // 2, dtype=torch.float64, device="cpu")
    position = torch.tensor(positions, dtype=torch.float64, device="cpu")
    angle = position[:, None] * theta ** (-2 * pair / max(part, 1))
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


# An operator's schema carries a rotation as integers (its kind follows from their number) and
# floats: numbers, so that an exported program runs in another process.
_VIDEO_NUMBERS = 5


def encode_rope(rope: Rope | None) -> tuple[list[int], list[float]]:
    """Return the plain numbers that an operator's schema carries; none for None."""
    if rope is None:
        return [], []
    if isinstance(rope, VideoRope):
        return [*rope.grid, rope.head_dim, rope.token_offset], [rope.theta]
    sizes = [n for grid in rope.ref_grids for n in grid]
    heads = [rope.head_dim, rope.num_heads, rope.first_head]
    return [*rope.video_grid, *heads, *sizes], [rope.theta, *rope.frames]


def decode_rope(ints: Sequence[int], floats: Sequence[float]) -> Any:
    """Return the rotation that ``encode_rope`` was given; its schedule comes back as its frames.

    A rotation is built, and validated, once: the same numbers give the same object.
    """
    return _decoded(tuple(ints), tuple(floats))


@functools.lru_cache(maxsize=256)
def _decoded(ints: tuple[int, ...], floats: tuple[float, ...]) -> Rope | None:
    if not ints:
        return None
    theta, *frames = floats
    if len(ints) == _VIDEO_NUMBERS:
        f, h, w, head_dim, token_offset = ints
        return VideoRope((f, h, w), head_dim, theta, token_offset)
    f, h, w, head_dim, num_heads, first_head, *sizes = ints
    return HeadSlidingRope(
        (f, h, w),
        tuple(zip(sizes[::2], sizes[1::2], strict=True)),
        head_dim=head_dim,
        num_heads=num_heads,
        # Of heads before the first nobody asks.
        schedule=(*frames[:1] * first_head, *frames),
        theta=theta,
        first_head=first_head,
    )
