"""Rotary positions of video and reference tokens (docs/op.md, "Rotation").

A rotation is described by a small immutable object, never by an N x D table: ``VideoRope`` places
video tokens on their grid, ``HeadSlidingRope`` places reference tokens at another frame in every
head, and ``ReferenceFramesRope`` does both in one sequence, whose first frames are references.
Kernels read the compact per-axis tables that ``tables`` makes of any, and ``token_places``.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Schedule = str | float | Sequence[float]


class AxisTables(NamedTuple):
    """Cosine and sine of every angle an axis can have: ``[positions, pairs, 2]`` each.

    ``frame`` holds one row per latent frame (video) or per head (reference), or those of the heads
    and then of the frames; ``row`` and ``col`` one row per grid row and column.
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
        TypeError: neither a name, a number nor a sequence of numbers.
        ValueError: unknown name, a sequence whose length is not ``num_heads``, or a number that
            is not finite.

    Example:
        >>> from genhoi_kernels import head_frames
        >>> head_frames("paper", 21, 4)
        (0.0, 6.0, 11.0, 16.0)
        >>> head_frames(-1.0, 21, 4)
        (-1.0, -1.0, -1.0, -1.0)
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
        values = (float(schedule),) * num_heads
    elif isinstance(schedule, Iterable):
        values = _numbers(schedule, wanted)
    else:
        raise TypeError(f"schedule: got {schedule!r}, wanted {wanted}")
    if len(values) != num_heads:
        raise ValueError(f"schedule: got {len(values)} frames, wanted num_heads = {num_heads}")
    if not all([-math.inf < t < math.inf for t in values]):
        raise ValueError(f"schedule: got {schedule!r}, wanted finite numbers")
    return values


def _numbers(schedule: Iterable[float], wanted: str) -> tuple[float, ...]:
    given = tuple(schedule)
    if any([isinstance(t, str) for t in given]):
        raise TypeError(f"schedule: got {given}, wanted {wanted}")
    return tuple([float(t) for t in given])


def check_grid(name: str, grid: Sequence[int], size: int) -> tuple[int, ...]:
    """Return a grid of ``size`` integers of at least 1 as a tuple.

    Raises:
        TypeError: something else than integers. ValueError: another number of them, or below 1.
    """
    try:
        # torch.compile would take a size that passes through operator.index for a constant.
        values = tuple([n if type(n) is int else operator.index(n) for n in grid])
    except TypeError:
        raise TypeError(f"{name}: got {grid!r}, wanted {size} integers") from None
    if len(values) != size or min(values) < 1:
        raise ValueError(f"{name}: got {values}, wanted {size} sizes of at least 1")
    return values


def check_ref_grids(grids: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return one (h_r, w_r) for each of one or more references.

    Raises:
        TypeError, ValueError: as ``check_grid``, or no grid at all.
    """
    if not isinstance(grids, Iterable):
        raise TypeError(f"ref_grids: got {grids!r}, wanted (h_r, w_r) of each reference")
    given = tuple(grids)
    if any([isinstance(n, int) for n in given]):
        single = f"; of a single reference [{given}]" if len(given) == 2 else ""
        raise TypeError(f"ref_grids: got {given}, wanted (h_r, w_r) of each reference{single}")
    if not given:
        raise ValueError("ref_grids: got no grid, wanted (h_r, w_r) of at least one reference")
    return tuple([check_grid("ref_grids", grid, 2) for grid in given])


def _check_integer(name: str, value: int) -> None:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {value!r}, wanted an integer")


def _check_head_dim(head_dim: int) -> None:
    _check_integer("head_dim", head_dim)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(
            f"head_dim: got {head_dim}, wanted an even number of at least 2, because a rotation "
            f"turns pairs of values"
        )


def _check_theta(theta: float) -> None:
    if not 0 < theta < math.inf:  # what a compiler can trace, too
        raise ValueError(f"theta: got {theta}, wanted a positive finite base")


def _check_token_offset(token_offset: int | None, grid: tuple[int, ...]) -> None:
    if token_offset is None:
        return
    _check_integer("token_offset", token_offset)
    tokens = grid[0] * grid[1] * grid[2]
    if not 0 <= token_offset <= tokens:
        raise ValueError(
            f"token_offset: got {token_offset}, wanted 0 to {tokens} "
            f"(the tokens of grid {grid}), or None for the whole grid"
        )


def _check_heads(num_heads: int, first_head: int | None) -> None:
    _check_integer("num_heads", num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads: got {num_heads}, wanted at least 1")
    if first_head is None:
        return
    _check_integer("first_head", first_head)
    if not 0 <= first_head < num_heads:
        raise ValueError(
            f"first_head: got {first_head}, wanted 0 to {num_heads - 1} "
            f"(num_heads is the global count), or None for all heads"
        )


def _check_sliding(sliding: Sequence[int], frames: int) -> tuple[int, ...]:
    wanted = f"rising frames from 0 to {frames - 1} of the grid"
    try:
        values = tuple([operator.index(t) for t in sliding])
    except TypeError:
        raise TypeError(f"sliding: got {sliding!r}, wanted {wanted}, as integers") from None
    inside = all([0 <= t < frames for t in values])
    if not inside or any([a >= b for a, b in itertools.pairwise(values)]):
        raise ValueError(f"sliding: got {values}, wanted {wanted}")
    return values


class _OnGrid:
    """Tokens of a grid (f, h, w), one after another: all of them, or a shard from one on."""

    grid: tuple[int, int, int]
    token_offset: int | None

    @property
    def grid_tokens(self) -> int:
        """Count the tokens of the whole grid, f * h * w."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def first_token(self) -> int:
        """Give the index in the grid of the first token given."""
        return 0 if self.token_offset is None else self.token_offset

    @property
    def max_tokens(self) -> int:
        """Count the tokens from the first one given to the end of the grid."""
        return self.grid_tokens - self.first_token

    def fits(self, tokens: int) -> bool:
        """Say whether so many tokens are the whole grid, or of a shard have room in it."""
        if self.token_offset is None:
            return tokens == self.grid_tokens
        return tokens <= self.max_tokens

    def grid_indices(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's frame, row and column in the grid: three ``[tokens]``."""
        _, h, w = self.grid
        index = torch.arange(self.first_token, self.first_token + tokens, device=device)
        return index // (h * w), index // w % h, index % w


@dataclass(frozen=True)
class VideoRope(_OnGrid):
    """3D rotation of video tokens: token i sits at the i-th (frame, row, column) of ``grid``.

    Args:
        grid: (f, h, w) of the whole video, after the patch embedding.
        head_dim: D.
        theta: base of the angles, n * theta**(-2i/p) for pair i of a part of size p.
        token_offset: None: the tokens are those of the whole grid, no more and no fewer. A number,
            0 included: they are a shard of the sequence, whose first token has this index.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a grid that is not three positive sizes, an odd head_dim, a bad theta or offset.

    Example:
        >>> import torch
        >>> from genhoi_kernels import VideoRope, apply_rope
        >>> whole = VideoRope((2, 3, 4), head_dim=16)
        >>> x = torch.randn(1, 24, 2, 16)  # [B, N, H, D], N = 2 * 3 * 4
        >>> shard = VideoRope((2, 3, 4), head_dim=16, token_offset=10)
        >>> torch.equal(apply_rope(x[:, 10:15], shard), apply_rope(x, whole)[:, 10:15])
        True
    """

    grid: tuple[int, int, int]
    head_dim: int = 128
    theta: float = 10000.0
    token_offset: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid("grid", self.grid, 3))
        _check_head_dim(self.head_dim)
        _check_theta(self.theta)
        _check_token_offset(self.token_offset, self.grid)

    def tables(self, *, device: torch.device, dtype: torch.dtype) -> AxisTables:
        """Return angle tables of the three axes; ``frame`` has one row per latent frame."""
        f, h, w = self.grid
        positions = (_upto(n) for n in (f, h, w))
        return _axis_tables(*positions, self.head_dim, self.theta, device, dtype)


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
        first_head: None: the heads given are all ``num_heads``. A number, 0 included: they are a
            shard of the heads, whose first one has this global index.

    Attributes:
        frames: frame of every head from ``first_head`` on.

    Raises:
        TypeError: a size that is no integer, or a schedule of no kind.
        ValueError: grids, head_dim, num_heads, theta, schedule or first_head out of range.

    Example:
        >>> import torch
        >>> from genhoi_kernels import HeadSlidingRope, apply_rope
        >>> rope = HeadSlidingRope((5, 8, 8), [(3, 2)], head_dim=16, num_heads=4)
        >>> rope.frames
        (0.0, 2.0, 3.0, 4.0)
        >>> k_ref = torch.randn(1, 6, 4, 16)  # [B, M, H, D], M = 3 * 2
        >>> apply_rope(k_ref, rope).shape
        torch.Size([1, 6, 4, 16])
    """

    video_grid: tuple[int, int, int]
    ref_grids: tuple[tuple[int, int], ...]
    _: KW_ONLY
    head_dim: int = 128
    num_heads: int
    schedule: Schedule = "paper"
    theta: float = 10000.0
    first_head: int | None = None
    frames: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "video_grid", check_grid("video_grid", self.video_grid, 3))
        object.__setattr__(self, "ref_grids", check_ref_grids(self.ref_grids))
        _check_head_dim(self.head_dim)
        _check_theta(self.theta)
        _check_heads(self.num_heads, self.first_head)
        _set_frames(self, self.video_grid[0])

    def fits(self, heads: int) -> bool:
        """Say whether so many heads are all there are, or of a shard have room among them."""
        return heads_fit(heads, self.num_heads, self.first_head)

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


def _set_frames(rope: HeadSlidingRope | ReferenceFramesRope, frames: int) -> None:
    """Set the frame of every head given, and a schedule that is no name or number as a tuple."""
    every_head = head_frames(rope.schedule, frames, rope.num_heads)
    if not isinstance(rope.schedule, (str, int, float)):
        object.__setattr__(rope, "schedule", every_head)
    object.__setattr__(rope, "frames", every_head[rope.first_head :])


def heads_fit(heads: int, num_heads: int, first_head: int | None) -> bool:
    """Say whether so many heads are all of ``num_heads``, or from a first one on among them."""
    return heads == num_heads if first_head is None else first_head + heads <= num_heads


def _upto(n: int) -> tuple[float, ...]:
    return tuple(map(float, range(n)))


@dataclass(frozen=True)
class ReferenceFramesRope(_OnGrid):
    """Rotation of one sequence whose first frames are references: these turn per head.

    The form of GenHOI on VACE, where a reference is a latent frame in front of the video, in q
    and k alike. A token at (t, y, x) of the grid turns as a ``VideoRope``'s; but where t is in
    ``sliding``, head n turns it as at (tau_n, y + (t+1) h, x + (t+1) w), past the video's grid
    and past the other references.

    Args:
        grid: (F, h, w) of the whole sequence, reference frames included.
        sliding: frames of the grid that turn per head, rising; () for none.
        head_dim: D.
        num_heads: heads of the whole model, over all shards.
        schedule: tau of every head over all F frames, see ``head_frames``.
        theta: base of the angles.
        token_offset: as of a ``VideoRope``.
        first_head: as of a ``HeadSlidingRope``.

    Attributes:
        frames: tau of every head from ``first_head`` on.

    Raises:
        TypeError: a size or a frame that is no integer, or a schedule of no kind.
        ValueError: grid, sliding, head_dim, num_heads, theta, schedule, token_offset or first_head
            out of range.

    Example:
        >>> import torch
        >>> from genhoi_kernels import ReferenceFramesRope, VideoRope, apply_rope
        >>> rope = ReferenceFramesRope((3, 2, 2), (0,), head_dim=16, num_heads=4)
        >>> rope.frames
        (0.0, 1.0, 2.0, 3.0)
        >>> x = torch.randn(1, 12, 4, 16)  # [B, N, H, D], N = 3 * 2 * 2
        >>> plain = apply_rope(x, VideoRope((3, 2, 2), head_dim=16))
        >>> torch.equal(apply_rope(x, rope)[:, 4:], plain[:, 4:])  # behind the reference
        True
    """

    grid: tuple[int, int, int]
    sliding: tuple[int, ...]
    _: KW_ONLY
    head_dim: int = 128
    num_heads: int
    schedule: Schedule = "paper"
    theta: float = 10000.0
    token_offset: int | None = None
    first_head: int | None = None
    frames: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid("grid", self.grid, 3))
        object.__setattr__(self, "sliding", _check_sliding(self.sliding, self.grid[0]))
        _check_head_dim(self.head_dim)
        _check_theta(self.theta)
        _check_heads(self.num_heads, self.first_head)
        _check_token_offset(self.token_offset, self.grid)
        _set_frames(self, self.grid[0])

    def heads_fit(self, heads: int) -> bool:
        """Say whether so many heads are all there are, or of a shard have room among them."""
        return heads_fit(heads, self.num_heads, self.first_head)

    @property
    def frame_rows_before(self) -> int:
        """Count the heads' rows, which come before the grid's frames in ``tables().frame``."""
        return len(self.frames) if self.sliding else 0

    def tables(self, *, device: torch.device, dtype: torch.dtype) -> AxisTables:
        """Return angle tables of the three axes; ``frame`` has the heads' rows, then the grid's.

        ``row`` and ``col`` reach past the last reference that turns per head.
        """
        f, h, w = self.grid
        frames = self.frames[: self.frame_rows_before] + _upto(f)
        grids = 2 + max(self.sliding, default=-1)
        rows, cols = _upto(grids * h), _upto(grids * w)
        return _axis_tables(frames, rows, cols, self.head_dim, self.theta, device, dtype)

    def places(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's rows of the (frame, row, col) tables, as ``token_places`` does."""
        _, h, w = self.grid
        t, y, x = self.grid_indices(tokens, device)
        by_head = torch.zeros_like(t, dtype=torch.bool)
        for frame in self.sliding:
            by_head |= t == frame
        past = torch.where(by_head, t + 1, 0)
        t = torch.where(by_head, _BY_HEAD, self.frame_rows_before + t)
        return t, y + past * h, x + past * w

    def runs(self, tokens: int) -> list[tuple[int, bool]]:
        """Return the runs of tokens that turn alike, see ``rope_runs``."""
        _, h, w = self.grid
        first, last = self.first_token, self.first_token + tokens
        edges = [n * h * w for t in self.sliding for n in (t, t + 1)]
        inside = sorted({first, last, *[n for n in edges if first < n < last]})
        return [(b - a, a // (h * w) in self.sliding) for a, b in itertools.pairwise(inside)]


Rope = VideoRope | HeadSlidingRope | ReferenceFramesRope

# A token's row in the frame table where it turns per head: ~_BY_HEAD = 0 is the first head's.
_BY_HEAD = -1


def token_places(rope: Rope, tokens: int, device: torch.device) -> Tensor:
    """Return each token's rows in the three tables of ``rope.tables``: ``[tokens, 3]`` int32.

    A row in ``frame`` below 0 says that the token turns per head: in head n by row ~row + n.
    """
    if isinstance(rope, VideoRope):
        places = rope.grid_indices(tokens, device)
    elif isinstance(rope, ReferenceFramesRope):
        places = rope.places(tokens, device)
    else:
        y, x = rope.token_indices(device)
        places = torch.full_like(y, _BY_HEAD), y, x
    return torch.stack(places, dim=1).to(torch.int32)


def rope_runs(rope: Rope, tokens: int) -> list[tuple[int, bool]]:
    """Return how many tokens, one after another, turn alike, and whether per head."""
    if isinstance(rope, ReferenceFramesRope):
        return rope.runs(tokens) or [(0, False)]
    return [(tokens, isinstance(rope, HeadSlidingRope))]


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


# An operator's schema carries a rotation as integers, its kind first, and floats: numbers, so that
# an exported program runs in another process.
_VIDEO, _HEAD_SLIDING, _REFERENCE_FRAMES = range(3)
# Of a whole clip or all heads, where a shard has its first token or head.
_WHOLE = -1


def encode_rope(rope: Rope | None) -> tuple[list[int], list[float]]:
    """Return the plain numbers that an operator's schema carries; none for None."""
    if rope is None:
        return [], []
    if isinstance(rope, VideoRope):
        sizes = [*rope.grid, rope.head_dim, _encode_first(rope.token_offset)]
        return [_VIDEO, *sizes], [rope.theta]
    heads = [rope.head_dim, rope.num_heads, _encode_first(rope.first_head)]
    floats = [rope.theta, *rope.frames]
    if isinstance(rope, ReferenceFramesRope):
        rest = [_encode_first(rope.token_offset), *rope.sliding]
        return [_REFERENCE_FRAMES, *rope.grid, *heads, *rest], floats
    sizes = [n for grid in rope.ref_grids for n in grid]
    return [_HEAD_SLIDING, *rope.video_grid, *heads, *sizes], floats


def _encode_first(first: int | None) -> int:
    return _WHOLE if first is None else first


def _decode_first(first: int) -> int | None:
    return None if first == _WHOLE else first


def decode_rope(ints: Sequence[int], floats: Sequence[float]) -> Any:
    """Return the rotation that ``encode_rope`` was given; its schedule comes back as its frames.

    A rotation is built, and validated, once: the same numbers give the same object.
    """
    return _decoded(tuple(ints), tuple(floats))


@functools.lru_cache(maxsize=256)
def _decoded(ints: tuple[int, ...], floats: tuple[float, ...]) -> Rope | None:
    if not ints:
        return None
    kind, f, h, w, head_dim, *rest = ints
    theta, *frames = floats
    if kind == _VIDEO:
        return VideoRope((f, h, w), head_dim, theta, _decode_first(rest[0]))
    num_heads, first_head, *rest = rest
    options: dict[str, Any] = {
        "head_dim": head_dim,
        "num_heads": num_heads,
        # Of heads before the first nobody asks.
        "schedule": (*frames[:1] * max(first_head, 0), *frames),
        "theta": theta,
        "first_head": _decode_first(first_head),
    }
    if kind == _REFERENCE_FRAMES:
        offset, *sliding = rest
        options["token_offset"] = _decode_first(offset)
        return ReferenceFramesRope((f, h, w), tuple(sliding), **options)
    ref_grids = tuple(zip(rest[::2], rest[1::2], strict=True))
    return HeadSlidingRope((f, h, w), ref_grids, **options)
