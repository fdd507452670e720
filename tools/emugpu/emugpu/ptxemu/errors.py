"""What the emulator raises."""

import numpy as np


class PTXError(Exception):
    """The PTX text, or a launch of it, is not valid."""


class UnsupportedError(PTXError):
    """An instruction the emulator does not know."""


class EmuError(Exception):
    """A kernel did something wrong."""


class OutOfBoundsError(EmuError):
    """An access outside of every buffer, or of the shared, local or parameter memory."""


class MisalignedError(EmuError):
    """An access at an address that is no multiple of its size."""


class RaceError(EmuError):
    """Two accesses to shared memory that nothing orders (racecheck="raise")."""


class UninitError(EmuError):
    """A read of shared memory that nobody wrote (initcheck="raise")."""


class DeadlockError(EmuError):
    """Threads wait for what cannot happen, or the budget of instructions is spent."""


class DeviceTrapError(EmuError):
    """A trap instruction or a failed assertion."""


class DivergedError(Exception):
    """A warp collective was reached by part of a warp; ``bad`` are the lanes that must wait."""

    def __init__(self, pc: int, bad: np.ndarray) -> None:
        super().__init__(pc)
        self.pc, self.bad = pc, bad
