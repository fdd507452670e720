"""How much of a model's own attention goes to the references, from its real queries and keys.

The share of a token comes from two calls of the op, with and without the reference:
1 - exp(lse_without - lse_with). No attention matrix is built.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from genhoi.models.attachment import AttentionShare
from genhoi.models.wan.own_attention import OwnAttention
from genhoi.models.wan.passes import VideoPass
from genhoi_kernels import reference_attention

__all__ = [
    "ProcessorShare",
    "WanAttentionShare",
    "log_sum_exp",
    "reference_share",
    "share_of_added",
]


class ProcessorShare(AttentionShare):
    """The share of a block's self-attention, from what its processor shows.

    Args:
        processor: of the block to be watched.
    """

    def __init__(self, processor: OwnAttention[Any]) -> None:
        self._processor = processor

    def watch_next(self) -> None:
        """Observe the next call of the processor."""
        self._processor.observer = self._observe

    def _observe(self, q: Tensor, k: Tensor, current: Any) -> None:
        self._processor.observer = None
        share = self.by_head(q, k, current)
        if share is not None:
            grid = current.rope.grid
            self.share = share.double().mean(1)[0].float().view(-1, *grid[1:]).cpu()

    @abstractmethod
    def by_head(self, q: Tensor, k: Tensor, current: Any) -> Tensor | None:
        """Measure the first sample's share of every head, ``[B, H, f*h*w]``; None: no reference."""


class WanAttentionShare(ProcessorShare):
    """The share of keys and values that the reference stream left."""

    def by_head(self, q: Tensor, k: Tensor, current: VideoPass) -> Tensor | None:
        """See `reference_share`."""
        return None if current.k_ref is None else reference_share(q, k, current)


def reference_share(q: Tensor, k: Tensor, current: VideoPass) -> Tensor:
    """Measure the share of every head's attention that goes to the references.

    Args:
        q, k: rotated, [B, N, H, D], as a processor's observer gets them.
        current: the pass, with references.

    Returns:
        float32 [B, H, N], NaN where the mask gate keeps a token from all references.
    """
    assert current.k_ref is not None
    with_references = log_sum_exp(q, k, **current.references())
    share = share_of_added(log_sum_exp(q, k), with_references)
    if current.mask is not None:
        share = share.masked_fill(current.mask.bits[:, None] == 0, float("nan"))
    return share


def share_of_added(without: Tensor, with_added: Tensor) -> Tensor:
    """Compute the share of keys that were added, float32, from the log-sum-exp of both calls."""
    return -torch.expm1(without.double() - with_added.double()).float()


def log_sum_exp(q: Tensor, k: Tensor, **references: Any) -> Tensor:
    """Compute the log-sum-exp of every row's logits, ``[B, H, N]``.

    Args:
        q, k: rotated, ``[B, N, H, D]``.
        references: arguments of the op that bring references in.
    """
    # Values do not matter for the log-sum-exp.
    _, lse = reference_attention(q, k, k, return_lse=True, **references)
    assert isinstance(lse, Tensor)
    return lse
