"""How an edit is made: what the user says, and the base's own value where the user says nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from genhoi.bases.about import CropMode, EditDefaults
from genhoi.bases.few_steps import few_steps
from genhoi.conditioning.masks import MaskRule

__all__ = ["EditSettings", "for_few_steps", "resolve"]


def for_few_steps(defaults: EditDefaults) -> EditDefaults:
    """Change a base's defaults to those of weights that were distilled to few steps.

    They are those of `few_steps("lightx2v")`.
    """
    few = few_steps("lightx2v")
    return replace(
        defaults, steps=few.steps, guidance=few.guidance, guidance_2=None, shift=few.shift
    )


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Settings of which every base has its own defaults.

    Args:
        steps: of Euler's method.
        guidance: on the text; 1 is none.
        guidance_2: on the text, of a base's second transformer; None: as of the first.
        shift: of the noise levels towards noise.
        window: frames edited at once, 1 + 4 n.
        overlap: frames that windows have in common and are faded over, 1 + 4 n.
        match_colour: give every window the source's colours outside the masks.
        mask_rule: when a token counts as masked for the gate.
        crop: "auto" edits a box around the masks where that pays, "none" the whole frame.
        keep_background: put the source's own pixels back outside the masks.
    """

    steps: int
    guidance: float
    guidance_2: float | None
    shift: float
    window: int
    overlap: int
    match_colour: bool
    mask_rule: MaskRule
    crop: CropMode
    keep_background: bool


def resolve(defaults: EditDefaults, **given: Any) -> EditSettings:
    """Take each setting as given, or the base's default for None.

    The one place where an edit's defaults come from, of the command line and in Python.

    Args:
        defaults: of the base.
        given: fields of `EditSettings`; what is left out counts as None.

    Raises:
        TypeError: there is no such setting.
    """
    names = [field.name for field in fields(EditSettings)]
    if unknown := sorted(set(given) - set(names)):
        raise TypeError(f"settings: got {', '.join(unknown)}, wanted some of {', '.join(names)}")
    chosen = {name: given.get(name) for name in names}
    return EditSettings(
        **{name: getattr(defaults, name) if x is None else x for name, x in chosen.items()}
    )
