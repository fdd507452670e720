"""Where weights and tensors lie, also while a model is offloaded piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_device", "check_has_data", "execution_device", "local_weight"]


def local_weight(weight: Tensor, x: Tensor) -> Tensor:
    """Bring a weight that no module's forward brings along to x's device.

    The same tensor, unless the model is offloaded piece by piece: the hooks that bring weights back
    run on the forward of the layer that owns them, and these are read without one.

    Raises:
        RuntimeError: the weight has no data (accelerate's sequential offload).
    """
    check_has_data(weight, x)
    return weight.to(x.device)


def check_has_data(weight: Tensor, x: Tensor) -> None:
    """Raise RuntimeError if x has data and the weight has none."""
    if weight.is_meta and not x.is_meta:
        raise RuntimeError(
            "transformer: its weights are on the meta device, as accelerate's sequential offload "
            "leaves them; wanted weights with data: use enable_group_offload or "
            "enable_model_cpu_offload"
        )


def execution_device(transformer: Any) -> torch.device:
    """Tell where a transformer computes: under offloading its weights may lie elsewhere."""
    hook = getattr(transformer, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(transformer.device if device is None else device)


def check_device(name: str, x: Tensor, wanted: torch.device, as_what: str) -> None:
    """Raise ValueError, with the tensor's name and whose device was wanted, for another one."""
    # "cuda" and "cuda:0" may be the same device; the op's own check is exact.
    same_index = None in (x.device.index, wanted.index) or x.device.index == wanted.index
    if x.device.type != wanted.type or not same_index:
        raise ValueError(f"{name}: got device {x.device}, wanted {wanted} as {as_what}")
