"""The structs of csrc/cuda/launch.h, for calls through the C interface."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_uint32, c_void_p


class Tokens(Structure):
    """GenhoiTokens."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64)]


class Gate(Structure):
    """GenhoiGate."""

    _fields_ = [
        (f"{part}_{kind}", c_void_p)
        for part in ("norm", "fc1", "fc2")
        for kind in ("weight", "bias")
    ]


class Attention(Structure):
    """GenhoiAttention."""

    _fields_ = [
        *[(name, c_int32) for name in ("dtype", "batch", "heads", "head_dim")],
        *[(name, c_int32) for name in ("rows", "keys", "ref_tokens", "references")],
        ("scale", c_float),
        *[(name, Tokens) for name in ("q", "k", "v", "k_ref", "v_ref")],
        *[(name, c_void_p) for name in ("segments", "ref_bias", "bits")],
        ("bits_batch", c_int64),
        ("tile_bits", c_void_p),
        ("tile_bits_batch", c_int64),
        ("gate_mode", c_int32),
        ("gate", Gate),
    ]


class Forward(Structure):
    """GenhoiForward."""

    _fields_ = [
        ("of", Attention),
        *[(name, c_void_p) for name in ("out", "ungated", "lse", "gate_sums")],
    ]


class Backward(Structure):
    """GenhoiBackward."""

    _fields_ = [
        ("of", Attention),
        *[(name, Tokens) for name in ("out", "dout")],
        *[(name, c_void_p) for name in ("lse", "dlse", "delta", "dq", "dk", "dv")],
        ("ref_batch", c_int32),
        *[(name, c_void_p) for name in ("dk_ref", "dv_ref", "dref_bias", "bias_parts")],
        *[(name, c_void_p) for name in ("dq_sums", "dq_counters")],
    ]


class Scratch(Structure):
    """GenhoiScratch."""

    _fields_ = [("dq_sums", c_int64), ("dq_counters", c_int64), ("is_faster", c_int32)]


class GateBackward(Structure):
    """GenhoiFlowGateBackward."""

    _fields_ = [
        ("of", Attention),
        *[(name, Tokens) for name in ("out", "dout")],
        *[(name, c_void_p) for name in ("dlse", "dgate_sum", "grad", "delta")],
        *[(name, c_void_p) for name in ("du_x", "dfc1_bias", "dfc2_weight", "dfc2_bias")],
    ]


class Plan(Structure):
    """GenhoiPlan."""

    _fields_ = [("grid", c_uint32 * 3), ("block", c_uint32), ("shared", c_uint32)]
