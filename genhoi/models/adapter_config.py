"""Which base an adapter fits and how it was trained: the file ``adapter_config.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

__all__ = [
    "CONFIG_NAME",
    "AdapterConfig",
    "FlowGateReduction",
    "GateInit",
    "Schedule",
    "check_flow_gate",
]

CONFIG_NAME = "adapter_config.json"

FlowGateReduction = Literal["token", "sequence"]
GateInit = Literal["open", "neutral"]
Schedule = str | float | list[float]

_FORMAT, _VERSION = "genhoi-adapter", 1


@dataclass(frozen=True)
class AdapterConfig:
    """The base an adapter fits, and the settings it was trained with.

    Args:
        num_heads, head_dim: of the base's attention; its width is their product.
        num_layers: blocks of the base.
        image_attention: the base has cross-attention over an image (Wan2.1 image-to-video).
        rank: of the low-rank weights.
        gate_init: gates start at 0.99 ("open", near the pretrained model) or at 0.5 ("neutral", as
            in the release, which halves every attention output of the pretrained model).
        mask_gate, flow_gate, schedule: what ``attach`` uses unless told otherwise; see there.

    Raises:
        ValueError: a size below 1 or an unknown option.

    Example:
        >>> import genhoi
        >>> config = genhoi.AdapterConfig(
        ...     num_heads=12, head_dim=128, num_layers=30, image_attention=True
        ... )
        >>> config.rank, config.schedule
        (128, 'paper')
    """

    num_heads: int
    head_dim: int
    num_layers: int
    image_attention: bool
    rank: int = 128
    gate_init: GateInit = "open"
    mask_gate: bool = True
    flow_gate: FlowGateReduction | None = "token"
    schedule: Schedule = "paper"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "num_layers", "rank"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: got {size!r}, wanted an integer of at least 1")
        _check_choice("gate_init", self.gate_init, get_args(GateInit))
        check_flow_gate(self.flow_gate)

    @property
    def dim(self) -> int:
        """Return the width of the base."""
        return self.num_heads * self.head_dim

    def to_json(self) -> str:
        """Write the text of ``adapter_config.json``."""
        return json.dumps({"format": _FORMAT, "version": _VERSION} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AdapterConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: not such a file, a later version of it, or keys missing or unknown.
        """
        values = json.loads(text)
        kind = values.pop("format", None) if isinstance(values, dict) else None
        if kind != _FORMAT:
            raise ValueError(f"{CONFIG_NAME}: got format {kind!r}, wanted {_FORMAT!r}")
        version = values.pop("version", None)
        if version != _VERSION:
            raise ValueError(
                f"{CONFIG_NAME}: got version {version!r}, wanted {_VERSION}; a later version needs "
                f"a later genhoi"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{CONFIG_NAME}: got unknown keys {unknown}, wanted {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{CONFIG_NAME}: {error}") from error


def check_flow_gate(flow_gate: object) -> None:
    """Raise ValueError unless it is a reduction or None."""
    _check_choice("flow_gate", flow_gate, (*get_args(FlowGateReduction), None))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, choices))}")
