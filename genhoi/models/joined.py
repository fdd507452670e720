"""The adapters of a pipeline's two experts, as one attachment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from genhoi.models.attachment import Attachment, AttentionShare

__all__ = ["JoinedAttachment"]


class JoinedAttachment(Attachment):
    """Several attachments, which are told the same; each keeps keys and values of its own.

    ``transformer``, ``adapter`` and ``options`` are those of the first; all options are alike.

    Args:
        attachments: of the experts, in the order in which a clip meets them.
    """

    def __init__(self, attachments: Sequence[Attachment]) -> None:
        self.attachments = tuple(attachments)
        first = self.attachments[0]
        self.transformer, self.adapter, self.options = (
            first.transformer,
            first.adapter,
            first.options,
        )

    @property
    def is_attached(self) -> bool:
        """Tell whether all adapters are at work."""
        return all(each.is_attached for each in self.attachments)

    @property
    def reference_passes(self) -> int:  # type: ignore[override]
        """Count the reference stream's runs in all experts: two for a clip that meets both."""
        return sum(each.reference_passes for each in self.attachments)

    @property
    def reference_frames(self) -> int:  # type: ignore[override]
        """Return the first's, which is that of all."""
        return self.attachments[0].reference_frames

    @property
    def skip_unseen(self) -> bool:  # type: ignore[override]
        """Tell whether all leave out references that no token sees."""
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
        """Check the arguments once, and tell all."""
        first, *others = self.attachments
        first.set_reference(references, mask, ref_bias=ref_bias)
        for other in others:
            other.take_reference(first)

    def take_reference(self, other: Attachment) -> None:
        """Tell all what another attachment was told."""
        for each in self.attachments:
            each.take_reference(other)

    def set_reference_frames(
        self, count: int, *, sliding: Literal["all", "last", "none"] = "all"
    ) -> None:
        """Tell all."""
        for each in self.attachments:
            each.set_reference_frames(count, sliding=sliding)

    def set_mask(self, mask: Tensor) -> None:
        """Tell all."""
        for each in self.attachments:
            each.set_mask(mask)

    def attention_share(self, layer: int) -> AttentionShare:
        """Make a meter of a block in whichever expert runs next."""
        return _JoinedShare([each.attention_share(layer) for each in self.attachments])

    def detach(self) -> None:
        """Leave all transformers as they were."""
        for each in self.attachments:
            each.detach()


class _JoinedShare(AttentionShare):
    """The share of the expert that ran first since `watch_next`.

    Args:
        shares: of the same block of each expert.
    """

    def __init__(self, shares: Sequence[AttentionShare]) -> None:
        self._shares = shares

    @property
    def share(self) -> Tensor | None:  # type: ignore[override]
        """Return what one of them measured."""
        return next((each.share for each in self._shares if each.share is not None), None)

    def watch_next(self) -> None:
        """Measure the next forward pass of either."""
        for each in self._shares:
            each.share = None
            each.watch_next()
