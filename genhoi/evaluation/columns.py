"""What `genhoi eval` measures: the regions of a frame, and a curve for each metric and region."""

from __future__ import annotations

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
        metric: psnr, ssim, colour, texture, lpips or clip.
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


def _by_region(metric: str, title: str, digits: int, lower: bool = False) -> dict[str, Column]:
    return {
        f"{metric}_{name}": Column(metric, title, where, digits, lower)
        for name, where in REGIONS.items()
    }


def _by_clip(metric: str, title: str) -> dict[str, Column]:
    return {
        metric: Column(metric, title, "result, picture", 3),
        f"{metric}_truth": Column(metric, title, "truth, picture", 3),
    }


COLUMNS: dict[str, Column] = {
    **_by_region("psnr", "PSNR, dB", 2),
    **_by_region("ssim", "SSIM", 3),
    **_by_clip("colour", "colours"),
    **_by_clip("texture", "texture"),
    **_by_region("lpips", "LPIPS", 3, lower=True),
    **_by_clip("clip", "CLIP"),
}
