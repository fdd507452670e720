"""What the kernels of dQ and of dK and dV share: what they read of the rows, and P."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


class Upstream(NamedTuple):
    """What every kernel reads: dO ``[B, N, H, D]``, and the rows' lse and delta ``[B, H, N]``."""

    do: Tensor
    lse: Tensor
    delta: Tensor


@triton.jit
def probabilities(s, lse, factor, bias, BIAS: tl.constexpr, EXACT: tl.constexpr):
    """Compute P = exp(S - L); a bias of -inf makes it 0.

    factor: the scale, times log2 e unless EXACT, which subtracts before it turns to powers of two:
    an L of 20 times log2 e is off by 1e-6.
    """
    if EXACT:
        p = tl.exp2((s * factor + bias - lse) * LOG2_E)
    else:
        p = tl.exp2(s * factor - (lse - bias) * LOG2_E)
    if BIAS:
        p = tl.where(bias == float("-inf"), 0.0, p)
    return p
