"""How much memory an edit takes on its device, phase by phase, for each way to offload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from genhoi.bases.base import Offload
from genhoi.bases.needs import (
    TRANSFORMER,
    TRANSFORMER_2,
    BaseNeeds,
    Phase,
    always_there,
    as_used,
)

__all__ = ["SPARE", "OffloadMemory", "TransformerNeeds", "memory_of_edit", "what_fits"]

SPARE = 0.05
"""Share of a device's memory that an estimate leaves to what it does not count: CUDA's context,
kernels' scratch memory, and gaps."""


@dataclass(frozen=True)
class TransformerNeeds:
    """What a transformer takes, with its adapter.

    Args:
        weight_bytes: of both.
        block_bytes: the most that is there while one block at a time is.
        activation_bytes: while it denoises, what is kept of the references apart.
        cache_bytes: kept of the references from the first window on.
    """

    weight_bytes: int
    block_bytes: int
    activation_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class OffloadMemory:
    """Peaks of one way to offload.

    Args:
        offload: which.
        phases: bytes at the peak of each phase.
    """

    offload: Offload
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Return the highest of them."""
        return max(self.phases.values())

    def fits(self, memory: int) -> bool:
        """Tell whether a device of so many bytes holds it, with `SPARE` left."""
        return self.peak <= (1 - SPARE) * memory


def memory_of_edit(
    base: BaseNeeds,
    transformer: TransformerNeeds,
    transformer_2: TransformerNeeds | None = None,
    *,
    windows: int,
    offloads: Sequence[Offload],
) -> list[OffloadMemory]:
    """Add up weights and activations in every phase.

    Args:
        base: what all but the transformers takes.
        transformer: what it takes.
        transformer_2: what a second one takes; None where there is none.
        windows: of the edit; from the second on, phases find what was kept of the references.
        offloads: which ways to look at.
    """
    transformers = {TRANSFORMER: transformer}
    if transformer_2 is not None:
        transformers[TRANSFORMER_2] = transformer_2
    again = [phase for phase in base.phases if phase.each_window]
    course = [*base.phases, *(again if windows > 1 else [])]
    return [
        OffloadMemory(offload, _peaks(offload, course, base, transformers)) for offload in offloads
    ]


def _peaks(
    offload: Offload,
    course: Sequence[Phase],
    base: BaseNeeds,
    transformers: Mapping[str, TransformerNeeds],
) -> dict[str, int]:
    weights = {name: needs.weight_bytes for name, needs in transformers.items()}
    weights |= base.weight_bytes
    if offload == "model":
        here = as_used(course, base.offload_order)
    elif offload == "group":  # of the transformers one block at a time, counted below
        here = always_there(course, base.weight_bytes)
    else:
        here = always_there(course, weights)
    peaks: dict[str, int] = {}
    kept: dict[str, int] = {}
    for phase, components in zip(course, here, strict=True):
        peak = sum(weights[name] for name in components) + phase.activation_bytes
        if phase.uses in transformers:
            at_work = transformers[phase.uses]
            kept[phase.uses] = at_work.cache_bytes
            peak += at_work.activation_bytes
            peak += at_work.block_bytes if offload == "group" else 0
        peaks[phase.name] = max(peaks.get(phase.name, 0), peak + sum(kept.values()))
    return peaks


def what_fits(memory: int, offloads: Sequence[OffloadMemory]) -> OffloadMemory | None:
    """Return the first that fits, the one that offloads least; None where none does.

    Example:
        >>> ways = [OffloadMemory("none", {"denoising": 60}), OffloadMemory("model", {"x": 30})]
        >>> what_fits(40, ways).offload
        'model'
    """
    order = get_args(Offload)
    ways = sorted(offloads, key=lambda way: order.index(way.offload))
    return next((way for way in ways if way.fits(memory)), None)
