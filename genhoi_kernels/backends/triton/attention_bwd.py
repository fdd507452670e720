"""Attention backward: docs/op.md, "Backward". No atomics: the same bits from run to run.

    delta = dO . O - dL                                 (attention_bwd_preprocess.py, flow_gate.py)
    P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta)  (attention_bwd_common.py)
    dQ = scale dS K                                     (attention_bwd_dq.py)
    dV = P^T dO;  dK = scale dS^T Q;  dbias = sum dS    (attention_bwd_dkdv.py)

dO is the gradient of the ungated attention. Queries and keys come rotated, and so do their
gradients leave the kernels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genhoi_kernels.backends.triton.arguments import has_references
from genhoi_kernels.backends.triton.attention_bwd_common import Upstream
from genhoi_kernels.backends.triton.attention_bwd_dkdv import key_gradients, reference_key_gradients
from genhoi_kernels.backends.triton.attention_bwd_dq import query_gradient
from genhoi_kernels.backends.triton.attention_bwd_preprocess import preprocess
from genhoi_kernels.backends.triton.norm_rope import rotate_inputs, wanted_gradients
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, InputGrads


class Kernels(NamedTuple):
    """Which kernels compute gradients that are wanted."""

    dq: bool
    dkdv: bool
    reference_dkdv: bool

    @staticmethod
    def needed(call: AttentionCall, t: AttentionTensors) -> "Kernels":
        """Leave out every kernel none of whose gradients is wanted."""
        wanted = call.wanted
        bias = wanted.ref_bias and t.ref_bias is not None
        return Kernels(
            dq=wanted.q,
            dkdv=wanted.k or wanted.v,
            reference_dkdv=t.k_ref is not None and (wanted.k_ref or wanted.v_ref or bias),
        )


def attention_backward(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
    *,
    arch: str,
) -> InputGrads:
    """Compute the op's gradients that are wanted, and None for the others.

    o: the attention before the gate.
    """
    kernels, wanted = Kernels.needed(call, t), call.wanted
    gradients: dict[str, Tensor | GateWeights | None] = dict.fromkeys(wanted._fields)
    if any(kernels) or (wanted.gate and t.gate is not None):
        dO, delta, gradients["gate"] = preprocess(call, t, o, grads, arch=arch)
        upstream = Upstream(dO, lse, delta)
    if any(kernels):
        t = rotate_inputs(
            call,
            t,
            k=kernels.dq or kernels.dkdv,
            k_ref=kernels.dq or kernels.reference_dkdv,
        )
    if kernels.dq:
        gradients["q"] = query_gradient(call, t, upstream, arch=arch)
    if kernels.dkdv:
        gradients["k"], gradients["v"] = key_gradients(call, t, upstream, arch=arch)
    if kernels.reference_dkdv:
        gradients["k_ref"], gradients["v_ref"], gradients["ref_bias"] = reference_gradients(
            call, t, upstream, arch=arch
        )
    return wanted_gradients(call, gradients)


def reference_gradients(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, *, arch: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute dk_ref, rotated as k_ref is, dv_ref and dbias, which is None without a bias."""
    assert t.k_ref is not None and t.v_ref is not None
    if not has_references(t) or 0 in t.q.shape:
        no_bias = None if t.ref_bias is None else torch.zeros_like(t.ref_bias)
        return torch.zeros_like(t.k_ref), torch.zeros_like(t.v_ref), no_bias
    dk_ref, dv_ref, ds_sums = reference_key_gradients(call, t, upstream, arch=arch)
    if ds_sums is None or t.ref_bias is None:
        return dk_ref, dv_ref, None
    dbias = torch.stack([of_segment.sum() for of_segment in ds_sums])
    return dk_ref, dv_ref, dbias.to(t.ref_bias.dtype)
