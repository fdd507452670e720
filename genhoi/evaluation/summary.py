"""Curves in a few numbers: of one case, and over cases. A mean is over the frames with a value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.evaluation.columns import COLUMNS
from genhoi.evaluation.metrics import PSNR_CAP, thirds

__all__ = ["Spread", "Summary", "over_cases", "summarise"]


@dataclass(frozen=True)
class Summary:
    """A curve in a few numbers; None where there is no value.

    Args:
        mean: over all frames that have a value.
        first, middle, last: the same for the thirds of the clip.
        worst: the lowest value, of distances the highest.
        worst_frame: where that is, from 0.
        frames: that have a value.
        empty: frames whose region is empty, left out.
        capped: frames with identical pixels, whose infinite PSNR counts as `PSNR_CAP`.
    """

    mean: float | None
    first: float | None
    middle: float | None
    last: float | None
    worst: float | None
    worst_frame: int | None
    frames: int
    empty: int
    capped: int


@dataclass(frozen=True)
class Spread:
    """One number of every case.

    Args:
        mean: over the cases that have it.
        standard_error: of that mean; None with fewer than 2 cases.
        cases: how many have it.
    """

    mean: float
    standard_error: float | None
    cases: int


def summarise(name: str, curve: Tensor) -> Summary:
    """Summarise a curve float64 [F] of the column `name`."""
    known = ~curve.isnan()
    count = int(known.sum())
    worst_frame = worst = None
    if count:
        sign = -1 if COLUMNS[name].lower_is_better else 1
        worst_frame = int((sign * curve).nan_to_num(nan=math.inf).argmin())
        worst = float(curve[worst_frame])
    capped = int((curve >= PSNR_CAP).sum()) if COLUMNS[name].metric == "psnr" else 0
    first, middle, last = (_number(value) for value in thirds(curve))
    return Summary(
        mean=_number(curve.nanmean()),
        first=first,
        middle=middle,
        last=last,
        worst=worst,
        worst_frame=worst_frame,
        frames=count,
        empty=len(curve) - count,
        capped=capped,
    )


def over_cases(values: Iterable[float | None]) -> Spread | None:
    """Give mean and standard error of one number of every case; None if no case has it."""
    known = torch.tensor([x for x in values if x is not None], dtype=torch.float64)
    if not len(known):
        return None
    error = float(known.std() / math.sqrt(len(known))) if len(known) > 1 else None
    return Spread(float(known.mean()), error, len(known))


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
