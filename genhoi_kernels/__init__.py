"""Fused attention of GenHOI: head-sliding RoPE, mask gate and flow gate in one op."""

from ._version import __version__
from .call import AttentionCall, RopeCall
from .functional import apply_rope, explain, qk_norm_rope, reference_attention
from .gate import GateWeights
from .mask_gate import MaskGate
from .modules import FlowGate, HeadSlidingRoPE, ReferenceAttention
from .native import build_info
from .registry import BackendStatus, backends, supports
from .rope import HeadSlidingRope, VideoRope, head_frames

__all__ = [
    "AttentionCall",
    "BackendStatus",
    "FlowGate",
    "GateWeights",
    "HeadSlidingRoPE",
    "HeadSlidingRope",
    "MaskGate",
    "ReferenceAttention",
    "RopeCall",
    "VideoRope",
    "__version__",
    "apply_rope",
    "backends",
    "build_info",
    "explain",
    "head_frames",
    "qk_norm_rope",
    "reference_attention",
    "supports",
]
