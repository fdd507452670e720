"""Tensor cores from nvcc: wmma, and mma.sync, ldmatrix(.trans), cp.async with zero fill."""

import numpy as np
import pytest
from emugpu import ptxemu
from emugpu.ptxemu.numerics import bfloat16_to_float, float_to_bfloat16
from toolchain import why_no_nvcc

if (reason := why_no_nvcc()) is not None:
    pytest.skip(reason, allow_module_level=True)


def test_wmma(mm, rng):
    M, N, K = 48, 32, 64
    A, B = rng.standard_normal((M, K)).astype("f2"), rng.standard_normal((K, N)).astype("f2")
    C = np.zeros((M, N), "f4")
    mm.launch("wmma_mm", 3, 64, [A, B, C, M, N, K])
    np.testing.assert_allclose(C, A.astype("f4") @ B.astype("f4"), rtol=1e-4, atol=1e-4)


def test_wmma_tf32(mm, rng):
    M, N, K = 32, 32, 24
    A, B = rng.standard_normal((M, K)).astype("f4"), rng.standard_normal((K, N)).astype("f4")
    C = np.zeros((M, N), "f4")
    mm.launch("wmma_tf32", 2, 64, [A, B, C, M, N, K])
    np.testing.assert_allclose(C, A @ B, rtol=5e-3, atol=2e-2)


@pytest.mark.parametrize("schedule", ["lockstep", "warp-desc"])
@pytest.mark.parametrize("shape", [(64, 64, 64), (128, 192, 96), (100, 72, 88)])
@pytest.mark.parametrize("ty", ["bf16", "f16"])
def test_mma(mm, rng, shape, ty, schedule):
    M, N, K = shape
    a, b = rng.standard_normal((M, K)).astype("f4"), rng.standard_normal((K, N)).astype("f4")
    if ty == "bf16":
        A, B = float_to_bfloat16(a), float_to_bfloat16(b)
        a, b = bfloat16_to_float(A), bfloat16_to_float(B)
    else:
        A, B = a.astype("f2"), b.astype("f2")
        a, b = A.astype("f4"), B.astype("f4")
    C = np.full((M, N), np.nan, "f4")
    r = mm.launch(
        "mm_" + ty,
        ((N + 63) // 64, (M + 63) // 64),
        128,
        [A, B, C, M, N, K],
        racecheck="raise",
        initcheck="raise",
        schedule=schedule,
    )
    np.testing.assert_allclose(C, a @ b, rtol=1e-4, atol=1e-4)
    assert not r.warnings


def run(mm, rng, k, **kw):
    M, N, K = 128, 64, 128
    A, B = (float_to_bfloat16(rng.standard_normal(shape)) for shape in ((M, K), (K, N)))
    C = np.zeros((M, N), "f4")
    mm.launch(k, (1, 2), 128, [A, B, C, M, N, K], **kw)
    return C, bfloat16_to_float(A) @ bfloat16_to_float(B)


def test_missing_cp_wait(mm, rng):
    C, _ = run(mm, rng, "mm_nowait")
    assert np.isnan(C).all()
    with pytest.raises(ptxemu.UninitError):
        run(mm, rng, "mm_nowait", initcheck="raise")


def test_missing_sync(mm, rng):
    with pytest.raises(ptxemu.RaceError):
        run(mm, rng, "mm_nosync", racecheck="raise")
    C, R = run(mm, rng, "mm_nosync", schedule="warp-asc")
    assert not np.allclose(C, R, atol=1e-2)
