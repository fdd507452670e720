"""Warp-collective data movement and matrix instructions (PTX ISA fragment layouts)."""

import numpy as np

from .numerics import u1, u2, u4, i1, i4, i8, f2, f4, f8, bf2f, tf32_trunc, FP8, UINT


def widen(bits, ty):
    """uint32 registers -> trailing axis of the elements packed in each register."""
    b = np.ascontiguousarray(bits)[..., None]
    if ty == "f16":
        return b.view(f2).astype(f4)
    if ty == "bf16":
        return bf2f(b.view(u2))
    if ty == "tf32":
        return tf32_trunc(b.view(f4))
    if ty == "f64":
        return b.view(f8)
    if ty in ("s8", "u8"):
        return b.view(i1 if ty == "s8" else u1).astype(f4)
    if ty in FP8:
        return FP8[ty][b.view(u1)]
    if ty in ("s4", "u4"):
        x = b.view(u1)
        y = np.stack([x & u1(15), x >> u1(4)], -1).reshape(*x.shape[:-1], 8)
        return (np.where(y > 7, y.astype(i1) - i1(16), y.astype(i1)) if ty == "s4" else y).astype(
            f4
        )
    raise NotImplementedError(f"mma operand type {ty}")


def frag_a(regs, ty, m):
    x = widen(np.stack(regs), ty)  # (nr, W*32, e)
    nr, n, e = x.shape
    x = x.reshape(nr, n // 32, 8, 4, e)
    lo = m // 8
    x = x.reshape(nr // lo, lo, n // 32, 8, 4, e).transpose(2, 1, 3, 0, 4, 5)
    return np.ascontiguousarray(x).reshape(n // 32, m, nr // lo * 4 * e)


def frag_b(regs, ty):
    x = widen(np.stack(regs), ty)
    nr, n, e = x.shape
    x = x.reshape(nr, n // 32, 8, 4, e).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(x).reshape(n // 32, nr * 4 * e, 8)


def frag_c(regs, ty, m):
    """-> (W, m, 8)"""
    if ty == "f16":
        x = widen(np.stack(regs), "f16")  # (m/8, n, 2)
        n = x.shape[1]
        return x.reshape(m // 8, n // 32, 8, 4, 2).transpose(1, 0, 2, 3, 4).reshape(n // 32, m, 8)
    x = np.stack(regs)
    if ty == "f32":
        x = x.view(f4)
    elif ty == "s32":
        x = x.view(i4)
    else:
        x = x.view(f8)
    n = x.shape[1]
    return x.reshape(m // 8, 2, n // 32, 8, 4).transpose(2, 0, 3, 4, 1).reshape(n // 32, m, 8)


def unfrag_d(d, ty, m):
    W = d.shape[0]
    if ty == "f16":
        h = np.ascontiguousarray(d.astype(f2).reshape(W, m // 8, 8, 4, 2).transpose(1, 0, 2, 3, 4))
        return list(h.view(u4).reshape(m // 8, W * 32))
    dt = dict(f32=f4, s32=i4, f64=f8)[ty]
    x = np.ascontiguousarray(
        d.astype(dt, copy=False).reshape(W, m // 8, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    )
    return list(x.reshape(m // 8 * 2, W * 32).view(UINT[dt().itemsize * 8]))


def mma(a, b, c, m, aty, bty, cty, dty, satfinite=False):
    A, B, C = frag_a(a, aty, m), frag_b(b, bty), frag_c(c, cty, m)
    P = np.matmul(A, B)
    if cty == "s32":
        D = P.astype(i8) + C
        D = np.clip(D, -(2**31), 2**31 - 1).astype(i4) if satfinite else D.astype(i4)
    else:
        D = P + C
    return unfrag_d(D, dty, m)


def ldmatrix_words(S, pc, ix, addr, num, trans):
    """addr: shared offsets (n,). Returns `num` uint32 arrays (n,)."""
    n = addr.shape[0]
    rows = addr.reshape(-1, 32)[:, : num * 8]
    lanes = (S.lanes if ix is None else ix).reshape(-1, 32)[:, : num * 8]
    gi = S.sh_index(pc, lanes.reshape(-1), rows.reshape(-1), 16, write=False).reshape(-1, num, 8)
    if not trans:
        w = S.sh.views[4][(gi >> 2)[..., None] + np.arange(4)]
    else:
        h = S.sh.views[2][(gi >> 1)[..., None] + np.arange(8)]
        w = np.ascontiguousarray(h.transpose(0, 1, 3, 2)).view(u4)
    return [np.ascontiguousarray(w[:, i]).reshape(n) for i in range(num)]


def stmatrix_words(S, pc, ix, addr, regs, trans):
    num = len(regs)
    rows = addr.reshape(-1, 32)[:, : num * 8]
    lanes = (S.lanes if ix is None else ix).reshape(-1, 32)[:, : num * 8]
    gi = S.sh_index(pc, lanes.reshape(-1), rows.reshape(-1), 16, write=True).reshape(-1, num, 8)
    w = np.stack([np.asarray(x).reshape(-1, 8, 4) for x in regs], 1)  # (W, num, 8, 4)
    if trans:
        h = np.ascontiguousarray(np.ascontiguousarray(w).view(u2).transpose(0, 1, 3, 2))
        w = h.view(u4)
    S.sh.views[4][(gi >> 2)[..., None] + np.arange(4)] = w


# -- wmma (fragment layout is unspecified by the ISA; element e lives in thread e//k, slot e%k) ----
def wmma_pack(mat, ty, nregs):
    """(W, rows*cols) elements as uint of their width -> nregs register arrays."""
    W, E = mat.shape
    per = np.ascontiguousarray(mat.reshape(W * 32, E // 32))
    regs = per.view(u4) if ty in ("f16", "bf16", "s8", "u8") else per
    if ty == "f64":
        regs = per
    k = regs.shape[1]
    return [np.ascontiguousarray(regs[:, i % k]) for i in range(nregs)]


def wmma_unpack(regs, ty, E):
    per_reg = {"f16": 2, "bf16": 2, "s8": 4, "u8": 4}.get(ty, 1)
    k = E // 32 // per_reg
    x = np.ascontiguousarray(np.stack(regs[:k], 1))
    if per_reg == 2:
        x = x.view(u2)
    elif per_reg == 4:
        x = x.view(u1)
    return x.reshape(-1, E)


def decode(bits, ty):
    bits = np.ascontiguousarray(bits)
    if ty == "f16":
        return bits.view(f2).astype(f4)
    if ty == "bf16":
        return bf2f(bits)
    if ty == "tf32":
        return tf32_trunc(bits.view(f4))
    if ty == "f32":
        return bits.view(f4)
    if ty == "s32":
        return bits.view(i4)
    if ty == "s8":
        return bits.view(i1).astype(f4)
    if ty == "u8":
        return bits.astype(f4)
    if ty == "f64":
        return bits.view(f8)
    if ty in FP8:
        return FP8[ty][bits]
    raise NotImplementedError(ty)
