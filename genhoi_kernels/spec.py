"""The arguments of the attention operator, once.

A field of ``AttentionTensors`` (data) or ``AttentionCall`` (the rest) says how the operator's
schema carries it; ``genhoi_kernels.schema`` derives everything else from the fields. Backends are
given the two classes.

To add an argument: (1) ``functional.reference_attention`` takes it and names it among the values;
(2) it becomes a field here, with its check; (3) a backend uses it, a compiled one by its entry in
``backends.native.attention_arguments``, a line of csrc/attention_arguments.h, and a field of the
same name in the kernels' struct. A tensor with a gradient is a field of the two lists of gradients
besides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from genhoi_kernels import checks
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import (
    HeadSlidingRope,
    ReferenceFramesRope,
    VideoRope,
    decode_rope,
    encode_rope,
)

GateMode = Literal["none", "token", "sum"]
GATE_MODES: tuple[GateMode, ...] = ("none", "token", "sum")
"""How a call gates: not at all; each token; or not yet (out stays ungated), by a gate whose logits
are summed over the rows, for gate_reduction="sequence". Kernels take the place in this tuple."""


class Argument(NamedTuple):
    """How the operator's schema carries a field.

    types: of the value that carries it, or of several, by the suffix that each name has after the
    field's. encode: the field's value to as many values. decode: the inverse. None: the value
    itself. check: raises what is wrong with a value, from it and all arguments by name.
    of_references: makes sense with reference keys alone.
    """

    types: str | Mapping[str, str]
    encode: Callable[[Any], tuple[Any, ...]] | None = None
    decode: Callable[..., Any] | None = None
    check: Callable[[Any, Mapping[str, Any]], None] | None = None
    of_references: bool = False

    def inputs(self, name: str) -> dict[str, str]:
        """Return the type of each value that carries a field ``name``, by the value's own name."""
        if isinstance(self.types, str):
            return {name: self.types}
        return {name + suffix: kind for suffix, kind in self.types.items()}


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


EVERY_GRAD = WantedGrads()


@dataclass(frozen=True)
class AttentionTensors:
    """The data of one ``reference_attention`` call, shapes as there; ``bits`` as MaskGate.bits.

    mask_gate: the MaskGate whose bits these are, where the caller built one.
    """

    q: Annotated[Tensor, Argument("Tensor")]
    k: Annotated[Tensor, Argument("Tensor")]
    v: Annotated[Tensor, Argument("Tensor")]
    k_ref: Annotated[Tensor | None, Argument("Tensor?")]
    v_ref: Annotated[Tensor | None, Argument("Tensor?")]
    bits: Annotated[Tensor | None, Argument("Tensor?")]
    ref_bias: Annotated[
        Tensor | None,
        Argument(
            "Tensor?",
            check=lambda bias, given: checks.check_ref_bias(
                bias, given["q"], len(given["ref_lengths"])
            ),
            of_references=True,
        ),
    ]
    gate: Annotated[
        GateWeights | None,
        Argument(
            "Tensor[]",
            encode=lambda gate: ([] if gate is None else list(gate),),
            decode=lambda weights: GateWeights(*weights) if weights else None,
            check=lambda gate, given: checks.check_gate(gate, given["q"]),
        ),
    ]
    mask_gate: Annotated[
        MaskGate | None,
        Argument(
            "Tensor[]",
            encode=lambda gate: ([] if gate is None else gate.tensors(),),
            decode=lambda tensors: MaskGate(*tensors) if tensors else None,
        ),
    ] = None


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
    ref_lengths: Annotated[tuple[int, ...], Argument("SymInt[]", of_references=True)]
    rope: Annotated[
        VideoRope | ReferenceFramesRope | None,
        Argument(
            _ROPE_TYPES,
            encode_rope,
            decode_rope,
            check=lambda rope, given: checks.check_rope("rope", rope, given["q"]),
        ),
    ]
    ref_rope: Annotated[
        HeadSlidingRope | None,
        Argument(_ROPE_TYPES, encode_rope, decode_rope, of_references=True),
    ]
    gate_mode: Annotated[GateMode, Argument("str")]
    scale: Annotated[float, Argument("float")]
    needs_grad: Annotated[bool, Argument("bool")]
    rows: int = 0
    keys: int = 0
    wanted: Annotated[WantedGrads, Argument("bool[]", decode=lambda flags: WantedGrads(*flags))] = (
        EVERY_GRAD
    )
    heads: int = 0


class InputGrads(NamedTuple):
    """Gradients of what ``WantedGrads`` names; None where none is wanted, or nothing is there."""

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    k_ref: Tensor | None = None
    v_ref: Tensor | None = None
    ref_bias: Tensor | None = None
    gate: GateWeights | None = None


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
