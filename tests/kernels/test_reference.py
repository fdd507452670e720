"""The oracle, in float64, against slow loops and against finite differences."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support import loops
from support.cases import Case, arguments, leaves, make_case, run, run_with
from torch import Tensor

from genhoi_kernels import reference_attention

CPU = torch.device("cpu")

LOOP_CASES = [
    Case(rows=5, heads=2, dim=8),
    Case(grid=(2, 2, 3), heads=3, dim=16),
    Case(
        grid=(3, 1, 2),
        heads=4,
        dim=12,
        refs=((2, 1), (1, 2), (1, 1)),
        mask="random",
        mask_dtype=torch.uint8,
        bias=(0.5, -1.0, 0.2),
    ),
    Case(grid=(2, 2, 2), heads=2, dim=14, refs=((2, 2),), mask="random", gate="token", batch=2),
    Case(
        grid=(2, 1, 3),
        heads=3,
        dim=8,
        refs=((1, 2), (2, 1)),
        mask="random",
        batch=2,
        mask_dtype=torch.int64,
        mask_batch=2,
        ref_batch=2,
        gate="sequence",
    ),
    Case(
        rows=4,
        keys=9,
        heads=2,
        dim=8,
        lengths=(3, 0, 2),
        mask="random",
        mask_dtype=torch.int32,
        gate="sum",
        scale=0.3,
    ),
    Case(grid=(3, 2, 2), token_offset=5, tokens=4, heads=2, dim=10, refs=((2, 2),)),
    Case(grid=(4, 1, 2), heads=2, dim=8, refs=((1, 3),), first_head=3, num_heads=7),
    Case(grid=(4, 1, 2), heads=2, dim=8, refs=((1, 3),), schedule=-1.0),
    Case(grid=(4, 1, 1), heads=3, dim=8, refs=((1, 2),), schedule=(0.5, 2.0, -3.0)),
    Case(rows=3, keys=0, heads=2, dim=8, lengths=(2,), mask="tail", gate="token"),
    Case(rows=4, heads=1, dim=8, lengths=(2, 1), bias=(-float("inf"), 0.5)),
]


def frames_of(case: Case) -> list[float]:
    """Reference frame of each head of the call."""
    if case.schedule == "paper":
        every = loops.ceil_frames((case.grid or (3, 2, 2))[0], case.num_heads or case.heads)
        return [float(t) for t in every[case.first_head :][: case.heads]]
    if isinstance(case.schedule, float):
        return [case.schedule] * case.heads
    return list(case.schedule)


def sees_of(case: Case, mask: Tensor | None) -> np.ndarray | None:
    """mask as [B, N, R] bool, one row and one reference at a time."""
    if mask is None or case.segments is None:
        return None
    sees = np.zeros((case.batch, case.n, len(case.segments)), dtype=bool)
    for b, i, r in np.ndindex(sees.shape):
        value = mask[b if len(mask) > 1 else 0, i].item()
        sees[b, i, r] = value if mask.dtype == torch.bool else (int(value) >> r) % 2 == 1
    return sees


def run_loops(case: Case) -> loops.Outputs:
    """A case through tests/support/loops.py."""
    x = {name: value.numpy() for name, value in make_case(case).tensors.items()}
    if case.grid is not None:
        for name in ("q", "k"):
            x[name] = loops.rotate_video(x[name], case.grid, case.token_offset or 0)
    if case.reference_rope is not None and case.grid is not None:
        x["k_ref"] = loops.rotate_reference(x["k_ref"], case.grid, case.refs, frames_of(case))
    gate = [value for name, value in x.items() if name.startswith("gate.")]
    return loops.attention(
        x["q"],
        x["k"],
        x["v"],
        x.get("k_ref"),
        x.get("v_ref"),
        sees=sees_of(case, make_case(case).mask),
        segments=case.segments or (),
        bias=x.get("ref_bias"),
        gate=gate or None,
        per_sequence=case.gate == "sequence",
        scale=case.scale,
    )


@pytest.mark.parametrize("case", LOOP_CASES, ids=str)
def test_eager_is_the_loops(case: Case) -> None:
    case = dataclasses.replace(case, dtype=torch.float64)
    results, wanted = run(case, "eager", torch.float64), run_loops(case)
    torch.testing.assert_close(results["lse"], torch.from_numpy(wanted.lse), rtol=0, atol=1e-12)
    out = torch.from_numpy(wanted.out)
    if case.gate == "sum":
        assert wanted.gate_sum is not None
        gate_sum = torch.from_numpy(wanted.gate_sum)
        torch.testing.assert_close(results["gate_sum"], gate_sum, rtol=0, atol=1e-12)
        out = torch.from_numpy(run_loops(dataclasses.replace(case, gate=None)).out)
    torch.testing.assert_close(results["out"], out, rtol=0, atol=1e-12)


GRAD_CASES = [
    Case(rows=3, heads=2, dim=4),
    Case(
        grid=(2, 1, 2),
        heads=2,
        dim=6,
        refs=((1, 2), (1, 1)),
        mask="random",
        batch=2,
        mask_dtype=torch.uint8,
        bias=(0.3, -0.4),
        gate="token",
    ),
    Case(
        grid=(2, 1, 2),
        heads=3,
        dim=6,
        refs=((2, 1),),
        bias=(0.3,),
        gate="sequence",
        ref_batch=2,
        batch=2,
        mask="random",
        mask_batch=2,
    ),
    Case(rows=4, keys=3, heads=2, dim=6, lengths=(2, 0), bias=(0.3, 1.0), gate="sum", mask="tail"),
    Case(rows=3, keys=0, heads=1, dim=4, lengths=(2,), mask="tail", gate="token"),
]


@pytest.mark.parametrize("case", GRAD_CASES, ids=str)
def test_eager_gradients_are_finite_differences(case: Case) -> None:
    """Of out, lse and gate_sum, for every input at once."""
    case = dataclasses.replace(case, dtype=torch.float64)
    inputs = make_case(case)
    args = arguments(case, inputs, torch.float64, CPU)
    names = list(leaves(args))

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(args)
        by_name = dict(zip(names, values, strict=True))
        given |= {name: x for name, x in by_name.items() if not name.startswith("gate.")}
        if case.gate is not None:
            weights = [x for name, x in by_name.items() if name.startswith("gate.")]
            given["gate"] = type(args["gate"])(*weights)
        results = reference_attention(**given, backend="eager")
        assert isinstance(results, tuple)
        # An lse of -inf has no finite difference; its gradient is 0.
        return tuple(x.masked_fill(x == -torch.inf, 0.0) for x in results)

    # Element by element where that is quick, else along random directions.
    values = tuple(leaves(args).values())
    assert torch.autograd.gradcheck(outputs, values, fast_mode=case.batch > 1)


def test_eager_ignores_nan_in_unseen_references() -> None:
    """Values of a segment that no row sees, and of one that only some rows see."""
    case = Case(
        grid=(2, 2, 2),
        refs=((2, 1), (1, 2)),
        mask="tail",
        mask_dtype=torch.int32,
        bias=(0.1, 0.2),
        gate="token",
        dtype=torch.float64,
    )
    inputs = make_case(case)
    assert inputs.mask is not None
    inputs = dataclasses.replace(inputs, mask=inputs.mask & 0b01)
    clean = run(case, "eager", torch.float64, inputs)
    for poison in (torch.nan, torch.inf, -torch.inf):
        args = arguments(case, inputs, torch.float64, CPU)
        with torch.no_grad():
            args["k_ref"][:, 2:] = poison
            args["v_ref"][:, 2:] = poison
        results = run_with(args, inputs.upstream, "eager")
        for name in clean:
            assert torch.equal(results[name], clean[name]), name
        assert not results["dk_ref"][:, 2:].any() and not results["dv_ref"][:, 2:].any()
        assert results["dref_bias"][1] == 0

        # Segment 0, which the second half of the rows sees: the first half stays as it was.
        args = arguments(case, inputs, torch.float64, CPU)
        with torch.no_grad():
            args["k_ref"][:, :2] = poison
            args["v_ref"][:, :2] = poison
        results = run_with(args, inputs.upstream, "eager")
        half = case.n // 2
        for name in ("out", "dq"):
            assert torch.equal(results[name][:, :half], clean[name][:, :half]), name
        assert torch.equal(results["lse"][..., :half], clean["lse"][..., :half])
        assert not results["out"][:, half:].isfinite().all()
