"""nvcc-compiled kernels against NumPy.

Arithmetic, control flow, shuffles, atomics, local memory, calls.
"""

import numpy as np
import pytest
from emugpu import ptxemu
from emugpu.ptxemu.numerics import bfloat16_to_float, float_to_bfloat16
from toolchain import why_no_nvcc

if (reason := why_no_nvcc()) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.mark.parametrize("schedule", ["lockstep", "warp-asc", "warp-desc"])
def test_vecadd(basic, rng, schedule):
    n = 1000
    a, b = rng.standard_normal((2, n)).astype("f4")
    c = np.zeros(n, "f4")
    basic.launch("vecadd", 4, 256, [a, b, c, n], schedule=schedule)
    assert np.array_equal(c, a + b)


@pytest.mark.parametrize("schedule", ["lockstep", "warp-asc", "warp-desc"])
def test_block_reduce(basic, rng, schedule):
    x = rng.standard_normal(5000).astype("f4")
    o = np.zeros(1, "f4")
    r = basic.launch(
        "block_reduce",
        4,
        256,
        [x, o, 5000],
        racecheck="raise",
        initcheck="raise",
        schedule=schedule,
    )
    assert abs(o[0] - x.sum()) < 1e-2 and not r.races


def test_collatz(basic):
    n = 500
    x = np.arange(1, n + 1, dtype="u4")
    s = np.zeros(n, "u4")
    basic.launch("collatz", 2, 256, [x, s, n])

    def f(v):
        c = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v >> 1
            c += 1
            if c > 200:
                break
        return c

    assert [f(int(v)) for v in x] == s.tolist()


def test_math(basic, rng):
    n = 777
    x = (rng.standard_normal(n) * 3).astype("f4")
    o = np.zeros((16, n), "f4")
    basic.launch("math_ops", 4, 256, [x, o, n])
    X = x.astype("f8")
    from math import erf

    ref = [
        np.exp(X),
        np.log(np.abs(X) + 1e-3),
        np.sqrt(np.abs(X)),
        1 / np.sqrt(np.abs(X) + 1),
        1 / (X + 10),
        np.exp(X),
        np.exp2(X),
        np.tanh(X),
        np.minimum(X, 0.5) + np.maximum(X, -0.25),
        x.astype("f2").astype("f8"),
        bfloat16_to_float(float_to_bfloat16(x)),
        np.trunc(x * np.float32(10))
        + np.floor(x * np.float32(3))
        + np.ceil(x * np.float32(7))
        + np.rint(x * np.float32(5)),
        np.sin(X),
        [erf(v) for v in X],
        np.power(np.abs(X) + 0.5, np.float64(np.float32(1.7))),
        np.fmod(x * np.float32(7), np.float32(1.3)),
    ]
    for i, r in enumerate(ref):
        np.testing.assert_allclose(o[i], r, rtol=4e-6, atol=2e-6, err_msg=str(i))


def s32(v):
    v &= 0xFFFFFFFF
    return v - (1 << 32) if v >> 31 else v


def test_int(basic, rng):
    n = 256
    x = rng.integers(-(2**31), 2**31, n).astype("i4")
    y = rng.integers(-(2**31), 2**31, n).astype("i4")
    x[:40] = rng.integers(-9, 9, 40)
    y[:60] = rng.integers(-9, 9, 60)
    o = np.zeros((40, n), "i4")
    basic.launch("int_ops", 1, 256, [x, y, o, n])

    def signed_byte(v, k):
        return ((v >> (8 * k)) & 0xFF) - (256 if (v >> (8 * k)) & 0x80 else 0)

    def quotient(a, b):
        return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)

    for i in range(n):
        a, b = int(x[i]), int(y[i])
        ua, ub = a & 0xFFFFFFFF, b & 0xFFFFFFFF
        s = b & 31
        ln = i % 32
        by = (ua | ub << 32).to_bytes(8, "little")
        warp = [int(v) for v in x[i - ln : i - ln + 32]]
        ref = [
            a + b,
            a * b,
            quotient(a, b) if b else 0,
            a - quotient(a, b) * b if b else 0,
            ua // ub if ub else 0,
            ua % ub if ub else 0,
            (a * b) >> 32,
            (ua * ub) >> 32,
            (a * b) >> 16,
            bin(ua).count("1"),
            32 - ua.bit_length(),
            int(f"{ua:032b}"[::-1], 2),
            (ua & -ua).bit_length(),
            a << s,
            a >> s,
            ua >> s,
            by[3] | by[7] << 8 | by[1] << 16 | by[5] << 24,
            ((ub << 32 | ua) << s) >> 32,
            (ub << 32 | ua) >> s,
            abs(a),
            min(a, b),
            max(a, b),
            min(ua, ub),
            max(ua, ub),
            (a & b) ^ (~a | b),
            (ua * ub) % 1000003,
            abs(a - b) + 3,
            sum(signed_byte(ua, k) * signed_byte(ub, k) for k in range(4)) + 7,
            (a + 2**15) % 2**16 - 2**15,
            (b + 128) % 256 - 128,
            int(np.rint(np.float32(a) * np.float32(0.37))),
            int(np.float32(ua) * np.float32(0.1)),
            (a >> 5) & 63,
            warp[3],
            warp[ln - 2] if ln >= 2 else a,
            warp[ln + 5] if ln % 16 + 5 < 16 else a,
            sum((v & 1) << k for k, v in enumerate(warp)),
            int(5 in warp),
            int(5 not in warp),
            -1,
        ]
        for k, r in enumerate(ref):
            assert int(o[k, i]) == s32(r), (k, i, a, b)


def test_redux(basic, rng):
    n = 256
    x = rng.integers(-1000, 1000, n).astype("i4")
    o = np.zeros((3, n), "i4")
    basic.launch("redux_ops", 2, 128, [x, o, n])
    w = x.reshape(-1, 32)
    assert np.array_equal(o[0], np.repeat(w.sum(1), 32)) and np.array_equal(
        o[1], np.repeat(w.max(1), 32)
    )
    assert np.array_equal(o[2], np.repeat(np.bitwise_or.reduce(w, 1), 32))


def test_hist(basic, rng):
    x = rng.integers(0, 1000, 3000).astype("u4")
    h = np.zeros(64, "u4")
    basic.launch("hist", 3, 128, [x, h, 3000], racecheck="raise")
    assert np.array_equal(h, np.bincount(x & 63, minlength=64))


def test_half2(basic, rng):
    n = 100
    a, b = rng.standard_normal((2, n, 2)).astype("f2")
    c, d = float_to_bfloat16(rng.standard_normal((2, n, 2)))
    o, p = np.zeros((3, n, 2), "f2"), np.zeros((3, n, 2), "u2")
    basic.launch("half2_ops", 1, 128, [a, b, o, c, d, p, n])
    A, B = a.astype("f8"), b.astype("f8")
    np.testing.assert_array_equal(o[0], (A * B + (a + b).astype("f8")).astype("f2"))
    np.testing.assert_array_equal(o[1], np.maximum(a, b))
    np.testing.assert_allclose(o[2].astype("f4"), np.exp2(A), rtol=2e-3)
    C, D = bfloat16_to_float(c), bfloat16_to_float(d)
    np.testing.assert_array_equal(p[0], float_to_bfloat16(C * D + C))
    np.testing.assert_array_equal(p[1], float_to_bfloat16(np.maximum(C, D)))
    np.testing.assert_array_equal(p[2], float_to_bfloat16(np.stack([C[:, 0] * 3, D[:, 1]], -1)))


def test_local_and_call(basic, rng):
    n = 200
    x = (rng.integers(0, 100, n) * 2 + 1).astype("i4")
    o = np.zeros(n, "i4")
    basic.launch("local_arr", 2, 128, [x, o, n])
    for i in range(n):
        t = [0] * 16
        for k in range(16):
            t[(k * int(x[i])) & 15] = k + 1000 * i
        s = 0
        for k in range(16):
            s = s * 3 + t[(k + int(x[i])) & 15]
        assert s32(s) == o[i]
    a, b = np.abs(rng.standard_normal((2, n))).astype("f4")
    c = np.zeros(n, "f4")
    basic.launch("call_fn", 2, 128, [a, b, c, n])
    ref = a.copy()
    ref[1::2] = (a * b + np.sqrt(a))[1::2]
    np.testing.assert_allclose(c, ref, rtol=1e-6)


def test_double(basic, rng):
    n = 100
    a = np.abs(rng.standard_normal(n))
    c = np.zeros(n)
    basic.launch("dbl", 1, 128, [a, c, n])
    np.testing.assert_allclose(c, np.sqrt(a) / (1 + a) + np.exp(-a), rtol=1e-14)


# -- negative tests ------------------------------------------------------------------------
def test_oob_global(basic, rng):
    n = 1000
    a, b = rng.standard_normal((2, n)).astype("f4")
    c = np.zeros(n, "f4")
    with pytest.raises(ptxemu.OutOfBoundsError) as e:
        basic.launch("vecadd_oob", 4, 256, [a, b, c, n])
    assert (
        "vecadd_oob" in str(e.value)
        and "thread (232, 0, 0)" in str(e.value)
        and "block (3, 0, 0)" in str(e.value)
    )
    assert "ld.global" in str(e.value)


def test_oob_shared(basic):
    o = np.zeros(64, "f4")
    basic.launch("smem_oob", 1, 64, [o], smem_bytes=64 * 8)
    with pytest.raises(ptxemu.OutOfBoundsError) as e:
        basic.launch("smem_oob", 1, 64, [o], smem_bytes=64 * 8 - 16)
    assert "shared" in str(e.value)


def test_missing_syncthreads(basic, rng):
    x = rng.standard_normal(5000).astype("f4")
    o = np.zeros(1, "f4")
    with pytest.raises(ptxemu.RaceError) as e:
        basic.launch("block_reduce_nosync", 4, 256, [x, o, 5000], racecheck="raise")
    assert "read-after-write" in str(e.value)
    # and without the race detector: an adversarial schedule reads poison
    o[:] = 0
    basic.launch("block_reduce_nosync", 4, 256, [x, o, 5000], schedule="warp-asc")
    assert np.isnan(o[0])


def test_fma_rounding(rng):
    """f32 fma is correctly rounded (checked against exact rational arithmetic)."""
    from fractions import Fraction

    from emugpu.ptxemu import numerics as N

    a = np.concatenate([rng.standard_normal(300), [1 + 2.0**-12, 1 + 2.0**-23]]).astype("f4")
    b = np.concatenate([rng.standard_normal(300), [1 + 2.0**-12, 1 - 2.0**-24]]).astype("f4")
    c = np.concatenate(
        [rng.standard_normal(300) * 10.0 ** rng.integers(-12, 3, 300), [2.0**-60, -(2.0**-70)]]
    ).astype("f4")
    r = N.fma(a, b, c)
    for x, y, z, v in zip(a, b, c, r, strict=True):
        e = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        d = abs(Fraction(float(v)) - e)
        for n in (np.nextafter(v, np.float32(np.inf)), np.nextafter(v, np.float32(-np.inf))):
            assert d <= abs(Fraction(float(n)) - e)
