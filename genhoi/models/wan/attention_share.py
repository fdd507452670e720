"""How much of a model's own attention goes to the references, from its real queries and keys.

The share of a token comes from two calls of the op, with and without the reference:
1 - exp(lse_without - lse_with). No attention matrix is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genhoi.models.wan.processors import VideoPass
from genhoi_kernels import reference_attention

__all__ = ["AttentionShare", "reference_share"]


class AttentionShare:
    """Watches one block of an attached transformer for one forward pass.

    Args:
        attachment: what `genhoi.attach` returned.
        layer: the block.

    Attributes:
        found: float32 [f, h, w] on the CPU, mean over heads, NaN where the mask gate keeps a token
            from all references; None before `watch_next` and where there is no reference to see.
    """

    def __init__(self, attachment: Any, layer: int) -> None:
        self.found: Tensor | None = None
        self._processor = attachment.transformer.blocks[layer].attn1.processor

    def watch_next(self) -> None:
        """Measure the next forward pass."""
        self._processor.observer = self._observe

    def _observe(self, q: Tensor, k: Tensor, current: VideoPass) -> None:
        self._processor.observer = None
        if current.k_ref is None:
            return
        share = reference_share(q, k, current).double().mean(1)[0].float()
        self.found = share.view(current.rope.grid).cpu()


def reference_share(q: Tensor, k: Tensor, current: VideoPass) -> Tensor:
    """Share of every head's attention that goes to the references.

    Args:
        q, k: rotated, [B, N, H, D], as a processor's observer gets them.
        current: the pass, with references.

    Returns:
        float32 [B, H, N], NaN where the mask gate keeps a token from all references.
    """
    assert current.k_ref is not None
    # Values do not matter for the log-sum-exp.
    without = _lse(q, k)
    with_references = _lse(
        q, k, current.k_ref, current.k_ref,
        mask=current.mask, ref_lengths=current.ref_lengths, ref_bias=current.ref_bias,
    )  # fmt: skip
    share = -torch.expm1(without.double() - with_references.double()).float()
    if current.mask is not None:
        share = share.masked_fill(current.mask.bits[:, None] == 0, float("nan"))
    return share


def _lse(q: Tensor, k: Tensor, *reference: Tensor, **options: Any) -> Tensor:
    _, lse = reference_attention(q, k, k, *reference, return_lse=True, **options)
    assert isinstance(lse, Tensor)
    return lse
