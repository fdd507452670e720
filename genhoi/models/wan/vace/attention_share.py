"""How much of a VACE block's attention goes to the rows of the references."""

from __future__ import annotations

from torch import Tensor

from genhoi.models.wan.attention_share import ProcessorShare, log_sum_exp, share_of_added
from genhoi.models.wan.vace.passes import FramesPass

__all__ = ["FramesAttentionShare"]


class FramesAttentionShare(ProcessorShare):
    """The share of the video's rows, whose keys come after the references'."""

    def by_head(self, q: Tensor, k: Tensor, current: FramesPass) -> Tensor | None:
        """Compare all keys with the video's own, for the video's rows."""
        rows = current.reference_rows
        if rows == 0:
            return None
        video = q[:, rows:]
        return share_of_added(log_sum_exp(video, k[:, rows:]), log_sum_exp(video, k))
