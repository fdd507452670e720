"""The flat clips that the ablation study was made with, kept so that it can be done again."""

from benchmarks.ablation.flat.clips import FlatHOI

__all__ = ["FlatHOI"]
