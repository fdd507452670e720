"""Masks of clips: where a thing is in every frame, from a box, points, words or a drawn mask; and
pictures of an object, cut out."""

from genhoi.masking.cues import Box, Cue, Drawn, Point, Text
from genhoi.masking.cutout import CutOut, cut_out
from genhoi.masking.protocol import Engine, Progress, Track
from genhoi.masking.track import track_mask

__all__ = [
    "Box",
    "Cue",
    "CutOut",
    "Drawn",
    "Engine",
    "Point",
    "Progress",
    "Text",
    "Track",
    "cut_out",
    "track_mask",
]
