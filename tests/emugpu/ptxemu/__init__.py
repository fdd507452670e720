"""A functional PTX emulator on NumPy: Module.from_ptx(text).launch(kernel, grid, block, args, smem_bytes)."""

from .machine import Module, Report
from .hopper import TensorMap
from .memory import Deadlock, EmuError, Misaligned, OutOfBounds, RaceError, UninitError
from .codegen import Unsupported
from .parser import PTXError
