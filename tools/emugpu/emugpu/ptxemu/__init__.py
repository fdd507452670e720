"""A functional PTX emulator on NumPy.

``Module.from_ptx(text).launch(kernel, grid, block, args, smem_bytes)``; see emugpu's README.md.
"""

from emugpu.ptxemu.errors import (
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
from emugpu.ptxemu.module import Module, Report
from emugpu.ptxemu.parser import Parsed
from emugpu.ptxemu.tensor_map import TensorMap

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
