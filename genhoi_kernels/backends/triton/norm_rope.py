"""RMS norm over all heads, and rotation: docs/op.md, "Rotation" and "Backward".

One program holds whole tokens, H D values each, in registers: memory is read once and written once.
The rotation alone (NORM off) is the same kernel, its inverse (INVERSE) has the other sign.

A token's angles are those of its place (frame, row, column) on three axes; a head's D / 2 pairs
belong to the frame's, the row's and the column's angles in turn. For reference tokens the frame is
the head's (BY_HEAD). ``cosines`` and ``sines`` hold the tables of the three axes one after another,
the row's from ``row_table``, the column's from ``col_table`` on.
"""

import triton
import triton.language as tl


@triton.jit
def angles(
    cosines,
    sines,
    places,
    token,
    there,
    row_table,
    col_table,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_HEAD: tl.constexpr,
):
    """Cosine and sine of every pair of some tokens ``[TOKENS, BLOCK / 2]``."""
    SPATIAL: tl.constexpr = D // 3 // 2
    TEMPORAL: tl.constexpr = D // 2 - 2 * SPATIAL
    value = tl.arange(0, BLOCK // 2)[None, :]
    head, pair = value // (D // 2), value % (D // 2)
    row = tl.load(places + 3 * token + 1, mask=there, other=0)[:, None]
    col = tl.load(places + 3 * token + 2, mask=there, other=0)[:, None]
    frame = head if BY_HEAD else tl.load(places + 3 * token, mask=there, other=0)[:, None]
    at_frame = frame * TEMPORAL + pair
    at_row = row_table + row * SPATIAL + (pair - TEMPORAL)
    at_col = col_table + col * SPATIAL + (pair - TEMPORAL - SPATIAL)
    at_space = tl.where(pair < TEMPORAL + SPATIAL, at_row, at_col)
    index = tl.where(pair < TEMPORAL, at_frame, at_space)
    inside = there[:, None] & (value < H * D // 2)
    cos = tl.load(cosines + index, mask=inside, other=0.0)
    return cos, tl.load(sines + index, mask=inside, other=0.0)


@triton.jit
def load_pairs(x, offset, inside):
    """Values ``[TOKENS, BLOCK]`` in float32, as halves of complex ones ``[TOKENS, BLOCK / 2]``."""
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(value, (value.shape[0], value.shape[1] // 2, 2)))


@triton.jit
def store_pairs(y, offset, inside, real, imag):
    """The inverse of load_pairs."""
    value = tl.reshape(tl.join(real, imag), (real.shape[0], 2 * real.shape[1]))
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "row_table", "col_table"])
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
    TOKENS: tl.constexpr,
    BY_HEAD: tl.constexpr,
    NORM: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """y ``[B, N, H, D]`` = R (x r weight), with r = 1 / sqrt(mean(x^2) + eps) of each token."""
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    there, value = token < N, tl.arange(0, BLOCK)[None, :]
    inside = there[:, None] & (value < H * D)

    at = b * x_b + token.to(tl.int64)[:, None] * x_n + (value // D * x_h + value % D)
    real, imag = load_pairs(x, at, inside)
    if NORM:
        r = tl.rsqrt(tl.sum(real * real + imag * imag, 1) / (H * D) + eps)[:, None]
        w_real, w_imag = load_pairs(weight, value, value < H * D)
        real, imag = real * r * w_real, imag * r * w_imag

    cos, sin = angles(
        cosines, sines, places, token, there, row_table, col_table, H, D, BLOCK, BY_HEAD
    )
    if INVERSE:
        sin = -sin
    at = (b * N + token)[:, None] * (H * D) + value
    store_pairs(y, at, inside, real * cos - imag * sin, real * sin + imag * cos)


@triton.jit(do_not_specialize=["B", "N", "tokens_each", "row_table", "col_table"])
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
    TOKENS: tl.constexpr,
    BY_HEAD: tl.constexpr,
):
    """dx, and this program's share of dweight ``[programs, H D]``, of tokens_each tokens.

    With g = R^-1 grad: dweight = sum of g x r;  dx = r (g weight - x r^2 mean(g weight x)).
    """
    value = tl.arange(0, BLOCK)[None, :]
    w_real, w_imag = load_pairs(weight, value, value < H * D)
    dw_real = tl.zeros((1, BLOCK // 2), tl.float32)
    dw_imag = tl.zeros((1, BLOCK // 2), tl.float32)

    first = tl.program_id(0) * tokens_each
    last = tl.minimum(first + tokens_each, B * N)
    for i in range(first, last, TOKENS):
        row = i + tl.arange(0, TOKENS)
        there, token = row < last, row % N
        inside = there[:, None] & (value < H * D)
        cos, sin = angles(
            cosines, sines, places, token, there, row_table, col_table, H, D, BLOCK, BY_HEAD
        )
        y_at = row.to(tl.int64)[:, None] * (H * D) + value
        real, imag = load_pairs(grad, y_at, inside)
        g_real, g_imag = real * cos + imag * sin, imag * cos - real * sin

        x_at = (row // N).to(tl.int64)[:, None] * x_b + token.to(tl.int64)[:, None] * x_n + value
        x_real, x_imag = load_pairs(x, x_at, inside)
        r = tl.rsqrt(tl.sum(x_real * x_real + x_imag * x_imag, 1) / (H * D) + eps)[:, None]
        dw_real += tl.sum(g_real * x_real * r, 0)[None, :]
        dw_imag += tl.sum(g_imag * x_imag * r, 0)[None, :]
        g_real, g_imag = g_real * w_real, g_imag * w_imag
        mean = tl.sum(g_real * x_real + g_imag * x_imag, 1)[:, None] / (H * D)
        along = r * r * mean
        dx_real, dx_imag = r * (g_real - x_real * along), r * (g_imag - x_imag * along)
        store_pairs(dx, y_at, inside, dx_real, dx_imag)
    at = tl.program_id(0) * (H * D) + value
    store_pairs(dweights, at, value < H * D, dw_real, dw_imag)
