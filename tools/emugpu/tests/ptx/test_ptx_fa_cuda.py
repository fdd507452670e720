"""A hand-written Ampere flash-attention forward (nvcc, sm_80), and broken variants of it."""

import math

import pytest
import torch
from emugpu import ptxemu
from toolchain import nvcc_ptx, why_no_nvcc

if (reason := why_no_nvcc()) is not None:
    pytest.skip(reason, allow_module_level=True)

torch.manual_seed(0)


@pytest.fixture(scope="module")
def fa():
    return ptxemu.Module.from_ptx(nvcc_ptx("fa"))


def run(fa, k, N, D=64, causal=False, H=2, **kw):
    q, kk, v = (torch.randn(H, N, D).bfloat16() for _ in range(3))
    o, lse = torch.full_like(q, math.nan), torch.full((H, N), math.nan)
    r = fa.launch(
        k,
        (math.ceil(N / 64), H),
        128,
        [q, kk, v, o, lse, N, D**-0.5],
        smem_bytes=64 * D * 2 * 5,
        **kw,
    )
    s = q.float() @ kk.float().transpose(1, 2) * D**-0.5
    if causal:
        s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf)
    return o.float(), s.softmax(-1) @ v.float(), lse, s.logsumexp(-1), r


@pytest.mark.parametrize(
    "k,N,D,causal",
    [
        ("fa64", 256, 64, False),
        ("fa64c", 256, 64, True),
        ("fa64", 130, 64, False),
        ("fa64c", 77, 64, True),
        ("fa128c", 200, 128, True),
    ],
)
@pytest.mark.parametrize("schedule", ["lockstep", "warp-desc"])
def test_fa(fa, k, N, D, causal, schedule):
    o, R, lse, L, r = run(
        fa, k, N, D, causal, racecheck="raise", initcheck="raise", schedule=schedule
    )
    torch.testing.assert_close(o, R, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(lse, L, rtol=1e-4, atol=1e-3)
    assert not r.warnings


def test_broken(fa):
    o, R, *_, r = run(fa, "fa_nowait", 256)
    assert o.isnan().all() and r.warnings
    for k in ("fa_nosync_raw", "fa_nosync_war"):
        with pytest.raises(ptxemu.RaceError):
            run(fa, k, 256, racecheck="raise")
        bad = False
        for sch in ("warp-asc", "warp-desc"):
            o, R, *_ = run(fa, k, 256, schedule=sch)
            bad |= not torch.allclose(o, R, rtol=2e-2, atol=2e-2)
        assert bad, k
    with pytest.raises(ptxemu.OutOfBoundsError) as e:
        run(fa, "fa_oob", 130, H=1)
    assert "cp.async" in str(e.value)
