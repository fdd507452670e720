"""What attention kernels share: loading rows of a head, which rows see what, 64-bit offsets.

Tensors are ``[B, tokens, H, D]`` with any strides but the last. Tiles are ``[rows, BLOCK_D]`` with
BLOCK_D the next power of two of D; columns from D on are zero. Offsets of a tile's start are
64-bit, those inside a tile 32-bit.
"""

import triton
import triton.language as tl

TILE_ROWS: tl.constexpr = tl.constexpr(64)  # of mask_gate.py


@triton.jit
def head_of(x, b, h, stride_b, stride_h):
    """Pointer to the first row of one sample's head."""
    return x + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h


@triton.jit
def load_tile(
    head,
    start,
    rows,
    stride,
    CHECK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows start .. start + BLOCK of one head; zero from ``rows`` on, if CHECK_ROWS."""
    row, d = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    tile = head + tl.cast(start, tl.int64) * stride + (row * stride + d)
    if CHECK_ROWS and D < BLOCK_D:
        return tl.load(tile, mask=(row < rows - start) & (d < D), other=0.0)
    elif CHECK_ROWS:
        return tl.load(tile, mask=row < rows - start, other=0.0)
    elif D < BLOCK_D:
        return tl.load(tile, mask=d < D, other=0.0)
    else:
        return tl.load(tile)


@triton.jit
def load_block(
    head,
    descriptor,
    b,
    h,
    start,
    rows,
    stride,
    CHECK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As ``load_tile``, by the descriptor of the whole tensor ``[B, H, rows, D]`` if there is one.

    descriptor: or None. It fills with zeros what lies outside of the tensor.
    """
    if descriptor is None:
        return load_tile(head, start, rows, stride, CHECK_ROWS, BLOCK, D, BLOCK_D)
    else:
        return tl.reshape(descriptor.load([b, h, start, 0]), (BLOCK, BLOCK_D))


@triton.jit
def store_tile(
    head, x, start, rows, stride, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write rows start .. start + BLOCK of one head, as far as there are rows and columns."""
    row, d = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    tile = head + tl.cast(start, tl.int64) * stride + (row * stride + d)
    inside = (row < rows - start) & (d < D)
    tl.store(tile, x.to(head.dtype.element_ty), mask=inside)


@triton.jit
def flags_of_tile(tile_bits, start, rows, BLOCK: tl.constexpr):
    """OR of the bits of rows start .. start + BLOCK: which references any of them sees."""
    flags = 0
    first = start // TILE_ROWS
    for t in tl.static_range(BLOCK // TILE_ROWS):
        there = (first + t) * TILE_ROWS < rows
        flags |= tl.load(tile_bits + first + t, mask=there, other=0)
    return flags
