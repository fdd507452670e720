"""Self-supervised training of the adapter, or of a small base."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genhoi.training.objective import (
        Batch,
        SampleChoices,
        given_condition,
        make_batch,
        reconstruction_loss,
        sample_of,
        seeing_tokens,
    )

__all__ = [
    "Batch",
    "SampleChoices",
    "given_condition",
    "make_batch",
    "reconstruction_loss",
    "sample_of",
    "seeing_tokens",
]


def __getattr__(name: str) -> Any:
    # On first use: the settings alone, which a command line wants, do without the data.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("genhoi.training.objective"), name)
