"""CUB, cooperative groups, locks, 64-bit arithmetic, fp8, constants, structs, device asserts.

And an unoptimised (-G) build.
"""

import numpy as np
import pytest
from emugpu import ptxemu
from toolchain import nvcc_ptx, why_no_nvcc

if (reason := why_no_nvcc()) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def st():
    return ptxemu.Module.from_ptx(nvcc_ptx("stress", "sm_90"))


@pytest.mark.parametrize("schedule", ["lockstep", "warp-desc"])
def test_cub(st, rng, schedule):
    x = rng.integers(0, 100, 1024).astype("i4")
    y = np.zeros_like(x)
    kw = dict(racecheck="raise", schedule=schedule)
    st.launch("scan_k", 2, 128, [x, y], **kw)
    e = x.reshape(2, 512).cumsum(1) - x.reshape(2, 512)
    assert np.array_equal(y, e.reshape(-1))
    u = rng.integers(0, 2**32, 1024).astype("u4")
    v = np.zeros_like(u)
    st.launch("sort_k", 2, 128, [u, v], **kw)
    assert np.array_equal(v, np.sort(u.reshape(2, 512), 1).reshape(-1))
    f = rng.standard_normal(288).astype("f4")
    g = np.zeros(3, "f4")
    st.launch("red_k", 3, 96, [f, g], **kw)
    np.testing.assert_allclose(g, f.reshape(3, 96).sum(1), rtol=1e-5, atol=1e-5)


def test_cg(st, rng):
    x = rng.integers(0, 9, 64).astype("i4")
    y = np.zeros_like(x)
    st.launch("cg_k", 1, 64, [x, y])
    e = np.repeat(x.reshape(-1, 8).sum(1), 8)
    for w in range(2):
        t = [i for i in range(32 * w, 32 * w + 32) if i % 3 == 0]
        for k, i in enumerate(t):
            e[i] += len(t) * 1000 + k * 100000
    assert np.array_equal(y, e)


def test_fp8(st, rng):
    x = np.concatenate(
        [
            rng.standard_normal(200) * 10,
            [0, 1e-9, 447, 448, 500, 1e6, -1e6, np.nan, 57344, 0.001953125, 0.0009765],
        ]
    ).astype("f4")
    n = len(x)
    e4, e5, b4, b5 = np.zeros(n, "u1"), np.zeros(n, "u1"), np.zeros(n, "f4"), np.zeros(n, "f4")
    st.launch("fp8_k", 2, 128, [x, e4, e5, b4, b5, n])
    import torch

    for b, ty, mx in ((b4, torch.float8_e4m3fn, 448), (b5, torch.float8_e5m2, 57344)):
        r = torch.tensor(x).clamp(-mx, mx).to(ty).float().numpy()
        np.testing.assert_array_equal(b, r)


def test_assert(st):
    x = np.arange(8, dtype="i4")
    st.launch("assert_k", 1, 8, [x])
    with pytest.raises(ptxemu.EmuError) as e:
        st.launch("assert_k", 1, 8, [x + 3])
    assert "thread (6, 0, 0)" in str(e.value)


def test_atomics_and_locks(st, rng):
    x = rng.standard_normal(300).astype("f4")
    o = np.array([-100], "f4")
    st.launch("cas_k", 3, 128, [o, x, 300])
    assert o[0] == x.max()
    l, c = np.zeros(1, "i4"), np.zeros(1, "i4")
    st.launch("lock_k", 2, 64, [l, c])
    assert c[0] == 128 and l[0] == 0
    f, o = np.zeros(1, "i4"), np.zeros(32, "i4")
    st.launch("flag_k", 2, 32, [f, o])
    assert (o == 42).all()


def test_misc(st, rng):
    n = 100
    x = rng.integers(0, 9, n).astype("i4")
    y = np.zeros(n, "i4")
    st.launch("switch_k", 1, 128, [x, y, n])
    i = np.arange(n)
    assert np.array_equal(
        y, np.select([x == k for k in range(7)], [5, x * 7 + 3, i, -1, i * i, 17, n - i], 99)
    )
    f = np.zeros(32, "f4")
    st.launch("const_k", 1, 32, [f])
    assert np.array_equal(f, np.tile(np.arange(1, 9), 4) + 8)
    x = rng.integers(-3, 4, 64).astype("i4")
    m = np.zeros(128, "u4")
    st.launch("match_k", 1, 64, [x, m])
    for k in range(64):
        w = x[k // 32 * 32 :][:32]
        assert m[k] == sum(1 << j for j in range(32) if w[j] == x[k])
    b = np.zeros(64, "i4")
    st.launch("barred_k", 1, 64, [x, b])
    assert (b == (x > 0).sum() * 4 + 2 * int((x != 0).all()) + int((x == 7).any())).all()
    dt = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("k", "i4")])
    q = np.zeros(n, dt)
    for k in "xyz":
        q[k] = rng.standard_normal(n)
    q["k"] = i
    p = np.array((1, 2, 3, 5), dt)
    o = np.zeros(n, dt)
    st.launch("struct_k", 1, 128, [p, q, o, n])
    assert (
        np.array_equal(o["x"][::-1], q["x"] + 1)
        and np.array_equal(o["y"][::-1], q["y"] * 2)
        and np.array_equal(o["k"][::-1], i ^ 5)
    )
    x = rng.integers(0, 40, n).astype("i4")
    st.launch("nest_k", 1, 128, [x, y, n])

    def nest(v):
        s = 0
        for a in range(v):
            for b in range(a, v):
                if (a * b) % 3 == 1:
                    continue
                if s > 5000:
                    return s
                s += a ^ b
        return s

    assert [nest(int(v)) for v in x] == y.tolist()


def test_i64(st, rng):
    n = 50
    a, b = rng.integers(-(2**62), 2**62, n), rng.integers(-(2**40), 2**40, n)
    o = np.zeros((10, n), "i8")
    st.launch("i64_k", 1, 64, [a, b, o, n])

    def s64(v):
        return (v + 2**63) % 2**64 - 2**63

    for i in range(n):
        x, y = int(a[i]), int(b[i])
        q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        ux, uy = x % 2**64, y % 2**64
        ref = [
            q,
            x - q * y,
            (x * y) >> 64,
            (ux * uy) >> 64,
            x >> (y & 63),
            64 - ux.bit_length(),
            bin(ux).count("1"),
            int(np.float32(x)),
            min(x, y),
            ((x % 2**128) * (y % 2**128) % 2**128) >> 32,
        ]
        assert [int(v) for v in o[:, i]] == [s64(r) for r in ref], i


def test_debug_build(rng):
    m = ptxemu.Module.from_ptx(nvcc_ptx("basic", options=("-G",)))
    import test_ptx_basic as B

    for t in (B.test_math, B.test_int, B.test_local_and_call, B.test_half2, B.test_collatz):
        t(*([m, rng] if t.__code__.co_argcount == 2 else [m]))
    B.test_block_reduce(m, rng, "warp-asc")


def test_divergence_errors(st):
    o = np.zeros(64, "i4")
    with pytest.raises(ptxemu.DeadlockError) as e:  # full member mask, half the warp
        st.launch("badshfl_k", 1, 32, [o])
    assert "shfl" in str(e.value)
    with pytest.raises(ptxemu.DeadlockError):  # half the block never reaches the barrier
        st.launch("badbar_k", 1, 64, [o, 32], max_issues=100000)
    with pytest.raises(TypeError):
        st.launch("badbar_k", 1, 64, [o])
