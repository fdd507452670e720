"""The bars that the tiny model is held to, computed from the rows of a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.ablation.results import mean_error

__all__ = ["Bar", "as_records", "bars_of", "codec_summary", "summarise"]

Row = Mapping[str, Any]
_THIRDS = ("first", "middle", "last")
_BY_THIRD = ("object_psnr", "without_object_psnr", "object_ssim", "found", "without_found")

_GAIN, _LEAST_OBJECT = 3.0, 17.5  # dB
_LEAST_FOUND = 0.9
_LEAST_HAND, _LEAST_BACKGROUND = 20.0, 26.0  # dB
_MOST_DIFFERENCE = 1  # of 255


@dataclass(frozen=True)
class Bar:
    """One demand.

    Args:
        condition: under which.
        name: of what is measured.
        value: measured; NaN where nothing was.
        wanted: in words.
        passed: whether it is met.
    """

    condition: str
    name: str
    value: float
    wanted: str
    passed: bool


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Average the rows of one condition over clips.

    Returns:
        For what is measured by thirds: first, middle, last, all (mean of a clip's thirds), and
        error, the standard error of all. gain: object_psnr above without_object_psnr, clip by
        clip. For the rest the mean; of differences the largest.
    """
    summary: dict[str, Any] = {name: _by_third(rows, name) for name in _BY_THIRD}
    pairs = _array(rows, "object_psnr") - _array(rows, "without_object_psnr")
    summary["gain"] = _means(pairs)
    for name in ("hand_psnr", "background_psnr", "seconds"):
        mean, error = mean_error(_array(rows, name))
        summary[name] = {"all": _shown(mean), "error": _shown(error)}
    for name in ("outside_difference", "beyond_edge_difference"):
        summary[name] = max(int(row[name]) for row in rows)
    return summary


def codec_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Average the rows of the codec over clips, as `summarise` does."""
    summary: dict[str, Any] = {
        name: _shown(mean_error(_array(rows, name))[0]) for name in ("psnr", "ssim")
    }
    names = ("object_psnr", "true_found", "codec_found")
    return summary | {name: _by_third(rows, name) for name in names}


def bars_of(condition: str, summary: Mapping[str, Any]) -> list[Bar]:
    """Compare a condition's summary with the bars.

    Args:
        condition: its name.
        summary: of `summarise`.
    """
    found = [summary["found"][third] for third in _THIRDS]
    least = min(found) if None not in found else None
    return [
        _at_least(condition, "object PSNR above no reference, dB", summary["gain"]["all"], _GAIN),
        _above(condition, "object PSNR, dB", summary["object_psnr"]["all"], _LEAST_OBJECT),
        _at_least(condition, "object found, least third", least, _LEAST_FOUND),
        _above(condition, "hand PSNR, dB", summary["hand_psnr"]["all"], _LEAST_HAND),
        _above(
            condition, "background PSNR, dB", summary["background_psnr"]["all"], _LEAST_BACKGROUND
        ),
        Bar(
            condition,
            "background put back, largest difference of 255",
            summary["beyond_edge_difference"],
            f"at most {_MOST_DIFFERENCE}",
            summary["beyond_edge_difference"] <= _MOST_DIFFERENCE,
        ),
    ]


def as_records(bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Give bars as plain values, None for NaN, as JSON has none."""
    return [asdict(bar) | {"value": _shown(bar.value)} for bar in bars]


def _above(condition: str, name: str, value: float | None, least: float) -> Bar:
    known = float("nan") if value is None else value
    return Bar(condition, name, known, f"above {least:g}", known > least)


def _at_least(condition: str, name: str, value: float | None, least: float) -> Bar:
    known = float("nan") if value is None else value
    return Bar(condition, name, known, f"at least {least:g}", known >= least)


def _array(rows: Sequence[Row], name: str) -> np.ndarray:
    """Collect a value of all rows, NaN for None: [clips] or [clips, 3]."""
    return np.array([row[name] for row in rows], dtype=float)


def _by_third(rows: Sequence[Row], name: str) -> dict[str, float | None]:
    return _means(_array(rows, name))


def _means(values: np.ndarray) -> dict[str, float | None]:
    means = {
        third: _shown(mean_error(column)[0])
        for third, column in zip(_THIRDS, values.T, strict=True)
    }
    seen = values[~np.isnan(values).all(1)]
    mean, error = mean_error(np.nanmean(seen, 1))
    return means | {"all": _shown(mean), "error": _shown(error)}


def _shown(value: float) -> float | None:
    """Round for a file; None for NaN, as JSON has none."""
    return None if np.isnan(value) else round(value, 4)
