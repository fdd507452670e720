"""How much what was generated changes from a clip's beginning to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.evaluation.checks import check_frames, check_region
from genhoi.evaluation.colour import lab

__all__ = ["Drift", "drift"]

_MOST_PIXELS = 1 << 14  # of a frame; of more, every second, third ... is taken


@dataclass(frozen=True)
class Drift:
    """Says how far the region's look at the end is from that at the beginning.

    Args:
        colour: CIELAB's Delta E (1976) between the mean colours of the first and the last frames'
            regions. 0 is none, 2 is just seen, 10 is another shade.
        contrast: standard deviation of lightness L* in a region, the last frames' mean over the
            first frames'. 1 is none; above 1 it gets harsher, below it fades.
        colours: float64 [F], Delta E between each frame's mean colour and that of the first frames.
        contrasts: float64 [F], each frame's standard deviation of L*, over that of the first ones.
        span: how many frames the first and the last ones are.

    A number is NaN where no frame that it needs has a region.
    """

    colour: float
    contrast: float
    colours: Tensor
    contrasts: Tensor
    span: int

    def as_record(self) -> dict[str, float | int | None]:
        """Give the summary for JSON: None where a number is NaN."""
        numbers = {"colour_delta_e": self.colour, "contrast_ratio": self.contrast}
        known = {name: None if math.isnan(x) else x for name, x in numbers.items()}
        return {**known, "span_frames": self.span}


def drift(frames: Tensor, mask: Tensor, *, span: int = 16) -> Drift:
    """Measure how far a region's colour and contrast move over a clip.

    With m_t the mean CIELAB colour of frame t's region and s_t the standard deviation of its
    lightness, and with means over the first and the last `span` frames that have a region,

        colour = |mean of the last m_t - mean of the first m_t|
        contrast = mean of the last s_t / mean of the first s_t

    What moves in the scene, or its light, counts too: compare with the drift of the source, or of
    the truth. Of a large region at most 16384 pixels, evenly spaced, are taken from each frame.

    Args:
        frames: uint8 [F, H, W, 3].
        mask: bool [F, H, W], the region.
        span: frames at each end; of a clip shorter than twice that, half of its frames.

    Raises:
        TypeError, ValueError: something has another type or shape, or `span` is below 1.

    Example:
        >>> import torch
        >>> frames = torch.full((8, 16, 16, 3), 100, dtype=torch.uint8)
        >>> frames[4:] = 110  # it gets lighter
        >>> found = drift(frames, torch.ones(8, 16, 16, dtype=torch.bool), span=4)
        >>> round(found.colour, 1)
        4.1
    """
    check_frames("frames", frames)
    check_region(mask, tuple(frames.shape[:3]), "mask")
    if span < 1:
        raise ValueError(f"span: got {span}, want at least 1 frame")
    means, spreads = _looks(frames, mask)
    span = min(span, max(1, len(frames) // 2))
    first, last = slice(0, span), slice(len(frames) - span, None)
    colour_at_first, spread_at_first = means[first].nanmean(0), spreads[first].nanmean()
    moved = means[last].nanmean(0) - colour_at_first
    return Drift(
        colour=float(moved.norm()),
        contrast=float(spreads[last].nanmean() / spread_at_first),
        colours=(means - colour_at_first).norm(dim=1),
        contrasts=spreads / spread_at_first,
        span=span,
    )


def _looks(frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give every region's mean colour float64 [F, 3] and spread of lightness [F]; NaN if empty."""
    means, spreads = [], []
    for frame, inside in zip(frames, mask, strict=True):
        pixels = frame[inside]
        colours = lab(pixels[:: max(1, math.ceil(len(pixels) / _MOST_PIXELS))])
        means.append(colours.mean(dim=0))  # NaN of no pixel
        spreads.append(colours[:, 0].std(correction=0) if len(colours) else means[-1][0])
    return torch.stack(means), torch.stack(spreads)
