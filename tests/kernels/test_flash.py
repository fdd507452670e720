"""The flash backend on stand-ins for FlashAttention; its own kernels are really run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.cases import Case, Inputs, arguments, device_of, make_case, run_with
from support.flash_cases import CASES, HALF, INF, WHOLE, check_budget, needs_triton, run
from support.flash_standins import Calls

import genhoi_kernels as gk
from genhoi_kernels import MaskGate, VideoRope
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.flash import torch_own
from genhoi_kernels.spec import AttentionTensors

pytest_plugins = ["support.flash_cases"]


# ------------------------------------------------------------------------------------- numbers


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(one_flash: Calls, case: Case) -> None:
    check_budget(dataclasses.replace(case, dtype=HALF))


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget_of_float16(flash_2: Calls, case: Case) -> None:
    check_budget(dataclasses.replace(case, dtype=torch.float16))


@needs_triton
def test_every_generation(any_flash: Calls) -> None:
    check_budget(WHOLE)
    check_budget(dataclasses.replace(WHOLE, ref_batch=2, gate="sum"))
    backward = [call for call in any_flash if call.kind == "backward"]
    always = not isinstance(flash.chosen(WHOLE.call("flash")), torch_own.TorchCudnn)
    assert backward and all(call.deterministic == always for call in backward)


@needs_triton
def test_a_gradient_of_lse_takes_the_triton_kernels(one_flash: Calls) -> None:
    """FlashAttention has no place for it; out, lse and the mask gate mean the same to both."""
    inputs = make_case(WHOLE)
    by_backend = {}
    for name in ("flash", "triton"):
        args = arguments(WHOLE, inputs, HALF, device_of(name))
        by_backend[name] = run_with(args, inputs.upstream, name)
    assert [call.kind for call in one_flash] == ["forward"] * 3
    for name, x in by_backend["triton"].items():
        y = by_backend["flash"][name]
        torch.testing.assert_close(y.float(), x.float(), rtol=0.05, atol=0.05, msg=name)


# ------------------------------------------------------------------------------- what is called


def sizes(calls: Calls, kind: str) -> list[tuple[int, int, int]]:
    return [(call.batch, call.rows, call.keys) for call in calls if call.kind == kind]


@needs_triton
def test_one_call_goes_over_the_video_and_one_over_each_reference(one_flash: Calls) -> None:
    mask = torch.zeros(2, 300, dtype=torch.uint8)
    mask[0, 3:10], mask[1, 30:34] = 1, 3
    multiple = flash.chosen(WHOLE.call("flash")).row_multiple
    slots = {rows: rows if multiple == 1 else 256 for rows in (7, 11)}
    for lengths, ref_batch, wanted in (
        (None, 1, []),
        ((0,), 1, []),
        ((6,), 1, [(1, slots[11], 6)]),  # shared: the rows of both samples, one after another
        ((6,), 2, [(2, slots[7], 6)]),  # own: as many slots as the sample with most rows needs
        ((6, 0, 5), 1, [(1, slots[11], 6), (1, slots[11], 5)]),
    ):
        case = Case(rows=300, batch=2, lengths=lengths, ref_batch=ref_batch, dtype=HALF, heads=1)
        inputs = dataclasses.replace(make_case(case), mask=None if lengths is None else mask)
        one_flash.clear()
        run(case, "flash", HALF, inputs)
        for kind in ("forward", "backward"):
            assert sizes(one_flash, kind) == [(2, 300, 300), *wanted], (lengths, kind)
    blind = Case(rows=40, batch=2, lengths=(6,), mask="nothing", dtype=HALF)
    seeing = dataclasses.replace(blind, mask="none", ref_batch=2)
    for case, extra in ((blind, []), (seeing, [(2, 40, 6)])):
        one_flash.clear()
        run(case, "flash", HALF, make_case(case))
        assert sizes(one_flash, "forward") == [(2, 40, 40), *extra]
        assert sizes(one_flash, "backward") == [(2, 40, 40), *extra]


@needs_triton
@pytest.mark.parametrize("ref_batch", [1, 2])
def test_slots_are_filled_with_rows_that_see_nothing(ref_batch: int) -> None:
    """Each row occurs once, however many slots are asked for; the first are those that see."""
    case = Case(rows=40, batch=2, lengths=(6,), ref_batch=ref_batch, heads=1, dtype=HALF)
    given = arguments(case, make_case(case), HALF, device_of("flash"))
    mask = torch.zeros(2, 40, dtype=torch.bool, device=given["q"].device)
    mask[0, 3:10], mask[1, 30:34] = True, True
    call = case.call("flash")
    gate = MaskGate.build(mask)
    t = AttentionTensors(
        *(given[name] for name in ("q", "k", "v", "k_ref", "v_ref")), gate.bits, None, None, gate
    )
    from genhoi_kernels.backends.flash import two_pass

    for multiple in (1, 4, 16, 64, 256):
        gathered = two_pass.gather(call, t, multiple)
        assert gathered is not None and gathered.rows is not None
        seeing, most = (11, 80) if ref_batch == 1 else (7, 40)
        assert gathered.count == min(-(-seeing // multiple) * multiple, most)
        assert gathered.rows.shape == (ref_batch, gathered.count) and gathered.rows.is_contiguous()
        for group in gathered.rows.cpu():
            assert len(set(group.tolist())) == gathered.count
        assert mask.flatten()[gathered.rows].sum() == 11
        assert mask.flatten()[gathered.rows[:, : min(seeing, 4)]].all()


@needs_triton
def test_one_gathered_row(one_flash: Calls) -> None:
    for case in (
        Case(rows=40, lengths=(6,), heads=1, dtype=HALF, gate="token"),
        Case(rows=40, lengths=(6, 1), heads=3, dtype=HALF, bias=(0.5, -1.0), batch=2, ref_batch=2),
    ):
        mask = torch.zeros(case.batch, 40, dtype=torch.int64)
        mask[:, 17] = 3
        check_budget(case, dataclasses.replace(make_case(case), mask=mask))


@needs_triton
def test_a_built_gate_does_not_look_at_the_mask(
    one_flash: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would wait for the GPU is left to MaskGate.build, once a clip."""
    case = dataclasses.replace(WHOLE, mask_gate=True)
    args = arguments(case, make_case(case), HALF, device_of("flash"))

    def never(mask: torch.Tensor) -> MaskGate:
        raise AssertionError("built anew")

    monkeypatch.setattr(MaskGate, "build", staticmethod(never))
    gk.reference_attention(**args, backend="flash")
    with pytest.raises(AssertionError, match="built anew"):
        gk.reference_attention(**(args | {"mask": args["mask"].bits}), backend="flash")


@needs_triton
def test_rotation_and_norm_are_the_triton_kernels(one_flash: Calls) -> None:
    rope = VideoRope((2, 3, 2), head_dim=16)
    q = torch.randn(1, 12, 32, device=device_of("flash"))
    w = torch.ones(32, device=q.device)
    for x, y in zip(
        gk.qk_norm_rope(q, q, w, w, rope, backend="flash"),
        gk.qk_norm_rope(q, q, w, w, rope, backend="triton"),
        strict=True,
    ):
        assert torch.equal(x, y)
    x = q.unflatten(-1, (2, 16))
    assert torch.equal(
        gk.apply_rope(x, rope, backend="flash"), gk.apply_rope(x, rope, backend="triton")
    )


# -------------------------------------------------------------------------- what must be bitwise

MIXED = Case(
    rows=90, heads=2, dim=24, lengths=(9, 33, 5), batch=2, bias=(0.3, -0.2, 0.7), dtype=HALF
)


def mixed_inputs(case: Case) -> Inputs:
    """Some rows see only segments 0 and 1, some only 2, some nothing."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.tensor([0, 1, 2, 3, 4])[torch.randint(0, 5, (2, case.n), generator=generator)]
    bits[0, 64:] = 0
    return dataclasses.replace(make_case(case), mask=bits.to(torch.int32))


@needs_triton
@pytest.mark.parametrize("gate", [None, "token", "sum"])
def test_blind_rows_are_those_of_a_call_without_reference(
    any_flash: Calls, gate: str | None
) -> None:
    case = dataclasses.replace(MIXED, gate=gate)
    inputs = mixed_inputs(case)
    alone = dataclasses.replace(case, lengths=None, bias=None)
    kept = {name: x for name, x in inputs.tensors.items() if "ref" not in name}
    none = dataclasses.replace(inputs, tensors=kept, mask=None)
    results, wanted = run(case, "flash", HALF, inputs), run(alone, "flash", HALF, none)
    assert inputs.mask is not None
    blind = inputs.mask == 0
    assert torch.equal(results["out"][blind], wanted["out"][blind])
    assert torch.equal(results["lse"].mT[blind], wanted["lse"].mT[blind])
    assert torch.equal(results["dq"][blind], wanted["dq"][blind]) or gate == "sum"
    assert not torch.equal(results["out"][~blind], wanted["out"][~blind])


@needs_triton
@pytest.mark.parametrize("ref_batch", [1, 2])
@pytest.mark.parametrize("poison", [float("nan"), INF])
def test_unseen_references_change_nothing(one_flash: Calls, poison: float, ref_batch: int) -> None:
    case = dataclasses.replace(MIXED, gate="token", ref_batch=ref_batch)
    inputs = mixed_inputs(case)
    clean = run(case, "flash", HALF, inputs)
    assert inputs.mask is not None
    tensors = {name: x.clone() for name, x in inputs.tensors.items()}
    for name in ("k_ref", "v_ref"):
        tensors[name][:, 42:] = poison
    poisoned = dataclasses.replace(inputs, tensors=tensors)
    results = run(case, "flash", HALF, poisoned)
    sees = (inputs.mask >> 2 & 1).bool()
    for name in ("out", "dq"):
        assert torch.equal(results[name][~sees], clean[name][~sees]), name
        assert not results[name][sees].isfinite().all(-1).any(), name

    # Once nobody sees the segment, every other gradient is also as it was.
    blind = inputs.mask & 3
    clean = run(case, "flash", HALF, dataclasses.replace(inputs, mask=blind))
    results = run(case, "flash", HALF, dataclasses.replace(poisoned, mask=blind))
    for name in clean:
        assert torch.equal(results[name], clean[name]), name
    assert not results["dk_ref"][:, 42:].any() and not results["dv_ref"][:, 42:].any()


@needs_triton
def test_bits_above_the_references_are_ignored(one_flash: Calls) -> None:
    case = Case(rows=107, lengths=(11, 5), dtype=HALF)
    low = torch.randint(0, 4, (1, 107), generator=torch.Generator().manual_seed(3))
    inputs = make_case(case)
    wanted = run(case, "flash", HALF, dataclasses.replace(inputs, mask=low))
    for high in (1 << 2, 1 << 31, 1 << 40):
        results = run(case, "flash", HALF, dataclasses.replace(inputs, mask=low | high))
        for name in wanted:
            assert torch.equal(results[name], wanted[name]), (name, high)
