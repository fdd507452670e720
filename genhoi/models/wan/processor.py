"""What GenHOI's attention processors in a diffusers Wan transformer share.

A block calls ``attn1(x, None, None, rotary_emb)`` and ``attn2(x, context, None, None)``. What a
processor has to do follows from its arguments alone: gradient checkpointing can call it again at
any later time.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.placement import local_weight
from genhoi.models.wan.passes import VideoPass
from genhoi.models.wan.programs import ProgramPass
from genhoi_kernels import FlowGate, GateWeights, reference_attention

__all__ = ["Processor", "project_out", "split_heads"]


class Processor(nn.Module):
    """What the processors of self-attention and cross-attention share.

    Args:
        base: the processor in whose place this one stands.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.
    """

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
        self.register_load_state_dict_post_hook(_ignore_missing)

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
        """Return nothing: the base is saved as if no adapter were attached."""
        return {} if destination is None else destination

    def attention(
        self,
        gate: FlowGate | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        video: VideoPass | ProgramPass | None = None,
    ) -> Tensor:
        """Call the op, gated if gates are on.

        Args:
            gate: of this attention.
            q, k, v: ``[B, N, H, D]``, rotated.
            video: whose references are attended to beside k and v; None: there are none.

        Returns:
            ``[B, N, H*D]``.
        """
        weights = None
        if self.flow_gate is not None and gate is not None:
            weights = GateWeights(*(local_weight(w, q) for w in gate.gate_weights()))
        attend = reference_attention if video is None else video.attend
        out = attend(q, k, v, gate=weights, gate_reduction=self.flow_gate, backend=self.backend)
        assert isinstance(out, Tensor)
        return out.flatten(2)

    def check(self, attention_mask: Tensor | None) -> None:
        if attention_mask is not None:
            raise ValueError("attention_mask: got a tensor, wanted None: Wan attends to everything")
        if self._parallel_config is not None:
            raise NotImplementedError(
                "context parallelism is not supported with a GenHOI adapter attached; detach() it "
                "or do without enable_parallelism"
            )


def _ignore_missing(processor: nn.Module, keys: Any) -> None:
    """Let a base's file lack the adapter, as ``state_dict`` leaves it out."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if ".processor." not in key]


def split_heads(attn: Any, x: Tensor) -> Tensor:
    """Split ``[B, N, H*D]`` to ``[B, N, H, D]``, by an attention layer's heads."""
    return x.unflatten(2, (attn.heads, -1))


def project_out(attn: Any, x: Tensor) -> Tensor:
    """Run an attention layer's last projection, ``[B, N, H*D]``."""
    out: Tensor = attn.to_out[1](attn.to_out[0](x))
    return out
