"""What `genhoi eval` measures: the regions of a frame, and a curve for each metric and region."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["COLUMNS", "REGIONS", "Column"]

REGIONS = {
    "frame": "whole frame",
    "mask": "inside mask",
    "object": "object",
    "background": "outside mask",
}


@dataclass(frozen=True)
class Column:
    """One curve of an evaluation.

    Args:
        metric: psnr, ssim, edges, colour, drift, lpips or clip.
        title: of the metric, for people.
        where: region, or whose.
        digits: after the point, where people read it.
        lower_is_better: so the worst frame is the one with the highest value.
    """

    metric: str
    title: str
    where: str
    digits: int
    lower_is_better: bool = False


def _by_region(
    metric: str, title: str, digits: int, lower: bool = False, names: Iterable[str] = REGIONS
) -> dict[str, Column]:
    return {
        f"{metric}_{name}": Column(metric, title, REGIONS[name], digits, lower) for name in names
    }


def _by_clip(
    metric: str, title: str, digits: int = 3, lower: bool = False, to: str = ", picture"
) -> dict[str, Column]:
    return {
        metric: Column(metric, title, f"result{to}", digits, lower),
        f"{metric}_truth": Column(metric, title, f"truth{to}", digits, lower),
    }


COLUMNS: dict[str, Column] = {
    # Not inside the mask, where it prefers one flat colour to an object of another colour.
    **_by_region("psnr", "PSNR, dB", 2, names=("frame", "background")),
    **_by_region("ssim", "SSIM", 3),
    **_by_region("edges", "edges", 3),
    **_by_clip("colour", "colours"),
    **_by_clip("drift", "drift, ΔE", 1, lower=True, to=" from its start"),
    **_by_region("lpips", "LPIPS", 3, lower=True),
    **_by_clip("clip", "CLIP"),
}
