"""Mutation tests: does the emulator notice when known-good PTX loses an instruction?

Each synchronising instruction is deleted or weakened, one at a time.
"""

import math
import re

import pytest
import torch
from emugpu import ptxemu
from toolchain import nvcc_ptx, why_no_nvcc, why_no_triton

if (reason := why_no_nvcc() or why_no_triton()) is not None:
    pytest.skip(reason, allow_module_level=True)

import triton_samples as samples
from emugpu.ptxemu.triton_aot import Desc, Kernel

RULES = [
    ("bar.sync", r"^\s*(bar|barrier)\.sync(\.aligned)?\s", lambda s: None),
    ("cp.async.wait", r"^\s*cp\.async\.wait_(group|all)", lambda s: None),
    (
        "cp.async.wait N+1",
        r"^\s*cp\.async\.wait_group",
        lambda s: re.sub(r"(\d+)\s*;", lambda m: f"{int(m[1]) + 1};", s),
    ),
    ("wgmma.wait", r"^\s*wgmma\.wait_group", lambda s: None),
    (
        "mbarrier.wait",
        r"^\s*(@\S+\s+)?mbarrier\.try_wait",
        lambda s: re.sub(r"mbarrier\.try_wait\S*\s+([\w%]+)\s*,.*", r"setp.eq.u32 \1, 0, 0;", s),
    ),
    ("fence.proxy", r"^\s*fence\.proxy\.async", lambda s: None),
    (
        "expect_tx",
        r"^\s*(@\S+\s+)?mbarrier\.arrive\.expect_tx",
        lambda s: re.sub(r",\s*(\d+|%\w+)\s*;", ", 16;", s),
    ),
]


def mutants(ptx):
    lines = ptx.split("\n")
    for i, ln in enumerate(lines):
        for name, rx, f in RULES:
            if re.match(rx, ln):
                new = f(ln)
                yield (
                    name,
                    i + 1,
                    "\n".join(lines[:i] + ([""] if new is None else [new]) + lines[i + 1 :]),
                )
    # compilers emit some redundant barriers: also delete each cluster of neighbouring ones
    bars = [i for i, ln in enumerate(lines) if re.match(RULES[0][1], ln)]
    runs, cur = [], []
    for i in bars:
        if cur and i - cur[-1] > 20:
            runs.append(cur)
            cur = []
        cur.append(i)
    for run in [*runs, cur]:
        if len(run) > 1:
            yield (
                f"{len(run)} bar.sync",
                run[0] + 1,
                "\n".join("" if i in run else ln for i, ln in enumerate(lines)),
            )


def detect(run, ptx, modes):
    """run(ptx, **launch options) -> (max error, report)"""
    out = []
    for label, kw in modes:
        try:
            err, rep = run(ptx, **kw)
            if not err < 0.05:
                out.append(label + ":wrong")
            if rep.races or rep.uninit:
                out.append(label + ":race" if rep.races else label + ":uninit")
            if rep.warnings:
                out.append(label + ":warning")
        except ptxemu.EmuError as e:
            out.append(f"{label}:{type(e).__name__}")
    return out


BUDGET = 60000
MODES = [
    ("check", dict(racecheck="record", initcheck="record", max_issues=BUDGET)),
    ("asc", dict(schedule="warp-asc", max_issues=BUDGET)),
    ("desc", dict(schedule="warp-desc", max_issues=BUDGET)),
]


def ref(q, k, v, causal=False):
    s = q.float() @ k.float().transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        s = s.masked_fill(torch.ones(*s.shape[1:]).triu(1).bool(), -math.inf)
    return s.softmax(-1) @ v.float()


def err(a, b):
    d = (a.float() - b).abs().max().item()
    return d if d == d else math.inf


def fa_cuda():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 256, 64).bfloat16() for _ in range(3))
    R = ref(q, k, v)

    def run(ptx, **kw):
        o, lse = torch.full_like(q, math.nan), torch.empty(2, 256)
        r = ptxemu.Module.from_ptx(ptx).launch(
            "fa64", (4, 2), 128, [q, k, v, o, lse, 256, 0.125], 64 * 64 * 2 * 5, **kw
        )
        return err(o, R), r

    full = nvcc_ptx("fa")
    i = full.index(".entry fa64(")
    i = full.rindex(".visible", 0, i)
    j = full.find(".visible", i + 10)
    return full[: full.index(".visible")] + full[i:j], run


def tri(fn, arch, stages):
    torch.manual_seed(0)
    B, N, D = 2, 256, 64
    q, k, v = (torch.randn(B, N, D).bfloat16() for _ in range(3))
    R = ref(q, k, v)
    kn = Kernel(
        samples.flash_k,
        dict(
            q="*bf16",
            k="*bf16",
            v="*bf16",
            o="*bf16",
            lse="*fp32",
            scale="fp32",
            N="i32",
            sb="i32",
            sn="i32",
        ),
        dict(CAUSAL=False, D=D, BM=64, BN=64),
        arch,
        align16=["q", "k", "v", "o", "lse", "sb", "sn"],
        num_stages=stages,
    )

    def run(ptx, **kw):
        kn.module = ptxemu.Module.from_ptx(ptx)
        o, lse = torch.full_like(q, math.nan), torch.empty(B, N)
        r = kn.launch((N // 64, B), [q, k, v, o, lse, D**-0.5, N, N * D, D], **kw)
        return err(o, R), r

    return kn.ptx, run


def tri_tma(ws):
    torch.manual_seed(0)
    M, N, K = 128, 128, 384
    a, b = torch.randn(M, K).bfloat16() * 0.1, torch.randn(K, N).bfloat16() * 0.1
    k = Kernel(
        samples.matmul_tma_k,
        dict(
            da="tensordesc<bf16[64, 64]>",
            db="tensordesc<bf16[64, 64]>",
            dc="tensordesc<bf16[64, 64]>",
            M="i32",
            N="i32",
            K="i32",
        ),
        dict(BM=64, BN=64, BK=64, WS=ws),
        90,
        num_stages=3,
        num_warps=4,
    )

    def run(ptx, **kw):
        k.module = ptxemu.Module.from_ptx(ptx)
        c = torch.full((M, N), math.nan).bfloat16()
        r = k.launch(4, [Desc(a), Desc(b), Desc(c), M, N, K], **kw)
        return err(c, a.float() @ b.float()), r

    return k.ptx, run


CASES = {
    "fa_cuda": fa_cuda,
    "triton80": lambda: tri(samples.flash_k, 80, 2),
    "triton80s3": lambda: tri(samples.flash_k, 80, 3),
    "triton90": lambda: tri(samples.flash_k, 90, 2),
    "triton90tma": lambda: tri_tma(False),
    "triton90ws": lambda: tri_tma(True),
}


def table(case):
    ptx, run = CASES[case]()
    assert detect(run, ptx, MODES) == [], "the unmutated kernel must be clean"
    return [(name, line, detect(run, p, MODES)) for name, line, p in mutants(ptx)]


# How many deletions change nothing: barriers with another barrier (or an mbarrier wait by every
# thread) beside them, and a second proxy fence with no generic write in between. Counted with
# Triton 3.8 and 3.9; for triton80, triton90 and triton90tma of 3.9 read off the PTX by hand.
REDUNDANT = {"triton80": 1, "triton80s3": 2, "triton90": 2, "triton90tma": 13, "triton90ws": 11}


@pytest.mark.parametrize("case", CASES)
def test_mutants(case):
    """Every wait that is removed is noticed, and all barriers and fences but the redundant ones."""
    rows = table(case)
    missed = [(name, line) for name, line, found in rows if not found]
    assert rows and len(missed) <= REDUNDANT.get(case, 0), missed
    assert all(name.endswith(("bar.sync", "fence.proxy")) for name, _ in missed), missed


@pytest.mark.parametrize(
    "old,new",
    [
        ("x4.trans.shared", "x4.shared"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared", "ldmatrix.sync.aligned.m8n8.x4.trans.shared"),
        ("bf16.bf16.f32", "f16.f16.f32"),
        ("shfl.sync.bfly.b32", "shfl.sync.idx.b32"),
        ("cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32"),
        ("ex2.approx", "lg2.approx"),
        ("cp.async.cg.shared.global", "cp.async.cg.shared.global.L2::128B"),
    ],
)
def test_semantic_mutants(old, new):
    """Changing one instruction's meaning must change the answer (and a cache hint must not)."""
    ptx, run = fa_cuda()
    assert old in ptx
    e, _ = run(
        ptx.replace(old, new, 1) if old.startswith(("ex2", "shfl", "cp")) else ptx.replace(old, new)
    )
    assert (e < 0.05) == old.startswith("cp")
