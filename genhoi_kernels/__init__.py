"""Fused attention of GenHOI: head-sliding RoPE, mask gate and flow gate in one op."""

from genhoi_kernels._version import __version__
from genhoi_kernels.backends.native import build_info
from genhoi_kernels.backends.registry import BackendStatus, EagerFallbackWarning, backends, supports
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.functional import apply_rope, explain, qk_norm_rope, reference_attention
from genhoi_kernels.layouts import LayoutWarning
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.modules import (
    FlowGate,
    HeadSlidingRoPE,
    ReferenceAttention,
    ReferenceRotation,
)
from genhoi_kernels.rope import HeadSlidingRope, ReferenceFramesRope, VideoRope, head_frames
from genhoi_kernels.spec import AttentionCall, RopeCall

__all__ = [
    "AttentionCall",
    "BackendStatus",
    "EagerFallbackWarning",
    "FlowGate",
    "GateWeights",
    "HeadSlidingRoPE",
    "HeadSlidingRope",
    "LayoutWarning",
    "MaskGate",
    "ReferenceAttention",
    "ReferenceFramesRope",
    "ReferenceRotation",
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


def __dir__() -> list[str]:
    """List what is public; the modules behind it stay importable."""
    return sorted(name for name in __all__ if not name.startswith("_"))
