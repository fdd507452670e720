"""Warnings that are given once, and point at the caller's line."""

from __future__ import annotations

import sys
import warnings

_OURS = ("genhoi_kernels", "torch")
_given: set[str] = set()


def warn_once(about: str, message: str, category: type[Warning]) -> None:
    """Warn, unless this process has been warned about the same thing before.

    Args:
        about: what makes two warnings the same one.
        message: what to say.
        category: of the warning.
    """
    if about not in _given:
        _given.add(about)
        warnings.warn(message, category, stacklevel=_caller_level())


def forget() -> None:
    """Give every warning anew."""
    _given.clear()


def _caller_level() -> int:
    """Count the frames from the caller up to the first one outside this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
