"""Drop-in ``nn.Module`` forms of the op and its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from genhoi_kernels import checks, reference
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.functional import apply_rope, reference_attention
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, Schedule, VideoRope

OPEN_GATE = 0.99


class FlowGate(nn.Module):
    """Soft flow gate over attention rows (GenHOI, arXiv 2603.06048): o -> sigmoid(logit(o)) * o.

    Pass it as ``gate=`` to ``reference_attention``, which fuses it, or call it on the output of
    any attention ``[B, N, H, D]``. state_dict: norm.*, fc1.*, fc2.*.

    Args:
        head_dim: D.
        reduction: "token": one gate per token and head; "sequence": one per sample and head.
        init: "open": every gate starts at 0.99, near the pretrained model, the default because a
            frozen base otherwise has to be relearnt; "neutral": at 0.5, as the release does, which
            halves every attention output.
    """

    def __init__(self, head_dim: int, *, reduction: str = "token", init: str = "open") -> None:
        super().__init__()
        checks.check_gate_options(self, reduction, False)
        if init not in ("open", "neutral"):
            raise ValueError(f"init: got {init!r}, wanted 'open' or 'neutral'")
        self.head_dim = head_dim
        self.reduction = reduction
        self.init = init
        self.norm = nn.LayerNorm(head_dim, eps=reference.GATE_NORM_EPS)
        self.fc1 = nn.Linear(head_dim, head_dim // 2)
        self.fc2 = nn.Linear(head_dim // 2, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every gate at the same value: the last layer's weight is zero."""
        self.norm.reset_parameters()
        self.fc1.reset_parameters()
        nn.init.zeros_(self.fc2.weight)
        logit = math.log(OPEN_GATE / (1 - OPEN_GATE)) if self.init == "open" else 0.0
        nn.init.constant_(self.fc2.bias, logit)

    def gate_weights(self) -> GateWeights:
        """Return the six weights, as ``reference_attention`` takes them."""
        norm, fc1, fc2 = self.norm, self.fc1, self.fc2
        return GateWeights(norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)

    def forward(self, o: Tensor) -> Tensor:
        """Gate attention rows o ``[B, N, H, D]``; same shape and dtype."""
        checks.check_tensor("o", o, "B N H D")
        checks.check_gate(self.gate_weights(), o)
        return reference.flow_gate(o, self.gate_weights(), reduction=self.reduction)

    def extra_repr(self) -> str:
        """Say what print(module) shows."""
        return f"head_dim={self.head_dim}, reduction={self.reduction!r}, init={self.init!r}"


class ReferenceRotation(nn.Module):
    """Rotates reference keys ``[B, M, H, D]`` to another frame in every head; no parameters.

    Args: as ``HeadSlidingRope``, which it holds as ``rope``.
    """

    def __init__(
        self,
        video_grid: Sequence[int],
        ref_grids: Sequence[Sequence[int]],
        *,
        head_dim: int = 128,
        num_heads: int = 40,
        schedule: Schedule = "paper",
        theta: float = 10000.0,
        first_head: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.rope = HeadSlidingRope(
            tuple(video_grid),  # type: ignore[arg-type]  # HeadSlidingRope checks its length
            tuple(tuple(grid) for grid in ref_grids),  # type: ignore[misc]
            head_dim=head_dim,
            num_heads=num_heads,
            schedule=schedule,
            theta=theta,
            first_head=first_head,
        )
        self.backend = backend

    def forward(self, k_ref: Tensor) -> Tensor:
        """Rotate k_ref ``[B, M, H, D]``; same shape and dtype."""
        return apply_rope(k_ref, self.rope, backend=self.backend)

    def extra_repr(self) -> str:
        """Say what print(module) shows."""
        return repr(self.rope)


HeadSlidingRoPE = ReferenceRotation
"""Alias of ``ReferenceRotation``, under its former name; ``HeadSlidingRope`` is what it holds."""


class ReferenceAttention(nn.Module):
    """GenHOI's self-attention core: stands where scaled_dot_product_attention stood in a block.

    Owns the flow gate; q, k, v, k_ref, v_ref come from the block's own projections, normalised but
    not rotated. state_dict: gate.norm.*, gate.fc1.*, gate.fc2.* (empty without a gate).

    Args:
        num_heads: H of the whole model.
        head_dim: D.
        gate: "token", "sequence" or None (no flow gate).
        gate_init: see ``FlowGate``.
        schedule: see ``head_frames``.
        theta: base of the rotary angles.
        first_head: global index of the first head given, under head sharding.
        backend: as for ``reference_attention``.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        gate: str | None = "token",
        gate_init: str = "open",
        schedule: Schedule = "paper",
        theta: float = 10000.0,
        first_head: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.schedule = schedule
        self.theta = theta
        self.first_head = first_head
        self.backend = backend
        self.gate = None if gate is None else FlowGate(head_dim, reduction=gate, init=gate_init)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_ref: Tensor | None = None,
        v_ref: Tensor | None = None,
        *,
        video_grid: tuple[int, int, int],
        ref_grids: Sequence[tuple[int, int]] = (),
        mask: Tensor | MaskGate | None = None,
        ref_bias: Tensor | None = None,
    ) -> Tensor:
        """Compute the attention output ``[B, N, H, D]``.

        Args:
            q, k, v: video tokens ``[B, N, H, D]``.
            k_ref, v_ref: reference tokens ``[B or 1, M, H, D]``.
            video_grid: (f, h, w) of the video tokens.
            ref_grids: (h_r, w_r) of each reference.
            mask, ref_bias: as for ``reference_attention``.

        Raises:
            TypeError, ValueError: as for ``reference_attention``.
        """
        rope = VideoRope(tuple(video_grid), head_dim=self.head_dim, theta=self.theta)  # type: ignore[arg-type]
        ref_rope = None
        if k_ref is not None:
            ref_rope = HeadSlidingRope(
                rope.grid,
                tuple(ref_grids),
                head_dim=self.head_dim,
                num_heads=self.num_heads,
                schedule=self.schedule,
                theta=self.theta,
                first_head=self.first_head,
            )
        out = reference_attention(
            q,
            k,
            v,
            k_ref,
            v_ref,
            mask=mask,
            ref_bias=ref_bias,
            rope=rope,
            ref_rope=ref_rope,
            gate=self.gate,
            backend=self.backend,
        )
        assert isinstance(out, Tensor)
        return out

    def extra_repr(self) -> str:
        """Say what print(module) shows."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, schedule={self.schedule!r}"
