"""What the attention kernels share: pointers and tiles of a head, and the mask gate's tile flags.

Tensors are ``[B, tokens, H, D]`` with any strides but the last. Tiles are ``[rows, BLOCK_D]`` with
BLOCK_D the next power of two of D; columns from D on are zero. Offsets of a tile's start are
64-bit, those inside a tile 32-bit.
"""

import triton
import triton.language as tl

from genhoi_kernels import mask_gate

TILE_ROWS: tl.constexpr = tl.constexpr(mask_gate.TILE_ROWS)


@triton.jit
def head_pointer(x, b, h, stride_b, stride_h):
    """Give the pointer to the first row of one sample's head."""
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
    """Load rows start .. start + BLOCK of one head; zero from ``rows`` on, if CHECK_ROWS."""
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
    """Load as ``load_tile`` does, by TMA if there is a descriptor.

    descriptor: of the whole tensor ``[B, H, rows, D]``, or None. The copy fills with zeros what
    lies outside of the tensor.
    """
    if descriptor is None:
        return load_tile(head, start, rows, stride, CHECK_ROWS, BLOCK, D, BLOCK_D)
    else:
        return tl.reshape(descriptor.load([b, h, start, 0]), (BLOCK, BLOCK_D))


@triton.jit
def store_tile(
    head,
    x,
    start,
    rows,
    stride,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BEHIND_LOOP: tl.constexpr = True,
):
    """Store rows start .. start + BLOCK of one head, as far as there are rows and columns.

    BEHIND_LOOP: compare rows in other terms than ``load_tile`` does. The compiler would take the
    comparisons for one, and keep their results in registers from the loads before a loop to the
    store behind it.
    """
    row, d = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    tile = head + tl.cast(start, tl.int64) * stride + (row * stride + d)
    if BEHIND_LOOP:
        exists = start + row < rows
    else:
        exists = row < rows - start
    tl.store(tile, x.to(head.dtype.element_ty), mask=exists & (d < D))


@triton.jit
def load_tile_flags(tile_bits, start, rows, BLOCK: tl.constexpr):
    """OR the bits of rows start .. start + BLOCK: which references any of them sees.

    A smaller BLOCK than the mask gate's tiles would read none of them, and see no reference.
    """
    whole_tiles: tl.constexpr = BLOCK // TILE_ROWS * TILE_ROWS
    tl.static_assert(whole_tiles == BLOCK, "BLOCK must be a multiple of the mask gate's tiles")
    flags = 0
    first = start // TILE_ROWS
    for t in tl.static_range(BLOCK // TILE_ROWS):
        exists = (first + t) * TILE_ROWS < rows
        flags |= tl.load(tile_bits + first + t, mask=exists, other=0)
    return flags
