"""The arguments of the attention operator, once.

A field of ``AttentionTensors`` (data) or ``AttentionCall`` (the rest) says how the operator's
schema carries it. The schema, the operator's inputs by name, both directions between them and the
two classes, and what autograd saves all follow from the fields. Backends are given the two classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genhoi_kernels import checks
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, VideoRope, decode_rope, encode_rope

GateMode = Literal["none", "token", "sum"]
GATE_MODES: tuple[GateMode, ...] = ("none", "token", "sum")
"""How a call gates: not at all; each token; or not yet (out stays ungated), by a gate whose logits
are summed over the rows, for gate_reduction="sequence". Kernels take the place in this tuple."""


class Argument(NamedTuple):
    """How the operator's schema carries a field.

    types: of each value that carries it, by the suffix that its name has after the field's.
    encode: the field's value to as many values. decode: the inverse.
    check: raises what is wrong with a value that is given, from it and all arguments by name.
    of_references: makes sense with reference keys alone.
    """

    types: Mapping[str, str]
    encode: Callable[[Any], tuple[Any, ...]]
    decode: Callable[..., Any]
    check: Callable[[Any, Mapping[str, Any]], None] | None
    of_references: bool


def _alone(value: Any) -> tuple[Any]:
    return (value,)


def _itself(value: Any) -> Any:
    return value


def argument(
    types: str | Mapping[str, str],
    *,
    encode: Callable[[Any], tuple[Any, ...]] = _alone,
    decode: Callable[..., Any] = _itself,
    check: Callable[[Any, Mapping[str, Any]], None] | None = None,
    of_references: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field that the schema carries; see ``Argument``."""
    types = {"": types} if isinstance(types, str) else types
    carried = Argument(types, encode, decode, check, of_references)
    return dataclasses.field(default=default, metadata={"argument": carried})


_ROPE_TYPES = {"": "SymInt[]", "_floats": "float[]"}


class WantedGrads(NamedTuple):
    """Which gradients a backward pass has to compute; ``gate``: those of all its weights.

    The names are those of the differentiable fields of ``AttentionTensors``.
    """

    q: bool = True
    k: bool = True
    v: bool = True
    k_ref: bool = True
    v_ref: bool = True
    ref_bias: bool = True
    gate: bool = True


@dataclass(frozen=True)
class AttentionTensors:
    """The data of one ``reference_attention`` call, shapes as there; ``bits`` as MaskGate.bits.

    mask_gate: the MaskGate whose bits these are, where the caller built one.
    Also holds the gradients of such data.
    """

    q: Tensor = argument("Tensor")
    k: Tensor = argument("Tensor")
    v: Tensor = argument("Tensor")
    k_ref: Tensor | None = argument("Tensor?")
    v_ref: Tensor | None = argument("Tensor?")
    bits: Tensor | None = argument("Tensor?")
    ref_bias: Tensor | None = argument(
        "Tensor?",
        check=lambda bias, given: checks.check_ref_bias(
            bias, given["q"], len(given["ref_lengths"])
        ),
        of_references=True,
    )
    gate: GateWeights | None = argument(
        "Tensor[]",
        encode=lambda gate: ([] if gate is None else list(gate),),
        decode=lambda weights: GateWeights(*weights) if weights else None,
        check=lambda gate, given: checks.check_gate(gate, given["q"]),
    )
    mask_gate: MaskGate | None = argument(
        "Tensor[]",
        encode=lambda gate: ([] if gate is None else gate.tensors(),),
        decode=lambda tensors: MaskGate(*tensors) if tensors else None,
        default=None,
    )


@dataclass(frozen=True)
class AttentionCall:
    """Sizes and options of one ``reference_attention`` call.

    gate_mode: see ``GATE_MODES``. needs_grad: a backward pass will follow. rows, keys: N and Nk, by
    which one of several able backends is chosen; heads: H. Those are 0 where they don't matter.
    wanted: the gradients that a backward pass computes; the others may be None.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    ref_lengths: tuple[int, ...] = argument("SymInt[]", of_references=True)
    rope: VideoRope | None = argument(
        _ROPE_TYPES,
        encode=encode_rope,
        decode=decode_rope,
        check=lambda rope, given: checks.check_rope("rope", rope, given["q"]),
    )
    ref_rope: HeadSlidingRope | None = argument(
        _ROPE_TYPES,
        encode=encode_rope,
        decode=decode_rope,
        check=lambda rope, given: checks.check_ref_rope("ref_rope", rope, given["k_ref"]),
        of_references=True,
    )
    gate_mode: GateMode = argument("str")
    scale: float = argument("float")
    needs_grad: bool = argument("bool")
    rows: int = 0
    keys: int = 0
    wanted: WantedGrads = argument(
        "bool[]", decode=lambda flags: WantedGrads(*flags), default=WantedGrads()
    )
    heads: int = 0


@dataclass(frozen=True)
class AttentionGrads:
    """Gradients that reach the outputs of a call; None where none does."""

    out: Tensor | None
    lse: Tensor | None
    gate_sum: Tensor | None


@dataclass(frozen=True)
class RopeCall:
    """Sizes and options of one ``qk_norm_rope`` or ``apply_rope`` call.

    heads: H; 0 where it doesn't matter.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    heads: int = 0


# ------------------------------------------------------------ what follows from the fields


def _arguments(of: type) -> dict[str, Argument]:
    """The fields of a class that the schema carries."""
    fields = dataclasses.fields(of)
    return {f.name: f.metadata["argument"] for f in fields if "argument" in f.metadata}


TENSORS = _arguments(AttentionTensors)
OPTIONS = _arguments(AttentionCall)
ARGUMENTS = {**TENSORS, **OPTIONS, "backend": Argument({"": "str?"}, _alone, _itself, None, False)}
"""In the operator's order. backend: a name, or None for the first that supports the call."""


def _inputs_of(arguments: Mapping[str, Argument]) -> list[tuple[str, str]]:
    """Type and name of each value that carries them."""
    return [
        (kind, name + suffix)
        for name, carried in arguments.items()
        for suffix, kind in carried.types.items()
    ]


SCHEMA = ", ".join(f"{kind} {name}" for kind, name in _inputs_of(ARGUMENTS))
"""The operator's arguments, as torch's schemas spell them."""

AttentionInputs: Any = namedtuple("AttentionInputs", [name for _, name in _inputs_of(ARGUMENTS)])
"""The operator's inputs by name."""

_TENSOR_INPUTS = tuple(name for _, name in _inputs_of(TENSORS))
_OPTION_INPUTS = tuple(name for _, name in _inputs_of(OPTIONS))
_PLACES = {
    name: tuple(AttentionInputs._fields.index(name + suffix) for suffix in carried.types)
    for name, carried in ARGUMENTS.items()
}


def flatten(values: Mapping[str, Any]) -> Any:
    """The operator's inputs, from the values of all fields by name."""
    inputs: list[Any] = []
    for name, carried in ARGUMENTS.items():
        inputs.extend(carried.encode(values[name]))
    return AttentionInputs(*inputs)


def unflatten(inputs: Sequence[Any]) -> tuple[AttentionCall, AttentionTensors]:
    """What backends are given, from the operator's inputs."""
    tensors = AttentionTensors(**_decoded(TENSORS, inputs))
    q, k = tensors.q, tensors.k
    options = tuple(
        tuple(inputs[place]) if isinstance(inputs[place], list) else inputs[place]
        for name in OPTIONS
        for place in _PLACES[name]
    )
    _, rows, heads, head_dim = q.shape
    return _call(q.device, q.dtype, head_dim, rows, k.shape[1], heads, options), tensors


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
    """A call is decoded, and its rotations are validated, once."""
    inputs = dict(zip(_OPTION_INPUTS, options, strict=True))
    values = {
        name: carried.decode(*(inputs[name + suffix] for suffix in carried.types))
        for name, carried in OPTIONS.items()
    }
    return AttentionCall(device, dtype, head_dim, rows=rows, keys=keys, heads=heads, **values)


def _decoded(arguments: Mapping[str, Argument], inputs: Sequence[Any]) -> dict[str, Any]:
    return {
        name: carried.decode(*(inputs[place] for place in _PLACES[name]))
        for name, carried in arguments.items()
    }


# ------------------------------------------------------------ what autograd asks


def _several(value: Any) -> Sequence[Any]:
    """The tensors of an input or a field: of a list or of the gate, or itself."""
    return value if isinstance(value, (list, tuple)) else (value,)


def leaves(of: Any) -> list[Tensor | None]:
    """The inputs that may have gradients, in the order of WantedGrads, the gate's weights apart."""
    return [x for name in WantedGrads._fields for x in _several(getattr(of, name))]


def wanted_grads(inputs: Any, needed: Iterable[bool]) -> WantedGrads:
    """What is wanted, from one flag for each of ``leaves``."""
    flags = iter(needed)
    sizes = (len(_several(getattr(inputs, name))) for name in WantedGrads._fields)
    return WantedGrads(*(any([next(flags) for _ in range(size)]) for size in sizes))


def pick_wanted(of: Any, wanted: Iterable[bool]) -> list[Tensor]:
    """Those of ``leaves`` that are there and wanted; of AttentionTensors too."""
    flags = zip(WantedGrads._fields, wanted, strict=True)
    every = (x for name, flag in flags if flag for x in _several(getattr(of, name)))
    return [x for x in every if x is not None]


def spread_wanted(inputs: Any, wanted: WantedGrads, grads: Iterable[Tensor]) -> list[Tensor | None]:
    """The gradients of ``pick_wanted``, each in its place among ``leaves``."""
    rest = iter(grads)
    return [
        next(rest) if flag and x is not None else None
        for name, flag in zip(WantedGrads._fields, wanted, strict=True)
        for x in _several(getattr(inputs, name))
    ]


def pull_tensors(inputs: Any) -> tuple[list[Tensor | None], Any]:
    """All tensors of the inputs, and the inputs without them: each list's length in its place."""
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
    """Inverse of ``pull_tensors``."""
    rest = iter(tensors)
    values: dict[str, Any] = {}
    for name in _TENSOR_INPUTS:
        length = getattr(inputs, name)
        values[name] = next(rest) if length is None else [next(rest) for _ in range(length)]
    return inputs._replace(**values)
