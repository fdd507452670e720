"""The stand-in CUDA libraries of this process, and the settings of the emulated GPU."""

import collections
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .build import build
from .errors import EmulatedGPUError

# The loaded libraries: libemugpu.so and libcudart.so.13.
core: Any = None
cudart: Any = None
compute_capability = 80

launches: collections.deque[dict[str, Any]] = collections.deque(maxlen=10000)
hooks: list[Callable[[dict[str, Any]], None]] = []  # called with the record of each launch
# eager_wgmma None: only for Triton kernels with f16 accumulators. view_bounds: a Triton kernel or
# custom operator may touch only the bytes spanned by the tensors passed, not the rest of their
# storages. The others are options of ptxemu.Module.launch.
options: dict[str, Any] = {
    **{"racecheck": None, "initcheck": None, "schedule": "lockstep"},
    **{"max_lanes": 4096, "max_issues": None, "eager_wgmma": None, "view_bounds": True},
}
views = threading.local()  # .extents: [(address, bytes)] of the tensors of the launch under way


def _declare() -> None:
    """ctypes needs the types that are not int."""
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    number = ctypes.c_uint64
    for library, name, result, arguments in (
        (core, "emuMalloc", pointer, [size]),
        (core, "emuFree", ctypes.c_int, [pointer]),
        (core, "emuBlocks", size, [pointer, size]),
        (core, "emuGeneration", number, []),
        (core, "emuLiveBytes", number, []),
        (core, "emuPeakBytes", number, []),
        (core, "emuResetPeak", None, []),
        (core, "emuMessage", text, []),
        (core, "emuSetError", None, [ctypes.c_int, text]),
        (core, "emuSetCapacity", None, [number]),
        (cudart, "emuSymbol", pointer, [pointer, text, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def load(
    capability: int | None = None,
    poison: bool = True,
    capacity: int | None = None,
    devices: int | None = None,
) -> bool:
    """Load the stand-in libraries into this process; must come before `import torch`.

    The defaults are those of EMULATED_GPU: "80", or "80x2" for two devices. False if they are
    loaded already. Raises EmulatedGPUError if torch has loaded the real ones.
    """
    global core, cudart, compute_capability
    if core is not None:
        return False
    setting = (os.environ.get("EMULATED_GPU") or "80").split("x")
    compute_capability = int(capability or setting[0])
    devices = devices or (int(setting[1]) if len(setting) > 1 else 1)
    paths = build()
    if "torch" in sys.modules:
        loaded = Path("/proc/self/maps").read_text()
        if "libcudart.so.13" in loaded and str(paths[1]) not in loaded:
            preload = " ".join(map(str, paths))
            raise EmulatedGPUError(
                f'emugpu must be imported before torch (or run with LD_PRELOAD="{preload}")'
            )
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one cudaMalloc per tensor
    os.environ.setdefault("TRITON_LIBCUDA_PATH", str(paths[0].parent))
    core, cudart, _ = (ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths)
    _declare()
    core.emuSetCC(compute_capability)
    core.emuSetDevices(devices)
    core.emuSetPoison(int(poison))
    if capacity:
        core.emuSetCapacity(capacity)
    return True
