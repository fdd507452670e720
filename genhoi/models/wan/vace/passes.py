"""What a VACE block's attention is told about a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from genhoi_kernels import ReferenceFramesRope

__all__ = ["FramesPass"]


@dataclass(frozen=True)
class FramesPass:
    """Where the rows of a forward pass are.

    Args:
        rope: of all rows.
        references: latent frames at the front that are references, sliding or not.
    """

    rope: ReferenceFramesRope
    references: int

    @property
    def reference_rows(self) -> int:
        """Count the rows of the references."""
        _, height, width = self.rope.grid
        return self.references * height * width
