"""What the emulated GPU raises besides the emulator's own errors."""


class EmulatedGPUError(RuntimeError):
    """The emulated GPU cannot do what was asked."""


class NotEmulatedError(EmulatedGPUError):
    """A kernel without PTX was launched (torch's own, cuBLAS, ...), or a feature is not there."""


class LaunchError(EmulatedGPUError):
    """A launch that a real device would refuse."""
