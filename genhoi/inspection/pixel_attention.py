"""Attention on a clip's own pixels, without a trained model.

A token is a block of 16 x 16 pixels of one latent frame (4 video frames), described by its mean
colours on a 2 x 2 raster. Every head turns the tokens by its own random orthonormal projection and
normalises them by RMS, as the model does with its queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES
from genhoi.inspection.timing import Timing, time_attention
from genhoi_kernels import HeadSlidingRope, MaskGate, VideoRope, reference_attention

__all__ = ["FrameSchedule", "PixelAttention", "pixel_features"]

FrameSchedule = str | float

_CELLS = 2
# Below this, a block differs so little from grey that its colour says nothing; padding around the
# object is such.
_FAINT = 0.05


@dataclass(frozen=True)
class PixelAttention:
    """Attends over one clip's features, head by head to bound memory.

    Args:
        features: float32 [f * h * w, 12] of `pixel_features`, of the clip.
        ref_features: float32 [h * w, 12], of the object's picture.
        grid: the token grid (f, h, w).
        heads: number of heads.
        head_dim: values a head, even.
        dtype: what the op computes in.
        backend: of the op.
        gate: tokens that see the reference.
        seed: of the heads' projections.
    """

    features: Tensor
    ref_features: Tensor
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    dtype: torch.dtype
    backend: str
    gate: MaskGate
    seed: int

    @property
    def rope(self) -> VideoRope:
        """Make the rotation of the clip's tokens."""
        return VideoRope(self.grid, head_dim=self.head_dim)

    def ref_rope(self, schedule: FrameSchedule, first_head: int) -> HeadSlidingRope:
        """Rotate the reference's tokens, of the heads from `first_head` on."""
        return HeadSlidingRope(
            self.grid,
            ((self.grid[1], self.grid[2]),),
            head_dim=self.head_dim,
            num_heads=self.heads,
            schedule=schedule,
            first_head=first_head,
        )

    def projected(self, first_head: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project features into `count` heads: [1, N or M, count, D] each.

        Returns:
            Queries, which are the keys too; values; the reference's keys; its values.
        """
        qk, v, k_ref, v_ref = [], [], [], []
        for head in range(first_head, first_head + count):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + head)
            width = self.features.shape[1]
            projection = torch.empty(self.head_dim, width)
            torch.nn.init.orthogonal_(projection, generator=random)
            projection = projection.to(self.features)
            video, ref = self.features @ projection.T, self.ref_features @ projection.T
            qk.append(_rms_norm(video))
            k_ref.append(_rms_norm(ref))
            v.append(video)
            v_ref.append(ref)
        stacked = (torch.stack(x, dim=1)[None].to(self.dtype) for x in (qk, v, k_ref, v_ref))
        return tuple(stacked)  # type: ignore[return-value]

    def lse_by_head(
        self, schedule: FrameSchedule | None, before_each: Callable[[], None]
    ) -> Tensor:
        """Compute the log-sum-exp of every row, float32 [heads, N].

        Args:
            schedule: of the reference's frames; None leaves the reference out.
            before_each: called before each head.
        """
        rows = []
        for head in range(self.heads):
            before_each()
            qk, v, k_ref, v_ref = self.projected(head, 1)
            reference: dict[str, Any] = {}
            if schedule is not None:
                reference = {
                    "k_ref": k_ref,
                    "v_ref": v_ref,
                    "mask": self.gate,
                    "ref_rope": self.ref_rope(schedule, head),
                }
            _, lse = reference_attention(
                qk, qk, v, **reference, rope=self.rope, return_lse=True, backend=self.backend
            )
            rows.append(lse[0, 0].float().cpu())
        return torch.stack(rows)

    def time(self, heads: int, repeats: int, report: Callable[[str], None]) -> Timing:
        """Time one call over the first `heads` heads."""
        qk, v, k_ref, v_ref = self.projected(0, heads)
        return time_attention(
            qk,
            qk,
            v,
            k_ref,
            v_ref,
            gate=self.gate,
            rope=self.rope,
            ref_rope=self.ref_rope("paper", 0),
            backend=self.backend,
            repeats=repeats,
            report=report,
        )


def pixel_features(frames: Tensor) -> Tensor:
    """Describe each token by the mean colours of its pixels on a 2 x 2 raster, -1 to 1.

    Grey 128, the colour of padding, is 0.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        float32 [f * h * w, 12].
    """
    cell = STRIDES.token // _CELLS
    frame_count, height, width, _ = frames.shape
    rasters = (frame_count, height // cell, cell, width // cell, cell, 3)
    # Summed over columns first: the faster order, as colours lie side by side in memory.
    total = frames.view(rasters).sum(4, dtype=torch.int32).sum(2)
    pooled = ((total.float() / cell**2 - 128) / 128).permute(0, 3, 1, 2)
    if len(pooled) > 1:
        later = pooled[1:].unflatten(0, (-1, STRIDES.time)).mean(1)
        pooled = torch.cat([pooled[:1], later])
    blocks = pooled.unflatten(3, (-1, _CELLS)).unflatten(2, (-1, _CELLS))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _FAINT**2 / x.shape[-1])
