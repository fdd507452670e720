"""Warp-collective data movement and matrix instructions (PTX ISA fragment layouts)."""

from typing import Any

import numpy as np

from .numerics import (
    FP8,
    UNSIGNED,
    bfloat16_to_float,
    f2,
    f4,
    f8,
    i1,
    i4,
    i8,
    truncate_to_tf32,
    u1,
    u2,
    u4,
)


def widen(bits: np.ndarray, ptx_type: str) -> np.ndarray:
    """uint32 registers -> trailing axis of the elements packed in each register."""
    b = np.ascontiguousarray(bits)[..., None]
    if ptx_type == "f16":
        return b.view(f2).astype(f4)
    if ptx_type == "bf16":
        return bfloat16_to_float(b.view(u2))
    if ptx_type == "tf32":
        return truncate_to_tf32(b.view(f4))
    if ptx_type == "f64":
        return b.view(f8)
    if ptx_type in ("s8", "u8"):
        return b.view(i1 if ptx_type == "s8" else u1).astype(f4)
    if ptx_type in FP8:
        return FP8[ptx_type][b.view(u1)]
    if ptx_type in ("s4", "u4"):
        x = b.view(u1)
        y = np.stack([x & u1(15), x >> u1(4)], -1).reshape(*x.shape[:-1], 8)
        return (
            np.where(y > 7, y.astype(i1) - i1(16), y.astype(i1)) if ptx_type == "s4" else y
        ).astype(f4)
    raise NotImplementedError(f"mma operand type {ptx_type}")


def frag_a(regs: list[np.ndarray], ptx_type: str, m: int) -> np.ndarray:
    """The A operand of mma: registers of each lane -> (warps, m, k)."""
    x = widen(np.stack(regs), ptx_type)  # (nr, nwarps*32, e)
    nr, n, e = x.shape
    x = x.reshape(nr, n // 32, 8, 4, e)
    lo = m // 8
    x = x.reshape(nr // lo, lo, n // 32, 8, 4, e).transpose(2, 1, 3, 0, 4, 5)
    return np.ascontiguousarray(x).reshape(n // 32, m, nr // lo * 4 * e)


def frag_b(regs: list[np.ndarray], ptx_type: str) -> np.ndarray:
    """The B operand of mma -> (warps, k, 8)."""
    x = widen(np.stack(regs), ptx_type)
    nr, n, e = x.shape
    x = x.reshape(nr, n // 32, 8, 4, e).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(x).reshape(n // 32, nr * 4 * e, 8)


def frag_c(regs: list[np.ndarray], ptx_type: str, m: int) -> np.ndarray:
    """The C operand of mma -> (warps, m, 8)."""
    if ptx_type == "f16":
        x = widen(np.stack(regs), "f16")  # (m/8, n, 2)
        n = x.shape[1]
        return x.reshape(m // 8, n // 32, 8, 4, 2).transpose(1, 0, 2, 3, 4).reshape(n // 32, m, 8)
    x = np.stack(regs)
    if ptx_type == "f32":
        x = x.view(f4)
    elif ptx_type == "s32":
        x = x.view(i4)
    else:
        x = x.view(f8)
    n = x.shape[1]
    return x.reshape(m // 8, 2, n // 32, 8, 4).transpose(2, 0, 3, 4, 1).reshape(n // 32, m, 8)


def unfrag_d(d: np.ndarray, ptx_type: str, m: int) -> list[np.ndarray]:
    """The registers of each lane for a result (warps, m, 8)."""
    nwarps = d.shape[0]
    if ptx_type == "f16":
        h = np.ascontiguousarray(
            d.astype(f2).reshape(nwarps, m // 8, 8, 4, 2).transpose(1, 0, 2, 3, 4)
        )
        return list(h.view(u4).reshape(m // 8, nwarps * 32))
    dt = dict(f32=f4, s32=i4, f64=f8)[ptx_type]
    x = np.ascontiguousarray(
        d.astype(dt, copy=False).reshape(nwarps, m // 8, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    )
    return list(x.reshape(m // 8 * 2, nwarps * 32).view(UNSIGNED[dt().itemsize * 8]))


def mma(
    a: list[np.ndarray],
    b: list[np.ndarray],
    c: list[np.ndarray],
    m: int,
    a_type: str,
    b_type: str,
    c_type: str,
    d_type: str,
    satfinite: bool = False,
) -> list[np.ndarray]:
    """mma.sync: the registers of D from those of A, B and C."""
    A, B, C = frag_a(a, a_type, m), frag_b(b, b_type), frag_c(c, c_type, m)
    P = np.matmul(A, B)
    if c_type == "s32":
        D = P.astype(i8) + C
        D = np.clip(D, -(2**31), 2**31 - 1).astype(i4) if satfinite else D.astype(i4)
    else:
        D = P + C
    return unfrag_d(D, d_type, m)


def ldmatrix_words(
    batch: Any, pc: int, active: np.ndarray | None, addr: np.ndarray, count: int, transposed: bool
) -> list[np.ndarray]:
    """addr: shared offsets (n,). Returns `count` uint32 arrays (n,)."""
    n = addr.shape[0]
    rows = addr.reshape(-1, 32)[:, : count * 8]
    lanes = (batch.lanes if active is None else active).reshape(-1, 32)[:, : count * 8]
    indices = batch.shared_index(pc, lanes.reshape(-1), rows.reshape(-1), 16, write=False).reshape(
        -1, count, 8
    )
    if not transposed:
        w = batch.shared.views[4][(indices >> 2)[..., None] + np.arange(4)]
    else:
        h = batch.shared.views[2][(indices >> 1)[..., None] + np.arange(8)]
        w = np.ascontiguousarray(h.transpose(0, 1, 3, 2)).view(u4)
    return [np.ascontiguousarray(w[:, i]).reshape(n) for i in range(count)]


def stmatrix_words(
    batch: Any,
    pc: int,
    active: np.ndarray | None,
    addr: np.ndarray,
    regs: list[np.ndarray],
    transposed: bool,
) -> None:
    """stmatrix: write 8x8 matrices, row i at the address lane i gives."""
    count = len(regs)
    rows = addr.reshape(-1, 32)[:, : count * 8].reshape(-1)
    lanes = (batch.lanes if active is None else active).reshape(-1, 32)[:, : count * 8]
    w = np.stack([np.asarray(x).reshape(-1, 8, 4) for x in regs], 1)  # (nwarps, count, 8, 4)
    if transposed:
        h = np.ascontiguousarray(np.ascontiguousarray(w).view(u2).transpose(0, 1, 3, 2))
        w = h.view(u4)
    words = w.reshape(-1, 4)
    values = [words[:, j] for j in range(4)]
    indices = batch.shared_index(pc, lanes.reshape(-1), rows, 16, write=True, values=values)
    batch.shared.views[4][(indices >> 2)[:, None] + np.arange(4)] = words


# wmma: the fragment layout is unspecified by the ISA; element e lives in thread e//k, slot e%k.
def wmma_pack(mat: np.ndarray, ptx_type: str, count: int) -> list[np.ndarray]:
    """(nwarps, rows*cols) elements as uint of their width -> count register arrays."""
    nwarps, elements = mat.shape
    per = np.ascontiguousarray(mat.reshape(nwarps * 32, elements // 32))
    regs = per.view(u4) if ptx_type in ("f16", "bf16", "s8", "u8") else per
    k = regs.shape[1]
    return [np.ascontiguousarray(regs[:, i % k]) for i in range(count)]


def wmma_unpack(regs: list[np.ndarray], ptx_type: str, elements: int) -> np.ndarray:
    """The inverse of wmma_pack: (warps, elements)."""
    per_reg = {"f16": 2, "bf16": 2, "s8": 4, "u8": 4}.get(ptx_type, 1)
    k = elements // 32 // per_reg
    x = np.ascontiguousarray(np.stack(regs[:k], 1))
    if per_reg == 2:
        x = x.view(u2)
    elif per_reg == 4:
        x = x.view(u1)
    return x.reshape(-1, elements)


def decode(bits: np.ndarray, ptx_type: str) -> np.ndarray:
    """Values of the bits of a PTX type."""
    bits = np.ascontiguousarray(bits)
    if ptx_type == "f16":
        return bits.view(f2).astype(f4)
    if ptx_type == "bf16":
        return bfloat16_to_float(bits)
    if ptx_type == "tf32":
        return truncate_to_tf32(bits.view(f4))
    if ptx_type == "f32":
        return bits.view(f4)
    if ptx_type == "s32":
        return bits.view(i4)
    if ptx_type == "s8":
        return bits.view(i1).astype(f4)
    if ptx_type == "u8":
        return bits.astype(f4)
    if ptx_type == "f64":
        return bits.view(f8)
    if ptx_type in FP8:
        return FP8[ptx_type][bits]
    raise NotImplementedError(ptx_type)
