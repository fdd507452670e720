"""The op once more, as slow float64 loops that follow the formulas of docs/op.md line by line.

Written without a look at ``genhoi_kernels.reference``, which the tests hold against it: one token,
one head and one pair of channels at a time, complex numbers for the rotation, no vectorised trick.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


def ceil_frames(frames: int, heads: int) -> list[int]:
    """The paper's schedule in integers: the smallest c with c * heads >= frames * n."""
    ceilings = []
    for n in range(heads):
        c = 0
        while c * heads < frames * n:
            c += 1
        ceilings.append(c)
    return ceilings


def part_sizes(dim: int) -> tuple[int, int, int]:
    """Channels of time, rows and columns."""
    third = dim // 3
    if third % 2:
        third -= 1
    return dim - 2 * third, third, third


def rotate(x: Array, position: tuple[float, float, float], theta: float = 10000.0) -> Array:
    """One vector at one (frame, row, column)."""
    y = np.empty_like(x)
    start = 0
    for n, size in zip(position, part_sizes(len(x)), strict=True):
        for i in range(size // 2):
            angle = n * theta ** (-2 * i / size)
            pair = complex(x[start + 2 * i], x[start + 2 * i + 1])
            turned = pair * complex(math.cos(angle), math.sin(angle))
            y[start + 2 * i], y[start + 2 * i + 1] = turned.real, turned.imag
        start += size
    return y


def video_positions(grid: tuple[int, int, int]) -> list[tuple[float, float, float]]:
    """Position of every video token, in raster order."""
    f, h, w = grid
    return [(t, y, x) for t in range(f) for y in range(h) for x in range(w)]


def reference_positions(
    grid: tuple[int, int, int], ref_grids: Sequence[tuple[int, int]], frame: float
) -> list[tuple[float, float, float]]:
    """Position of every reference token in a head at ``frame``."""
    _, h, w = grid
    positions = []
    for rows, cols in ref_grids:
        positions += [(frame, float(h + y), float(w + x)) for y in range(rows) for x in range(cols)]
    return positions


def rotate_video(
    x: Array, grid: tuple[int, int, int], offset: int = 0, theta: float = 1e4
) -> Array:
    """x ``[B, N, H, D]``; its first token is token ``offset`` of the grid."""
    positions = video_positions(grid)
    y = np.empty_like(x)
    for b, n, h in np.ndindex(x.shape[:3]):
        y[b, n, h] = rotate(x[b, n, h], positions[offset + n], theta)
    return y


def rotate_reference_frames(
    x: Array,
    grid: tuple[int, int, int],
    sliding: Sequence[int],
    frames: Sequence[float],
    offset: int = 0,
    theta: float = 1e4,
) -> Array:
    """x ``[B, N, H, D]`` as ``rotate_video``, but for the frames of the grid in ``sliding``."""
    _, rows, cols = grid
    positions = video_positions(grid)
    out = np.empty_like(x)
    for b, n, h in np.ndindex(x.shape[:3]):
        t, y, x_at = positions[offset + n]
        if t in sliding:
            t, y, x_at = frames[h], y + (t + 1) * rows, x_at + (t + 1) * cols
        out[b, n, h] = rotate(x[b, n, h], (t, y, x_at), theta)
    return out


def rotate_reference(
    x: Array,
    grid: tuple[int, int, int],
    ref_grids: Sequence[tuple[int, int]],
    frames: Sequence[float],
    theta: float = 1e4,
) -> Array:
    """x ``[B, M, H, D]``; frames: one for each head of x."""
    y = np.empty_like(x)
    for b, m, h in np.ndindex(x.shape[:3]):
        y[b, m, h] = rotate(x[b, m, h], reference_positions(grid, ref_grids, frames[h])[m], theta)
    return y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x ``[B, N, C]``: over all C, that is over all heads at once."""
    y = np.empty_like(x)
    for b, n in np.ndindex(x.shape[:2]):
        mean_square = sum(float(value) ** 2 for value in x[b, n]) / x.shape[2]
        y[b, n] = x[b, n] / math.sqrt(mean_square + eps) * weight
    return y


class Outputs(NamedTuple):
    """out is gated; lse belongs to the ungated rows; gate_sum is None without a gate."""

    out: Array
    lse: Array
    gate_sum: Array | None


def attention(
    q: Array,
    k: Array,
    v: Array,
    k_ref: Array | None = None,
    v_ref: Array | None = None,
    *,
    sees: Array | None = None,
    segments: Sequence[int] = (),
    bias: Array | None = None,
    gate: Sequence[Array] | None = None,
    per_sequence: bool = False,
    scale: float | None = None,
) -> Outputs:
    """Rotated q, k, k_ref in; sees ``[B, N, R]`` bool, segments: tokens of each of R references."""
    batch, rows, heads, dim = q.shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    segment_of = [r for r, length in enumerate(segments) for _ in range(length)]
    out = np.zeros_like(q)
    lse = np.full((batch, heads, rows), -math.inf)
    logits = np.zeros((batch, heads, rows))
    for b, i, h in np.ndindex(batch, rows, heads):
        scores, values = [], []
        for j in range(k.shape[1]):
            scores.append(scale * float(q[b, i, h] @ k[b, j, h]))
            values.append(v[b, j, h])
        if k_ref is not None and v_ref is not None:
            shared = 0 if len(k_ref) == 1 else b
            for m, r in enumerate(segment_of):
                if sees is not None and not sees[b, i, r]:
                    continue
                score = scale * float(q[b, i, h] @ k_ref[shared, m, h])
                scores.append(score + (0.0 if bias is None else float(bias[r])))
                values.append(v_ref[shared, m, h])
        top = max(scores, default=-math.inf)
        if top > -math.inf:
            weights = [math.exp(score - top) for score in scores]
            lse[b, h, i] = top + math.log(sum(weights))
            for weight, value in zip(weights, values, strict=True):
                if weight > 0:
                    out[b, i, h] += weight / sum(weights) * value
        if gate is not None:
            logits[b, h, i] = gate_logit(out[b, i, h], gate)
    if gate is None:
        return Outputs(out, lse, None)
    for b, i, h in np.ndindex(batch, rows, heads):
        logit = sum(logits[b, h]) / rows if per_sequence else logits[b, h, i]
        out[b, i, h] *= 1 / (1 + math.exp(-logit))
    return Outputs(out, lse, logits.sum(2))


def gate_logit(o: Array, gate: Sequence[Array]) -> float:
    """w2 . GELU(W1 LN(o) + b1) + b2 of one row."""
    norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = gate
    centred = o - sum(o) / len(o)
    spread = math.sqrt(sum(centred**2) / len(o) + 1e-5)
    normed = centred / spread * norm_weight + norm_bias
    logit = float(fc2_bias[0])
    for unit in range(len(fc1_bias)):
        x = float(fc1_weight[unit] @ normed) + float(fc1_bias[unit])
        logit += float(fc2_weight[0, unit]) * x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    return logit
