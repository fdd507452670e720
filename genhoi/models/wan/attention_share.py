"""How much of a model's own attention goes to the references, from its real queries and keys.

The share of a token comes from two calls of the op, with and without the reference:
1 - exp(lse_without - lse_with). No attention matrix is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genhoi.models.attachment import AttentionShare
from genhoi.models.wan.passes import VideoPass
from genhoi.models.wan.self_attention import SelfAttention
from genhoi_kernels import reference_attention

__all__ = ["WanAttentionShare", "reference_share"]


class WanAttentionShare(AttentionShare):
    """The share of a Wan block's self-attention.

    Args:
        processor: of the block to be watched.
    """

    def __init__(self, processor: SelfAttention) -> None:
        self._processor = processor

    def watch_next(self) -> None:
        """Observe the next call of the processor."""
        self._processor.observer = self._observe

    def _observe(self, q: Tensor, k: Tensor, current: VideoPass) -> None:
        self._processor.observer = None
        if current.k_ref is None:
            return
        share = reference_share(q, k, current).double().mean(1)[0].float()
        self.share = share.view(current.rope.grid).cpu()


def reference_share(q: Tensor, k: Tensor, current: VideoPass) -> Tensor:
    """Measure the share of every head's attention that goes to the references.

    Args:
        q, k: rotated, [B, N, H, D], as a processor's observer gets them.
        current: the pass, with references.

    Returns:
        float32 [B, H, N], NaN where the mask gate keeps a token from all references.
    """
    assert current.k_ref is not None
    without = _lse(q, k)
    with_references = _lse(q, k, **current.references())
    share = -torch.expm1(without.double() - with_references.double()).float()
    if current.mask is not None:
        share = share.masked_fill(current.mask.bits[:, None] == 0, float("nan"))
    return share


def _lse(q: Tensor, k: Tensor, **references: Any) -> Tensor:
    # Values do not matter for the log-sum-exp.
    _, lse = reference_attention(q, k, k, return_lse=True, **references)
    assert isinstance(lse, Tensor)
    return lse
