"""The attention operator's schema and inputs, as they follow from the fields of ``spec``."""

from __future__ import annotations

import functools
import operator
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.spec import (
    Argument,
    AttentionCall,
    AttentionTensors,
    InputGrads,
    WantedGrads,
)


def _arguments(of: type) -> dict[str, Argument]:
    """Return the fields of a class that the schema carries."""
    hints = get_type_hints(of, include_extras=True)
    return {
        name: extra
        for name, hint in hints.items()
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, Argument)
    }


def _inputs(arguments: Mapping[str, Argument]) -> dict[str, str]:
    """Return the type of each input that carries them, by its name."""
    return {
        input_name: kind
        for name, carried in arguments.items()
        for input_name, kind in carried.inputs(name).items()
    }


TENSORS = _arguments(AttentionTensors)
OPTIONS = _arguments(AttentionCall)
ARGUMENTS = {**TENSORS, **OPTIONS, "backend": Argument("str?")}
"""In the operator's order. backend: a name, or None for the first that supports the call."""

SCHEMA = ", ".join(f"{kind} {name}" for name, kind in _inputs(ARGUMENTS).items())
"""The operator's arguments, as torch's schemas spell them."""


def _named_tuple(name: str, fields: Iterable[str]) -> Any:
    return namedtuple(name, fields)  # type: ignore[misc]  # its fields are known here only


AttentionInputs = _named_tuple("AttentionInputs", _inputs(ARGUMENTS))
"""The operator's inputs by name."""

_TENSOR_INPUTS = tuple(_inputs(TENSORS))
_OPTION_INPUTS = tuple(_inputs(OPTIONS))
_INPUTS_OF = {name: tuple(carried.inputs(name)) for name, carried in ARGUMENTS.items()}


def flatten(values: Mapping[str, Any]) -> Any:
    """Return the operator's inputs, from the values of all fields by name."""
    inputs: list[Any] = []
    for name, carried in ARGUMENTS.items():
        if carried.encode is None:
            inputs.append(values[name])
        else:
            inputs.extend(carried.encode(values[name]))
    return AttentionInputs(*inputs)


def unflatten(inputs: Sequence[Any]) -> tuple[AttentionCall, AttentionTensors]:
    """Return what backends are given, from the operator's inputs."""
    given = AttentionInputs(*inputs)
    tensors = AttentionTensors(**_decoded(TENSORS, given))
    _, rows, heads, head_dim = given.q.shape
    # Lists have come from torch; the numbers in them make a key of the cache.
    options = tuple([tuple(x) if isinstance(x, list) else x for x in _options_of(given)])
    call = _call(given.q.device, given.q.dtype, head_dim, rows, given.k.shape[1], heads, options)
    return call, tensors


_options_of = operator.attrgetter(*_OPTION_INPUTS)


@functools.lru_cache(maxsize=512)
def _call(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    rows: int,
    keys: int,
    heads: int,
    options: tuple[Any, ...],
) -> AttentionCall:
    """Decode a call, and validate its rotations, once."""
    given = SimpleNamespace(**dict(zip(_OPTION_INPUTS, options, strict=True)))
    values = _decoded(OPTIONS, given)
    return AttentionCall(device, dtype, head_dim, rows=rows, keys=keys, heads=heads, **values)


def _decoded(arguments: Mapping[str, Argument], given: Any) -> dict[str, Any]:
    """Return the fields' values, from inputs by name."""
    values = {}
    for name, carried in arguments.items():
        if carried.decode is None:
            values[name] = getattr(given, name)
        else:
            values[name] = carried.decode(*[getattr(given, i) for i in _INPUTS_OF[name]])
    return values


# ------------------------------------------------------------ gradients


def _several(value: Any) -> Sequence[Any]:
    """Return the tensors of a list or a gate, or the one tensor."""
    return value if isinstance(value, (list, tuple)) else (value,)


def requires_grad(values: Mapping[str, Any]) -> bool:
    """Say whether any of the fields' values that may have gradients requires one."""
    every = (x for name in WantedGrads._fields for x in _several(values[name]))
    return any([x is not None and x.requires_grad for x in every])


def leaves(of: Any) -> list[Tensor | None]:
    """Return the inputs that may have gradients, in WantedGrads' order, gate weights apart."""
    return [x for name in WantedGrads._fields for x in _several(getattr(of, name))]


def wanted_grads(inputs: Any, needed: Iterable[bool]) -> WantedGrads:
    """Return what is wanted, from one flag for each of ``leaves``."""
    flags = iter(needed)
    sizes = (len(_several(getattr(inputs, name))) for name in WantedGrads._fields)
    return WantedGrads(*(any([next(flags) for _ in range(size)]) for size in sizes))


def pick_wanted(of: Any, wanted: Iterable[bool]) -> list[Tensor]:
    """Return those of ``leaves`` that are given and wanted."""
    flags = zip(WantedGrads._fields, wanted, strict=True)
    every = (x for name, flag in flags if flag for x in _several(getattr(of, name)))
    return [x for x in every if x is not None]


def spread_wanted(of: Any, wanted: Iterable[bool], grads: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the gradients of ``pick_wanted``, each in its place among ``leaves``."""
    rest = iter(grads)
    return [
        next(rest) if flag and x is not None else None
        for name, flag in zip(WantedGrads._fields, wanted, strict=True)
        for x in _several(getattr(of, name))
    ]


def grads_by_field(
    of: AttentionTensors, wanted: Iterable[bool], grads: Iterable[Tensor]
) -> InputGrads:
    """Return the gradients of ``pick_wanted`` as a backend hands them back."""
    rest = iter(grads)
    values: dict[str, Any] = {}
    for name, flag in zip(WantedGrads._fields, wanted, strict=True):
        value = getattr(of, name)
        if not flag or value is None:
            values[name] = None
        elif isinstance(value, GateWeights):
            values[name] = GateWeights(*(next(rest) for _ in value))
        else:
            values[name] = next(rest)
    return InputGrads(**values)


def pull_tensors(inputs: Any) -> tuple[list[Tensor | None], Any]:
    """Return all tensors, and the inputs with each list's length (or None) in its place."""
    tensors: list[Tensor | None] = []
    lengths: dict[str, int | None] = {}
    for name in _TENSOR_INPUTS:
        value = getattr(inputs, name)
        if isinstance(value, (list, tuple)):
            tensors.extend(value)
            lengths[name] = len(value)
        else:
            tensors.append(value)
            lengths[name] = None
    return tensors, inputs._replace(**lengths)


def put_tensors(inputs: Any, tensors: Sequence[Tensor | None]) -> Any:
    """Return the inputs that ``pull_tensors`` was given."""
    rest = iter(tensors)
    values: dict[str, Any] = {}
    for name in _TENSOR_INPUTS:
        length = getattr(inputs, name)
        values[name] = next(rest) if length is None else [next(rest) for _ in range(length)]
    return inputs._replace(**values)
