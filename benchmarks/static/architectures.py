"""What the GPUs that the Triton kernels are compiled for have room for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "Architecture"]

_REGISTERS = 65536  # of an SM
_RESERVED = 1024  # bytes of shared memory that a CTA takes besides its own


@dataclass(frozen=True)
class Architecture:
    """A GPU architecture.

    Attributes:
        name: as in "sm_80".
        shared_of_cta: most bytes of shared memory a CTA can have.
        shared_of_sm: bytes that the CTAs of an SM share.
        threads_of_sm: that can be resident.
        tensor: classes of instructions that multiply matrices, fastest first.
    """

    name: str
    shared_of_cta: int
    shared_of_sm: int
    threads_of_sm: int
    tensor: tuple[str, ...]

    @property
    def is_nvidia(self) -> bool:
        return self.name.startswith("sm_")

    def resident_ctas(self, registers: int, shared: int, warps: int) -> int | None:
        """Return how many CTAs an SM holds at once; None, unknown, for AMD."""
        if not self.is_nvidia:
            return None
        granule = -(-registers // 8) * 8 * 32 * warps
        rooms = [_REGISTERS // granule, self.threads_of_sm // (32 * warps)]
        if shared:
            rooms.append(self.shared_of_sm // (shared + _RESERVED))
        return min(rooms)


_ALL = (
    Architecture("sm_80", 166912, 167936, 2048, ("HMMA",)),
    Architecture("sm_86", 101376, 102400, 1536, ("HMMA",)),
    Architecture("sm_89", 101376, 102400, 1536, ("HMMA",)),
    Architecture("sm_90", 232448, 233472, 2048, ("HGMMA", "HMMA")),
    Architecture("sm_100", 232448, 233472, 2048, ("UTCMMA", "HMMA")),
    Architecture("sm_120", 101376, 102400, 1536, ("HMMA",)),
    Architecture("gfx942", 65536, 65536, 2048, ("MFMA",)),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
