"""nvcc for sm_90a: TMA, mbarrier ring, wgmma, setmaxnreg, TMA store; and broken variants."""

import numpy as np
import pytest
from emugpu import ptxemu
from emugpu.ptxemu import TensorMap
from emugpu.ptxemu.numerics import bfloat16_to_float, float_to_bfloat16
from toolchain import nvcc_ptx, why_no_nvcc

if (reason := why_no_nvcc()) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def hop():
    return ptxemu.Module.from_ptx(nvcc_ptx("hopper", "sm_90a"))


def run(hop, k, K=320, **kw):
    rng = np.random.default_rng(0)
    M, N = 128, 192
    A, B = (float_to_bfloat16(rng.standard_normal(shape)) for shape in ((M, K), (K, N)))
    C = np.full((M, N), 0x7FFF, "u2")
    t = [TensorMap.of(x, (64, 64), "128B") for x in (A, B, C)]
    r = hop.launch(k, (N // 64, M // 64), 256, [*t, K], smem_bytes=5 * 8192 + 64, **kw)
    return bfloat16_to_float(C), bfloat16_to_float(A) @ bfloat16_to_float(B), r


@pytest.mark.parametrize("schedule", ["lockstep", "warp-asc", "warp-desc"])
def test_hmm(hop, schedule):
    C, R, r = run(hop, "hmm", racecheck="raise", initcheck="raise", schedule=schedule)
    np.testing.assert_allclose(C, R, rtol=1e-2, atol=5e-2)
    assert not r.warnings


def test_partial_tiles(hop):
    rng = np.random.default_rng(0)
    M, N, K = 100, 72, 128
    A, B = (float_to_bfloat16(rng.standard_normal(shape)) for shape in ((M, K), (K, N)))
    C = np.full((M, N), 0x7FFF, "u2")
    t = [TensorMap.of(x, (64, 64), "128B") for x in (A, B, C)]
    hop.launch("hmm", (2, 2), 256, [*t, K], smem_bytes=5 * 8192 + 64)
    expected = bfloat16_to_float(A) @ bfloat16_to_float(B)
    np.testing.assert_allclose(bfloat16_to_float(C), expected, rtol=1e-2, atol=5e-2)


def test_no_full_wait(hop):
    C, _, _ = run(hop, "hmm_nofull", K=128)
    assert np.isnan(C).any()


def test_no_wgmma_wait(hop):
    """The buffer is released while wgmma may still read it."""
    C, R, _ = run(hop, "hmm_nowgwait")
    assert not np.allclose(C, R, rtol=1e-2, atol=5e-2)


def test_no_empty_wait(hop):
    try:
        C, R, _ = run(hop, "hmm_noempty")
        assert not np.allclose(C, R, rtol=1e-2, atol=5e-2)
    except ptxemu.EmuError:
        pass


def test_stmatrix(hop):
    o = np.zeros(256, "u4")
    hop.launch("stm", 1, 32, [o])
    for i in range(4):  # matrix i, row r = lanes 4r..4r+3
        exp = [(l * 2 + i * 1000) + ((l * 2 + 1 + i * 1000) << 16) for l in range(32)]
        assert o[i * 32 : i * 32 + 32].tolist() == exp
    assert o[128:].all()


def test_bulk(hop, rng):
    x = rng.standard_normal(2048).astype("f4")
    y = np.zeros_like(x)
    hop.launch("bulk_k", 4, 128, [x, y, 2048], racecheck="raise", initcheck="raise")
    np.testing.assert_array_equal(y, x * 2 + 1)
    with pytest.raises(ptxemu.OutOfBoundsError):
        hop.launch("bulk_k", 4, 128, [x, y[:-4], 2048])
