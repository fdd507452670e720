"""Triton kernels launched the usual way: its driver, JIT cache and C launcher are its own."""

import emugpu
import pytest
import torch
from toolchain import compute_capability, why_no_emulated_gpu

if (reason := why_no_emulated_gpu()) is not None:
    pytest.skip(reason, allow_module_level=True)

import triton
import triton.language as tl
import triton_samples as samples

CAPABILITY = compute_capability()
close = torch.testing.assert_close
hopper = pytest.mark.skipif(CAPABILITY < 90, reason="sm_90")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randn(*s, **k):
    return torch.randn(*s, device="cuda", **k)


@triton.autotune(
    configs=[triton.Config({"BLOCK": b}, num_warps=w) for b in (64, 128) for w in (2, 4)], key=["n"]
)
@triton.jit
def add_k(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def oob_k(x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, i.to(tl.float32))


def test_target():
    assert triton.runtime.driver.active.get_current_target().arch == CAPABILITY


@pytest.mark.emulated(racecheck="raise")
def test_softmax(launches):
    x = randn(6, 200)
    y = torch.empty_like(x)
    samples.softmax_k[(6,)](x, y, 200, 200, BLOCK=256)
    close(y, x.softmax(-1))
    assert launches[-1]["kernel"] == "softmax_k" and launches[-1]["grid"] == (6, 1, 1)


@pytest.mark.emulated(racecheck="raise")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_matmul(dtype):
    M, N, Q = 100, 136, 160
    a, b, c = randn(M, Q).to(dtype), randn(Q, N).to(dtype), torch.empty(M, N, device="cuda")
    k = samples.matmul_k[lambda m: (triton.cdiv(M, m["BM"]) * triton.cdiv(N, m["BN"]),)](
        a, b, c, M, N, Q, Q, 1, N, 1, N, 1, BM=64, BN=64, BK=32, num_stages=3
    )
    tol = (
        dict(rtol=1e-4, atol=1e-4) if dtype != torch.float32 else dict(rtol=1e-2, atol=5e-2)
    )  # tf32
    close(c, a.float() @ b.float(), **tol)
    if dtype != torch.float32:
        assert ("wgmma" if CAPABILITY >= 90 else "mma.sync") in k.asm["ptx"]


@pytest.mark.parametrize("causal", [False, True])
def test_flash(causal):
    B, N, D = 2, 150, 64
    q, k, v = (randn(B, N, D, dtype=torch.bfloat16) for _ in range(3))
    o, lse = torch.empty_like(q), torch.empty(B, N, device="cuda")
    samples.flash_k[(triton.cdiv(N, 64), B)](
        q, k, v, o, lse, D**-0.5, N, N * D, D, CAUSAL=causal, D=D, BM=64, BN=64, num_stages=2
    )
    close(
        o.float(),
        torch.nn.functional.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), is_causal=causal
        ),
        rtol=2e-2,
        atol=1e-2,
    )


def test_f16_accumulator():
    a, b = randn(64, 64, dtype=torch.float16), randn(64, 64, dtype=torch.float16)
    c = torch.empty(64, 64, device="cuda", dtype=torch.float16)
    samples.dot_acc_k[(1,)](a, b, c, 64, BM=64, BN=64, BK=32, ACC=tl.float16)
    close(c.float(), a.float() @ b.float(), rtol=5e-2, atol=5e-2)


@pytest.mark.emulated(racecheck="raise", initcheck="raise")
@pytest.mark.parametrize("tolerance", [5e-2, 2e-5, 1e-6], ids=["tf32", "tf32x3", "ieee"])
def test_float32_products(request, tolerance):
    """tf32 rounds its operands; tf32x3 and ieee are as good as float32."""
    precision = request.node.callspec.id
    a, b, c = randn(64, 128), randn(128, 64), torch.empty(64, 64, device="cuda")
    kernel = samples.dot_precision_k[(1,)](
        a, b, c, 128, BM=64, BN=64, BK=32, PRECISION=precision, num_stages=2
    )
    exact = a.double() @ b.double()
    error = (c - exact).abs().max() / exact.abs().max()
    assert error < tolerance
    assert precision != "tf32" or error > 1e-5
    if precision != "ieee":
        assert ("wgmma" if CAPABILITY >= 90 else "mma.sync") in kernel.asm["ptx"]
        assert "tf32" in kernel.asm["ptx"]


def test_autotune(launches):
    x, y = randn(1000), randn(1000)
    z = torch.empty_like(x)
    add_k[lambda m: (triton.cdiv(1000, m["BLOCK"]),)](x, y, z, 1000)
    assert torch.equal(z, x + y)
    assert len(launches) == 5  # each configuration once, then the real launch
    assert triton.testing.do_bench(lambda: None) == 1.0


def test_events():
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    b.record()
    torch.cuda.synchronize()
    assert a.elapsed_time(b) > 0


def test_out_of_bounds():
    with pytest.raises(emugpu.OutOfBoundsError, match="oob_k: out-of-bounds global write"):
        oob_k[(8,)](torch.zeros(1000, device="cuda"), 1000, BLOCK=128)
    x = torch.zeros(4, 128, device="cuda")
    with pytest.raises(emugpu.OutOfBoundsError, match="tensor view"):
        oob_k[(2,)](x[1], 128, BLOCK=128)  # inside the storage, outside the tensor
    with emugpu.checks(view_bounds=False):
        oob_k[(2,)](x[1], 128, BLOCK=128)
    with pytest.raises(ValueError, match="cpu tensor"):
        oob_k[(1,)](torch.zeros(128), 128, BLOCK=128)


def test_caught_error_leaves_a_working_device():
    try:
        oob_k[(8,)](torch.zeros(10, device="cuda"), 10, BLOCK=128)
    except emugpu.OutOfBoundsError:
        pass
    assert emugpu.pending() is None


def test_second_device(launches):
    if torch.cuda.device_count() < 2:
        pytest.skip("EMULATED_GPU=80x2")
    x = torch.randn(3, 100, device="cuda:1")
    y = torch.empty_like(x)
    with pytest.raises(
        Exception, match="missing device guard"
    ):  # Triton launches on the current device
        samples.softmax_k[(3,)](x, y, 100, 100, BLOCK=128)
    with torch.cuda.device(1):
        samples.softmax_k[(3,)](x, y, 100, 100, BLOCK=128)
    close(y, x.softmax(-1))
    assert launches[-1]["device"] == 1


def test_compile():
    """torch.compile: Inductor's own Triton kernels run in the emulator as well."""
    from emugpu import triton_patch

    triton_patch.inductor()

    @torch.compile(fullgraph=True)
    def f(x, w):
        return (torch.nn.functional.gelu(x @ w) + x.sum(-1, keepdim=True)).softmax(-1)

    x, w = randn(32, 64).requires_grad_(), randn(64, 64)
    with emugpu.record() as got:
        y = f(x, w)
        y.square().sum().backward()
    assert any("softmax" in l["kernel"] for l in got) and any(
        "backward" in l["kernel"] for l in got
    )
    g, x.grad = x.grad, None
    z = (torch.nn.functional.gelu(x @ w) + x.sum(-1, keepdim=True)).softmax(-1)
    z.square().sum().backward()
    close(y, z)
    close(g, x.grad)


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty_like(x)
        samples.softmax_k[(x.shape[0],)](
            x, y, x.shape[1], x.stride(0), BLOCK=triton.next_power_of_2(x.shape[1])
        )
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(-1, keepdim=True))


def test_autograd_with_linear():
    lin = torch.nn.Linear(30, 50).cuda()
    x = randn(7, 30).requires_grad_()
    Softmax.apply(lin(x)).pow(2).sum().backward()
    g, gw = x.grad.clone(), lin.weight.grad.clone()
    x.grad = lin.weight.grad = None
    lin(x).softmax(-1).pow(2).sum().backward()
    close(x.grad, g)
    close(lin.weight.grad, gw)


def test_custom_op():
    @torch.library.custom_op("emutest::softmax", mutates_args=())
    def softmax(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        samples.softmax_k[(x.shape[0],)](x, y, x.shape[1], x.stride(0), BLOCK=256)
        return y + torch.zeros_like(y)

    softmax.register_fake(torch.empty_like)
    x = randn(3, 200)
    close(softmax(x), x.softmax(-1))
    torch.library.opcheck(softmax, (x,), test_utils=("test_schema", "test_faketensor"))


@hopper
@pytest.mark.emulated(racecheck="raise", initcheck="raise")
@pytest.mark.parametrize("ws", [False, True])
def test_host_descriptors(ws):
    from triton.tools.tensor_descriptor import TensorDescriptor

    M, N, Q = 192, 128, 192
    a, b, c = (
        randn(M, Q, dtype=torch.bfloat16),
        randn(Q, N, dtype=torch.bfloat16),
        torch.empty(M, N, device="cuda", dtype=torch.bfloat16),
    )
    k = samples.matmul_tma_k[(6,)](
        TensorDescriptor.from_tensor(a, [64, 64]),
        TensorDescriptor.from_tensor(b, [64, 64]),
        TensorDescriptor.from_tensor(c, [64, 64]),
        M,
        N,
        Q,
        BM=64,
        BN=64,
        BK=64,
        WS=ws,
        num_stages=3,
    )
    assert "wgmma" in k.asm["ptx"] and "cp.async.bulk.tensor" in k.asm["ptx"]
    close(c.float(), a.float() @ b.float(), rtol=2e-2, atol=2e-2)


@hopper
def test_device_descriptors():
    triton.set_allocator(
        lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda")
    )
    x = randn(100, 64, dtype=torch.bfloat16)
    y = torch.zeros_like(x)
    samples.devdesc_k[(4, 2)](x, y, 100, 64, BM=32, BN=32)
    close(y, x * 2)


@hopper
def test_cluster_refused():
    x = randn(6, 200)
    with pytest.raises(emugpu.NotEmulatedError, match="cluster"):
        samples.softmax_k[(6,)](x, torch.empty_like(x), 200, 200, BLOCK=256, num_ctas=2)


def test_too_much_shared_memory():
    a = randn(256, 1024, dtype=torch.float32)
    with pytest.raises(triton.runtime.errors.OutOfResources):
        samples.matmul_k[(1,)](
            a, a, a, 256, 256, 256, 256, 1, 256, 1, 256, 1, BM=256, BN=256, BK=64, num_stages=4
        )
