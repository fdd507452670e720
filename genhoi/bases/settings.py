"""How an edit is made: what the user says, and the base's own value where the user says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genhoi.bases.base import EditDefaults
from genhoi.conditioning.masks import MaskRule

__all__ = ["EditSettings", "resolve"]


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Settings of which every base has its own defaults.

    Args:
        steps: of Euler's method.
        guidance: on the text; 1 is none.
        shift: of the noise levels towards noise.
        window: frames edited at once, 1 + 4 n.
        mask_rule: when a token counts as masked for the gate.
    """

    steps: int
    guidance: float
    shift: float
    window: int
    mask_rule: MaskRule


def resolve(
    defaults: EditDefaults,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    window: int | None = None,
    mask_rule: MaskRule | None = None,
) -> EditSettings:
    """Take each setting as given, or the base's default for None.

    Args:
        defaults: of the base.
        steps, guidance, shift, window, mask_rule: see `EditSettings`.
    """

    def given_or(value: Any, default: Any) -> Any:
        return default if value is None else value

    return EditSettings(
        steps=given_or(steps, defaults.steps),
        guidance=given_or(guidance, defaults.guidance),
        shift=given_or(shift, defaults.shift),
        window=given_or(window, defaults.window),
        mask_rule=given_or(mask_rule, defaults.mask_rule),
    )
