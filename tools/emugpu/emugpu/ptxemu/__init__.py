"""A functional PTX emulator on NumPy.

``Module.from_ptx(text).launch(kernel, grid, block, args, smem_bytes)``; see ../README.md.
"""

from .errors import (
    DeadlockError,
    DeviceTrapError,
    EmuError,
    MisalignedError,
    OutOfBoundsError,
    PTXError,
    RaceError,
    UninitError,
    UnsupportedError,
)
from .module import Module, Report
from .parser import Parsed
from .tensor_map import TensorMap

__all__ = [
    "DeadlockError",
    "DeviceTrapError",
    "EmuError",
    "MisalignedError",
    "Module",
    "OutOfBoundsError",
    "PTXError",
    "Parsed",
    "RaceError",
    "Report",
    "TensorMap",
    "UninitError",
    "UnsupportedError",
]
