"""The transformers in a diffusers pipeline: one, or two experts that share the noise levels."""

from __future__ import annotations

import gc
from typing import Any

__all__ = ["EXPERTS", "experts_of", "looks_like_expert", "other_expert"]

EXPERTS = ("transformer", "transformer_2")
"""Their names in diffusers' Wan pipelines: of high noise levels, and of low ones."""


def experts_of(pipe: Any) -> dict[str, Any]:
    """Return the transformers that a pipeline has by their names; compiled ones as they were.

    Raises:
        TypeError: it has none.
    """
    held = {name: getattr(pipe, name, None) for name in EXPERTS}
    found = {name: getattr(x, "_orig_mod", x) for name, x in held.items() if x is not None}
    if not found:
        raise TypeError(
            f"pipe: got {type(pipe).__name__}, wanted a diffusers pipeline with a transformer"
        )
    return found


def other_expert(transformer: Any) -> Any | None:
    """Find the expert beside this one, where a living pipeline holds both; else return None.

    A transformer does not know its pipeline, and its configuration does not tell: those of Wan 2.1
    and Wan 2.2 text-to-video are equal. So this asks Python who holds it: tens of milliseconds.
    """
    for holder in gc.get_referrers(transformer):
        # Of most objects that is the dict of their attributes.
        held = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
        first, second = (held.get(name) for name in EXPERTS)
        if first is transformer and second is not None:
            return second
        if second is transformer and first is not None:
            return first
    return None


def looks_like_expert(config: Any) -> bool:
    """Tell whether a configuration is that of both experts of Wan 2.2 I2V-A14B, and no other's.

    No other Wan of 40 layers has channels for a condition and no image encoder.
    """
    is_14b = config.get("num_layers") == 40 and config.get("in_channels") == 36
    return is_14b and config.get("image_dim") is None
