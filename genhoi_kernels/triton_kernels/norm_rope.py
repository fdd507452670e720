"""RMS norm over all heads, and rotation: docs/op.md, "Rotation" and "Backward".

One program holds a whole token, H D values, in registers: memory is read once and written once. The
rotation alone (NORM off) is the same kernel, its inverse (INVERSE) the same with the other sign.

A token's angles are those of its place (frame, row, column) on three axes; a head's D / 2 pairs
belong to the frame's, the row's and the column's angles in turn. For reference tokens the frame is
the head's (BY_HEAD). ``cosines`` and ``sines`` hold the tables of the three axes one after another,
the row's from ``row_table``, the column's from ``col_table`` on.
"""

import triton
import triton.language as tl


@triton.jit
def angle_index(
    places, token, head, pair, row_table, col_table, D: tl.constexpr, BY_HEAD: tl.constexpr
):
    """Where the angle of each pair of a token lies in the tables; ``pair`` counts within a head."""
    SPATIAL: tl.constexpr = D // 3 // 2
    TEMPORAL: tl.constexpr = D // 2 - 2 * SPATIAL
    row, col = tl.load(places + 3 * token + 1), tl.load(places + 3 * token + 2)
    frame = head if BY_HEAD else tl.load(places + 3 * token)
    at_frame = frame * TEMPORAL + pair
    at_row = row_table + row * SPATIAL + (pair - TEMPORAL)
    at_col = col_table + col * SPATIAL + (pair - TEMPORAL - SPATIAL)
    return tl.where(pair < TEMPORAL, at_frame, tl.where(pair < TEMPORAL + SPATIAL, at_row, at_col))


@triton.jit
def load_pairs(x, offset, inside, BLOCK: tl.constexpr):
    """BLOCK values in float32, as the two halves of BLOCK / 2 complex numbers."""
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(value, (BLOCK // 2, 2)))


@triton.jit
def store_pairs(y, offset, inside, real, imag, BLOCK: tl.constexpr):
    """The inverse of load_pairs."""
    value = tl.reshape(tl.join(real, imag), (BLOCK,))
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_rope_forward(
    x,
    weight,
    y,
    cosines,
    sines,
    places,
    x_b,
    x_n,
    x_h,
    N,
    row_table,
    col_table,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_HEAD: tl.constexpr,
    NORM: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """y ``[B, N, H, D]`` = R (x r weight), with r = 1 / sqrt(mean(x^2) + eps) of each token."""
    token, b = tl.program_id(0), tl.program_id(1)
    value = tl.arange(0, BLOCK)
    pair = tl.arange(0, BLOCK // 2)
    head = 2 * pair // D
    inside = value < H * D

    x += b.to(tl.int64) * x_b + token.to(tl.int64) * x_n
    real, imag = load_pairs(x, value // D * x_h + value % D, inside, BLOCK)
    if NORM:
        square = tl.sum(real * real + imag * imag, 0)
        r = tl.rsqrt(square / (H * D) + eps)
        w_real, w_imag = load_pairs(weight, value, inside, BLOCK)
        real, imag = real * r * w_real, imag * r * w_imag

    angle = angle_index(places, token, head, pair % (D // 2), row_table, col_table, D, BY_HEAD)
    cos = tl.load(cosines + angle, mask=pair < H * D // 2, other=0.0)
    sin = tl.load(sines + angle, mask=pair < H * D // 2, other=0.0)
    if INVERSE:
        sin = -sin
    y += (b.to(tl.int64) * N + token) * (H * D)
    store_pairs(y, value, inside, real * cos - imag * sin, real * sin + imag * cos, BLOCK)


@triton.jit
def norm_rope_backward(
    grad,
    x,
    weight,
    dx,
    dweights,
    cosines,
    sines,
    places,
    x_b,
    x_n,
    B,
    N,
    tokens_each,
    row_table,
    col_table,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_HEAD: tl.constexpr,
):
    """dx, and this program's share of dweight ``[programs, H D]``: tokens_each tokens after another.

    With g = R^-1 grad: dweight = sum of g x r;  dx = r (g weight - x r^2 mean(g weight x)).
    """
    value = tl.arange(0, BLOCK)
    pair = tl.arange(0, BLOCK // 2)
    head = 2 * pair // D
    inside = value < H * D
    w_real, w_imag = load_pairs(weight, value, inside, BLOCK)
    dw_real = tl.zeros((BLOCK // 2,), tl.float32)
    dw_imag = tl.zeros((BLOCK // 2,), tl.float32)

    first = tl.program_id(0) * tokens_each
    for i in range(first, tl.minimum(first + tokens_each, B * N)):
        b, token = i // N, i % N
        row = tl.cast(i, tl.int64) * (H * D)
        real, imag = load_pairs(grad + row, value, inside, BLOCK)
        angle = angle_index(places, token, head, pair % (D // 2), row_table, col_table, D, BY_HEAD)
        cos = tl.load(cosines + angle, mask=pair < H * D // 2, other=0.0)
        sin = tl.load(sines + angle, mask=pair < H * D // 2, other=0.0)
        g_real, g_imag = real * cos + imag * sin, imag * cos - real * sin

        at = tl.cast(b, tl.int64) * x_b + tl.cast(token, tl.int64) * x_n
        x_real, x_imag = load_pairs(x + at, value, inside, BLOCK)
        r = tl.rsqrt(tl.sum(x_real * x_real + x_imag * x_imag, 0) / (H * D) + eps)
        dw_real += g_real * x_real * r
        dw_imag += g_imag * x_imag * r
        g_real, g_imag = g_real * w_real, g_imag * w_imag
        mean = tl.sum(g_real * x_real + g_imag * x_imag, 0) / (H * D)
        along = r * r * mean
        dx_real, dx_imag = r * (g_real - x_real * along), r * (g_imag - x_imag * along)
        store_pairs(dx + row, value, inside, dx_real, dx_imag, BLOCK)
    store_pairs(dweights + tl.program_id(0) * (H * D), value, inside, dw_real, dw_imag, BLOCK)
