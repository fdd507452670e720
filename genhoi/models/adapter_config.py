"""Which base an adapter fits and how it was trained: the file ``adapter_config.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

__all__ = [
    "CONFIG_NAME",
    "LORA_TARGETS",
    "AdapterConfig",
    "FlowGateReduction",
    "GateInit",
    "ReferencesAs",
    "Schedule",
    "check_flow_gate",
]

CONFIG_NAME = "adapter_config.json"

FlowGateReduction = Literal["token", "sequence"]
GateInit = Literal["open", "neutral"]
ReferencesAs = Literal["stream", "frames"]
Schedule = str | float | list[float]

LORA_TARGETS = (
    *(f"{attention}_{x}" for attention in ("self", "text") for x in "qkvo"),
    "ffn_in",
    "ffn_out",
)
"""Layers of a VACE block that can have low-rank weights: q, k, v and output of its self-attention
and text attention, and both layers of its feed-forward."""

_FORMAT, _VERSION = "genhoi-adapter", 1
_OF_FRAMES = ("ffn_dim", "lora_targets")  # of which a stream has no use


@dataclass(frozen=True)
class AdapterConfig:
    """The base an adapter fits, and the settings it was trained with.

    Args:
        num_heads, head_dim: of the base's attention; its width is their product.
        num_layers: blocks of the base that the adapter is on; of a VACE model the VACE blocks.
        image_attention: the base has cross-attention over an image (Wan2.1 image-to-video).
        rank: of the low-rank weights; with "frames" 0 for none.
        gate_init: gates start at 0.99 ("open", near the pretrained model) or at 0.5 ("neutral", as
            in the release, which halves every attention output of the pretrained model).
        mask_gate, flow_gate, schedule: what ``attach`` uses unless told otherwise; see there.
            With "frames" there is no mask gate: False.
        references: how references reach the model: as a "stream" of their own beside the video, or
            as "frames" at the front of the video's sequence (Wan VACE).
        ffn_dim: with "frames" the width of the base's feed-forward layers.
        lora_targets: with "frames" the layers that have low-rank weights, of ``LORA_TARGETS``.
            None: all of them.

    Raises:
        ValueError: a size below 1, an unknown option, or one that the form of references lacks.

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
    references: ReferencesAs = "stream"
    ffn_dim: int | None = None
    lora_targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_choice("references", self.references, get_args(ReferencesAs))
        _check_choice("gate_init", self.gate_init, get_args(GateInit))
        check_flow_gate(self.flow_gate)
        for name in ("num_heads", "head_dim", "num_layers"):
            _check_size(name, getattr(self, name), 1)
        if self.references == "stream":
            self._check_stream()
        else:
            self._check_frames()

    def _check_stream(self) -> None:
        _check_size("rank", self.rank, 1)
        for name in _OF_FRAMES:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with references as a stream, wanted None"
                )

    def _check_frames(self) -> None:
        _check_size("rank", self.rank, 0)
        _check_size("ffn_dim", self.ffn_dim, 1)
        if self.mask_gate:
            raise ValueError(
                "mask_gate: got True with references as frames, wanted False: they are rows of the "
                "one sequence, in which every row sees every row"
            )
        if self.image_attention:
            raise ValueError("image_attention: got True with references as frames, wanted False")
        targets = LORA_TARGETS if self.lora_targets is None else tuple(self.lora_targets)
        for target in targets:
            _check_choice("lora_targets", target, LORA_TARGETS)
        object.__setattr__(self, "lora_targets", targets)

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


def _check_size(name: str, size: object, least: int) -> None:
    if not isinstance(size, int) or size < least:
        raise ValueError(f"{name}: got {size!r}, wanted an integer of at least {least}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, choices))}")
