"""The flash backend on stand-ins for FlashAttention; its own kernels are really run."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    FEW,
    REDRAWS,
    Case,
    Inputs,
    Results,
    arguments,
    assert_within_budget,
    device_of,
    error,
    independent_values,
    leaves,
    make_case,
    run_with,
)
from flash_standins import ALL, STANDINS, TORCH_OWN, Aten, Calls, install

import genhoi_kernels as gk
from genhoi_kernels import MaskGate, VideoRope, flash_versions
from genhoi_kernels.backends import flash, triton
from genhoi_kernels.call import AttentionTensors

# The stand-ins are told where to compute by their tensors, the kernels by Triton.
UNAVAILABLE = triton.unavailable()
needs_triton = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
ARCH = None if UNAVAILABLE else triton.architecture(device_of("flash"))
for_sm_90 = pytest.mark.skipif(
    ARCH not in ("sm_90", flash_versions.INTERPRETER), reason=f"needs sm_90, this is {ARCH}"
)
HALF = torch.bfloat16
INF = float("inf")


@pytest.fixture
def flash_2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """flash-attn 2 is installed."""
    yield from install("flash-attn 2", monkeypatch)


@pytest.fixture(params=["flash-attn 2", *TORCH_OWN])
def one_flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A package, and each of torch's own."""
    yield from install(request.param, monkeypatch)


@pytest.fixture(params=[name for name in ALL if name != "fa3-fwd"])
def any_flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Each FlashAttention that has a backward pass, where the GPU is one of its own."""
    for calls in install(request.param, monkeypatch):
        if not ARCH or "is for" in (gk.supports("flash", WHOLE.call("flash")) or ""):
            pytest.skip(f"not for this GPU, {ARCH}")
        yield calls


@pytest.fixture
def no_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """None is installed."""
    yield from install(None, monkeypatch)


def run(case: Case, backend: str, dtype: torch.dtype, inputs: Inputs) -> Results:
    """As cases.run, but no gradient comes to lse."""
    args = arguments(case, inputs, dtype, device_of(backend))
    outputs = gk.reference_attention(**args, backend=backend)
    found = dict(zip(("out", "lse", "gate_sum"), outputs, strict=False))
    through = {name: x for name, x in found.items() if name != "lse"}
    wanted = leaves(args)
    toward = [inputs.upstream[name].to(x.device, x.dtype) for name, x in through.items()]
    got = torch.autograd.grad(list(through.values()), list(wanted.values()), toward)
    for (name, x), grad in zip(wanted.items(), got, strict=True):
        assert grad.shape == x.shape and grad.dtype == x.dtype, name
    found |= {f"d{name}": x for name, x in zip(wanted, got, strict=True)}
    return {name: x.detach().cpu().double() for name, x in found.items()}


@functools.lru_cache(maxsize=1)
def redrawn_errors(case: Case) -> dict[str, float]:
    """As cases.redrawn_errors."""
    worst: dict[str, float] = {}
    for draw in range(1, REDRAWS + 1):
        other = dataclasses.replace(case, seed=case.seed + 7919 * draw)
        inputs = make_case(other)
        e, t = (run(other, "eager", dtype, inputs) for dtype in (case.dtype, torch.float64))
        for name in t:
            worst[name] = max(worst.get(name, 0.0), error(e[name], t[name]))
    return worst


def check_budget(case: Case, inputs: Inputs | None = None) -> Results:
    """Every output and gradient keeps the error budget of CONTRIBUTING.md."""
    assert gk.supports("flash", case.call("flash")) is None
    inputs = inputs or make_case(case)
    x = run(case, "flash", case.dtype, inputs)
    e, t = (run(case, "eager", dtype, inputs) for dtype in (case.dtype, torch.float64))
    assert x.keys() == t.keys()
    for name in t:
        try:
            assert_within_budget(x[name], e[name], t[name], case.dtype, name=name)
        except AssertionError:
            if independent_values(case, name, t[name]) >= FEW:
                raise
            e_error = redrawn_errors(case)[name]
            assert_within_budget(x[name], e[name], t[name], case.dtype, name=name, e_error=e_error)
    return x


# ------------------------------------------------------------------------------------- numbers

CASES = [
    Case(rows=1, heads=1),
    Case(rows=113, keys=101, heads=1, dim=24, scale=0.3),
    Case(rows=1, lengths=(1,), heads=3),
    Case(rows=1, keys=9, lengths=(4,), heads=1, mask="all", bias=(0.3,), gate="token"),
    Case(rows=1, lengths=(4, 1), heads=1, batch=2, ref_batch=2, mask="all", gate="sum"),
    Case(rows=67, keys=131, lengths=(97,), gate="token"),
    # Masks.
    *(Case(rows=107, lengths=(11,), mask=mask, gate=gate, mask_gate=built)
      for mask, gate, built in (
          ("all", None, False), ("nothing", "token", True), ("random", None, True),
          ("random", "token", False), ("tail", "sequence", True), ("random", "sum", False))),
    # Several references, some empty; biases.
    Case(rows=103, lengths=(5, 0, 40, 1), mask="random", mask_dtype=torch.int64, gate="token",
         bias=(0.3, 1.0, -2.0, 3.0)),
    Case(rows=103, lengths=(5, 7), bias=(-INF, 0.4), mask="random", mask_dtype=torch.uint8),
    Case(rows=103, lengths=(5, 7), bias=(0.1, 0.4), batch=2),
    Case(rows=20, lengths=(1,) * 32, mask="random", mask_dtype=torch.int32, mask_gate=True),
    # Batches, and references shared by them or not.
    *(Case(rows=70, batch=3, lengths=(13, 30), bias=(0.5, -0.5), mask="random",
           mask_batch=mask_batch, ref_batch=ref_batch, mask_dtype=torch.uint8, gate="token")
      for mask_batch in (1, 3) for ref_batch in (1, 3)),
    # Rotation.
    Case(grid=(3, 4, 5), refs=((3, 3), (2, 4)), dim=64, mask="random", gate="token", batch=2),
    Case(grid=(2, 3, 3), refs=((2, 2),), dim=128, heads=1, gate="sequence"),
    Case(grid=(5, 4, 6), refs=((2, 3), (5, 1)), ref_rope=False, mask="random"),
    # Strides.
    *(Case(grid=(2, 5, 6), batch=2, heads=3, refs=((2, 3),), mask="random", layout=layout)
      for layout in ("fused", "heads", "expanded", "padded")),
    Case(rows=50, batch=2, lengths=(7,), layout="expanded"),
    # Nothing: no row, no video key, no reference token, no head, no sample.
    Case(rows=0, keys=5, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, keys=0, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, keys=0, lengths=(3,), gate="sequence", mask="tail"),
    Case(rows=9, keys=0, lengths=(5, 7), bias=(-INF, -INF)),
    Case(rows=50, lengths=(0,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, lengths=(0, 0), bias=(0.5, 1.0), gate="sum", mask="all", batch=2),
    Case(rows=5, heads=0, lengths=(3,), bias=(0.5,), mask="random", gate="token"),
    Case(rows=5, batch=0, lengths=(3,), bias=(0.5,), mask="random", gate="sum"),
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(one_flash: Calls, case: Case) -> None:
    check_budget(dataclasses.replace(case, dtype=HALF))


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget_of_float16(flash_2: Calls, case: Case) -> None:
    check_budget(dataclasses.replace(case, dtype=torch.float16))


WHOLE = Case(
    rows=70, batch=2, lengths=(13, 30), bias=(0.5, -0.5), mask="random", mask_batch=2,
    mask_dtype=torch.uint8, gate="token", dtype=HALF,
)  # fmt: skip


@needs_triton
def test_every_generation(any_flash: Calls) -> None:
    check_budget(WHOLE)
    check_budget(dataclasses.replace(WHOLE, ref_batch=2, gate="sum"))
    backward = [call for call in any_flash if call.kind == "backward"]
    always = not isinstance(flash.chosen(WHOLE.call("flash")), flash_versions.TorchCudnn)
    assert backward and all(call.deterministic == always for call in backward)


@needs_triton
def test_a_gradient_of_lse_takes_the_triton_kernels(one_flash: Calls) -> None:
    """FlashAttention has no place for it; out, lse and the mask gate mean the same to both."""
    inputs = make_case(WHOLE)
    found = {}
    for name in ("flash", "triton"):
        args = arguments(WHOLE, inputs, HALF, device_of(name))
        found[name] = run_with(args, inputs.upstream, name)
    assert [call.kind for call in one_flash] == ["forward"] * 3
    for name, x in found["triton"].items():
        y = found["flash"][name]
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
    from genhoi_kernels.triton_kernels import two_pass

    for multiple in (1, 4, 16, 64, 256):
        found = two_pass.gather(call, t, multiple)
        assert found is not None and found.rows is not None
        seeing, most = (11, 80) if ref_batch == 1 else (7, 40)
        assert found.count == min(-(-seeing // multiple) * multiple, most)
        assert found.rows.shape == (ref_batch, found.count) and found.rows.is_contiguous()
        for group in found.rows.cpu():
            assert len(set(group.tolist())) == found.count
        assert mask.flatten()[found.rows].sum() == 11
        assert mask.flatten()[found.rows[:, : min(seeing, 4)]].all()


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
    found, wanted = run(case, "flash", HALF, inputs), run(alone, "flash", HALF, none)
    assert inputs.mask is not None
    blind = inputs.mask == 0
    assert torch.equal(found["out"][blind], wanted["out"][blind])
    assert torch.equal(found["lse"].mT[blind], wanted["lse"].mT[blind])
    assert torch.equal(found["dq"][blind], wanted["dq"][blind]) or gate == "sum"
    assert not torch.equal(found["out"][~blind], wanted["out"][~blind])


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
    found = run(case, "flash", HALF, poisoned)
    sees = (inputs.mask >> 2 & 1).bool()
    for name in ("out", "dq"):
        assert torch.equal(found[name][~sees], clean[name][~sees]), name
        assert not found[name][sees].isfinite().all(-1).any(), name

    # Once nobody sees the segment, every other gradient is also as it was.
    blind = inputs.mask & 3
    clean = run(case, "flash", HALF, dataclasses.replace(inputs, mask=blind))
    found = run(case, "flash", HALF, dataclasses.replace(poisoned, mask=blind))
    for name in clean:
        assert torch.equal(found[name], clean[name]), name
    assert not found["dk_ref"][:, 42:].any() and not found["dv_ref"][:, 42:].any()


@needs_triton
def test_bits_above_the_references_are_ignored(one_flash: Calls) -> None:
    case = Case(rows=107, lengths=(11, 5), dtype=HALF)
    low = torch.randint(0, 4, (1, 107), generator=torch.Generator().manual_seed(3))
    inputs = make_case(case)
    wanted = run(case, "flash", HALF, dataclasses.replace(inputs, mask=low))
    for high in (1 << 2, 1 << 31, 1 << 40):
        found = run(case, "flash", HALF, dataclasses.replace(inputs, mask=low | high))
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), (name, high)


# ---------------------------------------------------------------------------------- refusals


def refusal(**changes: Any) -> str:
    call = dataclasses.replace(dataclasses.replace(WHOLE, dim=16).call("flash"), **changes)
    reason = gk.supports("flash", call)
    assert reason is not None
    with pytest.raises(ValueError, match="backend: 'flash' cannot take this call"):
        gk.registry.pick(call, "flash")
    return reason


@needs_triton
def test_refusals(one_flash: Calls) -> None:
    assert "not torch.float32" in refusal(dtype=torch.float32)
    assert "head dim 20 is not a multiple of 8" in refusal(head_dim=20)
    assert "264" in refusal(head_dim=264)
    assert "positive scales, not -0.25" in refusal(scale=-0.25)
    assert "not on meta" in refusal(device=torch.device("meta"))


@for_sm_90
def test_refusals_of_a_package_without_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    for calls in install("fa3-fwd", monkeypatch):
        assert "fa3-fwd has no backward pass" in refusal()
        assert "without torch.float16" in refusal(dtype=torch.float16, needs_grad=False)
        case = dataclasses.replace(WHOLE, gate=None)
        args = arguments(case, make_case(case), HALF, device_of("flash"))
        with torch.no_grad():
            out, _ = gk.reference_attention(**args, backend="flash")
            wanted, _ = gk.reference_attention(**args, backend="eager")
        torch.testing.assert_close(out, wanted, rtol=0.02, atol=0.02)
        assert len(calls) == 3


@needs_triton
def test_nothing_is_installed(no_flash: Calls) -> None:
    reason = flash.unavailable()
    assert reason is not None and "pip install flash-attn" in reason and "fa3-fwd" in reason
    assert "this torch has none" in reason
    assert flash.generation(WHOLE.call("flash")) is None


@pytest.mark.parametrize(
    ("name", "arch", "head_dim", "words"),
    [
        ("flash-attn 2", "sm_80", 256, None),
        ("flash-attn 2", "sm_120", 128, None),
        ("flash-attn 3", "sm_90", 128, None),
        ("flash-attn 3", "sm_80", 128, "flash-attn-3 is for sm_90, not for sm_80"),
        ("flash-attn 4", "sm_100", 128, None),
        ("flash-attn 4", "sm_100", 256, None),
        ("flash-attn 4", "sm_90", 192, None),
        ("flash-attn 4", "sm_100", 192, "head dims up to 128, and 256, on sm_100, not 192"),
        ("flash-attn 4", "sm_120", 128, "not for sm_120"),
        ("torch flash", "sm_80", 256, None),
        ("torch flash", "sm_120", 128, None),
        ("torch cuDNN", "sm_80", 128, None),
        ("torch cuDNN", "sm_90", 136, "takes head dims up to 128, not 136"),
    ],
)
def test_gpus_of_a_generation(
    monkeypatch: pytest.MonkeyPatch, name: str, arch: str, head_dim: int, words: str | None
) -> None:
    for _ in install(name, monkeypatch):
        (found,) = flash_versions.installed()
        reason = found.refuses(arch, HALF, head_dim, True)
        assert reason is None if words is None else words in (reason or "")


def test_old_packages_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in install("flash-attn 2", monkeypatch):
        monkeypatch.setattr(sys.modules["flash_attn"], "__version__", "2.6.3")
        assert flash_versions.installed() == ()
    for _ in install("flash-attn 4", monkeypatch):
        module = sys.modules["flash_attn.cute.interface"]
        monkeypatch.setattr(module, "_flash_attn_fwd", lambda q, k, v: None)
        assert flash_versions.installed() == ()


def test_what_torch_has_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in install("torch cuDNN", monkeypatch):
        monkeypatch.setattr(flash_versions, "cudnn_version", lambda: 91500)
        assert flash_versions.installed() == ()
    for name in TORCH_OWN:
        for _ in install(name, monkeypatch):
            monkeypatch.setattr(flash_versions, "torch_has_flash", lambda: False)
            assert flash_versions.installed() == ()


def test_what_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA with FlashAttention, and a GPU; a cuDNN that can't be loaded is none."""
    for version, built, gpu in itertools.product(("13.0", None), (True, False), (True, False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        for module, name, answer in (
            (torch.backends.cuda, "is_flash_attention_available", built),
            (torch.cuda, "is_available", gpu),
        ):
            monkeypatch.setattr(module, name, lambda answer=answer: answer)
        wanted = version is not None and built and gpu
        assert flash_versions.torch_has_flash() == wanted

    def mismatch() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    for found, number in ((lambda: 91900, 91900), (lambda: None, 0), (mismatch, 0)):
        monkeypatch.setattr(torch.backends.cudnn, "version", found)
        assert flash_versions.cudnn_version() == number


def test_cudnn_trains_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never where torch is to refuse what is not deterministic."""
    for _ in install("torch cuDNN", monkeypatch):
        (cudnn,) = flash_versions.installed()

        def refusal(needs_grad: bool = True, cudnn: Any = cudnn) -> str | None:
            reason: str | None = cudnn.refuses("sm_90", HALF, 128, needs_grad)
            return reason

        assert refusal() is None
        for value in (None, "", "0"):
            if value is None:
                monkeypatch.delenv("GENHOI_CUDNN_BACKWARD")
            else:
                monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", value)
            assert "GENHOI_CUDNN_BACKWARD=1 allows it" in (refusal() or "")
            assert refusal(needs_grad=False) is None
        monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", "1")
        torch.use_deterministic_algorithms(True)
        assert "use_deterministic_algorithms is on" in (refusal() or "")
        assert refusal(needs_grad=False) is None
        torch.use_deterministic_algorithms(False)
        assert refusal() is None
        monkeypatch.setenv("TORCH_CUDNN_SDPA_AVOID_RECOMPILE", "1")
        assert "AVOID_RECOMPILE" in (refusal() or "") and refusal(needs_grad=False) is None


@pytest.mark.parametrize("name", TORCH_OWN)
def test_torchs_switches_are_heeded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for _ in install(name, monkeypatch):
        (found,) = flash_versions.installed()
        switch = "enable_flash_sdp" if name == "torch flash" else "enable_cudnn_sdp"
        assert found.refuses("sm_90", HALF, 64, False) is None
        getattr(torch.backends.cuda, switch)(False)
        reason = found.refuses("sm_90", HALF, 64, False)
        assert f"{found.package} is switched off (torch.backends.cuda.{switch})" == reason
        if UNAVAILABLE is None:
            assert flash.unavailable() == reason
            getattr(torch.backends.cuda, switch)(True)
            assert flash.unavailable() is None


@pytest.mark.parametrize("name", TORCH_OWN)
def test_torchs_operators_are_not_for_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for _ in install(name, monkeypatch):
        (found,) = flash_versions.installed()
        monkeypatch.setattr(flash_versions, "aten", torch.ops.aten)
        reason = found.refuses(flash_versions.INTERPRETER, HALF, 64, False)
        assert reason == f"{found.package} needs a GPU"
        assert found.refuses("sm_80", HALF, 64, False) is None


def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages and both of torch's own are found."""
    finders = flash_versions._FINDERS
    for name in ("flash-attn 2", "flash-attn 3", "fa3-fwd"):
        for module, standin in STANDINS[name]([]).items():
            monkeypatch.setitem(sys.modules, module, standin)
    monkeypatch.setattr(flash_versions, "torch_has_flash", lambda: True)
    monkeypatch.setattr(flash_versions, "cudnn_version", lambda: 92400)
    monkeypatch.setattr(flash_versions, "aten", Aten([]))
    monkeypatch.setattr(flash_versions, "_FINDERS", finders)


def test_the_order_in_which_they_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, own = "torch's cuDNN attention", "torch's FlashAttention"
    for _ in install(None, monkeypatch):
        everything(monkeypatch)
        for arch, wanted in (
            ("sm_90", ["flash-attn-3", "fa3-fwd", cudnn, "flash-attn", own]),
            ("sm_80", ["flash-attn-3", "fa3-fwd", "flash-attn", own, cudnn]),
            ("sm_100", ["flash-attn-3", "fa3-fwd", "flash-attn", own, cudnn]),
        ):
            assert [found.package for found in flash_versions.tried(arch)] == wanted, arch
        assert flash.description().endswith(
            f"; here: flash-attn-3, fa3-fwd, {cudnn}, flash-attn, {own}"
        )


@for_sm_90
def test_which_of_torchs_own_takes_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    generation = flash_versions.Generation
    for _ in install(None, monkeypatch):
        everything(monkeypatch)
        for module in ("flash_attn", "flash_attn_interface", "fa3_fwd_interface"):
            monkeypatch.setitem(sys.modules, module, None)
        training = WHOLE.call("flash")
        assert flash.generation(training) == generation.TORCH_FLASH == 20
        inference = dataclasses.replace(training, needs_grad=False)
        assert flash.generation(inference) == generation.TORCH_CUDNN == 90
        assert flash.chosen(inference).package == "torch's cuDNN attention"
        monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", "1")
        assert flash.generation(training) == generation.TORCH_CUDNN
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_flash_sdp(False)
        reason = gk.supports("flash", training) or ""
        assert "cuDNN attention is switched off" in reason and "FlashAttention is" in reason
        assert flash.generation(training) is None


@for_sm_90
def test_the_newest_that_takes_the_call_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {**STANDINS["flash-attn 2"]([]), **STANDINS["fa3-fwd"]([])}
    for _ in install(None, monkeypatch):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        call = WHOLE.call("flash")
        assert flash.generation(call) == 2
        assert flash.generation(dataclasses.replace(call, needs_grad=False)) == 3
        assert flash.generation(dataclasses.replace(call, scale=-1.0)) is None


@for_sm_90
def test_the_only_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """GENHOI_FLASH: what it names is taken or nothing is; what it can't mean is refused."""
    modules = {**STANDINS["flash-attn 2"]([]), **STANDINS["fa3-fwd"]([])}
    for _ in install(None, monkeypatch):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        call = dataclasses.replace(WHOLE.call("flash"), needs_grad=False)
        assert flash.generation(call) == 3
        monkeypatch.setenv("GENHOI_FLASH", "flash-2")
        assert flash.generation(call) == 2
        monkeypatch.setenv("GENHOI_FLASH", "torch-cudnn")
        assert gk.supports("flash", call) == "GENHOI_FLASH asks for torch-cudnn, which is not here"
        monkeypatch.setenv("GENHOI_FLASH", "flash-5")
        with pytest.raises(ValueError, match=r"GENHOI_FLASH: got 'flash-5', wanted one of flash-2"):
            gk.supports("flash", call)


# ------------------------------------------------------------------- determinism of torch's own


def settings() -> tuple[bool, bool]:
    """Whether torch is deterministic, and whether it only warns."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def one_backward(found: Any) -> None:
    x = torch.randn(1, 5, 2, 16).to(HALF)
    found.backward(x, x, x, x, x, torch.zeros(1, 2, 5), 0.25)


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_torchs_flash_is_deterministic_and_leaves_the_setting(
    monkeypatch: pytest.MonkeyPatch, before: tuple[bool, bool]
) -> None:
    for calls in install("torch flash", monkeypatch):
        (found,) = flash_versions.installed()
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fills = torch.utils.deterministic.fill_uninitialized_memory
        one_backward(found)
        assert calls[-1].deterministic and settings() == before
        assert torch.utils.deterministic.fill_uninitialized_memory == fills

        def fails(*args: Any, **kwargs: Any) -> None:
            assert settings() == (True, False)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(flash_versions.aten, "_flash_attention_backward", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            one_backward(found)
        assert settings() == before


def test_cudnn_reads_out_dout_and_lse_in_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they come: a plan is found again without looking at them."""
    for _ in install("torch cuDNN", monkeypatch):
        (found,) = flash_versions.installed()
        q, k, out, dout = (torch.randn(2, rows, 3, 16).to(HALF) for rows in (5, 4, 5, 5))
        lse = torch.randn(2, 3, 5)
        wanted = found.backward(dout, q, k, k, out, lse, 0.25)
        heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (dout, out)]
        rows_first = lse.transpose(1, 2).contiguous().transpose(1, 2)
        again = found.backward(heads_first[0], q, k, k, heads_first[1], rows_first, 0.25)
        assert all(torch.equal(x, y) for x, y in zip(wanted, again, strict=True))


@pytest.fixture
def torch_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """torch's own FlashAttention is found."""
    yield from install("torch flash", monkeypatch)


def test_threads_do_not_restore_each_others_setting(
    torch_flash: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = flash_versions.installed()
    real, seen = flash_versions.aten._flash_attention_backward, []

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)  # the others get their turn, as while torch launches
        seen.append(settings())
        return real(*args, **kwargs)

    monkeypatch.setattr(flash_versions.aten, "_flash_attention_backward", slow)
    torch.use_deterministic_algorithms(False)
    threads = [threading.Thread(target=one_backward, args=(found,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(True, False)] * 3 and settings() == (False, False)


# --------------------------------------------------------------------------------- signatures

SIGNATURES = json.loads((Path(__file__).parent / "data" / "flash_signatures.json").read_text())
# Which of them each stand-in follows: package and file.
FOLLOWS = {
    "flash-attn 2": ("flash-attn", "flash_attn/flash_attn_interface.py"),
    "flash-attn 3": ("flash-attn", "hopper/flash_attn_interface.py"),
    "flash-attn 3, operator": ("fa3-fwd", "fa3_fwd_interface.py"),
    "fa3-fwd": ("fa3-fwd", "fa3_fwd_interface.py"),
    "flash-attn 4": ("flash-attn-4", "flash_attn/cute/interface.py"),
}


def published(package: str, file: str) -> dict[str, inspect.Signature]:
    """Signatures of a package's functions, by name."""
    found = {}
    for entry in SIGNATURES:
        if (entry["package"], entry["file"]) == (package, file):
            found[entry["function"]] = inspect.Signature(
                [
                    inspect.Parameter(
                        p["name"],
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        default=ast.literal_eval(p["default"])
                        if "default" in p
                        else inspect.Parameter.empty,
                    )
                    for p in entry["parameters"]
                ]
            )
    return found


@pytest.mark.parametrize("name", STANDINS)
def test_standins_have_the_published_signatures(name: str) -> None:
    (module,) = (m for m in STANDINS[name]([]).values() if "_flash_attn" in str(vars(m).keys()))
    for function, signature in published(*FOLLOWS[name]).items():
        assert str(inspect.signature(getattr(module, function))) == str(signature), function


@pytest.mark.parametrize("name", [name for name in vars(Aten) if "attention" in name])
def test_standins_have_the_schemas_of_this_torch(name: str) -> None:
    """A newer torch may have more arguments by name, which need not be given."""
    schema = getattr(torch.ops.aten, name).default._schema
    parameters = [p for p in inspect.signature(getattr(Aten, name)).parameters.values()][1:]
    assert [p.name for p in parameters] == [a.name for a in schema.arguments[: len(parameters)]]
    for p, a in zip(parameters, schema.arguments, strict=False):
        assert (p.kind is p.KEYWORD_ONLY) == a.kwarg_only, p.name
        assert (p.default is not p.empty) == a.has_default_value(), p.name
        assert p.default is p.empty or p.default == a.default_value, p.name
    for a in schema.arguments[len(parameters) :]:
        assert a.kwarg_only and a.has_default_value(), a.name


def test_the_forerunner_of_flash_attn_4_is_told_from_it() -> None:
    old = published("flash-attn", "flash_attn/cute/interface.py")
    assert "return_lse" not in old["_flash_attn_fwd"].parameters
    assert "return_lse" in published(*FOLLOWS["flash-attn 4"])["_flash_attn_fwd"].parameters
