"""Element-wise semantics of PTX operations on NumPy arrays (bit patterns in, bit patterns out)."""

from typing import Any

import numpy as np

# NumPy's short names: kind and bytes.
u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
f2, f4, f8 = np.float16, np.float32, np.float64

POISON32 = 0x7FFF7FFF  # NaN as f32, f16x2 and bf16x2
# The NumPy type that holds a PTX type; bf16 and the packed types as they lie in registers.
NUMPY_TYPE = dict(
    u8=u1,
    s8=i1,
    b8=u1,
    u16=u2,
    s16=i2,
    b16=u2,
    u32=u4,
    s32=i4,
    b32=u4,
    u64=u8,
    s64=i8,
    b64=u8,
    f16=f2,
    f32=f4,
    f64=f8,
    bf16=u2,
    f16x2=f2,
    bf16x2=u2,
    tf32=f4,
)
UNSIGNED = {8: u1, 16: u2, 32: u4, 64: u8}


def bfloat16_to_float(x: Any) -> np.ndarray:
    """float32 values of bfloat16 bits."""
    return (np.asarray(x).astype(u4) << u4(16)).view(f4)


def float_to_bfloat16(x: Any, rounding: str | None = "rn") -> np.ndarray:
    """bfloat16 bits of float32 values, to nearest even or (rz) towards zero."""
    x = np.ascontiguousarray(x, f4)
    b = x.view(u4)
    if rounding == "rz":
        r = (b >> u4(16)).astype(u2)
    else:
        r = ((b + (((b >> u4(16)) & u4(1)) + u4(0x7FFF))) >> u4(16)).astype(u2)
    nan = np.isnan(x)
    if nan.any():
        r = np.where(nan, u2(0x7FFF), r)
    return r


def float_to_tf32(x: Any, rounding: str | None = "rna") -> np.ndarray:
    """float32 values rounded to 10 bits of mantissa."""
    b = np.ascontiguousarray(x, f4).view(u4)
    if rounding == "rz":
        r = b & u4(0xFFFFE000)
    elif rounding == "rna":
        r = (b + u4(0x1000)) & u4(0xFFFFE000)
    else:
        r = (b + u4(0xFFF) + ((b >> u4(13)) & u4(1))) & u4(0xFFFFE000)
    return np.where(np.isfinite(x), r, b).view(f4)


def truncate_to_tf32(x: Any) -> np.ndarray:
    """What the tensor core does with the low 13 bits of an f32 operand."""
    return (x.view(u4) & u4(0xFFFFE000)).view(f4)


def float_to_half(x: Any, rounding: str | None = "rn") -> np.ndarray:
    """float16 values, to nearest even or (rz) towards zero."""
    h = np.asarray(x).astype(f2)
    if rounding == "rz":
        over = np.abs(h.astype(f8)) > np.abs(np.asarray(x).astype(f8))
        h = np.where(over, np.nextafter(h, f2(0)), h)
    return h


def round_directed(x: Any, rounding: str | None, target: Any = f4) -> np.ndarray:
    """f64 -> f32 with a directed rounding mode."""
    y = x.astype(target)
    if rounding in (None, "rn"):
        return y
    yd = y.astype(f8)
    if rounding == "rz":
        return np.where(np.abs(yd) > np.abs(x), np.nextafter(y, target(0)), y)
    if rounding == "rm":
        return np.where(yd > x, np.nextafter(y, target(-np.inf)), y)
    return np.where(yd < x, np.nextafter(y, target(np.inf)), y)


def fma(a: Any, b: Any, c: Any, rounding: str | None = "rn") -> np.ndarray:
    """Fused multiply-add, correctly rounded for f32.

    The product is exact in f64, and sums halfway between two results are repaired.
    """
    if a.dtype == f8:
        return a * b + c  # not fused: f64 has no wider type here
    target = a.dtype.type
    p = a.astype(f8) * b
    r = p + c
    if target == f4 and np.ndim(r):
        h = (r.view(u8) & u8(0x1FFFFFFF)) == u8(0x10000000)
        if h.any():
            c8 = np.asarray(c).astype(f8)
            t = r - p
            err = (p - (r - t)) + (c8 - t)  # TwoSum
            fix = h & (err != 0) & np.isfinite(r)
            r = np.where(fix, np.nextafter(r, np.where(err > 0, np.inf, -np.inf)), r)
    return round_directed(r, rounding, target) if rounding != "rn" else r.astype(target)


def arithmetic_directed(op: str, a: Any, b: Any, rounding: str | None) -> np.ndarray:
    """An operation on float32 in a directed rounding mode."""
    a, b = np.asarray(a).astype(f8), np.asarray(b).astype(f8)
    return round_directed(
        a + b if op == "+" else a - b if op == "-" else a * b if op == "*" else a / b, rounding
    )


def saturate(x: Any) -> np.ndarray:
    """Clamp to [0, 1]; NaN becomes 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)


def multiply_high(a: Any, b: Any) -> np.ndarray:
    """The upper half of a product of integers."""
    target = a.dtype if hasattr(a, "dtype") and a.ndim else b.dtype
    if target.itemsize == 4:
        w = i8 if target.kind == "i" else u8
        return ((np.asarray(a).astype(w) * np.asarray(b).astype(w)) >> w(32)).astype(target)
    if target.itemsize == 2:
        return ((np.asarray(a).astype(i8) * np.asarray(b).astype(i8)) >> i8(16)).astype(target)
    au, bu = np.asarray(a).astype(u8), np.asarray(b).astype(u8)
    m = u8(0xFFFFFFFF)
    s = u8(32)
    al, ah, bl, bh = au & m, au >> s, bu & m, bu >> s
    t = al * bl
    k = t >> s
    t = ah * bl + k
    w1, w2 = t & m, t >> s
    t = al * bh + w1
    hi = ah * bh + w2 + (t >> s)
    if target.kind == "i":
        hi = hi - np.where(a < 0, bu, u8(0)) - np.where(b < 0, au, u8(0))
        return hi.view(i8)
    return hi


def divide_int(a: Any, b: Any) -> np.ndarray:
    """Division towards zero; by zero it gives all ones."""
    a, b = np.broadcast_arrays(a, b)
    if a.dtype.kind == "u":
        z = b == 0
        return np.where(z, np.iinfo(a.dtype).max, a // np.where(z, 1, b).astype(a.dtype)).astype(
            a.dtype
        )
    u = UNSIGNED[a.dtype.itemsize * 8]
    q = divide_int(np.abs(a).view(u), np.abs(b).view(u))
    q = q.view(a.dtype)
    return np.where((a < 0) != (b < 0), -q, q).astype(a.dtype)


def remainder_int(a: Any, b: Any) -> np.ndarray:
    """The remainder that belongs to divide_int."""
    a, b = np.broadcast_arrays(a, b)
    if a.dtype.kind == "u":
        z = b == 0
        return np.where(z, a, a % np.where(z, 1, b).astype(a.dtype)).astype(a.dtype)
    return (a - divide_int(a, b) * b).astype(a.dtype)


def shift_left(a: Any, s: Any) -> np.ndarray:
    """Shift left; by the width or more gives 0."""
    n = a.dtype.itemsize * 8
    s = np.asarray(s)
    big = s >= n
    r = a << np.where(big, 0, s).astype(a.dtype)
    return np.where(big, a.dtype.type(0), r) if big.any() else r


def shift_right(a: Any, s: Any) -> np.ndarray:
    """Shift right; signed integers keep their sign."""
    n = a.dtype.itemsize * 8
    s = np.asarray(s)
    big = s >= n
    if a.dtype.kind == "i":
        return a >> np.where(big, n - 1, s).astype(a.dtype)
    r = a >> np.where(big, 0, s).astype(a.dtype)
    return np.where(big, a.dtype.type(0), r) if big.any() else r


def extract_bits(a: Any, b: Any, c: Any) -> np.ndarray:
    """bfe: c bits from bit b on, signed types with sign extension."""
    n = a.dtype.itemsize * 8
    position = (np.asarray(b) & 0xFF).astype(i8)
    length = (np.asarray(c) & 0xFF).astype(i8)
    out = np.zeros(a.shape, u8)
    au = a.astype(i8).view(u8) if a.dtype.kind == "i" else a.astype(u8)
    position, length = np.broadcast_to(position, a.shape), np.broadcast_to(length, a.shape)
    x = shift_right(au & u8((1 << n) - 1), position)
    m = shift_left(np.ones(a.shape, u8), length) - u8(1)
    out = x & m
    if a.dtype.kind == "i":
        sp = np.minimum(position + length - 1, n - 1)
        sb = (shift_right(au, np.maximum(sp, 0)) & u8(1)).astype(bool) & (length > 0)
        # bits at and above min(len, n - position) take the sign
        eff = np.minimum(length, np.maximum(n - position, 0))
        mm = shift_left(np.ones(a.shape, u8), eff) - u8(1)
        out = np.where(sb, out | ~mm, out)
    return out.astype(UNSIGNED[n]).view(a.dtype)


def insert_bits(a: Any, b: Any, c: Any, d: Any) -> np.ndarray:
    """bfi: the d lowest bits of a, placed into b at bit c."""
    n = b.dtype.itemsize * 8 if hasattr(b, "dtype") and b.ndim else a.dtype.itemsize * 8
    U = UNSIGNED[n]
    a, b, position, length = np.broadcast_arrays(a, b, np.asarray(c) & 0xFF, np.asarray(d) & 0xFF)
    m = shift_left(shift_left(np.ones(a.shape, u8), length) - u8(1), position)
    v = shift_left(a.astype(u8), position)
    return ((b.astype(u8) & ~m) | (v & m)).astype(U)


def leading_zeros(a: Any) -> np.ndarray:
    """clz: the number of leading zero bits."""
    n = a.dtype.itemsize * 8
    a = a.copy()
    r = np.zeros(a.shape, u4)
    w = n // 2
    full = np.zeros(a.shape, bool) | (a == 0)
    while w:
        hi = (a >> a.dtype.type(n - w)) == 0
        r += np.where(hi, u4(w), u4(0))
        a = np.where(hi, a << a.dtype.type(w), a)
        w //= 2
    return np.where(full, u4(n), r)


def leading_one(a: Any, shiftamt: bool) -> np.ndarray:
    """bfind: the position of the highest bit that is not the sign's."""
    n = a.dtype.itemsize * 8
    x = a
    if a.dtype.kind == "i":
        x = np.where(a < 0, ~a, a)
    x = x.view(UNSIGNED[n])
    lz = leading_zeros(x)
    r = np.where(x == 0, u4(0xFFFFFFFF), lz if shiftamt else u4(n - 1) - lz)
    return r.astype(u4)


def reverse_bits(a: Any) -> np.ndarray:
    """brev: the bits in reverse order."""
    n = a.dtype.itemsize * 8
    b = a.view(u1).reshape(-1, n // 8)
    return (
        np.packbits(np.unpackbits(b, axis=1, bitorder="little"), axis=1, bitorder="big")[:, ::-1]
        .copy()
        .view(a.dtype)
        .reshape(-1)
    )


def permute_bytes(a: Any, b: Any, c: Any) -> np.ndarray:
    """prmt: four bytes of a and b, picked by the nibbles of c."""
    v = np.asarray(a).astype(u8) | (np.asarray(b).astype(u8) << u8(32))
    v, c = np.broadcast_arrays(v, np.asarray(c).astype(u8))
    out = np.zeros(v.shape, u8)
    for i in range(4):
        sel = (c >> u8(4 * i)) & u8(0xF)
        by = (v >> ((sel & u8(7)) << u8(3))) & u8(0xFF)
        sg = (sel & u8(8)) != 0
        if sg.any():
            by = np.where(sg, np.where(by & u8(0x80), u8(0xFF), u8(0)), by)
        out |= by << u8(8 * i)
    return out.astype(u4)


def permute_bytes_mode(a: Any, b: Any, c: Any, mode: str) -> np.ndarray:
    """prmt with a named mode instead of a selector."""
    tab = dict(
        f4e=[0x3210, 0x4321, 0x5432, 0x6543],
        b4e=[0x5670, 0x6701, 0x7012, 0x0123],
        rc8=[0, 0x1111, 0x2222, 0x3333],
        ecl=[0x3210, 0x3211, 0x3222, 0x3333],
        ecr=[0, 0x1110, 0x2210, 0x3210],
        rc16=[0x1010, 0x3232, 0x1010, 0x3232],
    )[mode]
    return permute_bytes(a, b, np.array(tab, u4)[np.asarray(c) & 3])


def logic3(a: Any, b: Any, c: Any, table: int) -> np.ndarray:
    """lop3: a logical function of three operands, given by its truth table."""
    if table == 0x96:
        return a ^ b ^ c
    a, b, c = np.broadcast_arrays(a, b, c)
    r = np.zeros(a.shape, u4)
    for i in range(8):
        if table >> i & 1:
            r = r | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return r


def funnel_shift(a: Any, b: Any, c: Any, left: bool, clamp: bool) -> np.ndarray:
    """shf: 32 bits of the shifted pair (b, a)."""
    c = np.asarray(c)
    n = np.minimum(c, 32) if clamp else (c & 31)
    v = (np.asarray(b).astype(u8) << u8(32)) | np.asarray(a).astype(u8)
    n = n.astype(u8)
    return ((v << n) >> u8(32)).astype(u4) if left else (v >> n).astype(u4)


def dot4(a: Any, b: Any, c: Any) -> np.ndarray:
    """dp4a: the dot product of four bytes, plus c."""
    x = a.view(a.dtype).reshape(-1, 1).view(i1 if a.dtype.kind == "i" else u1).astype(i4)
    b = np.broadcast_to(b, a.shape).copy()
    y = b.reshape(-1, 1).view(i1 if b.dtype.kind == "i" else u1).astype(i4)
    return (x * y).sum(1).astype(i4) + c


def compare_floats(op: str, a: Any, b: Any) -> np.ndarray:
    """A comparison that is not plainly ordered: ne, num, nan and the unordered ones."""
    if op == "ne":
        return (a < b) | (a > b)
    if op == "num":
        return ~(np.isnan(a) | np.isnan(b))
    if op == "nan":
        return np.isnan(a) | np.isnan(b)
    inv = dict(equ="ne", neu="eq", ltu="ge", leu="gt", gtu="le", geu="lt")
    if op == "neu":
        return a != b
    return ~compare_ordered(inv[op], a, b)


def compare_ordered(op: str, a: Any, b: Any) -> np.ndarray:
    """An ordered comparison: false if either is NaN."""
    return (
        ((a < b) | (a > b))
        if op == "ne"
        else dict(eq=np.equal, ge=np.greater_equal, gt=np.greater, le=np.less_equal, lt=np.less)[
            op
        ](a, b)
    )


_ROUND_TO_INT = dict(rni=np.rint, rzi=np.trunc, rmi=np.floor, rpi=np.ceil)


def float_to_int(x: Any, rounding: str | None, target: Any) -> np.ndarray:
    """Integers with saturation; NaN becomes 0."""
    x = _ROUND_TO_INT[rounding](x.astype(f8))
    ii = np.iinfo(target)
    nan = np.isnan(x)
    hi = x >= float(ii.max)
    lo = x <= float(ii.min)
    r = np.where(nan | hi | lo, 0, x)
    r = r.astype(target)
    r = np.where(hi, target(ii.max), np.where(lo, target(ii.min), r))
    r = np.where(nan, target(0), r)
    return r.astype(target)


def int_to_float(x: Any, target: Any, rounding: str | None = "rn") -> np.ndarray:
    """Floats of integers, rounded as asked."""
    if rounding in (None, "rn"):
        return x.astype(target) if target != f2 else x.astype(f8).astype(f2)
    return round_directed(x.astype(f8), rounding, target)


def saturate_int(x: Any, target: Any) -> np.ndarray:
    """Integers clamped to the range of another type."""
    ii = np.iinfo(target)
    si = np.iinfo(x.dtype)
    lo, hi = max(ii.min, si.min), min(ii.max, si.max)
    return np.clip(x, x.dtype.type(lo), x.dtype.type(hi)).astype(target)


def round_int(x: Any, rounding: str | None) -> np.ndarray:
    """A float rounded to a whole number."""
    return _ROUND_TO_INT[rounding](x)


def _fp8_table(e5m2: bool) -> np.ndarray:
    out = np.zeros(256, f4)
    for v in range(256):
        s = -1.0 if v & 0x80 else 1.0
        if e5m2:
            e, m, bias, mb = (v >> 2) & 31, v & 3, 15, 2
            if e == 31:
                out[v] = np.nan if m else s * np.inf
                continue
        else:
            e, m, bias, mb = (v >> 3) & 15, v & 7, 7, 3
            if (v & 0x7F) == 0x7F:
                out[v] = np.nan
                continue
        out[v] = s * (
            m / 2.0**mb * 2.0 ** (1 - bias) if e == 0 else (1 + m / 2.0**mb) * 2.0 ** (e - bias)
        )
    return out


FP8 = dict(e4m3=_fp8_table(False), e5m2=_fp8_table(True))


def float_to_fp8(x: Any, kind: str) -> np.ndarray:
    """Round to nearest even with saturation to the largest finite value."""
    tab = FP8[kind][: 0x7F if kind == "e4m3" else 0x7C].astype(f8)
    a = np.abs(np.asarray(x).astype(f8))
    i = np.clip(np.searchsorted(tab, a), 1, len(tab) - 1)
    lo, hi = tab[i - 1], tab[i]
    mid = (lo + hi) / 2
    pick = np.where((a > mid) | ((a == mid) & (i % 2 == 0)), i, i - 1)
    pick = np.where(a >= tab[-1], len(tab) - 1, pick).astype(u1)
    pick = pick | np.where(np.signbit(x), u1(0x80), u1(0))
    return np.where(np.isnan(x), u1(0x7F), pick)


def pack(n: int, xs: list[Any], ety: Any, dty: Any) -> np.ndarray:
    """One register array of the elements xs, the first in the lowest bits."""
    out = np.empty((n, len(xs)), ety)
    for i, x in enumerate(xs):
        out[:, i] = x
    return out.view(dty).reshape(-1)
