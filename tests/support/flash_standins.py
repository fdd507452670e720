"""Stand-ins for the FlashAttentions: their signatures and layouts, computed by torch.

Each function has the parameters of the real one (flash_signatures.json, or this torch's
own schemas, which the tests hold them against), refuses what the real one refuses as far as this
project could ask for it, and notes its calls.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from genhoi_kernels.backends.flash import torch_own, versions

INF = float("inf")


@dataclass
class Call:
    """What a stand-in was asked: rows and keys of each sample, and how."""

    kind: str
    batch: int
    rows: int
    keys: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    deterministic: bool = False


Calls = list[Call]


def check(*tensors: Tensor) -> None:
    """Of q, k, v and what has their layout: what the packages check, or silently rely on."""
    q, k = tensors[:2]
    assert len({x.dtype for x in tensors}) == 1 and q.dtype in (torch.float16, torch.bfloat16)
    assert q.shape[0] == k.shape[0] > 0 and q.shape[2:] == k.shape[2:]
    assert q.shape[3] % 8 == 0 and q.shape[3] <= 256
    assert 0 not in q.shape and 0 not in k.shape
    for x in tensors:
        assert x.stride(3) == 1 and all(s % 8 == 0 for s in x.stride()[:3])
        assert x.data_ptr() % 16 == 0
        assert x.stride(0) != 0 or x.shape[0] == 1


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output as q, lse [B, H, N]; probabilities are rounded, then divided by their sum."""
    check(q, k, v)
    Q, K, V = (x.float().transpose(1, 2) for x in (q, k, v))
    S = Q @ K.mT * scale
    m = S.amax(-1, keepdim=True)
    P = torch.exp(S - m)
    total = P.sum(-1, keepdim=True)
    O = P.to(q.dtype).float() @ V / total
    return O.transpose(1, 2).to(q.dtype), (m + total.log())[..., 0]


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; probabilities and delta from the lse and the output that are given."""
    check(q, k, v, out, dout)
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    Q, K, V, O, dO = (x.float().transpose(1, 2) for x in (q, k, v, out, dout))
    P = torch.exp(Q @ K.mT * scale - lse[..., None])
    delta = (dO * O).sum(-1, keepdim=True)
    dS = (P * (dO @ V.mT - delta)).to(q.dtype).float()
    dV = P.to(q.dtype).float().mT @ dO
    gradients = dS @ K * scale, dS.mT @ Q * scale, dV
    dq, dk, dv = (x.transpose(1, 2).to(q.dtype) for x in gradients)
    return dq, dk, dv


def noted(calls: Calls, kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Note every call of a function, whose q and k are found by name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            q, k = given["q"], given["k"]
            calls.append(
                Call(
                    kind,
                    q.shape[0],
                    q.shape[1],
                    k.shape[1],
                    args,
                    kwargs,
                    bool(given.get("deterministic")),
                )
            )
            return function(*args, **kwargs)

        return noting

    return decorate


def flash_2(calls: Calls) -> dict[str, ModuleType]:
    """flash-attn 2.8."""
    package, module = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")

    @noted(calls, "forward")
    def _flash_attn_forward(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        return_softmax,
    ):
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        assert softcap == 0.0 and alibi_slopes is None and return_softmax is False
        out, lse = forward(q, k, v, softmax_scale)
        return out, lse, q.new_empty(0), torch.zeros(2, dtype=torch.int64)

    @noted(calls, "backward")
    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        assert softcap == 0.0 and alibi_slopes is None and rng_state is None
        gradients = backward(dout, q, k, v, out, softmax_lse, softmax_scale)
        for place, x in zip((dq, dk, dv), gradients, strict=True):
            place.copy_(x)
        return torch.zeros_like(softmax_lse)

    package.__version__ = "2.8.3"
    module._flash_attn_forward = _flash_attn_forward
    module._flash_attn_backward = _flash_attn_backward
    return {"flash_attn": package, "flash_attn.flash_attn_interface": module}


def flash_3(calls: Calls, name: str = "flash_attn_interface") -> dict[str, ModuleType]:
    """flash-attn 3 as it was first: window_size is one argument, most have no default."""
    module = ModuleType(name)

    @noted(calls, "forward")
    def _flash_attn_forward(
        q,
        k,
        v,
        k_new,
        v_new,
        qv,
        out,
        cu_seqlens_q,
        cu_seqlens_k,
        cu_seqlens_k_new,
        seqused_q,
        seqused_k,
        max_seqlen_q,
        max_seqlen_k,
        page_table,
        kv_batch_idx,
        leftpad_k,
        rotary_cos,
        rotary_sin,
        seqlens_rotary,
        q_descale,
        k_descale,
        v_descale,
        softmax_scale,
        causal,
        window_size=(-1, -1),
        attention_chunk=0,
        softcap=0.0,
        rotary_interleaved=True,
        scheduler_metadata=None,
        num_splits=1,
        pack_gqa=None,
        sm_margin=0,
    ):
        assert causal is False
        return *forward(q, k, v, softmax_scale), None, None

    @noted(calls, "backward")
    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        cu_seqlens_q,
        cu_seqlens_k,
        sequed_q,
        sequed_k,
        max_seqlen_q,
        max_seqlen_k,
        dq,
        dk,
        dv,
        softmax_scale,
        causal,
        window_size=(-1, -1),
        softcap=0.0,
        deterministic=False,
        sm_margin=0,
    ):
        assert causal is False
        gradients = backward(dout, q, k, v, out, softmax_lse, softmax_scale)
        for place, x in zip((dq, dk, dv), gradients, strict=True):
            place.copy_(x)
        return dq, dk, dv, torch.zeros_like(softmax_lse)

    module._flash_attn_forward = _flash_attn_forward
    module._flash_attn_backward = _flash_attn_backward
    return {name: module}


def flash_3_operator(calls: Calls, name: str = "flash_attn_interface") -> dict[str, ModuleType]:
    """flash-attn 3 since it is a torch operator: window sizes apart, other names, defaults."""
    module = ModuleType(name)

    @noted(calls, "forward")
    def _flash_attn_forward(
        q,
        k,
        v,
        k_new=None,
        v_new=None,
        qv=None,
        out_=None,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        cu_seqlens_k_new=None,
        seqused_q=None,
        seqused_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        page_table=None,
        kv_batch_idx=None,
        leftpad_k=None,
        rotary_cos=None,
        rotary_sin=None,
        seqlens_rotary=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        softmax_scale=None,
        causal=False,
        window_size_left=-1,
        window_size_right=-1,
        attention_chunk=0,
        softcap=0.0,
        rotary_interleaved=True,
        scheduler_metadata=None,
        num_splits=1,
        pack_gqa=None,
        sm_margin=0,
    ):
        assert causal is False
        return *forward(q, k, v, softmax_scale), q.new_empty(0), q.new_empty(0)

    @noted(calls, "backward")
    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        sequed_q=None,
        sequed_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        dq=None,
        dk=None,
        dv=None,
        softmax_scale=None,
        is_causal=False,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        deterministic=False,
        sm_margin=0,
    ):
        assert is_causal is False
        gradients = backward(dout, q, k, v, out, softmax_lse, softmax_scale)
        for place, x in zip((dq, dk, dv), gradients, strict=True):
            place.copy_(x)
        return torch.zeros_like(softmax_lse)

    module._flash_attn_forward = _flash_attn_forward
    module._flash_attn_backward = _flash_attn_backward
    return {name: module}


def flash_3_forward_only(calls: Calls) -> dict[str, ModuleType]:
    """The package fa3-fwd: it has the backward's Python function, not its kernels, and no fp16."""
    config = ModuleType("fa3_fwd_config")
    config.CONFIG = {
        "build_flags": {
            "FLASHATTENTION_DISABLE_BACKWARD": True,
            "FLASHATTENTION_DISABLE_FP16": True,
        }
    }
    return flash_3_operator(calls, "fa3_fwd_interface") | {"fa3_fwd_config": config}


def flash_4(calls: Calls) -> dict[str, ModuleType]:
    """flash-attn-4 4.0.0b36."""
    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    module = ModuleType("flash_attn.cute.interface")

    @noted(calls, "forward")
    def _flash_attn_fwd(
        q,
        k,
        v,
        qv=None,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        seqused_q=None,
        seqused_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        min_seqlen_k=None,
        page_table=None,
        softmax_scale=None,
        causal=False,
        softcap=None,
        window_size_left=None,
        window_size_right=None,
        learnable_sink=None,
        tile_mn=None,
        mma_pv_is_rs=None,
        intra_wg_overlap=None,
        num_threads=384,
        num_splits=1,
        pack_gqa=None,
        _arch=None,
        score_mod=None,
        mask_mod=None,
        block_sparse_tensors=None,
        return_lse=False,
        out=None,
        lse=None,
        aux_tensors=None,
        aux_scalars=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        gather_kv_indices=None,
        scheduler_metadata=None,
        seqlen_k_per_split=None,
        disable_scheduler_metadata=False,
        gather_bwd_recompute_p=False,
    ):
        assert causal is False
        out, lse = forward(q, k, v, softmax_scale)
        return out, lse if return_lse else None, None, None, None

    @noted(calls, "backward")
    def _flash_attn_bwd(
        q,
        k,
        v,
        out,
        dout,
        lse,
        softmax_scale=None,
        causal=False,
        softcap=0.0,
        window_size_left=None,
        window_size_right=None,
        m_block_size=64,
        n_block_size=128,
        num_threads=256,
        pack_gqa=False,
        num_stages_Q=2,
        num_stages_dO=2,
        SdP_swapAB=False,
        dKV_swapAB=False,
        dQ_swapAB=False,
        AtomLayoutMSdP=2,
        AtomLayoutNdKV=2,
        AtomLayoutMdQ=2,
        V_in_regs=False,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        seqused_q=None,
        seqused_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        deterministic=False,
        dq=None,
        dk=None,
        dv=None,
        score_mod=None,
        score_mod_bwd=None,
        mask_mod=None,
        aux_tensors=None,
        aux_scalars=None,
        block_sparse_tensors=None,
        dlse=None,
        learnable_sink=None,
    ):
        assert causal is False
        return backward(dout, q, k, v, out, lse, softmax_scale)

    module._flash_attn_fwd, module._flash_attn_bwd = _flash_attn_fwd, _flash_attn_bwd
    return {"flash_attn": package, "flash_attn.cute": cute, "flash_attn.cute.interface": module}


STANDINS: dict[str, Callable[[Calls], dict[str, ModuleType]]] = {
    "flash-attn 2": flash_2,
    "flash-attn 3": flash_3,
    "flash-attn 3, operator": flash_3_operator,
    "fa3-fwd": flash_3_forward_only,
    "flash-attn 4": flash_4,
}


def only_deterministic() -> bool:
    """As torch's operators look at it."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


class Aten:
    """torch's attentions: the real operators check each call on tensors without data."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._plans: dict[Any, Any] = {}

    @staticmethod
    def _real(name: str, *args: Any, **kwargs: Any) -> Any:
        """What the real operator says of its results; it raises where the call is malformed."""
        given = [x.to("meta") if isinstance(x, Tensor) else x for x in args]
        return getattr(torch.ops.aten, name)(*given, **kwargs)

    def _note(self, kind: str, q: Tensor, k: Tensor, dim: int, deterministic: bool = False) -> None:
        sizes = q.shape[0], q.shape[dim], k.shape[dim]
        self._calls.append(Call(kind, *sizes, deterministic=deterministic))

    def _flash_attention_forward(
        self,
        query,
        key,
        value,
        cum_seq_q,
        cum_seq_k,
        max_q,
        max_k,
        dropout_p,
        is_causal,
        return_debug_mask,
        *,
        scale=None,
        window_size_left=None,
        window_size_right=None,
        seqused_k=None,
        alibi_slopes=None,
    ):
        args = query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal
        real = self._real("_flash_attention_forward", *args, return_debug_mask, scale=scale)
        assert (cum_seq_q, cum_seq_k, dropout_p) == (None, None, 0.0)
        assert (max_q, max_k) == (query.shape[1], key.shape[1])
        assert is_causal is False and return_debug_mask is False and scale is not None
        self._note("forward", query, key, 1)
        out, lse = forward(query, key, value, scale)
        assert (out.shape, lse.shape, lse.dtype) == (real[0].shape, real[1].shape, real[1].dtype)
        return out, lse, *real[2:]

    def _flash_attention_backward(
        self,
        grad_out,
        query,
        key,
        value,
        out,
        logsumexp,
        cum_seq_q,
        cum_seq_k,
        max_q,
        max_k,
        dropout_p,
        is_causal,
        rng_state,
        unused,
        *,
        scale=None,
        window_size_left=None,
        window_size_right=None,
    ):
        tensors = grad_out, query, key, value, out, logsumexp
        sizes = cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state, unused
        self._real("_flash_attention_backward", *tensors, *sizes, scale=scale)
        assert (cum_seq_q, cum_seq_k, dropout_p, is_causal) == (None, None, 0.0, False)
        assert (max_q, max_k) == (query.shape[1], key.shape[1])
        assert (rng_state.shape, rng_state.dtype) == ((2,), torch.uint64)
        assert rng_state.device == unused.device == query.device and scale is not None
        self._note("backward", query, key, 1, only_deterministic())
        return backward(*tensors, scale)

    def _scaled_dot_product_cudnn_attention(
        self,
        query,
        key,
        value,
        attn_bias,
        compute_log_sumexp,
        dropout_p=0.0,
        is_causal=False,
        return_debug_mask=False,
        *,
        scale=None,
    ):
        args = query, key, value, attn_bias, compute_log_sumexp
        real = self._real("_scaled_dot_product_cudnn_attention", *args, scale=scale)
        assert attn_bias is None and compute_log_sumexp is True and scale is not None
        assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
        assert query.shape[2] > 1 and key.shape[2] > 1 and query.shape[3] <= 128
        self._note("forward", query, key, 2)
        out, lse = forward(*(x.transpose(1, 2) for x in (query, key, value)), scale)
        out, lse = out.contiguous().transpose(1, 2), lse.reshape(real[1].shape)
        assert (out.shape, lse.dtype) == (real[0].shape, real[1].dtype)
        return out, lse, *real[2:]

    def _scaled_dot_product_cudnn_attention_backward(
        self,
        grad_out,
        query,
        key,
        value,
        out,
        logsumexp,
        philox_seed,
        philox_offset,
        attn_bias,
        cum_seq_q,
        cum_seq_k,
        max_q,
        max_k,
        dropout_p,
        is_causal,
        *,
        scale=None,
    ):
        tensors = grad_out, query, key, value, out, logsumexp
        random = philox_seed, philox_offset
        sizes = attn_bias, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal
        self._real(
            "_scaled_dot_product_cudnn_attention_backward", *tensors, *random, *sizes, scale=scale
        )
        assert (attn_bias, cum_seq_q, cum_seq_k) == (None, None, None)
        assert (max_q, max_k) == (query.shape[2], key.shape[2]) and 1 not in (max_q, max_k)
        assert (dropout_p, is_causal) == (0.0, False) and scale is not None
        assert all(x.dtype == torch.int64 and x.device == query.device for x in random)
        assert logsumexp.dim() == 4 and logsumexp.is_contiguous()
        # A plan is found again by these alone, and reads the others as it did at first.
        found_by = tuple((x.shape, x.stride()) for x in (query, key, value))
        reads = tuple(x.stride() for x in (grad_out, out, logsumexp))
        assert self._plans.setdefault(found_by, reads) == reads
        self._note("backward", query, key, 2)
        dout, q, k, v, o = (x.transpose(1, 2) for x in tensors[:5])
        gradients = backward(dout, q, k, v, o, logsumexp[..., 0], scale)
        return tuple(x.transpose(1, 2) for x in gradients)


# The finder of each of torch's.
TORCH_OWN = {"torch flash": "_torch_flash", "torch cuDNN": "_torch_cudnn"}
ALL = (*STANDINS, *TORCH_OWN)


def install(name: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Nothing but this stand-in can be found (None: not even one); its calls, as they come."""
    calls: Calls = []
    for module in (
        "flash_attn",
        "flash_attn.flash_attn_interface",
        "flash_attn.cute",
        "flash_attn.cute.interface",
        "flash_attn_interface",
        "flash_attn_config",
        "fa3_fwd_interface",
        "fa3_fwd_config",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(torch_own, "torch_has_flash", lambda: name in TORCH_OWN)
    if name in STANDINS:
        for module, standin in STANDINS[name](calls).items():
            monkeypatch.setitem(sys.modules, module, standin)
    if name in TORCH_OWN:
        monkeypatch.setattr(torch_own, "cudnn_version", lambda: 91501)
        finder = getattr(versions, TORCH_OWN[name])
        monkeypatch.setattr(versions, "_FINDERS", (finder,))
        monkeypatch.setattr(torch_own, "aten", Aten(calls))
        monkeypatch.setenv(torch_own.CUDNN_BACKWARD, "1")
    with fused_attention_on():
        versions.installed.cache_clear()
        yield calls
    monkeypatch.undo()
    versions.installed.cache_clear()


@contextlib.contextmanager
def fused_attention_on() -> Iterator[None]:
    """torch's switches for its attentions are on (the emulated GPU turns them off).

    And determinism is not demanded, though memory stays poisoned: cuDNN would refuse to train, and
    FlashAttention would be deterministic without being asked.
    """
    backends = torch.backends.cuda
    before = backends.flash_sdp_enabled(), backends.cudnn_sdp_enabled()
    backends.enable_flash_sdp(True)
    backends.enable_cudnn_sdp(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)
        backends.enable_flash_sdp(before[0])
        backends.enable_cudnn_sdp(before[1])
