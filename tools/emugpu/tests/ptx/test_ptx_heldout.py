"""Kernels by other authors (Triton kernels of PyTorch), other targets, and -G builds."""

import importlib

import numpy as np
import pytest
import torch
from emugpu import ptxemu
from toolchain import nvcc_ptx, why_no_nvcc, why_no_triton

if (reason := why_no_nvcc() or why_no_triton()) is not None:
    pytest.skip(reason, allow_module_level=True)

import test_ptx_fa_cuda
import test_ptx_mm
import triton.language as tl
from emugpu.ptxemu.triton_aot import Kernel

torch.manual_seed(0)


def sparse_ops():
    import torch.sparse._triton_ops as S
    import torch.utils._triton as U

    old, U.has_triton = U.has_triton, lambda: True
    try:
        return importlib.reload(S)
    finally:
        U.has_triton = old


@pytest.mark.parametrize("arch", [80, 90])
def test_bsr_dense(arch):
    k = sparse_ops()._bsr_strided_dense_rowspace_kernel
    bs, R, C, N = 32, 6, 5, 96
    mask = torch.rand(R, C) < 0.5
    mask[2] = False  # an empty row: early return
    d = torch.randn(R * bs, C * bs).half() * mask.repeat_interleave(bs, 0).repeat_interleave(bs, 1)
    a = d.to_sparse_bsr((bs, bs))
    crow, col, val = (
        a.crow_indices().contiguous(),
        a.col_indices().contiguous(),
        a.values().contiguous(),
    )
    b = torch.randn(C * bs, N).half()
    out = torch.zeros(R * bs, N).half()
    names = k.arg_names
    sig = {n: "i32" for n in names}
    sig.update(
        values_ptr="*fp16",
        crow_indices_ptr="*i64",
        col_indices_ptr="*i64",
        dense_ptr="*fp16",
        output_ptr="*fp16",
    )
    ce = dict(
        BLOCKSIZE_ROW=bs, BLOCKSIZE_COL=bs, acc_dtype=tl.float32, allow_tf32=True, GROUP_SIZE_ROW=4
    )
    kn = Kernel(
        k, {n: t for n, t in sig.items() if n not in ce}, ce, arch, num_warps=4, num_stages=2
    )
    args = [
        val,
        0,
        bs * bs,
        bs,
        1,
        crow,
        0,
        1,
        col,
        0,
        1,
        b,
        0,
        bs * N,
        bs,
        N,
        1,
        out,
        0,
        bs * N,
        bs,
        N,
        1,
    ]
    kn.launch((R, N // bs, 1), args, racecheck="raise")
    torch.testing.assert_close(out.float(), d.float() @ b.float(), rtol=1e-2, atol=2e-2)


def test_bmm_outer():
    from torch._native.ops.bmm_outer_product.triton_kernels import _bmm_outer_product_kernel as k

    B, M, N = 3, 50, 70
    a, b, o = torch.randn(B, M, 1), torch.randn(B, 1, N), torch.empty(B, M, N)
    sig = {n: "i32" for n in k.arg_names if not n.startswith("BLOCK")}
    sig.update(A_ptr="*fp32", B_ptr="*fp32", OUT_ptr="*fp32")
    kn = Kernel(k, sig, dict(BLOCK_M=32, BLOCK_N=64), 80)
    kn.launch(B * 2 * 2, [a, b, o, B, M, N, M, 1, N, 1, M * N, N, 1])
    torch.testing.assert_close(o, a * b)


@pytest.mark.parametrize(
    "build", [{"options": ("-G",)}, {"arch": "sm_90"}, {"arch": "sm_120"}], ids=str
)
def test_flash_attention_builds(build):
    """An unoptimised build and newer targets of the hand-written flash attention."""
    m = ptxemu.Module.from_ptx(nvcc_ptx("fa", **build))
    o, R, *_ = test_ptx_fa_cuda.run(m, "fa64c", 100, 64, True, racecheck="raise")
    torch.testing.assert_close(o, R, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("build", [{"options": ("-G",)}, {"arch": "sm_100"}], ids=str)
def test_mm_builds(build):
    """The same of the tensor-core kernels."""
    m = ptxemu.Module.from_ptx(nvcc_ptx("mm", **build))
    test_ptx_mm.test_mma(m, np.random.default_rng(0), (100, 72, 88), "bf16", "lockstep")
    test_ptx_mm.test_wmma(m, np.random.default_rng(0))
