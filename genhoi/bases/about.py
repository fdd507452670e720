"""How a base is used and what it has learnt from; a base's folder may say so in genhoi.json."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from genhoi.conditioning.grid import STRIDES
from genhoi.conditioning.masks import MaskRule

__all__ = [
    "SETTINGS_NAME",
    "BaseSettings",
    "CropMode",
    "EditDefaults",
    "TrainedOn",
    "read_settings",
]

SETTINGS_NAME = "genhoi.json"

CropMode = Literal["auto", "none"]


@dataclass(frozen=True)
class TrainedOn:
    """What clips a base has learnt from; far from them it paints worse. The values are Wan2.1's.

    Args:
        sizes: (height, width) of the frames, in pixels; lying or standing.
        frames: of a clip.
        mask_shares: least and largest share of a frame that was hidden.
        outlines: whether masks followed hand and object closely, so that a rectangle is new to it.
    """

    sizes: tuple[tuple[int, int], ...] = ((480, 832), (720, 1280))
    frames: int = 81
    mask_shares: tuple[float, float] = (0.005, 0.5)
    outlines: bool = False


@dataclass(frozen=True)
class EditDefaults:
    """How a base is best used where the user says nothing; the values are Wan2.1's.

    Args:
        steps: of Euler's method.
        guidance: on the text.
        guidance_2: on the text, of a second transformer; None: as of the first.
        shift: of the noise levels.
        window: frames edited at once.
        overlap: frames that windows have in common and are faded over.
        match_colour: give every window the source's colours outside the masks.
        mask_rule: when a token counts as masked for the gate.
        size: (height, width) that the model works at, lying or standing.
        crop: "auto": a box around the masks is edited where it is less than `crop_below` of the
            frame; "none": always the whole frame.
        crop_below: for that.
        keep_background: put the source's own pixels back outside the masks.
    """

    steps: int = 50
    guidance: float = 5.0
    guidance_2: float | None = None
    shift: float = 5.0
    window: int = 81
    overlap: int = 1
    match_colour: bool = False
    mask_rule: MaskRule = "release"
    size: tuple[int, int] = (480, 832)
    crop: CropMode = "auto"
    crop_below: float = 1 / 3
    keep_background: bool = True


@dataclass(frozen=True)
class BaseSettings:
    """What a base's kind, or its folder, says of it before weights are loaded.

    Args:
        defaults: how it is best used.
        trained_on: what it has learnt from.
        caution: what everybody has to know before using it, in plain sentences; "" for nothing.
        about: where its weights come from, in one sentence; "" where nobody says.
        takes_text: whether a prompt means anything to it. A base that was trained without texts has
            no text encoder.
        trained: whether its weights come from training; False for random ones.
    """

    defaults: EditDefaults = EditDefaults()
    trained_on: TrainedOn = TrainedOn()
    caution: str = ""
    about: str = ""
    takes_text: bool = True
    trained: bool = True


def read_settings(folder: Path, own: BaseSettings) -> BaseSettings:
    """Read a folder's genhoi.json: `BaseSettings` as JSON, of which all may be left out.

    Args:
        folder: of a base.
        own: of its kind, for what the file leaves out.

    Returns:
        `own` where there is no such file.

    Raises:
        ValueError: the file is no JSON, or holds unknown names, or values of another type or out of
            range.
    """
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return own
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"base: {path} is not JSON: {error}") from error
    try:
        settings = _changed(own, values)
        _check(settings)
    except ValueError as error:
        raise ValueError(f"base: {path}: {error}") from error
    return settings


_Settings = TypeVar("_Settings")


def _changed(own: _Settings, values: Any, name: str = "") -> _Settings:
    """Replace what the values name, in a dataclass and those within it."""
    where = f"{name}: " if name else ""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}got {values!r}, wanted settings by name")
    hints = get_type_hints(type(own))
    known = [field.name for field in fields(own)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where}got unknown {', '.join(unknown)}, wanted some of {known}")
    changes = {}
    for key, value in values.items():
        full_name = f"{name}.{key}" if name else key
        if is_dataclass(hints[key]):
            changes[key] = _changed(getattr(own, key), value, full_name)
        else:
            try:
                changes[key] = _parsed(hints[key], value)
            except ValueError:
                wanted = _kind_text(hints[key])
                raise ValueError(f"{full_name}: got {value!r}, wanted {wanted}") from None
    return replace(own, **changes)  # type: ignore[type-var]


def _parsed(kind: Any, value: Any) -> Any:
    """Turn a value from JSON into a field's type; raise ValueError where it is of another."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        if value in parts:
            return value
    elif get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        return _parsed(next(part for part in parts if part is not type(None)), value)
    elif get_origin(kind) is tuple and isinstance(value, list):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if value and len(value) == len(kinds):
            return tuple(_parsed(part, x) for part, x in zip(kinds, value, strict=True))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def _kind_text(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {parts}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if x is type(None) else _kind_text(x) for x in parts)
    if get_origin(kind) is tuple:
        if parts[-1] is Ellipsis:
            return f"a list, each {_kind_text(parts[0])}"
        return f"[{', '.join(map(_kind_text, parts))}]"
    return _KINDS[kind]


def _check(settings: BaseSettings) -> None:
    """Raise ValueError for a value that no base can mean."""
    defaults, trained = settings.defaults, settings.trained_on
    if defaults.steps < 1:
        raise ValueError(f"defaults.steps: got {defaults.steps}, wanted at least 1")
    if defaults.shift <= 0:
        raise ValueError(f"defaults.shift: got {defaults.shift}, wanted a positive number")
    for name, frames in (
        ("defaults.window", defaults.window),
        ("defaults.overlap", defaults.overlap),
        ("trained_on.frames", trained.frames),
    ):
        if frames < 1 or not STRIDES.is_whole(frames):
            raise ValueError(f"{name}: got {frames}, wanted 1 + 4 n")
    for name, size in (
        ("defaults.size", defaults.size),
        *(("trained_on.sizes", size) for size in trained.sizes),
    ):
        if min(size) < STRIDES.token or any(side % STRIDES.token for side in size):
            raise ValueError(f"{name}: got {size}, wanted multiples of {STRIDES.token}")
    least, most = trained.mask_shares
    if not 0 <= least <= most <= 1:
        raise ValueError(
            f"trained_on.mask_shares: got {trained.mask_shares}, wanted two of 0 to 1, the least "
            f"first"
        )
