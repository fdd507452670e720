"""What a block's self-attention is told about a forward pass: over reference tokens or the video's.

A block hands ``rotary_emb`` on to its self-attention untouched, so a `ReferencePass` in its place
is how the reference stream runs through the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genhoi_kernels import (
    GateWeights,
    HeadSlidingRope,
    MaskGate,
    VideoRope,
    reference_attention,
)

__all__ = ["ReferencePass", "VideoPass"]


class ReferencePass:
    """One block's run over reference tokens; stands in ``rotary_emb``'s place.

    Args:
        rope: where the tokens are.

    Attributes:
        k, v: what the block's self-attention leaves here, ``[b, M, H, D]``, k rotated.
    """

    def __init__(self, rope: HeadSlidingRope) -> None:
        self.rope = rope
        self.k: Tensor | None = None
        self.v: Tensor | None = None


@dataclass(frozen=True, eq=False)
class VideoPass:
    """What one block's self-attention needs to know in a forward pass over video tokens.

    Args:
        rope: where the tokens are.
        k_ref, v_ref: of the references, ``[B or 1, M, H, D]``, k_ref rotated; None for none.
        ref_lengths: tokens of each reference.
        mask: which tokens see them; None: every one.
        ref_bias: float32 ``[R]``, added to each reference's logits.
    """

    rope: VideoRope
    k_ref: Tensor | None = None
    v_ref: Tensor | None = None
    ref_lengths: tuple[int, ...] | None = None
    mask: MaskGate | None = None
    ref_bias: Tensor | None = None

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        gate: GateWeights | None,
        gate_reduction: str | None,
        backend: str | None,
    ) -> Tensor:
        """Attend to the video and the references, by the op; shapes and arguments as there."""
        out = reference_attention(
            q,
            k,
            v,
            gate=gate,
            gate_reduction=gate_reduction,
            backend=backend,
            **self.references(),
        )
        assert isinstance(out, Tensor)
        return out

    def references(self) -> dict[str, Any]:
        """Return the op's arguments that bring the references in."""
        return {
            "k_ref": self.k_ref,
            "v_ref": self.v_ref,
            "ref_lengths": self.ref_lengths,
            "mask": self.mask,
            "ref_bias": self.ref_bias,
        }
