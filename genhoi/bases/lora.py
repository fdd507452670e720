"""Low-rank weights for a base itself, in files that diffusers' `load_lora_weights` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from genhoi.extras import need
from genhoi.models.experts import Expert

__all__ = ["Lora", "check_loras", "parse_lora"]


@dataclass(frozen=True)
class Lora:
    """A file of low-rank weights, and how it is used.

    Args:
        path: of the file.
        weight: factor on what it adds.
        expert: of two transformers, the one that it is for; None: both, or the only one.
    """

    path: Path
    weight: float = 1.0
    expert: Expert | None = None

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"{self.expert}="
        return f"{expert}{self.path}:{self.weight:g}"

    def is_for(self, expert: Expert) -> bool:
        """Tell whether one of two transformers gets it; "high" stands for an only one."""
        return self.expert in (None, expert)


def parse_lora(text: str) -> Lora:
    """Read a LoRA as the command line has it: FILE, FILE:WEIGHT, high=FILE or low=FILE:WEIGHT.

    Raises:
        FileNotFoundError: no such file. ValueError: a weight that is not finite.

    Example:
        >>> from pathlib import Path
        >>> Path("few.safetensors").touch()
        >>> parse_lora("low=few.safetensors:0.8")
        Lora(path=PosixPath('few.safetensors'), weight=0.8, expert='low')
    """
    expert: Expert | None = None
    name, weight = text, 1.0
    for known in get_args(Expert):
        if name.startswith(f"{known}="):
            expert, name = known, name.removeprefix(f"{known}=")
    head, _, tail = name.rpartition(":")
    if head and not Path(name).is_file():
        try:
            name, weight = head, float(tail)
        except ValueError:
            pass  # a colon of the name, which the next line judges
    if not Path(name).is_file():
        raise FileNotFoundError(f"lora: there is no file {name}; wanted [high=|low=]FILE[:WEIGHT]")
    if not abs(weight) < float("inf"):
        raise ValueError(f"lora: got weight {weight}, wanted a finite number")
    return Lora(Path(name), weight, expert)


def check_loras(loras: Sequence[Lora], *, takes_lora: bool, two_experts: bool) -> None:
    """Check that a base takes them; nothing is loaded.

    Raises:
        ImportError: peft is not installed. ValueError: the base takes none, or no such ones.
    """
    if not loras:
        return
    if not takes_lora:
        raise ValueError(f"lora: got {loras[0]}, wanted none: this base takes no LoRA")
    named = [lora for lora in loras if lora.expert is not None]
    if named and not two_experts:
        raise ValueError(
            f"lora: got {named[0]}, wanted it without {named[0].expert}=: the base has one "
            f"transformer"
        )
    need("peft", "lora")
