"""How an adapter is put to work: the presets, and what is left to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from genhoi.models.adapter_config import AdapterConfig, FlowGateReduction, Schedule, check_flow_gate

__all__ = ["NO_MASK_GATE", "UNSET", "Options", "Preset", "Unset", "resolve_options"]

Preset = Literal["paper", "release"]


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "the preset's"

    def __repr__(self) -> str:
        return self.value


NO_MASK_GATE = (
    "references of a VACE model are rows of its one sequence, in which every row sees every row"
)

UNSET = Unset.UNSET  # an option that is left to the preset; None is a flow gate's own value


@dataclass(frozen=True)
class Options:
    """How an adapter is put to work; see ``attach``."""

    mask_gate: bool
    flow_gate: FlowGateReduction | None
    schedule: Schedule


_PRESETS = {
    "stream": {
        "paper": Options(mask_gate=True, flow_gate="token", schedule="paper"),
        "release": Options(mask_gate=False, flow_gate="sequence", schedule="release"),
    },
    # There the authors have a gate a token, and no mask gate.
    "frames": {
        "paper": Options(mask_gate=False, flow_gate="token", schedule="paper"),
        "release": Options(mask_gate=False, flow_gate="token", schedule="release"),
    },
}


def resolve_options(
    config: AdapterConfig,
    preset: str | None,
    *,
    mask_gate: bool | Unset = UNSET,
    flow_gate: FlowGateReduction | Unset | None = UNSET,
    schedule: Schedule | Sequence[float] | Unset = UNSET,
) -> Options:
    """Take each option as given, else from the preset, else from the adapter's own.

    Raises:
        TypeError: mask_gate is no bool.
        ValueError: an unknown preset or flow gate, or a mask gate where references are frames.
    """
    presets = _PRESETS[config.references]
    if preset is None:
        options = Options(config.mask_gate, config.flow_gate, config.schedule)
    elif preset in presets:
        options = presets[preset]
    else:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(presets)} or None")
    values: dict[str, Any] = {
        "mask_gate": mask_gate,
        "flow_gate": flow_gate,
        "schedule": schedule,
    }
    options = replace(options, **{k: v for k, v in values.items() if v is not UNSET})
    check_flow_gate(options.flow_gate)
    if not isinstance(options.mask_gate, bool):
        raise TypeError(f"mask_gate: got {options.mask_gate!r}, wanted True or False")
    if options.mask_gate and config.references == "frames":
        raise ValueError(f"mask_gate: got True, wanted False: {NO_MASK_GATE}")
    return options
