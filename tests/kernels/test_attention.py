"""The op on every compiled backend: error budget, and what the contract says must be bitwise."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from support.cases import (
    DTYPES,
    Case,
    Results,
    arguments,
    assert_within_budget,
    backend_params,
    check_budget,
    device_of,
    make_case,
    run,
    run_with,
    skip_unless_supported,
)
from torch import Tensor

import genhoi_kernels
from benchmarks.threads import torch_threads
from genhoi_kernels import apply_rope, reference_attention

INF = float("inf")
# Rows of a tile of the CPU kernels are 96 and of GPU kernels at most 128: 97, 131, 193 and 260
# rows make several, the last one partial.
CASES = [
    # Sizes: one, primes, edges of tiles.
    Case(rows=1, heads=1),
    Case(rows=1, lengths=(1,), heads=3),
    Case(rows=1, keys=131, lengths=(97,), gate="token"),
    Case(rows=131, keys=1, lengths=(1,), bias=(0.5,), mask="random"),
    Case(rows=113, keys=101, heads=1, dim=24),
    Case(rows=96, keys=192, lengths=(96,), mask="random"),
    Case(rows=97, keys=193, lengths=(97,), gate="token", mask="random"),
    Case(rows=260, heads=1, dim=8, lengths=(131,), gate="sequence", mask="tail"),
    Case(grid=(1, 1, 1), refs=((1, 1),), dim=8),
    Case(grid=(7, 3, 5), refs=((5, 7),), heads=3, dim=24, mask="random", gate="token"),
    # Nothing: no row, no video key, no reference token, no head, no sample.
    Case(rows=0, keys=5, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=0, keys=0),
    Case(rows=5, keys=0, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=5, keys=0, lengths=(3,), gate="sequence", mask="tail"),
    Case(rows=5, keys=0, lengths=(0,), gate="sum"),
    Case(rows=5, lengths=(0,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=5, lengths=(0, 0), bias=(0.5, 1.0), gate="sum", mask="all", batch=2),
    Case(rows=5, heads=0, lengths=(3,), bias=(0.5,), mask="random", gate="token"),
    Case(rows=5, batch=0, lengths=(3,), bias=(0.5,), mask="random", gate="sum"),
    # Head dims; thirds that are odd, even and zero.
    # Of seed 0 one row decides the error of dk_ref, and eager has it right by luck on Intel.
    *(
        Case(grid=(3, 4, 4), refs=((3, 3),), dim=dim, gate="token", mask="random", seed=1)
        for dim in (8, 16, 24, 40, 64, 96, 128)
    ),
    Case(grid=(2, 3, 3), refs=((2, 2),), dim=256, heads=1, gate="sequence"),
    # Batches, and references shared by them or not.
    Case(grid=(3, 2, 3), batch=3, refs=((3, 2),), mask="random", mask_batch=3, gate="token"),
    Case(grid=(3, 2, 3), batch=3, refs=((3, 2),), ref_batch=3, mask="random", gate="sequence"),
    Case(
        rows=105,
        batch=3,
        lengths=(13, 100),
        bias=(0.5, -0.5),
        mask="random",
        mask_batch=3,
        mask_dtype=torch.uint8,
        gate="sum",
    ),
    Case(rows=105, batch=2, lengths=(13,), ref_batch=2, bias=(0.5,), mask="random"),
    # Heads: more than frames, a shard of them, other schedules.
    Case(grid=(2, 3, 4), heads=7, refs=((3, 3),)),
    Case(grid=(5, 2, 2), heads=3, refs=((2, 3),), first_head=4, num_heads=9),
    Case(grid=(5, 2, 2), heads=4, refs=((2, 3),), schedule="release"),
    Case(grid=(5, 2, 2), heads=3, refs=((2, 3),), schedule=-1.0),
    # Reference frames in the sequence itself: whole, and a shard of its rows and heads.
    Case(grid=(4, 3, 5), sliding=(0, 1), heads=5, dim=24, gate="token", schedule="release"),
    Case(
        grid=(5, 5, 5), sliding=(0,), token_offset=7, tokens=101, first_head=2, num_heads=6, heads=3
    ),
    Case(grid=(5, 2, 2), heads=3, refs=((2, 3),), schedule=(0.25, -7.0, 90.0)),
    Case(grid=(5, 4, 6), token_offset=7, tokens=101, refs=((2, 3),), mask="random"),
    Case(grid=(5, 4, 6), refs=((2, 3), (5, 1)), ref_rope=False, mask="random"),
    # Strides.
    *(
        Case(
            grid=(4, 5, 6),
            batch=2,
            heads=3,
            refs=((2, 3),),
            mask="random",
            layout=layout,
            gate="token",
        )
        for layout in ("fused", "heads", "expanded", "padded")
    ),
    # Masks.
    *(
        Case(rows=107, lengths=(11,), mask="random", mask_dtype=dtype, mask_gate=built)
        for dtype in (torch.bool, torch.uint8, torch.int32, torch.int64)
        for built in (False, True)
    ),
    Case(rows=107, batch=2, lengths=(11, 5), mask="all", bias=(0.1, 0.2)),
    Case(rows=107, batch=2, lengths=(11, 5), mask="nothing", bias=(0.1, 0.2), gate="token"),
    # Several references, some empty; biases that shut one out.
    Case(
        rows=103,
        lengths=(5, 0, 99, 1),
        mask="random",
        mask_dtype=torch.int64,
        gate="token",
        bias=(0.3, 1.0, -2.0, 3.0),
    ),
    Case(rows=103, lengths=(5, 7), bias=(-INF, 0.4), mask="random", mask_dtype=torch.uint8),
    Case(rows=9, keys=0, lengths=(5, 7), bias=(-INF, -INF), gate="token"),
    Case(rows=20, lengths=(1,) * 32, mask="random", mask_dtype=torch.int32, mask_gate=True),
    # Scale, and a gate in the queries' dtype.
    Case(rows=33, lengths=(5,), scale=0.7, gate="token"),
    Case(rows=33, lengths=(5,), scale=0.02),
    # One key: every row is alike, and the gate's gradients are sums of equal numbers.
    Case(rows=97, keys=1, heads=1, dim=8, gate="sum"),
    *(
        Case(rows=107, gate=gate, batch=2, gate_dtype=torch.bfloat16, dtype=torch.bfloat16)
        for gate in ("token", "sum")
    ),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(backend: str, case: Case, dtype: torch.dtype) -> None:
    kept = None if case.gate_dtype is None else dtype
    check_budget(dataclasses.replace(case, dtype=dtype, gate_dtype=kept), backend)


@pytest.mark.parametrize("name", backend_params())
def test_the_table_is_not_all_skipped(name: str) -> None:
    """A backend that is usable takes most of the cases that it is tested with."""

    def takes(case: Case) -> bool:
        calls = (dataclasses.replace(case, dtype=dtype).call(name) for dtype in DTYPES)
        return any(genhoi_kernels.supports(name, call) is None for call in calls)

    taken = sum(takes(case) for case in CASES)
    assert taken > len(CASES) / 2


def test_no_mask_is_every_bit(backend: str) -> None:
    """None, all True, and any integer whose low R bits are set are the same call."""
    case = Case(rows=107, batch=2, lengths=(11, 5), gate="token", bias=(0.1, 0.2))
    skip_unless_supported(backend, case.call(backend))
    inputs = make_case(case)
    wanted = run(case, backend, case.dtype, inputs)
    for mask in (
        torch.ones(1, 107, dtype=torch.bool),
        torch.full((2, 107), 0b11, dtype=torch.uint8),
        torch.full((1, 107), -1, dtype=torch.int32),
        torch.full((1, 107), 0b10111 + (1 << 40), dtype=torch.int64),
    ):
        results = run(case, backend, case.dtype, dataclasses.replace(inputs, mask=mask))
        for name in wanted:
            assert torch.equal(results[name], wanted[name]), (name, mask.dtype)


@pytest.mark.parametrize("high", [1 << 2, 1 << 7, 1 << 31, 1 << 40, -(1 << 63)])
def test_bits_above_the_references_are_ignored(backend: str, high: int) -> None:
    case = Case(rows=107, lengths=(11, 5))
    skip_unless_supported(backend, case.call(backend))
    inputs = make_case(case)
    low = torch.randint(0, 4, (1, 107), generator=torch.Generator().manual_seed(3))
    wanted = run(case, backend, case.dtype, dataclasses.replace(inputs, mask=low))
    results = run(case, backend, case.dtype, dataclasses.replace(inputs, mask=low | high))
    for name in wanted:
        assert torch.equal(results[name], wanted[name]), name


def test_row_without_any_key(backend: str) -> None:
    """out 0, lse -inf, no gradient: Nk = 0, and the first half of the rows sees no reference."""
    for gate in (None, "token", "sequence"):
        case = Case(rows=10, keys=0, lengths=(3,), mask="tail", gate=gate)
        skip_unless_supported(backend, case.call(backend))
        results = run(case, backend, case.dtype)
        assert not results["out"][:, :5].any() and results["out"][:, 5:].all()
        assert (results["lse"][..., :5] == -INF).all() and results["lse"][..., 5:].isfinite().all()
        assert not results["dq"][:, :5].any()
        for name, x in results.items():
            assert name == "lse" or x.isfinite().all(), name


# 260 rows: tiles where every row sees the references, tiles where none does, and mixed ones.
MIXED = Case(
    rows=260,
    heads=1,
    dim=24,
    lengths=(9, 100, 5),
    gate="token",
    batch=2,
    bias=(0.3, -0.2, 0.7),
)
ROPED = Case(
    grid=(5, 4, 13),
    heads=1,
    dim=24,
    refs=((3, 3), (10, 10), (1, 5)),
    gate="token",
    batch=2,
    bias=(0.3, -0.2, 0.7),
)


def mixed_mask(case: Case) -> Tensor:
    """Bits of MIXED: some rows see only segments 0 and 1, some only 2, some nothing."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.tensor([0, 1, 2, 3, 4])[torch.randint(0, 5, (2, case.n), generator=generator)]
    bits[:, :20] = 4
    bits[0, 96:] = 0
    bits[1, 128:200] = 3
    return bits.to(torch.int32)


@pytest.mark.parametrize("case", [MIXED, ROPED], ids=["rotated already", "rope"])
@pytest.mark.parametrize(
    ("dtype", "poison"),
    [
        (torch.float32, float("nan")),
        (torch.float32, -INF),
        (torch.bfloat16, float("nan")),
        (torch.bfloat16, INF),
        (torch.float16, float("nan")),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_unseen_references_change_nothing(
    backend: str, dtype: torch.dtype, poison: float, case: Case
) -> None:
    """NaN or Inf in a segment: rows that do not see it keep their out, lse and dq bit for bit."""
    case = dataclasses.replace(case, dtype=dtype)
    skip_unless_supported(backend, case.call(backend))
    inputs = dataclasses.replace(make_case(case), mask=mixed_mask(case))
    device = device_of(backend)
    clean = run_with(arguments(case, inputs, dtype, device), inputs.upstream, backend)
    assert clean["dq"].isfinite().all()

    args = arguments(case, inputs, dtype, device)
    with torch.no_grad():
        args["k_ref"][:, 109:] = poison
        args["v_ref"][:, 109:] = poison
    results = run_with(args, inputs.upstream, backend)
    assert inputs.mask is not None
    sees = (inputs.mask >> 2 & 1).bool().to(device)
    for name in ("out", "dq"):
        assert torch.equal(results[name][~sees], clean[name][~sees]), name
        assert not results[name][sees].isfinite().all(-1).any(), name
    by_row = results["lse"].transpose(1, 2), clean["lse"].transpose(1, 2)
    assert torch.equal(by_row[0][~sees], by_row[1][~sees])

    # Once nobody sees the segment, dk, dv and every other gradient are also as they were.
    blind = dataclasses.replace(inputs, mask=inputs.mask & 3)
    clean = run_with(arguments(case, blind, dtype, device), inputs.upstream, backend)
    args = arguments(case, blind, dtype, device)
    with torch.no_grad():
        args["k_ref"][:, 109:] = poison
        args["v_ref"][:, 109:] = poison
    results = run_with(args, inputs.upstream, backend)
    for name in clean:
        assert torch.equal(results[name], clean[name]), name
    assert not results["dk_ref"][:, 109:].any() and not results["dv_ref"][:, 109:].any()
    assert results["dref_bias"][2] == 0


@pytest.mark.parametrize("gate", [None, "token", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_blind_rows_are_those_of_a_call_without_reference(
    backend: str, dtype: torch.dtype, gate: str | None
) -> None:
    """Bitwise, in tiles where no row sees anything and in mixed ones."""
    for case in (MIXED, ROPED):
        case = dataclasses.replace(case, dtype=dtype, gate=gate)
        skip_unless_supported(backend, case.call(backend))
        inputs = dataclasses.replace(make_case(case), mask=mixed_mask(case))
        device = device_of(backend)
        args = arguments(case, inputs, dtype, device)
        results = run_with(args, inputs.upstream, backend)
        for name in ("k_ref", "v_ref", "ref_bias", "mask", "ref_lengths", "ref_rope"):
            args.pop(name, None)
        alone = run_with(args, inputs.upstream, backend)
        assert inputs.mask is not None
        blind = (inputs.mask == 0).to(device)
        assert torch.equal(results["out"][blind], alone["out"][blind])
        assert torch.equal(results["lse"].mT[blind], alone["lse"].mT[blind])
        if gate != "sum":  # there, dq of a blind row is its own too: the sum's gradient is given
            assert torch.equal(results["dq"][blind], alone["dq"][blind])
        assert not torch.equal(results["out"][~blind], alone["out"][~blind])


@pytest.mark.parametrize("case", [MIXED, ROPED], ids=["rotated already", "rope"])
def test_nobody_sees_anything(backend: str, case: Case) -> None:
    """An all-zero mask is the call without reference, gradients included."""
    skip_unless_supported(backend, case.call(backend))
    inputs = dataclasses.replace(make_case(case), mask=torch.zeros(1, 260, dtype=torch.bool))
    args = arguments(case, inputs, case.dtype, device_of(backend))
    results = run_with(args, inputs.upstream, backend)
    for name in ("k_ref", "v_ref", "ref_bias", "mask", "ref_lengths", "ref_rope"):
        args.pop(name, None)
    alone = run_with(args, inputs.upstream, backend)
    for name in alone:
        assert torch.equal(results[name], alone[name]), name
    for name in ("dk_ref", "dv_ref", "dref_bias"):
        assert not results[name].any(), name


@pytest.mark.parametrize("gate", ["token", "sum"])
def test_deterministic(backend: str, gate: str) -> None:
    """Bitwise, run to run and whatever the number of threads."""
    case = dataclasses.replace(ROPED, gate=gate, heads=3)
    skip_unless_supported(backend, case.call(backend))
    inputs = dataclasses.replace(make_case(case), mask=mixed_mask(case))
    wanted: Results | None = None
    # One thread interprets Triton's kernels, whatever the number.
    for count in (1, 2) if backend == "triton" else (1, 2, 2, 5):
        with torch_threads(count):
            results = run(case, backend, case.dtype, inputs)
        wanted = wanted or results
        for name in wanted:
            assert torch.equal(results[name], wanted[name]), (name, count)


@pytest.mark.parametrize("value", [float("nan"), INF])
def test_nan_in_a_query_stays_in_its_row(backend: str, value: float) -> None:
    case = dataclasses.replace(MIXED, heads=2)
    skip_unless_supported(backend, case.call(backend))
    inputs = dataclasses.replace(make_case(case), mask=mixed_mask(case))
    device = device_of(backend)
    args = arguments(case, inputs, case.dtype, device)
    clean = run_with(args, inputs.upstream, backend)
    with torch.no_grad():
        args["q"][1, 130, 1, 3] = value
    results = run_with(args, inputs.upstream, backend)
    assert not results["out"][1, 130, 1].isfinite().any()
    assert not results["lse"][1, 1, 130].isfinite()
    assert not results["dq"][1, 130, 1].isfinite().any()
    others = torch.ones(2, 260, 2, dtype=torch.bool, device=device)
    others[1, 130, 1] = False
    assert torch.equal(results["out"][others], clean["out"][others])
    assert torch.equal(results["dq"][others], clean["dq"][others])
    by_row = results["lse"].transpose(1, 2), clean["lse"].transpose(1, 2)
    assert torch.equal(by_row[0][others], by_row[1][others])


@pytest.mark.parametrize("name", ["k", "v", "k_ref", "v_ref"])
def test_nan_in_a_key_that_is_seen_shows(backend: str, name: str) -> None:
    """As in scaled_dot_product_attention: nothing is quietly dropped."""
    case = dataclasses.replace(MIXED, gate=None, bias=None, heads=2)
    skip_unless_supported(backend, case.call(backend))
    args = arguments(case, make_case(case), case.dtype, device_of(backend))
    with torch.no_grad():
        args[name][0, 2, 1, 3] = torch.nan
        clean, _ = reference_attention(**args, backend=backend)  # batch 1 references: both samples
    assert clean[0, :, 1, 3].isnan().all()
    assert clean[0, :, 0].isfinite().all()


def test_shards_of_the_sequence(backend: str) -> None:
    """return_gate_sum: two shards of the rows, combined, are the whole sequence gate."""
    case = Case(rows=131, lengths=(9,), gate="sequence", mask="random")
    skip_unless_supported(backend, case.call(backend))
    args = arguments(case, make_case(case), case.dtype, device_of(backend))
    args |= {"return_lse": False}
    with torch.no_grad():
        whole = reference_attention(**args, backend=backend)
        outs, sums = [], []
        for rows in (slice(0, 50), slice(50, 131)):
            shard = args | {
                "q": args["q"][:, rows],
                "mask": args["mask"][:, rows],
                "return_gate_sum": True,
            }
            out, gate_sum = reference_attention(**shard, backend=backend)
            outs.append(out)
            sums.append(gate_sum)
        gate = torch.sigmoid((sums[0] + sums[1]) / 131)
        combined = torch.cat(outs, 1) * gate[:, None, :, None]
    t = run(case, "eager", torch.float64)["out"]
    e = run(case, "eager", case.dtype)["out"]
    assert_within_budget(combined.double().cpu(), e, t, case.dtype, name="combined")
    assert_within_budget(whole.double().cpu(), e, t, case.dtype, name="whole")


def test_shards_of_the_heads(backend: str) -> None:
    """first_head: a shard of the heads is that slice of the full call, bit for bit."""
    case = Case(grid=(5, 4, 6), heads=5, refs=((2, 3), (3, 1)), mask="random", gate="token")
    skip_unless_supported(backend, case.call(backend))
    inputs = make_case(case)
    full = run(case, backend, case.dtype, inputs)
    for heads in (slice(0, 2), slice(2, 5)):
        args = arguments(case, inputs, case.dtype, device_of(backend))
        args["ref_rope"] = dataclasses.replace(args["ref_rope"], first_head=heads.start)
        for name in ("q", "k", "v", "k_ref", "v_ref"):
            args[name] = args[name].detach()[:, :, heads].requires_grad_()
        upstream = {
            "out": inputs.upstream["out"][:, :, heads],
            "lse": inputs.upstream["lse"][:, heads],
        }
        results = run_with(args, upstream, backend)
        for name in ("out", "dq", "dk", "dv", "dk_ref", "dv_ref"):
            assert torch.equal(results[name].cpu().double(), full[name][:, :, heads]), name
        assert torch.equal(results["lse"].cpu().double(), full["lse"][:, heads])


def test_shards_of_the_queries(backend: str) -> None:
    """Queries and full keys rotated beforehand, queries with their token_offset: the full call."""
    case = Case(grid=(5, 4, 6), refs=((2, 3),), mask="random", gate="token")
    skip_unless_supported(backend, case.call(backend))
    inputs = make_case(case)
    full = run(case, backend, case.dtype, inputs)
    args = arguments(case, inputs, case.dtype, device_of(backend))
    rope = args["rope"]
    with torch.no_grad():
        keys = apply_rope(args["k"], rope, backend=backend)
        for rows in (slice(0, 31), slice(31, 120)):
            shifted = dataclasses.replace(rope, token_offset=rows.start)
            shard = args | {
                "q": apply_rope(args["q"][:, rows], shifted, backend=backend),
                "k": keys,
                "mask": args["mask"][:, rows],
                "rope": None,
            }
            out, lse = reference_attention(**shard, backend=backend)
            torch.testing.assert_close(out.cpu().double(), full["out"][:, rows], rtol=0, atol=2e-6)
            torch.testing.assert_close(
                lse.cpu().double(), full["lse"][..., rows], rtol=0, atol=2e-6
            )


def test_gradients_that_are_not_wanted(backend: str) -> None:
    """A gradient through one output only, or to one input only, is that part of the whole."""
    case = Case(rows=20, lengths=(3, 4), bias=(0.1, 0.2), gate="sum", mask="random")
    skip_unless_supported(backend, case.call(backend))
    inputs = make_case(case)
    args = arguments(case, inputs, case.dtype, device_of(backend))
    whole = run_with(args, inputs.upstream, backend)
    zeros = {name: torch.zeros_like(x) for name, x in inputs.upstream.items()}
    for place, name in enumerate(("out", "lse", "gate_sum")):
        outputs = reference_attention(**args, backend=backend)
        toward = inputs.upstream[name].to(outputs[place].device, outputs[place].dtype)
        (dq,) = torch.autograd.grad(outputs[place], args["q"], toward)
        only = run_with(args, zeros | {name: inputs.upstream[name]}, backend)
        assert torch.equal(dq, only["dq"]), name
    alone = args | {n: args[n].detach() for n in ("q", "k", "v", "v_ref", "ref_bias")}
    outputs = reference_attention(**alone, backend=backend)
    toward = [inputs.upstream[n].float().to(outputs[0].device) for n in ("out", "lse", "gate_sum")]
    (dk_ref,) = torch.autograd.grad(outputs, alone["k_ref"], toward)
    assert torch.equal(dk_ref, whole["dk_ref"])


LARGE = """
import resource, sys
import torch
from genhoi_kernels import FlowGate, reference_attention

backend, rows, refs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)

def peak(n, m):
    q, k, v = (torch.randn(1, n, 1, 8, requires_grad=True) for _ in "qkv")
    k_ref, v_ref = (torch.randn(1, m, 1, 8, requires_grad=True) for _ in "kv")
    gate = FlowGate(8)
    out = reference_attention(q, k, v, k_ref, v_ref, gate=gate, backend=backend)
    out.square().sum().backward()
    assert torch.isfinite(k_ref.grad).all()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak(64, 64)  # libraries, threads, scratch
print(peak(rows, refs) - before)
"""


@pytest.mark.parametrize("name", [p for p in backend_params() if p.values[0] == "cpu"])
def test_memory_grows_with_the_tokens_only(name: str) -> None:
    """10,000 x 14,000 logits (534 MiB), there and back, for a few MiB more than a tiny call."""
    skip_unless_supported(name, Case(dim=8).call(name))
    process = subprocess.run(
        [sys.executable, "-c", LARGE, name, "10000", "4000"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    grown = int(process.stdout) / (2**10 if sys.platform != "darwin" else 2**20)
    assert grown < 48, f"peak memory grew by {grown:.0f} MiB"


def test_memory_is_poisoned() -> None:
    """What nobody writes is NaN, also in what the compiled part allocates."""
    assert torch.empty(5).isnan().all()
    assert torch.empty(5, dtype=torch.bfloat16).isnan().all()


@pytest.mark.parametrize("name", backend_params())
def test_outputs_of_a_backend_are_poisoned(name: str) -> None:
    """Each buffer that a backend allocates in a call is filled before it is written."""
    case = Case(lengths=(3,), gate="token")
    skip_unless_supported(name, case.call(name))
    inputs = make_case(case)
    args = arguments(case, inputs, case.dtype, device_of(name))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        reference_attention(**args, backend=name)
    counts = {event.key: event.count for event in profile.key_averages()}
    made = counts.get("aten::new_empty", 0)
    assert made >= 4, counts  # out, lse, gate_sum, ungated
    assert counts.get("aten::fill_", 0) >= made, counts
