"""The generations of FlashAttention that can be installed, each called its own way.

Every adapter offers the same two calls over ``[B, tokens, H, D]`` tensors, without dropout and
without a mask: forward gives the output and its log-sum-exp (natural log, ``[B, H, rows]``
float32), backward takes both back, which need not be of these keys alone: probabilities are
exp(S - lse), and delta is the row sum of dout times out.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]

INTERPRETER = "interpreter"
_NO_BACKWARD = "FLASHATTENTION_DISABLE_BACKWARD"
_NO_FLOAT16 = "FLASHATTENTION_DISABLE_FP16"


class FlashAttention2:
    """Package flash-attn, 2.7 or newer: sm_80 and later, head dims that 8 divides, up to 256."""

    generation = 2
    package = "flash-attn"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Why it can't take such a call on such a GPU, or None."""
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
        """Output and lse of q over k and v."""
        found = self._module._flash_attn_forward(
            q, k, v, dropout_p=0.0, softmax_scale=scale, causal=False, window_size_left=-1,
            window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        )  # fmt: skip
        return found[0], found[1]

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Triple:
        """dq, dk and dv, the same from run to run."""
        dq, dk, dv = _like(q), _like(k), _like(v)
        self._module._flash_attn_backward(
            dout, q, k, v, out, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=scale, causal=False,
            window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
            deterministic=True, rng_state=None,
        )  # fmt: skip
        return dq, dk, dv


class FlashAttention3:
    """Module flash_attn_interface, or fa3_fwd_interface of a package without a backward: sm_90.

    Its two known forms agree on the arguments up to ``causal`` in place, not in name.
    """

    generation = 3

    def __init__(self, module: ModuleType, package: str, flags: dict[str, Any]) -> None:
        self._module, self._flags, self.package = module, flags, package

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Why it can't take such a call on such a GPU, or None."""
        if arch not in ("sm_90", INTERPRETER):
            return f"{self.package} is for sm_90, not for {arch}"
        if needs_grad and self._flags.get(_NO_BACKWARD):
            return f"{self.package} has no backward pass, and this call needs gradients"
        if dtype == torch.float16 and self._flags.get(_NO_FLOAT16):
            return f"{self.package} was built without torch.float16"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
        """Output and lse of q over k and v."""
        nothing = [None] * 20  # from k_new to v_descale
        found = self._module._flash_attn_forward(q, k, v, *nothing, scale, False)
        return found[0], found[1]

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Triple:
        """dq, dk and dv, the same from run to run."""
        dq, dk, dv = _like(q), _like(k), _like(v)
        nothing = [None] * 6  # from cu_seqlens_q to max_seqlen_k
        self._module._flash_attn_backward(
            dout, q, k, v, out, lse, *nothing, dq, dk, dv, scale, False, deterministic=True
        )
        return dq, dk, dv


class FlashAttention4:
    """Package flash-attn-4 (flash_attn.cute): sm_90, sm_100 to sm_110."""

    generation = 4
    package = "flash-attn-4"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Why it can't take such a call on such a GPU, or None."""
        if arch not in ("sm_90", "sm_100", "sm_103", "sm_110", INTERPRETER):
            return f"{self.package} is for sm_90 and sm_100 to sm_110, not for {arch}"
        if arch not in ("sm_90", INTERPRETER) and head_dim > 128 and head_dim != 256:
            return f"{self.package} takes head dims up to 128, and 256, on {arch}, not {head_dim}"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
        """Output and lse of q over k and v."""
        found = self._module._flash_attn_fwd(
            q, k, v, softmax_scale=scale, causal=False, return_lse=True
        )
        return found[0], found[1]

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Triple:
        """dq, dk and dv, the same from run to run."""
        found = self._module._flash_attn_bwd(
            q, k, v, out, dout, lse, softmax_scale=scale, causal=False, deterministic=True
        )
        return found[0], found[1], found[2]


Flash = FlashAttention2 | FlashAttention3 | FlashAttention4


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _import(name: str) -> ModuleType | None:
    """The module, or None if it is not installed or can't be loaded here (a wrong CUDA, say)."""
    try:
        return importlib.import_module(name)
    except Exception:  # compiled packages fail in many ways, and any of them means: not usable
        return None


def _flash_2() -> Flash | None:
    package = _import("flash_attn")
    module = None if package is None else _import("flash_attn.flash_attn_interface")
    if package is None or module is None:
        return None
    version = str(getattr(package, "__version__", "0.0")).split(".")
    # 2.7 split window_size into two arguments and dropped the padded outputs.
    return FlashAttention2(module) if [int(n) for n in version[:2]] >= [2, 7] else None


def _flash_3(module_name: str, package: str, config_name: str) -> Flash | None:
    module = _import(module_name)
    if module is None:
        return None
    config = getattr(_import(config_name), "CONFIG", {})
    return FlashAttention3(module, package, dict(config.get("build_flags", {})))


def _flash_4() -> Flash | None:
    module = _import("flash_attn.cute.interface")
    if module is None:
        return None
    # flash-attn 2.8 brings a forerunner, whose lse cannot be asked for.
    wanted = {"_flash_attn_fwd": "return_lse", "_flash_attn_bwd": "deterministic"}
    for name, parameter in wanted.items():
        function = getattr(module, name, None)
        if function is None or parameter not in inspect.signature(function).parameters:
            return None
    return FlashAttention4(module)


_FINDERS: tuple[Callable[[], Flash | None], ...] = (
    lambda: _flash_3("flash_attn_interface", "flash-attn-3", "flash_attn_config"),
    _flash_4,
    lambda: _flash_3("fa3_fwd_interface", "fa3-fwd", "fa3_fwd_config"),
    _flash_2,
)


@functools.lru_cache(maxsize=1)
def installed() -> tuple[Flash, ...]:
    """The usable ones, in the order in which they are tried; imports them, once."""
    return tuple(found for find in _FINDERS if (found := find()) is not None)
