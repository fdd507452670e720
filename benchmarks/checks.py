"""Nothing is timed before it gave the right numbers."""

from __future__ import annotations

from benchmarks.case import Contender
from genhoi_kernels.tune import accuracy
from genhoi_kernels.tune.accuracy import Accuracy

__all__ = ["compare"]


def compare(contender: Contender) -> Accuracy:
    """Run a contender once and hold its results to its truth."""
    assert contender.results is not None and contender.truth is not None
    truth = contender.truth()
    with contender.turn():
        results = contender.results()
    return accuracy.compare(results, truth, lossy=contender.lossy)
