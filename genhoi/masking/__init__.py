"""Masks of clips: where a thing is in every frame, from a box, points, words or a drawn mask; and
pictures of an object, cut out."""

from genhoi.masking.cues import Box, Cue, Drawn, Point, Text
from genhoi.masking.track import Engine, Track, track

__all__ = ["Box", "Cue", "Drawn", "Engine", "Point", "Text", "Track", "track"]
