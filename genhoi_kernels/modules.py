"""Drop-in ``nn.Module`` forms of the op and its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from genhoi_kernels import checks, layouts, reference
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.functional import apply_rope, reference_attention
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, Schedule, VideoRope, check_grid

OPEN_GATE = 0.99
GATE_INITS = ("open", "neutral")


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

    Raises:
        ValueError: an unknown reduction or init, or a head_dim below 2.

    Example:
        >>> import torch
        >>> from genhoi_kernels import FlowGate, reference_attention
        >>> gate = FlowGate(16)
        >>> q, k, v = torch.randn(3, 1, 6, 2, 16)  # [B, N, H, D]
        >>> fused = reference_attention(q, k, v, gate=gate)
        >>> torch.allclose(fused, gate(reference_attention(q, k, v)), atol=1e-5)
        True
    """

    def __init__(self, head_dim: int, *, reduction: str = "token", init: str = "open") -> None:
        super().__init__()
        if head_dim < 2:
            raise ValueError(f"head_dim: got {head_dim}, wanted at least 2")
        checks.check_choice("reduction", reduction, checks.GATE_REDUCTIONS)
        checks.check_choice("init", init, GATE_INITS)
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

    Raises:
        TypeError, ValueError: as ``HeadSlidingRope``.

    Example:
        >>> import torch
        >>> from genhoi_kernels import ReferenceRotation
        >>> rotate = ReferenceRotation((5, 8, 8), [(3, 2)], head_dim=16, num_heads=4)
        >>> rotate(torch.randn(1, 6, 4, 16)).shape  # [B, M, H, D], M = 3 * 2
        torch.Size([1, 6, 4, 16])
    """

    def __init__(
        self,
        video_grid: Sequence[int],
        ref_grids: Sequence[Sequence[int]],
        *,
        num_heads: int,
        head_dim: int = 128,
        schedule: Schedule = "paper",
        theta: float = 10000.0,
        first_head: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.rope = HeadSlidingRope(
            video_grid,  # type: ignore[arg-type]  # which HeadSlidingRope checks
            ref_grids,  # type: ignore[arg-type]
            head_dim=head_dim,
            num_heads=num_heads,
            schedule=schedule,
            theta=theta,
            first_head=first_head,
        )
        self.backend = backend

    def forward(self, k_ref: Tensor) -> Tensor:
        """Rotate k_ref ``[B, M, H, D]``; same shape and dtype.

        Raises:
            TypeError, ValueError: k_ref is no such tensor, or an option does not fit it.
        """
        checks.check_tensor("k_ref", k_ref, "B M H D")
        check = partial(checks.check_ref_rope, None, self.rope)
        try:
            check(k_ref)
        except ValueError as error:
            raise layouts.with_hint_of("k_ref", error, k_ref, check) from None
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
        head_dim: D, even.
        gate: "token", "sequence" or None (no flow gate).
        gate_init: see ``FlowGate``.
        schedule: see ``head_frames``.
        theta: base of the rotary angles.
        first_head: None: the heads given are all ``num_heads``; a number, 0 included: they are a
            shard of the heads, whose first one has this global index.
        backend: as for ``reference_attention``.

    Raises:
        TypeError, ValueError: an option out of range, or an unknown name.

    Example:
        >>> import torch
        >>> from genhoi_kernels import ReferenceAttention
        >>> attention = ReferenceAttention(num_heads=4, head_dim=16)
        >>> q, k, v = torch.randn(3, 1, 24, 4, 16)  # [B, N, H, D]: 2 frames of 3 x 4 tokens
        >>> k_ref, v_ref = torch.randn(2, 1, 6, 4, 16)  # [B or 1, M, H, D]: one of 3 x 2
        >>> attention(q, k, v, k_ref, v_ref, video_grid=(2, 3, 4), ref_grids=[(3, 2)]).shape
        torch.Size([1, 24, 4, 16])
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
        first_head: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_choice("gate", gate, (*checks.GATE_REDUCTIONS, None))
        checks.check_choice("gate_init", gate_init, GATE_INITS)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.schedule = schedule
        self.theta = theta
        self.first_head = first_head
        self.backend = backend
        self._ref_rope((1, 1, 1), ((1, 1),))  # what is wrong with an option is said here
        self.gate = None if gate is None else FlowGate(head_dim, reduction=gate, init=gate_init)

    def _ref_rope(
        self, video_grid: tuple[int, int, int], ref_grids: Sequence[Sequence[int]]
    ) -> HeadSlidingRope:
        return HeadSlidingRope(
            video_grid,
            ref_grids,  # type: ignore[arg-type]  # which HeadSlidingRope checks
            head_dim=self.head_dim,
            num_heads=self.num_heads,
            schedule=self.schedule,
            theta=self.theta,
            first_head=self.first_head,
        )

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
            q, k, v: video tokens ``[B, N, H, D]``, N = f h w.
            k_ref, v_ref: reference tokens ``[B or 1, M, H, D]``.
            video_grid: (f, h, w) of the video tokens.
            ref_grids: (h_r, w_r) of each reference; none without k_ref.
            mask, ref_bias: as for ``reference_attention``.

        Raises:
            TypeError, ValueError: as for ``reference_attention``.
        """
        grid = check_grid("video_grid", video_grid, 3)
        rope = VideoRope(grid, head_dim=self.head_dim, theta=self.theta)  # type: ignore[arg-type]
        if k_ref is None and len(ref_grids):
            raise ValueError(f"ref_grids: got {ref_grids} without k_ref, wanted none or k_ref")
        ref_rope = None if k_ref is None else self._ref_rope(rope.grid, ref_grids)
        try:
            self._check_sizes(q, k_ref, rope, ref_rope)
        except ValueError as error:
            given = {"q": q, "k": k, "v": v, "k_ref": k_ref, "v_ref": v_ref}
            also = {"mask": mask, "rope": rope, "ref_rope": ref_rope}
            raise layouts.with_hint(error, given | also) from None
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

    def _check_sizes(
        self, q: Tensor, k_ref: Tensor | None, rope: VideoRope, ref_rope: HeadSlidingRope | None
    ) -> None:
        """Check the module's options against the tensors, and name the option that doesn't fit."""
        checks.check_tensor("q", q, "B N H D")
        checks.check_head_dim(None, self.head_dim, q.shape[3])
        if not rope.fits(q.shape[1]):
            raise ValueError(
                f"video_grid: got {rope.grid}, {rope.grid_tokens} tokens in all, wanted N = "
                f"{q.shape[1]}; a shard of the sequence needs reference_attention, whose rope has "
                f"a token_offset"
            )
        checks.check_heads(None, q.shape[2], self.num_heads, self.first_head)
        if k_ref is not None and ref_rope is not None:
            checks.check_tensor("k_ref", k_ref, "B M H D")
            checks.check_ref_tokens(None, ref_rope, k_ref.shape[1])

    def extra_repr(self) -> str:
        """Say what print(module) shows."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, schedule={self.schedule!r}"
