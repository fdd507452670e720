"""Attention processors that put GenHOI's op into the blocks of a diffusers Wan transformer.

A block calls ``attn1(x, None, None, rotary_emb)`` and ``attn2(x, context, None, None)`` and hands
``rotary_emb`` on untouched. So the reference stream runs through the same blocks by passing a
``ReferencePass`` in its place, and what a processor has to do follows from its arguments alone:
gradient checkpointing can call it again at any later time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import (
    WanAttnProcessor,
    _get_added_kv_projections,
    _get_qkv_projections,
)
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from genhoi.models.adapter import AdapterLayer, FlowGateReduction, local_weight
from genhoi_kernels import (
    FlowGate,
    GateWeights,
    HeadSlidingRope,
    MaskGate,
    VideoRope,
    qk_norm_rope,
    reference_attention,
)

__all__ = ["CrossAttention", "ReferencePass", "SelfAttention", "VideoPass"]

_TEXT_TOKENS = 512  # as in diffusers' WanAttnProcessor: what comes before them is the image


class ReferencePass:
    """One block's run over reference tokens; stands in ``rotary_emb``'s place.

    Args:
        rope: where the tokens are.

    The block's self-attention leaves k (rotated) and v here, each ``[b, M, H, D]``.
    """

    def __init__(self, rope: HeadSlidingRope) -> None:
        self.rope = rope
        self.k: Tensor | None = None
        self.v: Tensor | None = None


@dataclass(frozen=True, eq=False)
class VideoPass:
    """What one block's self-attention needs to know in a forward pass over video tokens.

    k_ref (rotated) and v_ref are ``[B or 1, M, H, D]`` or None; mask None: every token sees them.
    ref_bias ``[R]`` float32 is added to each reference's logits.
    """

    rope: VideoRope
    k_ref: Tensor | None = None
    v_ref: Tensor | None = None
    ref_lengths: tuple[int, ...] | None = None
    mask: MaskGate | None = None
    ref_bias: Tensor | None = None


class _Processor(nn.Module):
    """What both kinds share. ``base`` is the processor that was there before."""

    def __init__(
        self,
        base: WanAttnProcessor,
        flow_gate: FlowGateReduction | None,
        backend: str | None,
    ) -> None:
        super().__init__()
        self.base = base
        self.flow_gate = flow_gate
        self.backend = backend
        self.register_load_state_dict_post_hook(_forget_missing)

    # diffusers sets these two on every processor. They belong to its own attention, which runs
    # wherever the op has nothing to add.

    @property
    def _attention_backend(self) -> Any:
        return self.base._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.base._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.base._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.base._parallel_config = config

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing: the base is saved as if no adapter were attached."""
        return {} if destination is None else destination

    def _attend(self, gate: FlowGate | None, q: Tensor, *args: Any, **options: Any) -> Tensor:
        """The op, gated if gates are on; ``[B, N, H*D]``."""
        weights = None
        if self.flow_gate is not None and gate is not None:
            weights = GateWeights(*(local_weight(w, q) for w in gate.gate_weights()))
        out = reference_attention(
            q, *args, gate=weights, gate_reduction=self.flow_gate, backend=self.backend, **options
        )
        assert isinstance(out, Tensor)
        return out.flatten(2)

    def _check(self, attention_mask: Tensor | None) -> None:
        if attention_mask is not None:
            raise ValueError("attention_mask: got a tensor, wanted None: Wan attends to everything")
        if self._parallel_config is not None:
            raise NotImplementedError(
                "context parallelism is not supported with a GenHOI adapter attached; detach() it "
                "or do without enable_parallelism"
            )


def _forget_missing(processor: nn.Module, keys: Any) -> None:
    """The counterpart of ``state_dict``: a base's file lacks the adapter, and that is right."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if ".processor." not in key]


class SelfAttention(_Processor):
    """Video over video and reference tokens; in a ``ReferencePass``, reference over itself.

    Args:
        base: the processor in whose place this one stands.
        layer: the block's weights.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.
    """

    def __init__(
        self,
        base: WanAttnProcessor,
        layer: AdapterLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.lora_q, self.lora_k, self.lora_v = layer.lora_q, layer.lora_k, layer.lora_v
        self.gate = layer.self_gate
        self.current: VideoPass | None = None
        # Called with q and k, rotated, of every video pass; see attention_share.py.
        self.observer: Callable[[Tensor, Tensor, VideoPass], None] | None = None
        self.casts = 0
        self._of_forward = WeakTensorKeyDictionary()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Counts changes of the weights' dtype by ``to``, which leave versions as they are."""
        before = self.lora_k.down.dtype
        super()._apply(fn, recurse)
        self.casts += self.lora_k.down.dtype != before
        return self

    def set_pass(self, current: VideoPass | None, rotary: Tensor) -> None:
        """Set what the coming forward pass needs; None leaves it to the base's processor.

        Args:
            current: the same for all calls until this is called again.
            rotary: the tensor that ``rope`` made for this forward pass. A checkpointed block is
                called again during the backward pass, with that very tensor, when ``current`` may
                long belong to another clip.
        """
        self.current = current
        if torch.is_grad_enabled():
            self._of_forward[rotary] = current

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """As ``WanAttnProcessor``; hidden_states ``[B, N, H*D]``."""
        if isinstance(rotary_emb, ReferencePass):
            return self._reference(attn, hidden_states, rotary_emb)
        current = self._pass_of(rotary_emb)
        if current is None:
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self._check(attention_mask)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q, k = _norm_rope(attn, q, k, current.rope, self.backend)
        if self.observer is not None:
            self.observer(q, k, current)
        out = self._attend(
            self.gate, q, k, _heads(attn, v), current.k_ref, current.v_ref,
            mask=current.mask, ref_lengths=current.ref_lengths, ref_bias=current.ref_bias,
        )  # fmt: skip
        return _project_out(attn, out)

    def _pass_of(self, rotary_emb: Any) -> VideoPass | None:
        # A compiled block reads plain attributes only; see docs/model_layer.md for what follows.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found: VideoPass | None = self._of_forward.get(rotary_emb[0], self.current)
            return found
        return self.current

    def _reference(self, attn: Any, hidden_states: Tensor, into: ReferencePass) -> Tensor:
        self._check(None)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q = q + self.lora_q(hidden_states)
        k = k + self.lora_k(hidden_states)
        v = v + self.lora_v(hidden_states)
        q, k = _norm_rope(attn, q, k, into.rope, self.backend)
        into.k, into.v = k, _heads(attn, v)
        return _project_out(attn, self._attend(self.gate, q, k, into.v))


class CrossAttention(_Processor):
    """Video over text and image, each gated; nothing in a ``ReferencePass``.

    Args: as ``SelfAttention``.
    """

    def __init__(
        self,
        base: WanAttnProcessor,
        layer: AdapterLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.text_gate, self.image_gate = layer.text_gate, layer.image_gate

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """As ``WanAttnProcessor``; encoder_hidden_states ``[B, image + 512 text tokens, H*D]``,
        None in a reference pass."""
        if encoder_hidden_states is None:
            return torch.zeros_like(hidden_states)
        if self.flow_gate is None:
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self._check(attention_mask)
        text, image = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            image, text = text[:, :-_TEXT_TOKENS], text[:, -_TEXT_TOKENS:]
        q, k, v = _get_qkv_projections(attn, hidden_states, text)
        q, k, v = (_heads(attn, x) for x in (attn.norm_q(q), attn.norm_k(k), v))
        out = self._attend(self.text_gate, q, k, v)
        if image is not None:
            k, v = _get_added_kv_projections(attn, image)
            k, v = _heads(attn, attn.norm_added_k(k)), _heads(attn, v)
            out = out + self._attend(self.image_gate, q, k, v)
        return _project_out(attn, out)


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (attn.heads, -1))


def _norm_rope(
    attn: Any, q: Tensor, k: Tensor, rope: VideoRope | HeadSlidingRope, backend: str | None
) -> tuple[Tensor, Tensor]:
    q_weight, k_weight = local_weight(attn.norm_q.weight, q), local_weight(attn.norm_k.weight, k)
    return qk_norm_rope(q, k, q_weight, k_weight, rope, eps=attn.norm_q.eps, backend=backend)


def _project_out(attn: Any, x: Tensor) -> Tensor:
    out: Tensor = attn.to_out[1](attn.to_out[0](x))
    return out
