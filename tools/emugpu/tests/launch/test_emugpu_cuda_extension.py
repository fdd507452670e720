"""A CUDA extension on the emulated GPU.

Dispatcher, guard, stream, nvcc's launch stubs and cudart calls are real.
"""

import os
import subprocess
import sys
from pathlib import Path

import emugpu
import pytest
import torch
import torch.nn.functional as F
from toolchain import TOY_LIBRARY, build_toy, compute_capability, why_no_emulated_gpu

if (reason := why_no_emulated_gpu()) is not None:
    pytest.skip(reason, allow_module_level=True)

toy = build_toy()
CAPABILITY = compute_capability()
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def python(*arguments):
    """A new process with this one's paths."""
    here = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )


def randn(*s, **k):
    return torch.randn(*s, device="cuda", **k)


def test_device():
    assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (
        CAPABILITY // 10,
        CAPABILITY % 10,
    )
    assert torch.empty(4, device="cuda").isnan().all()  # poisoned


@pytest.mark.parametrize("rows,n", [(1, 1), (4, 300), (3, 129)])
def test_struct_argument(launches, rows, n):
    x, w = randn(rows, n), randn(n)
    y, _ = toy.rms_norm(x, w, 1e-6)
    close(y, F.rms_norm(x, (n,), w, 1e-6))
    assert [(l["grid"], l["block"]) for l in launches] == [((rows, 1, 1), (128, 1, 1))]
    assert "rms_fwd_k(RmsArgs)" in launches[0]["kernel"]


@pytest.mark.emulated(racecheck="raise", initcheck="raise")
@pytest.mark.parametrize("n,d,causal", [(150, 64, True), (77, 64, False), (100, 128, True)])
def test_flash_attention(launches, n, d, causal):
    """cp.async, ldmatrix, mma.sync, dynamic shared memory with opt-in."""
    q, k, v = (randn(2, n, d, dtype=torch.bfloat16) for _ in range(3))
    o, _ = toy.attention(q, k, v, d**-0.5, causal)
    close(
        o.float(),
        F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal),
        rtol=2e-2,
        atol=1e-2,
    )
    assert launches[-1]["smem"] == 5 * 64 * d * 2 and not launches[-1]["report"].races


def test_stream(launches):
    s = torch.cuda.Stream()
    x, w = randn(2, 64), randn(64)
    with torch.cuda.stream(s):
        toy.rms_norm(x, w, 1e-6)
    assert launches[-1]["stream"] == s.cuda_stream != 0


def test_opt_in_missing():
    """More than 48 KiB of dynamic shared memory without cudaFuncSetAttribute."""
    code = f"""
import emugpu; emugpu.install({CAPABILITY})
import torch
from toolchain import build_toy
toy = build_toy()
q = torch.zeros(1, 64, 128, device="cuda", dtype=torch.bfloat16)
try: toy.attention(q, q, q, 1., True, False)
except emugpu.LaunchError as error: print("REFUSED", error)
"""
    result = python("-c", code)
    assert "REFUSED" in result.stdout, result.stdout + result.stderr
    assert "81920 bytes of dynamic shared memory" in result.stdout, result.stdout


@pytest.mark.parametrize("n", [100, 128, 1000])
def test_out_of_bounds(n):
    """One element past the end of a tensor, in a launcher that never asks for the error."""
    with pytest.raises(
        emugpu.OutOfBoundsError,
        match=f"write of 4 bytes.*parameter 0.*{4 * n} bytes .offset .{4 * n}",
    ):
        toy.oob(torch.zeros(n, device="cuda"))
    y, _ = toy.rms_norm(randn(2, 8), randn(8), 1e-6)  # the device works again
    assert y.isfinite().all()


def test_use_after_free():
    a = randn(8)
    p = a.data_ptr()
    del a
    assert emugpu.launch.memory.refresh() is None and "freed" in emugpu.launch.memory.nearest(p)


def test_the_ptx_is_what_runs(monkeypatch):
    """Negative control: with one instruction of the embedded PTX changed, the result changes."""
    from emugpu import images as R

    x, w = randn(2, 40), randn(40)
    good, _ = toy.rms_norm(x, w, 1e-6)
    f = R._fatbin_ptx
    monkeypatch.setattr(
        R, "_fatbin_ptx", lambda p: [t.replace("rsqrt.approx", "sqrt.approx") for t in f(p)]
    )
    for d in ("_texts", "_by_kernel", "_parsed"):
        monkeypatch.setattr(R, d, {})
    bad, _ = toy.rms_norm(x, w, 1e-6)
    assert not torch.allclose(good, bad)


def test_view_bounds():
    """Inside the storage, outside the tensor that was passed."""
    x = torch.zeros(2, 100, device="cuda")
    with pytest.raises(emugpu.OutOfBoundsError, match="tensor view"):
        toy.oob(x[0])
    with emugpu.checks(view_bounds=False):
        toy.oob(x[0])
    assert x[1, 0] == 1


def test_two_devices(launches):
    if torch.cuda.device_count() < 2:
        pytest.skip("EMULATED_GPU=80x2")
    x, w = torch.randn(2, 30, device="cuda:1"), torch.randn(30, device="cuda:1")
    y, _ = toy.rms_norm(x, w, 1e-6)  # has a guard
    assert y.device.index == 1 and launches[-1]["device"] == 1 and torch.cuda.current_device() == 0
    close(y, F.rms_norm(x, (30,), w, 1e-6))
    close(y.cuda(0).cpu(), y.cpu())
    with pytest.raises(RuntimeError, match="same device"):
        y + y.cuda(0)
    import ctypes

    f = ctypes.CDLL(str(TOY_LIBRARY))["_Z3oobPfiP11CUstream_st"]  # has none
    with (
        pytest.raises(
            emugpu.OutOfBoundsError,
            match="of device 1, but the kernel runs on device 0: missing device guard",
        ),
        emugpu.exact_errors(),
    ):
        f(ctypes.c_void_p(x.data_ptr()), 60, None)
    with torch.cuda.device(1):
        s = torch.cuda.Stream()
    with pytest.raises(RuntimeError, match="stream of another device"), emugpu.exact_errors():
        f(ctypes.c_void_p(x.data_ptr()), 10, ctypes.c_void_p(s.cuda_stream))
        emugpu.check()
        torch.cuda.synchronize()


def test_race():
    with emugpu.checks(racecheck="raise"), pytest.raises(emugpu.RaceError):
        toy.racy(randn(128))
    x = randn(128)
    close(toy.racy(x), x.flip(0))  # lockstep hides it
    with emugpu.checks(schedule="warp-asc"):
        assert toy.racy(x).isnan().any()


@pytest.mark.emulated(racecheck="raise")
def test_schedules(warp_schedule):
    """A kernel without races gives the same in every schedule."""
    assert emugpu.options["schedule"] == warp_schedule
    x, w = randn(2, 100), randn(100)
    close(toy.rms_norm(x, w, 1e-6)[0], F.rms_norm(x, (100,), w, 1e-6))


def test_module_variables():
    """__constant__ and __device__, through cudaMemcpyToSymbol and cudaMemcpyFromSymbol."""
    x = randn(200)
    n = toy.calls(x)
    assert n >= 40
    close(toy.poly(x, 1, 2, 3), 1 + 2 * x + 3 * x * x)
    close(toy.poly(x, -1, 0, 0.5), -1 + 0.5 * x * x)
    assert toy.calls(x) == n + 2


def test_pointers_in_device_memory():
    t = [randn(100) for _ in range(3)]
    close(toy.sum_list(t), sum(t))


def test_cpu_tensor_refused():
    with pytest.raises(NotImplementedError):
        toy.rms_norm(torch.randn(2, 3), torch.randn(3), 1e-6)
    with pytest.raises(RuntimeError, match="same device"):
        randn(3) + torch.randn(3)


@pytest.mark.skipif(CAPABILITY < 90, reason="sm_90a")
@pytest.mark.emulated(racecheck="raise", initcheck="raise")
def test_hopper(launches):
    """Host TMA descriptors, mbarrier ring, wgmma, setmaxnreg, TMA store, cudaLaunchKernelEx."""
    a, b = randn(128, 192, dtype=torch.bfloat16), randn(192, 64, dtype=torch.bfloat16)
    close(toy.mm(a, b).float(), a.float() @ b.float(), rtol=2e-2, atol=2e-2)
    assert launches[-1]["kernel"] == "hmm"


@pytest.mark.skipif(CAPABILITY >= 90, reason="sm_80")
def test_hopper_on_ampere():
    a = randn(64, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError):
        toy.mm(a, a)


def test_memory_accounting():
    emugpu.reset_peak_memory()
    base = emugpu.memory_allocated()
    a = torch.empty(1000, device="cuda")
    assert emugpu.memory_allocated() == base + 4000
    del a
    assert emugpu.memory_allocated() == base and emugpu.max_memory_allocated() == base + 4000
    with pytest.raises(
        RuntimeError, match="out of memory"
    ):  # AcceleratorError: the caching allocator is off
        torch.empty(1 << 36, device="cuda")


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        y, r = toy.rms_norm(x, w, eps)
        ctx.save_for_backward(x, w, r)
        return y

    @staticmethod
    def backward(ctx, g):
        return *toy.rms_norm_backward(g, *ctx.saved_tensors), None


def test_autograd_function(launches):
    x, w = randn(5, 70).requires_grad_(), randn(70).requires_grad_()
    y = RMSNorm.apply(x, w, 1e-6)
    (y * y.detach().cos()).sum().backward()
    assert [l["kernel"].split("(")[0] for l in launches] == ["rms_fwd_k", "rms_bwd_k"]
    x2, w2 = x.detach().cpu().requires_grad_(), w.detach().cpu().requires_grad_()
    y2 = F.rms_norm(x2, (70,), w2, 1e-6)
    (y2 * y2.detach().cos()).sum().backward()
    close(x.grad.cpu(), x2.grad, rtol=1e-4, atol=1e-5)
    close(w.grad.cpu(), w2.grad, rtol=1e-4, atol=1e-5)


def test_gradcheck_like_backward_error():
    """A kernel that fails in backward (autograd's own thread) raises the emulator's exception."""

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return toy.oob(g.contiguous())

    x = randn(10).requires_grad_()
    with pytest.raises(emugpu.OutOfBoundsError):
        Bad.apply(x).sum().backward()


def test_library_autograd_opcheck():
    torch.library.register_fake(
        "toy::rms_norm", lambda x, w, eps: (torch.empty_like(x), x.new_empty(x.shape[0]))
    )
    torch.library.opcheck(
        toy.rms_norm.default,
        (randn(3, 40), randn(40), 1e-6),
        test_utils=("test_schema", "test_faketensor"),
    )


class Block(torch.nn.Module):
    """Pre-norm transformer block: custom norm and custom attention between torch's layers."""

    def __init__(self, custom, dim=128, heads=2):
        super().__init__()
        self.custom, self.h = custom, heads
        self.w = torch.nn.Parameter(torch.rand(dim) + 0.5)
        self.ln = torch.nn.LayerNorm(dim)
        self.qkv, self.out = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(dim, 2 * dim),
            torch.nn.GELU(),
            torch.nn.Dropout(0.0),
            torch.nn.Linear(2 * dim, dim),
        )

    def forward(self, x):
        n, d = x.shape
        y = RMSNorm.apply(x, self.w, 1e-6) if self.custom else F.rms_norm(x, (d,), self.w, 1e-6)
        q, k, v = self.qkv(y).view(n, 3, self.h, d // self.h).permute(1, 2, 0, 3).unbind(0)
        if self.custom:
            a = Attention.apply(q, k, v)
        else:
            a = F.scaled_dot_product_attention(*(t.bfloat16().float() for t in (q, k, v)))
        x = x + self.out(a.transpose(0, 1).reshape(n, d))
        return x + self.mlp(self.ln(x))


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        q, k, v = (t.bfloat16().contiguous() for t in (q, k, v))
        ctx.save_for_backward(q, k, v)
        return toy.attention(q, k, v, q.shape[-1] ** -0.5, False)[0].float()

    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            t = [x.float().requires_grad_() for x in ctx.saved_tensors]
            return torch.autograd.grad(F.scaled_dot_product_attention(*t), t, g)


def test_model_train_step(launches):
    torch.manual_seed(1)
    net = Block(True)
    ref = Block(False)
    ref.load_state_dict(net.state_dict())
    net.cuda()
    opt, opt2 = torch.optim.AdamW(net.parameters(), 1e-3), torch.optim.AdamW(ref.parameters(), 1e-3)
    x = torch.randn(100, 128)
    for _ in range(2):
        a, b = net(x.cuda()).square().mean(), ref(x).square().mean()
        a.backward(), b.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(ref.parameters(), 1.0)
        opt.step(), opt2.step(), opt.zero_grad(), opt2.zero_grad()
        close(a.cpu(), b, rtol=1e-3, atol=1e-3)
    assert len(launches) == 6


def test_checkpoint_and_autocast(launches):
    from torch.utils.checkpoint import checkpoint

    net = Block(True).cuda()
    x = randn(64, 128).requires_grad_()
    checkpoint(net, x, use_reentrant=False).sum().backward()
    g = x.grad.clone()
    x.grad = None
    net(x).sum().backward()
    close(g, x.grad)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.nn.functional.linear(x, net.out.weight).dtype == torch.bfloat16


def test_graph_capture_refused():
    g = torch.cuda.CUDAGraph()
    with pytest.raises(
        RuntimeError, match="cudaStreamBeginCapture is not available on the emulated GPU"
    ):
        with torch.cuda.stream(torch.cuda.Stream()):
            g.capture_begin()


def test_unseen_error_fails_the_test(tmp_path):
    """A launcher that drops the error, called where nothing else looks at it either."""
    code = f"""
import ctypes
import torch
from toolchain import build_toy
toy = build_toy()
def test_bad():
    x = torch.zeros(10, device="cuda")
    try: toy.oob(x)
    except Exception: pass  # surfaced: the test's own business
def test_hidden():
    x = torch.zeros(10, device="cuda")
    oob = ctypes.CDLL({str(TOY_LIBRARY)!r})["_Z3oobPfiP11CUstream_st"]
    assert oob(ctypes.c_void_p(x.data_ptr()), 10, None) == 0
"""
    (tmp_path / "test_dropped.py").write_text(code)
    result = python("-m", "pytest", "-q", "-p", "emugpu.pytest_plugin", str(tmp_path))
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "OutOfBoundsError" in result.stdout and "test_hidden" in result.stdout, result.stdout


def test_torch_kernel_named():
    """With the redirect off, torch's kernels raise and are named."""
    code = f"""
import emugpu; emugpu.install({CAPABILITY}, aten=False)
import torch
x = torch.empty(8, device="cuda")
try: x.fill_(1.)
except RuntimeError as error: print(error)
"""
    result = python("-c", code)
    for words in ("torch kernel", "FillFunctor", "launched on the emulated GPU"):
        assert words in result.stdout, result.stdout + result.stderr
