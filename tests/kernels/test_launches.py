"""Which kernels a backward pass launches, and that launches have types where kernels have none."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.cases import Case, arguments, device_of, make_case
from support.flash_cases import HALF, needs_triton
from support.flash_standins import Calls, install

from genhoi_kernels.backends import eager
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.triton import backend as triton
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.spec import (
    AttentionGrads,
    AttentionTensors,
    WantedGrads,
)

pytestmark = needs_triton

NOTHING = WantedGrads(*[False] * len(WantedGrads._fields))
CASE = Case(
    grid=(2, 5, 7),
    heads=2,
    dim=32,
    refs=((3, 3), (2, 4)),
    bias=(0.5, -0.5),
    mask="random",
    gate="token",
    dtype=HALF,
)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton kernels, as they are launched."""
    from genhoi_kernels.backends.triton.launch import Launch

    names: list[str] = []
    run = Launch.run

    def noting(self: Launch) -> None:
        names.append(self.kernel.fn.__name__)
        run(self)

    monkeypatch.setattr(Launch, "run", noting)
    return names


def backward_of(
    backend: Any, case: Case, wanted: WantedGrads
) -> tuple[AttentionTensors, AttentionTensors]:
    """A backend's gradients, and all of the oracle's."""
    args = arguments(case, make_case(case), HALF, device_of("triton"))
    call = dataclasses.replace(case.call("triton"), wanted=wanted)
    gate = args.get("mask")
    bits = None if gate is None else MaskGate.build(gate)
    t = AttentionTensors(
        *(args[name].detach() for name in ("q", "k", "v", "k_ref", "v_ref")),
        bits=None if bits is None else bits.bits,
        ref_bias=args["ref_bias"].detach(),
        gate=type(args["gate"])(*(w.detach() for w in args["gate"])) if case.gate else None,
        mask_gate=bits,
    )
    result = eager.attention_forward(call, t)
    o = result.ungated if case.gate == "token" else result.out
    grads = AttentionGrads(torch.randn_like(result.out), None, None)
    everything = dataclasses.replace(call, wanted=WantedGrads())
    return (
        backend.attention_backward(call, t, o, result.lse, grads),
        eager.attention_backward(everything, t, o, result.lse, grads),
    )


def check_wanted(gradients: AttentionTensors, exact: AttentionTensors, wanted: WantedGrads) -> None:
    """What is wanted is there and right, the rest is None."""
    for name, wants in wanted._asdict().items():
        x, y = getattr(gradients, name), getattr(exact, name)
        assert (x is not None) == wants, name
        for one, other in zip(x, y, strict=True) if wants and name == "gate" else [(x, y)] * wants:
            torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.05, msg=name)


TRITON_WANTS = [
    ((), []),
    (("gate",), ["flow_gate_bwd"]),
    (("q",), ["flow_gate_bwd", "rotate", "rotate", "rotate", "attention_bwd_dq", "rotate"]),
    (("v",), ["flow_gate_bwd", "rotate", "rotate", "attention_bwd_dkdv"]),
    (("k", "gate"), ["flow_gate_bwd", "rotate", "rotate", "attention_bwd_dkdv", "rotate"]),
    (("v_ref",), ["flow_gate_bwd", "rotate", "rotate", "attention_bwd_dkdv"]),
    (("ref_bias",), ["flow_gate_bwd", "rotate", "rotate", "attention_bwd_dkdv"]),
    (
        ("k_ref", "v_ref"),
        ["flow_gate_bwd", "rotate", "rotate", "attention_bwd_dkdv", "rotate"],
    ),
]


@pytest.mark.parametrize(("names", "kernels"), TRITON_WANTS, ids=lambda x: "-".join(x) or "none")
def test_triton_launches_what_is_wanted(
    names: tuple[str, ...], kernels: list[str], launched: list[str]
) -> None:
    wanted = NOTHING._replace(**dict.fromkeys(names, True))
    gradients, exact = backward_of(triton, CASE, wanted)
    assert [name.replace("norm_rope_fwd", "rotate") for name in launched] == kernels
    check_wanted(gradients, exact, wanted)


def test_without_a_gate_its_gradients_are_no_reason(launched: list[str]) -> None:
    """And delta takes a kernel only where there is something to compute with it."""
    case = dataclasses.replace(CASE, gate=None)
    gradients, _ = backward_of(triton, case, NOTHING._replace(gate=True))
    assert launched == [] and gradients.gate is None
    wanted = NOTHING._replace(v=True)
    gradients, exact = backward_of(triton, case, wanted)
    kernels = [name for name in launched if name != "norm_rope_fwd"]
    assert kernels == ["attention_bwd_preprocess", "attention_bwd_dkdv"]
    check_wanted(gradients, exact, wanted)


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """flash-attn 2 is installed."""
    yield from install("flash-attn 2", monkeypatch)


@pytest.mark.parametrize(
    ("names", "video", "references", "bias"),
    [
        ((), 0, 0, 0),
        (("gate",), 0, 0, 0),
        (("q",), 1, 2, 0),
        (("k", "v"), 1, 0, 0),
        (("k_ref",), 0, 2, 0),
        (("v_ref", "gate"), 0, 2, 0),
        (("ref_bias",), 0, 2, 2),
        (WantedGrads._fields, 1, 2, 2),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, tuple) else str(x),
)
def test_flash_calls_what_is_wanted(
    names: tuple[str, ...],
    video: int,
    references: int,
    bias: int,
    flash_calls: Calls,
    launched: list[str],
) -> None:
    """One call for the video, one for each reference; the bias takes a forward one of each."""
    wanted = NOTHING._replace(**dict.fromkeys(names, True))
    gradients, exact = backward_of(flash, CASE, wanted)
    keys = [call.keys for call in flash_calls if call.kind == "backward"]
    assert [keys.count(70), len(keys) - keys.count(70)] == [video, references]
    assert len(flash_calls) - len(keys) == bias
    assert ("flow_gate_bwd" in launched) == bool(names)
    check_wanted(gradients, exact, wanted)


@pytest.mark.parametrize(
    "module",
    [
        "triton.attention_bwd_common",
        "triton.attention_bwd_dkdv",
        "triton.attention_bwd_dq",
        "triton.attention_bwd_preprocess",
        "triton.attention_fwd",
        "triton.common",
        "triton.flow_gate",
        "triton.norm_rope",
        "flash.merge",
    ],
)
def test_launches_are_typed(module: str) -> None:
    """mypy lets these modules' functions go without types, for the kernels' sake."""
    functions = vars(importlib.import_module(f"genhoi_kernels.backends.{module}")).values()
    for function in functions:
        if inspect.isfunction(function) and function.__module__.endswith(module):
            parameters = {*inspect.signature(function).parameters, "return"}
            assert parameters == {*function.__annotations__}, function.__name__
