"""A backward pass computes the gradients that somebody wants, and no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.cases import Case, arguments, make_case
from torch import Tensor

import genhoi_kernels as gk
from genhoi_kernels import functional, schema
from genhoi_kernels.backends import eager, registry
from genhoi_kernels.spec import (
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    WantedGrads,
)

CASE = Case(
    grid=(2, 3, 4),
    refs=((2, 3), (1, 3)),
    mask="random",
    mask_dtype=torch.uint8,
    bias=(0.5, -1.0),
    gate="token",
    batch=2,
    ref_batch=1,
    heads=2,
    dim=16,
    dtype=torch.float32,
)
NOTHING = WantedGrads(*[False] * len(WantedGrads._fields))
SOME = [
    NOTHING._replace(k_ref=True, v_ref=True, gate=True),  # a frozen base's
    *(NOTHING._replace(**{name: True}) for name in WantedGrads._fields),
    *(WantedGrads()._replace(**{name: False}) for name in WantedGrads._fields),
]


class Spy:
    """Eager, remembering what was wanted."""

    def __init__(self) -> None:
        self.wanted: list[WantedGrads] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(eager, name)

    def attention_backward(self, call: AttentionCall, *rest: Any) -> InputGrads:
        self.wanted.append(call.wanted)
        return eager.attention_backward(call, *rest)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    registered = Spy()
    monkeypatch.setitem(registry._BACKENDS, "spy", registered)
    registry.forget()
    yield registered
    registry.forget()


def given_arguments(backend: str = "eager") -> dict[str, Any]:
    return arguments(CASE, make_case(CASE), CASE.dtype, torch.device("cpu")) | {"backend": backend}


def keep_only(given: dict[str, Any], wanted: WantedGrads) -> list[Tensor]:
    """Nothing but what is wanted requires a gradient; returns what does."""
    kept = []
    for name, flag in zip(WantedGrads._fields, wanted, strict=True):
        for x in given[name] if name == "gate" else [given[name]]:
            x.requires_grad_(flag)
            kept += [x] if flag else []
    return kept


@pytest.mark.parametrize("wanted", SOME)
def test_what_is_wanted_reaches_the_backend(spy: Spy, wanted: WantedGrads) -> None:
    given = given_arguments("spy")
    leaves = keep_only(given, wanted)
    out, _ = gk.reference_attention(**given)
    torch.autograd.grad(out.sum(), leaves)
    assert spy.wanted == [wanted]


def backward(
    backend: Any, call: AttentionCall, tensors: AttentionTensors, wanted: WantedGrads
) -> InputGrads:
    generator = torch.Generator().manual_seed(1)
    out, lse, _, ungated = backend.attention_forward(call, tensors)
    grads = AttentionGrads(
        torch.randn(out.shape, generator=generator),
        torch.randn(lse.shape, generator=generator),
        None,
    )
    return backend.attention_backward(
        dataclasses.replace(call, wanted=wanted), tensors, ungated, lse, grads
    )


def flat(grads: InputGrads) -> dict[str, Tensor | None]:
    gate = {} if grads.gate is None else {f"gate.{n}": x for n, x in grads.gate._asdict().items()}
    return grads._asdict() | gate


@pytest.mark.parametrize("name", ["eager", "cpu"])
@pytest.mark.parametrize("wanted", SOME)
def test_the_wanted_gradients_are_the_same(name: str, wanted: WantedGrads) -> None:
    given = given_arguments()
    bound = functional._EXPLAINED.bind(
        **{k: x for k, x in given.items() if k not in ("return_lse", "return_gate_sum", "backend")}
    )
    bound.apply_defaults()
    values = functional._checked(bound.arguments | {"return_gate_sum": False, "backend": None})
    call, tensors = schema.unflatten(schema.flatten(values))
    if (reason := gk.supports(name, call)) is not None:
        pytest.skip(reason)
    backend = registry.pick(call, name)
    with torch.no_grad():
        every = flat(backward(backend, call, tensors, WantedGrads()))
        some = flat(backward(backend, call, tensors, wanted))
    for field, x in some.items():
        if getattr(wanted, field.split(".")[0]):
            if field != "gate":
                assert torch.equal(x, every[field]), field
        else:
            assert x is None, field


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_frozen_base_learns_its_references_and_gate(backend: str) -> None:
    given = given_arguments(backend)
    if (reason := gk.supports(backend, CASE.call("eager"))) is not None:
        pytest.skip(reason)
    every = [given["k_ref"], given["v_ref"], *given["gate"]]
    out, lse = gk.reference_attention(**given)
    wanted = torch.autograd.grad((out.square().sum() + lse.sum()), every)
    frozen = given_arguments(backend)
    leaves = keep_only(frozen, NOTHING._replace(k_ref=True, v_ref=True, gate=True))
    out, lse = gk.reference_attention(**frozen)
    got = torch.autograd.grad((out.square().sum() + lse.sum()), leaves)
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))
