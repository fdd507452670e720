"""The flash backend on stand-ins for FlashAttention; its own kernels are really run."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import sys
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
from flash_standins import STANDINS, Calls, install

import genhoi_kernels as gk
from genhoi_kernels import MaskGate, VideoRope, flash_versions
from genhoi_kernels.backends import flash, triton

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


@pytest.fixture(params=[name for name in STANDINS if name != "fa3-fwd"])
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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(flash_2: Calls, case: Case, dtype: torch.dtype) -> None:
    check_budget(dataclasses.replace(case, dtype=dtype))


WHOLE = Case(
    rows=70, batch=2, lengths=(13, 30), bias=(0.5, -0.5), mask="random", mask_batch=2,
    mask_dtype=torch.uint8, gate="token", dtype=HALF,
)  # fmt: skip


@needs_triton
def test_every_generation(any_flash: Calls) -> None:
    check_budget(WHOLE)
    check_budget(dataclasses.replace(WHOLE, ref_batch=2, gate="sum"))
    backward = [call for call in any_flash if call.kind == "backward"]
    assert backward and all(call.deterministic for call in backward)


@needs_triton
def test_a_gradient_of_lse_takes_the_triton_kernels(flash_2: Calls) -> None:
    """FlashAttention has no place for it; out, lse and the mask gate mean the same to both."""
    inputs = make_case(WHOLE)
    found = {}
    for name in ("flash", "triton"):
        args = arguments(WHOLE, inputs, HALF, device_of(name))
        found[name] = run_with(args, inputs.upstream, name)
    assert [call.kind for call in flash_2] == ["forward"] * 3
    for name, x in found["triton"].items():
        y = found["flash"][name]
        torch.testing.assert_close(y.float(), x.float(), rtol=0.05, atol=0.05, msg=name)


# ------------------------------------------------------------------------------- what is called


def sizes(calls: Calls, kind: str) -> list[tuple[int, int, int]]:
    return [(call.batch, call.rows, call.keys) for call in calls if call.kind == kind]


@needs_triton
def test_one_call_goes_over_the_video_and_one_over_each_reference(flash_2: Calls) -> None:
    mask = torch.zeros(2, 40, dtype=torch.uint8)
    mask[0, 3:10], mask[1, 30:34] = 1, 3
    for lengths, ref_batch, wanted in (
        (None, 1, []),
        ((0,), 1, []),
        ((6,), 1, [(1, 11, 6)]),  # shared: the rows of both samples, one after another
        ((6,), 2, [(2, 7, 6)]),  # own: as many slots as the sample with most rows needs
        ((6, 0, 5), 1, [(1, 11, 6), (1, 11, 5)]),
    ):
        case = Case(rows=40, batch=2, lengths=lengths, ref_batch=ref_batch, dtype=HALF)
        inputs = dataclasses.replace(make_case(case), mask=None if lengths is None else mask)
        flash_2.clear()
        run(case, "flash", HALF, inputs)
        for kind in ("forward", "backward"):
            assert sizes(flash_2, kind) == [(2, 40, 40), *wanted], (lengths, kind)
    blind = Case(rows=40, batch=2, lengths=(6,), mask="nothing", dtype=HALF)
    seeing = dataclasses.replace(blind, mask="none", ref_batch=2)
    for case, extra in ((blind, []), (seeing, [(2, 40, 6)])):
        flash_2.clear()
        run(case, "flash", HALF, make_case(case))
        assert sizes(flash_2, "forward") == [(2, 40, 40), *extra]
        assert sizes(flash_2, "backward") == [(2, 40, 40), *extra]
    assert all(call.deterministic for call in flash_2 if call.kind == "backward")


@needs_triton
def test_a_built_gate_does_not_look_at_the_mask(
    flash_2: Calls, monkeypatch: pytest.MonkeyPatch
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
def test_rotation_and_norm_are_the_triton_kernels(flash_2: Calls) -> None:
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
def test_unseen_references_change_nothing(flash_2: Calls, poison: float, ref_batch: int) -> None:
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
def test_bits_above_the_references_are_ignored(flash_2: Calls) -> None:
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
def test_refusals(flash_2: Calls) -> None:
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


def test_the_forerunner_of_flash_attn_4_is_told_from_it() -> None:
    old = published("flash-attn", "flash_attn/cute/interface.py")
    assert "return_lse" not in old["_flash_attn_fwd"].parameters
    assert "return_lse" in published(*FOLLOWS["flash-attn 4"])["_flash_attn_fwd"].parameters
