"""What a base needs beside its transformer: memory, phase by phase, and what lies where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "DENOISING",
    "DENOISING_2",
    "TRANSFORMER",
    "TRANSFORMER_2",
    "BaseNeeds",
    "Phase",
    "always_there",
    "as_used",
]

TRANSFORMER = "transformer"
TRANSFORMER_2 = "transformer_2"
DENOISING = "denoising"
DENOISING_2 = "denoising, low noise"


@dataclass(frozen=True)
class Phase:
    """One kind of work of an edit.

    Args:
        name: for people.
        uses: the component that works.
        activation_bytes: the most that its tensors take at once, its weights and what it was given
            apart; 0 for the transformer, which is counted elsewhere.
        each_window: whether every window has it, or the edit once.
    """

    name: str
    uses: str
    activation_bytes: int
    each_window: bool = True


@dataclass(frozen=True)
class BaseNeeds:
    """What a base's components take; the defaults are those of a codec without weights.

    Args:
        weight_bytes: of each component but the transformers.
        assumed: those whose configuration is missing, so that it was taken from Wan2.1.
        phases: of an edit, in order.
        image: shape of the encoded image, [images, tokens, width]; None where there is none.
        offload_order: in which components make room: what comes first leaves when the next works.
    """

    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = (Phase(DENOISING, TRANSFORMER, 0),)
    image: tuple[int, int, int] | None = None
    offload_order: tuple[str, ...] = ()


def always_there(phases: Sequence[Phase], components: Collection[str]) -> list[frozenset[str]]:
    """Say what is on the device in each phase if everything is, from the start on."""
    return [frozenset(components)] * len(phases)


def as_used(phases: Sequence[Phase], order: Sequence[str]) -> list[frozenset[str]]:
    """Say what is on the device in each phase if components come as they are used.

    As `enable_model_cpu_offload` of diffusers: a component comes when it works, and sends back the
    one before it in the order, no other.

    Example:
        >>> phases = [Phase("text", "text_encoder", 0), Phase("frames", "vae", 0)]
        >>> [sorted(x) for x in as_used(phases, ["text_encoder", "transformer", "vae"])]
        [['text_encoder'], ['text_encoder', 'vae']]
    """
    before = dict(zip(order[1:], order, strict=False))
    here: set[str] = set()
    at_work = []
    for phase in phases:
        here.discard(before.get(phase.uses, ""))
        here.add(phase.uses)
        at_work.append(frozenset(here))
    return at_work
