"""Adapters at work in two transformers that share the noise levels, as in Wan 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from genhoi.models.attachment import Attachment, AttentionShare

__all__ = ["Expert", "ExpertsAttachment", "join"]

Expert = Literal["high", "low"]
"""Of two transformers: the one for high noise levels (`transformer`), or low (`transformer_2`)."""


class ExpertsAttachment(Attachment):
    """Two attachments as one: what is set on it is set on both.

    Each keeps keys and values of the references for itself, for the transformers' weights differ.

    Args:
        high, low: what `genhoi.attach` returned for each transformer. They may share an adapter.

    Attributes:
        attachments: both, that for high noise levels first.
        transformer, adapter, options: those of `high`.
    """

    def __init__(self, high: Attachment, low: Attachment) -> None:
        self.attachments = (high, low)
        self.transformer, self.adapter, self.options = high.transformer, high.adapter, high.options

    @property
    def reference_passes(self) -> int:  # type: ignore[override]
        """Count those of both."""
        return sum(each.reference_passes for each in self.attachments)

    @property
    def reference_frames(self) -> int:  # type: ignore[override]
        """Return their number, which both have in common."""
        return self.attachments[0].reference_frames

    @property
    def skip_unseen(self) -> bool:  # type: ignore[override]
        """Tell whether both leave references out that no token sees."""
        return all(each.skip_unseen for each in self.attachments)

    @skip_unseen.setter
    def skip_unseen(self, skip: bool) -> None:
        for each in self.attachments:
            each.skip_unseen = skip

    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Set them on both."""
        for each in self.attachments:
            each.set_reference(references, mask, ref_bias=ref_bias)

    def set_reference_frames(
        self, count: int, *, sliding: Literal["all", "last", "none"] = "all"
    ) -> None:
        """Set it on both."""
        for each in self.attachments:
            each.set_reference_frames(count, sliding=sliding)

    def set_mask(self, mask: Tensor) -> None:
        """Change it on both."""
        for each in self.attachments:
            each.set_mask(mask)

    def attention_share(self, layer: int) -> AttentionShare:
        """Make a meter of a block in both transformers."""
        return ExpertsShare([each.attention_share(layer) for each in self.attachments])

    def detach(self) -> None:
        """Leave both transformers as they were."""
        for each in self.attachments:
            each.detach()


def join(attachments: Sequence[Attachment]) -> Attachment:
    """Make one attachment of two, that for high noise levels first; one stays as it is."""
    return attachments[0] if len(attachments) == 1 else ExpertsAttachment(*attachments)


class ExpertsShare(AttentionShare):
    """The share of a block's attention in the transformer that runs next.

    Args:
        shares: of each transformer.
    """

    def __init__(self, shares: Sequence[AttentionShare]) -> None:
        self._shares = shares

    @property
    def share(self) -> Tensor | None:  # type: ignore[override]
        """Return that of the transformer that ran."""
        return next((each.share for each in self._shares if each.share is not None), None)

    def watch_next(self) -> None:
        """Measure whichever runs."""
        for each in self._shares:
            each.share = None
            each.watch_next()
