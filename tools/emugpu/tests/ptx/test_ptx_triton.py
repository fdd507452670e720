"""Triton kernels compiled ahead of time and executed in the emulator against torch."""

import math

import pytest
import torch
from toolchain import why_no_triton

if (reason := why_no_triton()) is not None:
    pytest.skip(reason, allow_module_level=True)

import triton_samples as samples
from emugpu.ptxemu.triton_aot import Desc, Kernel

torch.manual_seed(0)
ARCHS = [80, 90]
TY = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@pytest.mark.parametrize("arch", ARCHS)
def test_softmax(arch):
    x = torch.randn(6, 200)
    y = torch.empty_like(x)
    k = Kernel(
        samples.softmax_k,
        {"x": "*fp32", "y": "*fp32", "n": "i32", "stride": "i32"},
        {"BLOCK": 256},
        arch,
    )
    k.launch(6, [x, y, 200, 200], racecheck="raise")
    torch.testing.assert_close(y, x.softmax(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_layernorm(arch):
    n = 300
    x = torch.randn(5, n).bfloat16()
    w, b = torch.randn(2, n)
    y = torch.empty_like(x)
    mu, rs = torch.empty(2, 5)
    k = Kernel(
        samples.layernorm_k,
        dict(
            x="*bf16",
            w="*fp32",
            b="*fp32",
            y="*bf16",
            mean="*fp32",
            rstd="*fp32",
            n="i32",
            stride="i32",
            eps="fp32",
        ),
        {"BLOCK": 128},
        arch,
    )
    k.launch(5, [x, w, b, y, mu, rs, n, n, 1e-5], racecheck="raise")
    ref = torch.nn.functional.layer_norm(x.float(), (n,), w, b, 1e-5)
    torch.testing.assert_close(y.float(), ref, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mu, x.float().mean(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("ty", [torch.bfloat16, torch.float16, torch.float32])
def test_matmul(arch, stages, ty):
    M, N, K = 100, 136, 160
    a, b = torch.randn(M, K).to(ty), torch.randn(K, N).to(ty)
    c = torch.empty(M, N)
    p = "*" + TY[ty]
    k = Kernel(
        samples.matmul_k,
        dict(a=p, b=p, c="*fp32", **{s: "i32" for s in ("M", "N", "K", "sam", "sbk", "scm")}),
        dict(BM=64, BN=64, BK=32, sak=1, sbn=1, scn=1),
        arch,
        align16=["a", "b", "c", "K", "sam", "sbk"],
        num_stages=stages,
    )
    if ty != torch.float32:
        assert ("wgmma" if arch == 90 else "ldmatrix") in k.ptx and (
            "cp.async" in k.ptx or stages == 1
        )
    r = k.launch(2 * 3, [a, b, c, M, N, K, K, N, N], racecheck="record", initcheck="record")
    tol = dict(rtol=1e-4, atol=1e-4) if ty != torch.float32 else dict(rtol=1e-2, atol=5e-2)
    torch.testing.assert_close(c, a.float() @ b.float(), **tol)
    assert not r.races, r.races


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "ty,D,N", [(torch.bfloat16, 64, 256), (torch.float16, 64, 200), (torch.bfloat16, 128, 150)]
)
def test_flash(arch, causal, ty, D, N):
    B = 2
    q, k, v = (torch.randn(B, N, D).to(ty) for _ in range(3))
    o, lse = torch.empty_like(q), torch.empty(B, N)
    p = "*" + TY[ty]
    kn = Kernel(
        samples.flash_k,
        dict(q=p, k=p, v=p, o=p, lse="*fp32", scale="fp32", N="i32", sb="i32", sn="i32"),
        dict(CAUSAL=causal, D=D, BM=64, BN=64),
        arch,
        align16=["q", "k", "v", "o", "lse", "sb", "sn"],
        num_stages=2,
    )
    r = kn.launch(
        (math.ceil(N / 64), B), [q, k, v, o, lse, D**-0.5, N, N * D, D], racecheck="record"
    )
    s = q.float() @ k.float().transpose(1, 2) * D**-0.5
    if causal:
        s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf)
    torch.testing.assert_close(o.float(), s.softmax(-1) @ v.float(), rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(lse, s.logsumexp(-1), rtol=1e-4, atol=1e-3)
    assert not r.races, r.races


@pytest.mark.parametrize("arch", ARCHS)
def test_int8(arch):
    M, N, K = 64, 64, 128
    a, b = (
        torch.randint(-128, 128, (M, K), dtype=torch.int8),
        torch.randint(-128, 128, (N, K), dtype=torch.int8),
    )
    c = torch.empty(M, N, dtype=torch.int32)
    k = Kernel(
        samples.int8_matmul_k,
        dict(a="*i8", b="*i8", c="*i32", K="i32"),
        dict(BM=M, BN=N, BK=64),
        arch,
        align16=["a", "b", "c", "K"],
    )
    k.launch(1, [a, b, c, K])
    assert torch.equal(c, (a.double() @ b.double().T).int())


# -- TMA (host and device tensor descriptors), mbarrier, stmatrix, on sm_90 --------------------
@pytest.mark.parametrize("BM,warps", [(64, 4), (128, 8)])
@pytest.mark.parametrize("ws", [False, True])
@pytest.mark.parametrize("stages", [2, 3])
def test_matmul_tma(BM, warps, ws, stages):
    M, N, K = 192, 128, 192
    a, b, c = (
        torch.randn(M, K).bfloat16(),
        torch.randn(K, N).bfloat16(),
        torch.empty(M, N).bfloat16(),
    )
    k = Kernel(
        samples.matmul_tma_k,
        dict(
            da=f"tensordesc<bf16[{BM}, 64]>",
            db="tensordesc<bf16[64, 64]>",
            dc=f"tensordesc<bf16[{BM}, 64]>",
            M="i32",
            N="i32",
            K="i32",
        ),
        dict(BM=BM, BN=64, BK=64, WS=ws),
        90,
        num_stages=stages,
        num_warps=warps,
    )
    assert "cp.async.bulk.tensor" in k.ptx and "mbarrier.try_wait" in k.ptx
    r = k.launch(
        -(-M // BM) * 2,
        [Desc(a), Desc(b), Desc(c), M, N, K],
        racecheck="record",
        initcheck="record",
    )
    torch.testing.assert_close(c.float(), a.float() @ b.float(), rtol=2e-2, atol=2e-2)
    assert not r.races and not r.uninit and not r.warnings, r


@pytest.mark.parametrize("BM,warps", [(64, 4), (128, 8)])
@pytest.mark.parametrize("ws", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_tma(BM, warps, ws, causal):
    B, N, D = 2, 256, 64
    q, k, v = (torch.randn(B * N, D).bfloat16() for _ in range(3))
    o = torch.empty_like(q)
    kn = Kernel(
        samples.flash_tma_k,
        dict(
            dq=f"tensordesc<bf16[{BM}, 64]>",
            dk="tensordesc<bf16[64, 64]>",
            dv="tensordesc<bf16[64, 64]>",
            do=f"tensordesc<bf16[{BM}, 64]>",
            scale="fp32",
            N="i32",
        ),
        dict(CAUSAL=causal, D=D, BM=BM, BN=64, WS=ws),
        90,
        num_stages=2,
        num_warps=warps,
    )
    r = kn.launch(
        (N // BM, B), [Desc(q), Desc(k), Desc(v), Desc(o), D**-0.5, N], racecheck="record"
    )
    Q, K, V = (t.float().view(B, N, D) for t in (q, k, v))
    s = Q @ K.transpose(1, 2) * D**-0.5
    if causal:
        s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf)
    torch.testing.assert_close(o.float().view(B, N, D), s.softmax(-1) @ V, rtol=2e-2, atol=1e-2)
    assert not r.races, r.races


def test_device_descriptor():
    x = torch.randn(100, 64).bfloat16()
    y = torch.zeros_like(x)
    k = Kernel(
        samples.devdesc_k, dict(x="*bf16", y="*bf16", M="i32", N="i32"), dict(BM=32, BN=32), 90
    )
    assert "tensormap.replace" in k.ptx
    scratch = torch.zeros(8 * k.meta.global_scratch_size, dtype=torch.uint8)
    k.launch((4, 2), [x, y, 100, 64, scratch])
    torch.testing.assert_close(y, x * 2)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ty,D,N", [(torch.bfloat16, 64, 128), (torch.float16, 32, 100)])
def test_flash_backward(arch, causal, ty, D, N):
    B = 2
    q, k, v, g = (torch.randn(B, N, D).to(ty) for _ in range(4))
    Q, K, V = (t.float().requires_grad_() for t in (q, k, v))
    s = Q @ K.transpose(1, 2) * D**-0.5
    if causal:
        s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf)
    o = s.softmax(-1) @ V
    o.backward(g.float())
    lse, delta = (
        s.logsumexp(-1).detach().contiguous(),
        (o * g.float()).sum(-1).detach().contiguous(),
    )
    dq, dk, dv = (
        torch.zeros(B, N, D),
        torch.full((B, N, D), math.nan),
        torch.full((B, N, D), math.nan),
    )
    p = "*" + TY[ty]
    kn = Kernel(
        samples.flash_bwd_k,
        dict(
            q=p,
            k=p,
            v=p,
            do=p,
            lse="*fp32",
            delta="*fp32",
            dq="*fp32",
            dk="*fp32",
            dv="*fp32",
            scale="fp32",
            N="i32",
        ),
        dict(CAUSAL=causal, D=D, BM=64, BN=64),
        arch,
        align16=["q", "k", "v", "do", "lse", "delta", "dq", "dk", "dv"],
        num_stages=2,
    )
    r = kn.launch(
        (-(-N // 64), B), [q, k, v, g, lse, delta, dq, dk, dv, D**-0.5, N], racecheck="record"
    )
    assert not r.races, r.races
    for a, b in ((dq, Q.grad), (dk, K.grad), (dv, V.grad)):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("arch", [89, 90])
@pytest.mark.parametrize("ty", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8(arch, ty):
    M, N, K = 64, 64, 128
    a, b = torch.randn(M, K).to(ty), torch.randn(N, K).to(ty)
    c = torch.empty(M, N)
    p = "*fp8e4nv" if ty == torch.float8_e4m3fn else "*fp8e5"
    k = Kernel(
        samples.fp8_matmul_k,
        dict(a=p, b=p, c="*fp32", K="i32"),
        dict(BM=M, BN=N, BK=64),
        arch,
        align16=["a", "b", "c", "K"],
    )
    k.launch(1, [a.view(torch.uint8), b.view(torch.uint8), c, K])
    torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_scan_sort(arch):
    x = torch.randint(0, 1000, (512,), dtype=torch.int32)
    y, z = torch.empty_like(x), torch.empty_like(x)
    k = Kernel(
        samples.scan_sort_k, dict(x="*i32", y="*i32", z="*i32", n="i32"), dict(BLOCK=512), arch
    )
    k.launch(1, [x, y, z, 512], racecheck="raise")
    assert torch.equal(y, x.cumsum(0).int()) and torch.equal(z, x.sort().values)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "ty,acc,BM,BN,BK",
    [
        (torch.float16, torch.float16, 64, 64, 32),
        (torch.float64, torch.float64, 32, 32, 16),
        (torch.bfloat16, torch.float32, 64, 16, 16),
        (torch.bfloat16, torch.float32, 64, 32, 32),
        (torch.float16, torch.float32, 128, 256, 64),
        (torch.float32, torch.float32, 64, 32, 16),
    ],
)
def test_dot_variants(arch, ty, acc, BM, BN, BK):
    """f16 and f64 accumulators; narrow tiles (32B and 64B swizzles on sm_90)."""
    import triton.language as tl

    if arch == 90 and acc == torch.float64:
        pytest.skip("covered on sm_80")
    names = {
        torch.float16: ("*fp16", tl.float16),
        torch.float32: ("*fp32", tl.float32),
        torch.float64: ("*fp64", tl.float64),
        torch.bfloat16: ("*bf16", None),
    }
    K = 64
    a, b = torch.randn(BM, K).to(ty), torch.randn(K, BN).to(ty)
    c = torch.empty(BM, BN, dtype=acc)
    k = Kernel(
        samples.dot_acc_k,
        dict(a=names[ty][0], b=names[ty][0], c=names[acc][0], K="i32"),
        dict(BM=BM, BN=BN, BK=BK, ACC=names[acc][1]),
        arch,
        align16=["a", "b", "c", "K"],
    )
    assert "mma" in k.ptx
    # Triton copies f16 accumulators between commit and wait: ptxas accepts it, the ISA does not
    k.launch(1, [a, b, c, K], racecheck="raise", eager_wgmma=acc == torch.float16)
    tol = {
        torch.float16: 5e-2,
        torch.float64: 1e-12,
        torch.float32: 1e-4 if ty != torch.float32 else 5e-2,
    }[acc]
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=tol, atol=tol)
