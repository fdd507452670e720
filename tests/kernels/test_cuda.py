"""CUDA kernels on a GPU, hardware or emulated: forward results, within the error budget.

What they share with the other backends is in the tests that go through every backend.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import (
    Case,
    Inputs,
    Results,
    arguments,
    assert_within_budget,
    check_budget,
    device_of,
    leaves,
    make_case,
    run,
    run_with,
    skip_unless_supported,
)
from support.cuda_structs import Attention, Forward, Plan

from genhoi_kernels import (
    RopeCall,
    VideoRope,
    apply_rope,
    explain,
    qk_norm_rope,
    reference_attention,
    supports,
)
from genhoi_kernels.backends import cuda, native
from genhoi_kernels.tune.shapes import SHAPES

pytestmark = [pytest.mark.gpu, pytest.mark.emulated(racecheck="raise", initcheck="raise")]

if (problem := cuda.unavailable()) is not None:
    pytest.skip(f"cuda: {problem}", allow_module_level=True)

HALVES = (torch.bfloat16, torch.float16)
INF = float("inf")
CASES = [
    Case(rows=131, keys=200, dim=128),
    Case(rows=131, lengths=(40, 9), batch=2, dim=64, gate="token", mask="random"),
    Case(
        rows=150,
        lengths=(40, 70),
        batch=2,
        dim=128,
        gate="token",
        mask="tail",
        bias=(0.3, -1.0),
        ref_batch=2,
        mask_batch=2,
    ),
    Case(rows=131, lengths=(40, 9), dim=96, gate="sum", mask="random", bias=(0.3, 1.0)),
    Case(rows=133, dim=40, heads=3, layout="fused", lengths=(5,), gate="token"),
    Case(
        grid=(2, 5, 7),
        dim=32,
        heads=3,
        refs=((3, 4), (1, 2)),
        gate="sequence",
        mask="tail",
        mask_gate=True,
        layout="heads",
    ),
    Case(rows=1, keys=1, dim=16, heads=1, lengths=(1,), mask="all", gate="token"),
    Case(rows=3, keys=0, dim=128, lengths=(5,), mask="random", gate="sum"),
    Case(rows=65, keys=64, dim=24, lengths=(0, 17), scale=-0.3, layout="padded"),
    Case(rows=9, keys=0, lengths=(5, 7), bias=(-INF, -INF)),
    Case(rows=0, keys=5, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, keys=7, lengths=(0,), bias=(0.5,), gate="sum"),
    Case(rows=5, keys=0, lengths=(0,), gate="sum"),
    Case(rows=130, keys=0, dim=128, gate="token"),
    Case(rows=5, batch=0, lengths=(3,), bias=(0.5,), gate="token"),
]


def forward(case: Case, inputs: Inputs, backend: str, dtype: torch.dtype) -> Results:
    """out and lse, without gradients to come."""
    args: dict[str, Any] = arguments(case, inputs, dtype, device_of(backend))
    with torch.no_grad():
        outputs = reference_attention(**args, backend=backend)
    names = ["out", "lse", "gate_sum"]
    return dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=False))


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, dtype=dtype)
    inputs = make_case(case)
    call = dataclasses.replace(case.call("cuda"), needs_grad=False)
    skip_unless_supported("cuda", call)
    exact = forward(case, inputs, "eager", torch.float64)
    eager = forward(case, inputs, "eager", dtype)
    results = forward(case, inputs, "cuda", dtype)
    assert results.keys() == exact.keys()
    for name, x in results.items():
        t, e = exact[name].cpu(), eager[name].cpu()
        assert_within_budget(x.double().cpu(), e, t, dtype, name=name)


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(case: Case, dtype: torch.dtype) -> None:
    """out, lse, gate_sum and every gradient within the error budget."""
    check_budget(dataclasses.replace(case, dtype=dtype), "cuda")


def test_two_runs_are_the_same_bits() -> None:
    case = Case(
        dtype=torch.bfloat16,
        rows=150,
        keys=131,
        dim=64,
        lengths=(33, 70),
        batch=2,
        mask="random",
        bias=(0.1, 0.2),
        gate="token",
    )
    first, second = (run(case, "cuda", case.dtype) for _ in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


GATED = Case(
    dtype=torch.bfloat16,
    rows=70,
    dim=64,
    lengths=(20,),
    mask="random",
    mask_gate=True,
    gate="token",
)


def test_launches_of_a_backward_pass(launches: Any) -> None:
    """Through the gate, then queries, video keys and reference keys."""
    case = GATED
    inputs = make_case(case)
    args = arguments(case, inputs, case.dtype, device_of("cuda"))
    launches.clear()
    run_with(args, inputs.upstream, "cuda")
    names = ["attention_fwd", "flow_gate_bwd", "bwd_dq", "bwd_dkdv", "bwd_dkdv"]
    assert len(launches) == len(names)
    assert all(name in x["kernel"] for name, x in zip(names, launches, strict=True))


FORWARD = ["attention_fwd", "flow_gate_bwd"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["gate"], []),
        (["q"], ["bwd_dq"]),
        (["v"], ["bwd_dkdv"]),
        (["k_ref", "v_ref", "gate"], ["bwd_dkdv"]),
        (["ref_bias"], ["bwd_dkdv", "bwd_dbias"]),
    ],
)
def test_a_kernel_of_no_use_is_not_launched(
    launches: Any, wanted: list[str], names: list[str]
) -> None:
    case = dataclasses.replace(GATED, bias=(0.5,))
    args = arguments(case, make_case(case), case.dtype, device_of("cuda"))
    every = leaves(args)
    kept = {name: x for name, x in every.items() if name.split(".")[0] in wanted}
    out, _ = reference_attention(**args, backend="cuda")
    whole = torch.autograd.grad(out.float().square().sum(), list(kept.values()))
    for name, x in every.items():
        x.requires_grad_(name in kept)
    launches.clear()
    out, _ = reference_attention(**args, backend="cuda")
    some = torch.autograd.grad(out.float().square().sum(), list(kept.values()))
    assert all(torch.equal(x, y) for x, y in zip(some, whole, strict=True))
    ours = [x["kernel"] for x in launches if "genhoi" in x["kernel"]]
    assert len(ours) == len(FORWARD + names), ours
    assert all(name in kernel for name, kernel in zip(FORWARD + names, ours, strict=True))


def plain_arguments(case: Case) -> dict[str, Any]:
    """Arguments that want no gradient."""
    args = arguments(case, make_case(case), case.dtype, device_of("cuda"))
    return {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in args.items()}


def forward_plan(dim: int) -> tuple[int, int, int]:
    """Rows of a block, threads and bytes of shared memory of the forward kernel on this GPU."""
    dim = max(64, dim)
    if torch.cuda.get_device_capability()[0] != 9:
        return 128, 128, (128 + 2 * 64) * dim * 2
    rows, keys = {64: (192, 128), 96: (128, 192), 128: (128, 176)}[dim]
    barriers, gate_sums = 9 * 8, rows // 16 * 4
    return rows, 2 * rows + 128, (rows + 4 * keys) * dim * 2 + barriers + gate_sums


@pytest.mark.parametrize("rows", [1, 128, 300])
@pytest.mark.parametrize("dim", [32, 96, 128])
def test_a_forward_pass_is_one_launch(launches: Any, rows: int, dim: int) -> None:
    """A tile of rows of a head to a block; keys, values and queries in shared memory."""
    case = Case(
        dtype=torch.float16,
        batch=2,
        rows=rows,
        dim=dim,
        heads=3,
        lengths=(7,),
        mask="all",
        mask_gate=True,
    )
    given = plain_arguments(case)
    launches.clear()
    reference_attention(**given, backend="cuda")
    (launch,) = launches
    assert "attention_fwd" in launch["kernel"]
    tile, threads, shared = forward_plan(dim)
    assert launch["grid"] == (-(-rows // tile), 3, 2) and launch["block"] == (threads, 1, 1)
    assert launch["smem"] == shared


def test_every_schedule_of_warps(warp_schedule: str) -> None:
    """No result depends on which warp runs first."""
    case = Case(dtype=torch.float16, rows=200, keys=150, dim=64, lengths=(70,), mask="random")
    given = plain_arguments(case)
    out, lse = reference_attention(**given, backend="cuda")
    exact = forward(case, make_case(case), "eager", torch.float64)
    eager = forward(case, make_case(case), "eager", case.dtype)
    for name, x in (("out", out), ("lse", lse)):
        t, e = exact[name].cpu(), eager[name].cpu()
        assert_within_budget(x.double().cpu(), e, t, case.dtype, name=f"{name}, {warp_schedule}")


@pytest.mark.parametrize("dim", [64, 128])
def test_unseen_rows_keep_their_bits(dim: int) -> None:
    """In tiles with rows that see the reference, NaN in it: as without any reference."""
    case = Case(dtype=torch.bfloat16, rows=150, dim=dim, lengths=(33,), mask="random")
    given = plain_arguments(case)
    given["k_ref"][:, ::2], given["v_ref"][:, 1::2] = float("nan"), INF
    out, lse = reference_attention(**given, backend="cuda")
    q, k, v = given["q"], given["k"], given["v"]
    alone, alone_lse = reference_attention(q, k, v, return_lse=True, backend="cuda")
    unseen = ~given["mask"][0]
    assert 0 < unseen.sum() < 150
    assert torch.equal(out[:, unseen], alone[:, unseen])
    assert torch.equal(lse[..., unseen], alone_lse[..., unseen])
    assert out[:, ~unseen].isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_logits_that_rise(dim: int, dtype: torch.dtype) -> None:
    """The highest logit so far is raised again and again: what was added up has to be rescaled."""
    case = Case(dtype=dtype, rows=70, keys=900, dim=dim, heads=1, lengths=(40,), mask="random")
    inputs = make_case(case)
    rising = inputs.tensors["k"] * torch.linspace(0.1, 12.0, 900)[:, None, None]
    inputs.tensors["k"] = rising.to(dtype).double()
    results = forward(case, inputs, "cuda", dtype)
    exact = forward(case, inputs, "eager", torch.float64)
    eager = forward(case, inputs, "eager", dtype)
    for name in ("out", "lse"):
        got, t, e = (x[name].double().cpu() for x in (results, exact, eager))
        assert_within_budget(got, e, t, dtype, name=name)


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_bits_of_a_row_depend_on_no_other_row(dim: int) -> None:
    case = Case(dtype=torch.bfloat16, rows=130, keys=700, dim=dim, heads=1, lengths=(40,))
    given = plain_arguments(case)
    out, lse = reference_attention(**given, backend="cuda")
    others = torch.arange(130, device=out.device) % 9 != 4
    given["q"][:, others] *= 7.0
    changed, changed_lse = reference_attention(**given, backend="cuda")
    assert not torch.equal(changed, out)
    assert torch.equal(changed[:, ~others], out[:, ~others])
    assert torch.equal(changed_lse[..., ~others], lse[..., ~others])


def test_heads_that_share_keys() -> None:
    """Keys of one head, expanded over all: a stride of 0."""
    case = Case(dtype=torch.bfloat16, rows=140, keys=200, dim=128, heads=3, batch=2)
    given = plain_arguments(case)
    shared = {name: given[name][:, :, :1] for name in ("k", "v")}
    views = {name: x.expand_as(given[name]) for name, x in shared.items()}
    assert_same_as_copies(given, views)


@pytest.mark.parametrize("name", ["q", "k", "v", "k_ref", "v_ref"])
def test_samples_that_share_one_tensor(name: str) -> None:
    """The others are each sample's own."""
    case = Case(dtype=torch.bfloat16, rows=70, keys=90, dim=64, batch=3, lengths=(20,), ref_batch=3)
    given = plain_arguments(case)
    assert_same_as_copies(given, {name: given[name][:1].expand_as(given[name])})


def assert_same_as_copies(given: dict[str, Any], views: dict[str, torch.Tensor]) -> None:
    """Views and copies give the same bits, and the same bits of gradients."""
    found = []
    for tensors in (views, {name: x.contiguous() for name, x in views.items()}):
        args = given | tensors
        leaves = {n: args[n].detach().requires_grad_() for n in "q k v".split()}
        out, lse = reference_attention(**(args | leaves), backend="cuda")
        grads = torch.autograd.grad(out.float().square().sum(), list(leaves.values()))
        found.append((out, lse, *grads))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_what_it_cannot_do_is_refused() -> None:
    q = torch.zeros(1, 4, 1, 64, device="cuda")
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        reference_attention(q, q, q, backend="cuda")
    q = q.half()[..., :20].contiguous()
    with pytest.raises(ValueError, match="head dim 20 is not a multiple of 8"):
        reference_attention(q, q, q, backend="cuda")


def test_more_heads_than_it_rotates_go_to_triton() -> None:
    device = torch.device("cuda")
    assert supports("cuda", RopeCall(device, torch.bfloat16, 128, 96)) is None
    reason = "97 heads of 128 are 12416 values of a token, above 12288"
    assert supports("cuda", RopeCall(device, torch.bfloat16, 128, 97)) == reason
    x = torch.randn(1, 2, 97, 128, device=device, dtype=torch.bfloat16)
    rope = VideoRope((1, 1, 2), head_dim=128)
    with pytest.raises(ValueError, match=reason):
        reference_attention(x, x, x, rope=rope, backend="cuda")
    with pytest.raises(ValueError, match=reason):
        apply_rope(x, rope, backend="cuda")
    assert explain(x, x, x)["cuda"] is None, "without a rotation"
    assert explain(x, x, x, rope=rope)["cuda"] == reason
    weight = torch.ones(97 * 128, device=device)
    q, _ = qk_norm_rope(x.flatten(2), x.flatten(2), weight, weight, rope)
    by_eager, _ = qk_norm_rope(x.flatten(2), x.flatten(2), weight, weight, rope, backend="eager")
    torch.testing.assert_close(q, by_eager)


@pytest.mark.parametrize("name", SHAPES)
def test_plans_of_named_shapes(name: str) -> None:
    """What a real clip asks of the GPU: grid, block and shared memory."""
    shape = SHAPES[name]
    rows = math.prod(shape.grid)
    library = ctypes.CDLL(str(native.cuda_library))
    of = Attention(batch=1, heads=shape.heads, head_dim=shape.head_dim, rows=rows)
    of.q.token, of.q.head = shape.heads * shape.head_dim, shape.head_dim
    plan = Plan()
    planner = library.genhoi_attention_forward_plan
    assert planner(ctypes.byref(Forward(of=of)), ctypes.byref(plan)) == 0
    tile, threads, shared = forward_plan(shape.head_dim)
    assert list(plan.grid) == [-(-rows // tile), shape.heads, 1]
    assert plan.grid[1] <= 65535 and plan.block == threads
    assert plan.shared == shared
    of.head_dim = 136
    assert planner(ctypes.byref(Forward(of=of)), ctypes.byref(plan)) != 0


def ways(addresses: np.ndarray, nbytes: int) -> int:
    """Passes that a warp's access to shared memory takes: most words in one of the banks."""
    banks = 128 // nbytes
    worst = 0
    for group in addresses.reshape(-1, banks):
        words = np.unique(group // nbytes)
        worst = max(worst, int(np.bincount(words % banks).max()))
    return worst


def test_ways() -> None:
    lanes = np.arange(32)
    assert ways(lanes * 4, 4) == 1 and ways(lanes * 0, 4) == 1
    assert ways(lanes * 128, 4) == 32 and ways(lanes * 256, 16) == 8


@pytest.mark.skipif(not os.environ.get("EMULATED_GPU"), reason="only the emulated GPU counts them")
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_bank_conflicts(dim: int, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward: no access to shared memory takes a second pass; backward: 3 % of 16 bytes do.

    On Hopper, none takes a third.
    """
    from emugpu.ptxemu.accesses import MemoryAccess

    counted: Counter[tuple[int, int]] = Counter()
    original = MemoryAccess.shared_index

    def counting(self: Any, pc: int, active: Any, a: Any, nbytes: int, *rest: Any, **named: Any):
        if nbytes in (4, 16) and a.size and a.size % 32 == 0:
            counted[nbytes, ways(a, nbytes)] += 1
        return original(self, pc, active, a, nbytes, *rest, **named)

    monkeypatch.setattr(MemoryAccess, "shared_index", counting)
    case = Case(
        dtype=torch.bfloat16,
        rows=128,
        keys=192,
        dim=dim,
        heads=1,
        lengths=(64,),
        mask="all",
        gate=None if grad else "token",
    )
    if grad:
        run(case, "cuda", case.dtype)
    else:
        reference_attention(**plain_arguments(case), backend="cuda")
    again = {key: count for key, count in counted.items() if key[1] > 1}
    # With TMA, little but results passes through registers.
    on_hopper = torch.cuda.get_device_capability()[0] == 9
    assert counted[16, 1] > (4 if on_hopper else 200)
    if grad and on_hopper:  # the gradients on their way to memory, once, at head dim 96
        assert all(passes == 2 for _, passes in again), again
    elif grad:
        wide = sum(count for (nbytes, _), count in again.items() if nbytes == 16)
        assert wide <= 0.03 * counted[16, 1], again
    else:
        assert not again
