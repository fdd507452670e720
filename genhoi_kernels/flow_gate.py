"""Weights of the soft flow gate (docs/op.md, "Flow gate")."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GateWeights(NamedTuple):
    """Weights of one layer's flow gate, shared by its heads: logit = w2 . GELU(W1 LN(o) + b1) + b2.

    Shapes: norm_weight, norm_bias ``[D]``; fc1_weight ``[D/2, D]``; fc1_bias ``[D/2]``;
    fc2_weight ``[1, D/2]``; fc2_bias ``[1]``. Each is float32 or of the queries' dtype.

    Example:
        >>> import torch
        >>> from genhoi_kernels import GateWeights, reference_attention
        >>> D = 16
        >>> shapes = [(D,), (D,), (D // 2, D), (D // 2,), (1, D // 2), (1,)]
        >>> gate = GateWeights(*(torch.zeros(shape) for shape in shapes))  # every gate at 0.5
        >>> q, k, v = torch.randn(3, 1, 6, 2, D)  # [B, N, H, D]
        >>> gated = reference_attention(q, k, v, gate=gate)
        >>> torch.allclose(gated, reference_attention(q, k, v) / 2, atol=1e-6)
        True
    """

    norm_weight: Tensor
    norm_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


def gate_shapes(head_dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a flow gate over heads of ``head_dim``."""
    half = head_dim // 2
    return {
        "norm_weight": (head_dim,),
        "norm_bias": (head_dim,),
        "fc1_weight": (half, head_dim),
        "fc1_bias": (half,),
        "fc2_weight": (1, half),
        "fc2_bias": (1,),
    }


class GateSums(NamedTuple):
    """Sums over rows that give the gradients of the gate's weights: ``[parts, ...]`` each."""

    du_x: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    def gradients(self, gate: GateWeights) -> GateWeights:
        """Return the gradients: with n = x gamma + beta, dW1 = sum du n^T,

        dgamma = sum (W1^T du) x and dbeta = sum W1^T du.
        """
        du_x, db1, dw2, db2 = (x.sum(0) for x in self)
        gamma, beta, W1 = (w.float() for w in (gate.norm_weight, gate.norm_bias, gate.fc1_weight))
        grads = GateWeights(
            norm_weight=(W1 * du_x).sum(0),
            norm_bias=(W1 * db1[:, None]).sum(0),
            fc1_weight=du_x * gamma + db1[:, None] * beta,
            fc1_bias=db1,
            fc2_weight=dw2,
            fc2_bias=db2,
        )
        return GateWeights(*(g.to(w.dtype) for g, w in zip(grads, gate, strict=True)))
