"""Which FlashAttentions there are, installed ones (packages.py) and torch's own (torch_own.py)."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from types import ModuleType

from genhoi_kernels.backends.flash import torch_own
from genhoi_kernels.backends.flash.adapter import INTERPRETER, FlashAttention, Generation
from genhoi_kernels.backends.flash.packages import (
    FlashAttention2,
    FlashAttention3,
    FlashAttention4,
)

ONLY = "GENHOI_FLASH"
"""Environment variable: the only one to take, such as "torch-cudnn" (a name of Generation)."""


def _import(name: str) -> ModuleType | None:
    """Import a module; None if it is not installed or can't be loaded here (a wrong CUDA, say)."""
    try:
        return importlib.import_module(name)
    except Exception:  # compiled packages fail in many ways, and any of them means: not usable
        return None


def _flash_2() -> FlashAttention | None:
    package = _import("flash_attn")
    module = None if package is None else _import("flash_attn.flash_attn_interface")
    if package is None or module is None:
        return None
    version = str(getattr(package, "__version__", "0.0")).split(".")
    # 2.7 split window_size into two arguments and dropped the padded outputs.
    return FlashAttention2(module) if [int(n) for n in version[:2]] >= [2, 7] else None


def _flash_3(module_name: str, package: str, config_name: str) -> FlashAttention | None:
    module = _import(module_name)
    if module is None:
        return None
    config = getattr(_import(config_name), "CONFIG", {})
    return FlashAttention3(module, package, dict(config.get("build_flags", {})))


def _flash_4() -> FlashAttention | None:
    module = _import("flash_attn.cute.interface")
    if module is None:
        return None
    # flash-attn 2.8 brings a forerunner, whose lse cannot be asked for.
    parameters = {"_flash_attn_fwd": "return_lse", "_flash_attn_bwd": "deterministic"}
    for name, parameter in parameters.items():
        function = getattr(module, name, None)
        if function is None or parameter not in inspect.signature(function).parameters:
            return None
    return FlashAttention4(module)


def _torch_flash() -> FlashAttention | None:
    return torch_own.TorchFlash() if torch_own.torch_has_flash() else None


def _torch_cudnn() -> FlashAttention | None:
    # Older versions are known for illegal accesses and NaN gradients.
    new = torch_own.cudnn_version() >= 91501
    return torch_own.TorchCudnn() if new and torch_own.torch_has_flash() else None


_FINDERS: tuple[Callable[[], FlashAttention | None], ...] = (
    lambda: _flash_3("flash_attn_interface", "flash-attn-3", "flash_attn_config"),
    _flash_4,
    lambda: _flash_3("fa3_fwd_interface", "fa3-fwd", "fa3_fwd_config"),
    _torch_cudnn,
    _flash_2,
    _torch_flash,
)
# Where cuDNN is known to be faster than FlashAttention 2. Elsewhere nobody measured it.
_CUDNN_EARLY = ("sm_90", INTERPRETER)


@functools.lru_cache(maxsize=1)
def installed() -> tuple[FlashAttention, ...]:
    """List the usable ones in the order in which sm_90 tries them; they are imported once."""
    return tuple(flash for find in _FINDERS if (flash := find()) is not None)


def tried(arch: str) -> tuple[FlashAttention, ...]:
    """List the usable ones in the order in which a GPU tries them, or the one that is asked for.

    Raises:
        ValueError: GENHOI_FLASH is the name of none.
    """
    only = asked_for()
    ordered = installed()
    if arch not in _CUDNN_EARLY:
        ordered = tuple(sorted(ordered, key=lambda flash: isinstance(flash, torch_own.TorchCudnn)))
    return tuple(flash for flash in ordered if only in (None, flash.generation))


def asked_for() -> Generation | None:
    """Give the only one that may be taken, if the environment names one.

    Raises:
        ValueError: it is the name of none.
    """
    name = os.environ.get(ONLY)
    if not name:
        return None
    names = {g.name.lower().replace("_", "-"): g for g in Generation}
    if name not in names:
        raise ValueError(f"{ONLY}: got {name!r}, wanted one of {', '.join(names)}")
    return names[name]
