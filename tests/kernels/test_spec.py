"""The operator's arguments: one list, from which schema, inputs and gradients follow."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

import genhoi_kernels as gk
from genhoi_kernels import ops, schema
from genhoi_kernels.backends import native
from genhoi_kernels.flow_gate import gate_shapes
from genhoi_kernels.spec import (
    Argument,
    AttentionCall,
    AttentionTensors,
    InputGrads,
    WantedGrads,
)

B, N, H, D = 2, 12, 3, 16
GRID, REFS = (3, 2, 2), ((2, 2), (1, 3))
DERIVED = {"device", "dtype", "head_dim", "rows", "keys", "heads"}  # from q and k


def all_values() -> dict[str, Any]:
    """A value for every argument."""
    mask = gk.MaskGate.build(torch.randint(0, 4, (1, N)))
    rope = gk.HeadSlidingRope(GRID, REFS, head_dim=D, num_heads=H + 2, first_head=2)
    return {
        **{name: torch.randn(B, N, H, D) for name in "qkv"},
        **{name: torch.randn(1, 7, H, D) for name in ("k_ref", "v_ref")},
        "bits": mask.bits,
        "ref_bias": torch.zeros(2),
        "gate": gk.GateWeights(*(torch.randn(shape) for shape in gate_shapes(D).values())),
        "mask_gate": mask,
        "ref_lengths": (4, 3),
        "rope": gk.VideoRope((3, 3, 2), head_dim=D, token_offset=6, theta=500.0),
        "ref_rope": dataclasses.replace(rope, schedule=(rope.frames[0],) * 2 + rope.frames),
        "gate_mode": "sum",
        "scale": -0.5,
        "needs_grad": True,
        "wanted": WantedGrads(k=False, gate=False),
        "backend": "eager",
    }


def few_values() -> dict[str, Any]:
    """Only what no call is without."""
    given = all_values()
    kept = ("q", "k", "v", "gate_mode", "scale", "needs_grad", "wanted")
    nothing = dict.fromkeys(schema.ARGUMENTS) | {"ref_lengths": ()}
    return nothing | {name: given[name] for name in kept}


def as_torch_gives_them(inputs: Any) -> list[Any]:
    """Tuples have become lists."""
    return [list(x) if isinstance(x, tuple) else x for x in inputs]


def test_torch_knows_the_schema() -> None:
    wanted = torch._C.parse_schema(f"genhoi_kernels::x({schema.SCHEMA}) -> Tensor").arguments
    for op, before in ((ops.attention, 0), (ops.attention_backward, 5)):
        registered = op._schema.arguments[before:]
        assert [(a.name, str(a.type)) for a in registered] == [
            (a.name, str(a.type)) for a in wanted
        ]


def test_every_field_is_carried_or_derived() -> None:
    fields = {f.name for of in (AttentionTensors, AttentionCall) for f in dataclasses.fields(of)}
    assert fields - DERIVED == set(schema.ARGUMENTS) - {"backend"}


def test_the_public_function_has_the_same_arguments() -> None:
    taken = set(inspect.signature(gk.reference_attention).parameters)
    taken -= {"return_lse", "return_gate_sum"}  # of what is computed anyway
    carried = set(schema.ARGUMENTS) - {"needs_grad", "wanted"}  # autograd's
    # A mask comes as bits and perhaps tiles; a gate's reduction is one of its modes.
    carried = carried - {"bits", "mask_gate", "gate_mode"} | {"mask", "gate_reduction"}
    assert taken == carried


def test_the_differentiable_fields_have_one_order() -> None:
    tensors = [f.name for f in dataclasses.fields(AttentionTensors)]
    integers = ("bits", "mask_gate")
    assert WantedGrads._fields == tuple(name for name in tensors if name not in integers)
    assert InputGrads._fields == WantedGrads._fields


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize("name", ["cpu_attention", "cuda_attention"])
def test_the_native_operators_take_what_python_gives(name: str) -> None:
    call, tensors = schema.unflatten(schema.flatten(all_values()))
    given = list(native.attention_arguments(call, tensors))
    for direction in ("forward", "backward"):
        op = getattr(torch.ops.genhoi_kernels, f"{name}_{direction}").default
        assert [a.name for a in op._schema.arguments[: len(given)]] == given


@pytest.mark.parametrize("make", [all_values, few_values])
def test_there_and_back(make: Any) -> None:
    values = make()
    inputs = schema.flatten(values)
    call, tensors = schema.unflatten(as_torch_gives_them(inputs))
    for name, wanted in values.items():
        if name == "backend":
            assert inputs.backend == wanted
        elif name in schema.OPTIONS:
            assert getattr(call, name) == wanted, name
        elif name == "mask_gate" and wanted is not None:
            assert all(map(torch.equal, tensors.mask_gate.tensors(), wanted.tensors()))
        elif name == "gate" and wanted is not None:
            assert all(x is y for x, y in zip(tensors.gate, wanted, strict=True))
        else:
            assert getattr(tensors, name) is wanted, name
    assert (call.device, call.dtype, call.head_dim) == (torch.device("cpu"), torch.float32, D)
    assert (call.rows, call.keys, call.heads) == (N, N, H)


def test_a_call_is_decoded_once() -> None:
    first, second = (schema.unflatten(schema.flatten(all_values()))[0] for _ in range(2))
    assert first is second


@pytest.mark.parametrize("make", [all_values, few_values])
def test_autograd_saves_every_tensor(make: Any) -> None:
    inputs = schema.flatten(make())
    tensors, rest = schema.pull_tensors(inputs)
    assert not any(isinstance(x, Tensor) for value in rest for x in schema._several(value))
    again = schema.put_tensors(rest, tensors)
    for x, y in zip(inputs, again, strict=True):
        if isinstance(x, (list, tuple)) and any(isinstance(e, Tensor) for e in x):
            assert all(a is b for a, b in zip(x, y, strict=True))
        else:
            assert x is y or x == y


def test_wanted_gradients_find_their_places() -> None:
    values = all_values()
    inputs = schema.flatten(values)
    leaves = schema.leaves(inputs)
    assert len(leaves) == 6 + 6
    wanted = WantedGrads(k=False, v_ref=False)
    needed = [x is not inputs.k and x is not inputs.v_ref for x in leaves]
    assert schema.wanted_grads(inputs, needed) == wanted
    picked = schema.pick_wanted(inputs, wanted)
    assert len(picked) == 10
    spread = schema.spread_wanted(inputs, wanted, picked)
    for got, x, flag in zip(spread, leaves, needed, strict=True):
        assert got is (x if flag else None)
    _, tensors = schema.unflatten(inputs)
    by_field = schema.grads_by_field(tensors, wanted, picked)
    assert by_field.k is None and by_field.q is inputs.q and by_field.gate == tensors.gate


def test_a_gate_is_wanted_if_any_of_its_weights_is() -> None:
    inputs = schema.flatten(all_values())
    assert schema.wanted_grads(inputs, [False] * 11 + [True]) == WantedGrads(*[False] * 6, True)


def test_a_new_field_is_carried() -> None:
    @dataclasses.dataclass(frozen=True)
    class More:
        temperature: Annotated[Tensor | None, Argument("Tensor?", of_references=True)]
        window: Annotated[tuple[int, int], Argument({"": "int", "_after": "int"})]
        rows: int = 0

    carried = schema._arguments(More)
    assert list(carried) == ["temperature", "window"]
    wanted = {"temperature": "Tensor?", "window": "int", "window_after": "int"}
    assert schema._inputs(carried) == wanted
