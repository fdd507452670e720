"""Loads the compiled part, or says in one sentence why it isn't there."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from genhoi_kernels.spec import GATE_MODES, AttentionCall, AttentionTensors, WantedGrads

_PACKAGE = Path(__file__).resolve().parents[1]

MIN_TORCH = (2, 10)
"""First torch whose stable ABI has all that the compiled part uses; setup.py builds for it."""


def _load() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or None and the reason."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        wanted = ".".join(map(str, MIN_TORCH))
        return None, f"the compiled part needs torch {wanted} or newer; this is {torch.__version__}"
    note = _PACKAGE / "_C_missing.txt"
    try:
        return importlib.import_module("genhoi_kernels._C"), ""
    except ModuleNotFoundError:
        if note.exists():
            return None, note.read_text().strip()
        return None, "the compiled part was not built; install with a C++ compiler: pip install ."
    except ImportError as error:
        return None, f"the compiled part does not load: {error}"


module, missing_reason = _load()


def _find_cuda() -> tuple[Path | None, str]:
    """Return the library of the CUDA kernels, or None and the reason."""
    if module is None:
        return None, missing_reason
    library = _PACKAGE / "libgenhoi_cuda.so"
    if library.exists():
        return library, ""
    note = _PACKAGE / "_cuda_missing.txt"
    if note.exists():
        return None, note.read_text().strip()
    return None, "the CUDA library was not built; install with nvcc: pip install ."


cuda_library, cuda_missing_reason = _find_cuda()


def attention_arguments(call: AttentionCall, tensors: AttentionTensors) -> dict[str, Any]:
    """Return the arguments that csrc/attention_arguments.h lists, by name.

    A backend replaces those that its kernels take in another form.
    """
    t = tensors
    return {
        "q": t.q,
        "k": t.k,
        "v": t.v,
        "k_ref": t.k_ref,
        "v_ref": t.v_ref,
        "bits": None if t.bits is None else t.bits.contiguous(),
        "tile_bits": None,
        "ref_bias": None if t.ref_bias is None else t.ref_bias.float().contiguous(),
        "gate": [] if t.gate is None else [weight.float().contiguous() for weight in t.gate],
        "ref_lengths": call.ref_lengths,
        "ref_starts": None,
        "rope": [],
        "ref_rope": [],
        "gate_mode": GATE_MODES.index(call.gate_mode),
        "scale": call.scale,
    }


def wanted_bits(wanted: WantedGrads) -> int:
    """Return the bits of WantedGrads in csrc/attention_arguments.h."""
    return sum(flag << bit for bit, flag in enumerate(wanted))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def build_info() -> dict[str, Any]:
    """Say how the compiled part was built and which of its instruction sets this CPU uses.

    Keys: ``native`` (bool), ``reason`` (why not, else empty), ``cpu``; and where it is built
    ``compiler``, ``compiled_isas``, ``usable_isas``, ``isa`` (the one in use, or why none is) and
    ``cpu_features``.

    Example:
        >>> from genhoi_kernels import build_info
        >>> {"cpu", "native", "reason"} <= set(build_info())
        True
    """
    info: dict[str, Any] = {
        "native": module is not None,
        "reason": missing_reason,
        "cpu": _cpu_name(),
    }
    if module is None:
        return info
    try:
        isa = module.isa()
    except RuntimeError as error:
        isa = str(error)
    return info | {
        "compiler": module.compiler,
        "compiled_isas": module.compiled_isas(),
        "usable_isas": module.usable_isas(),
        "isa": isa,
        "cpu_features": module.cpu_features(),
    }
