"""Reads back what `benchmarks.ablation.run` measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Measured", "mean_error", "read_measured", "thirds"]

_FOLDER = re.compile(r"(?P<regime>[a-z]+)-(?P<variant>.+)-s(?P<seed>\d+)")
_FILE = re.compile(r"(?P<length>step|long)-(?P<step>\d+)\.npz")
PARTS = ("first", "middle", "last")


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Args:
        regime, variant, seed: of the run; variant "alone" is a base without a reference.
        step: of the adaptation.
        long: on clips of twice the trained length.
        arrays: "first/..." with the first frame given, "none/..." without: [clips, F] each.
    """

    regime: str
    variant: str
    seed: int
    step: int
    long: bool
    arrays: dict[str, np.ndarray]

    @property
    def given(self) -> list[str]:
        """Say which of "first" and "none" were measured."""
        return [g for g in ("first", "none") if f"{g}/object_psnr" in self.arrays]


def read_measured(out: Path) -> list[Measured]:
    """Read every evaluation in a study's folder, in a fixed order."""
    return sorted(
        _read_runs(out / "runs"), key=lambda m: (m.regime, m.seed, m.variant, m.long, m.step)
    )


def _read_runs(folder: Path) -> Iterator[Measured]:
    for path in folder.glob("*/*.npz"):
        run, file = _FOLDER.fullmatch(path.parent.name), _FILE.fullmatch(path.name)
        if run is None or file is None:
            continue
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        yield Measured(
            regime=run["regime"],
            variant=run["variant"],
            seed=int(run["seed"]),
            step=int(file["step"]),
            long=file["length"] == "long",
            arrays=arrays,
        )


def thirds(values: np.ndarray) -> dict[str, np.ndarray]:
    """Average values [clips, F] over each third of the frames, and over all of them: [clips]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a clip whose object is never seen
        parts = {
            name: np.nanmean(part, 1)
            for name, part in zip(PARTS, np.array_split(values, 3, axis=1), strict=True)
        }
        return parts | {"all": np.nanmean(values, 1)}


def mean_error(values: Any) -> tuple[float, float]:
    """Return the mean over clips and its standard error, NaN left out."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return (float(known.mean()) if len(known) else float("nan")), float("nan")
    return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5)
