"""The FlashAttentions there are, installed ones and torch's own, each called its own way.

Every adapter offers the same two calls over ``[B, tokens, H, D]`` tensors, without dropout and
without a mask: forward gives the output and its log-sum-exp (natural log, ``[B, H, rows]``
float32), backward takes both back, which need not be of these keys alone: probabilities are
exp(S - lse), and delta is the row sum of dout times out. ``row_multiple``: counts of rows that
differ from call to call are best rounded up to it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]

INTERPRETER = "interpreter"
CUDNN_BACKWARD = "GENHOI_CUDNN_BACKWARD"
"""Environment variable: "1" lets cuDNN train, whose gradients differ a little from run to run."""
ONLY = "GENHOI_FLASH"
"""Environment variable: the only one to take, such as "torch-cudnn" (a name of Generation)."""

aten: Any = torch.ops.aten
"""Where torch's own are called; tests put stand-ins here."""


class Generation(enum.IntEnum):
    """Which one it is, for entries of ``choices``; 0 there means none of them."""

    FLASH_2 = 2
    FLASH_3 = 3
    FLASH_4 = 4
    TORCH_FLASH = 20
    """FlashAttention 2 as torch compiled it."""
    TORCH_CUDNN = 90
    """cuDNN's attention, by way of torch."""


_NO_BACKWARD = "FLASHATTENTION_DISABLE_BACKWARD"
_NO_FLOAT16 = "FLASHATTENTION_DISABLE_FP16"


class FlashAttention2:
    """Package flash-attn, 2.7 or newer: sm_80 and later, head dims that 8 divides, up to 256."""

    generation = Generation.FLASH_2
    row_multiple = 1
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

    generation = Generation.FLASH_3
    row_multiple = 1

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

    generation = Generation.FLASH_4
    row_multiple = 1
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


class TorchFlash:
    """torch's own FlashAttention 2: sm_80 and later, head dims that 8 divides, up to 256.

    ``torch.nn.attention.activate_flash_attention_impl`` puts another behind the same operators.
    """

    generation = Generation.TORCH_FLASH
    package = "torch's FlashAttention"
    row_multiple = 1

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Why it can't take such a call on such a GPU, or None."""
        return switched_off(self) or _needs_gpu(self.package, arch)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
        """Output and lse of q over k and v."""
        found = aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, False, False, scale=scale
        )
        return found[0], found[1]

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Triple:
        """dq, dk and dv, the same from run to run."""
        unread = torch.zeros(2, dtype=torch.uint64, device=q.device)  # dropout's random state
        with _deterministic():
            found = aten._flash_attention_backward(
                dout, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, False, unread,
                unread[:0], scale=scale,
            )  # fmt: skip
        return found[0], found[1], found[2]


class TorchCudnn:
    """cuDNN's attention, by way of torch: sm_80 and later, head dims that 8 divides, up to 128.

    cuDNN makes a plan for each shape, which takes it long: hence ``row_multiple``. Its gradients
    are not the same from run to run, and there is no asking for it.
    """

    generation = Generation.TORCH_CUDNN
    package = "torch's cuDNN attention"
    row_multiple = 256

    def __init__(self) -> None:
        self._for_one = TorchFlash()  # cuDNN refuses a single key, and on some GPUs a single row

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Why it can't take such a call on such a GPU, or None."""
        if head_dim > 128:
            return f"{self.package} takes head dims up to 128, not {head_dim}"
        if needs_grad and os.environ.get(CUDNN_BACKWARD) != "1":
            return (
                f"{self.package} has gradients that differ from run to run, and this call needs "
                f"some ({CUDNN_BACKWARD}=1 allows it)"
            )
        if needs_grad and _only_deterministic():
            return (
                f"{self.package} has gradients that differ from run to run, and "
                f"torch.use_deterministic_algorithms is on"
            )
        if needs_grad and os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") == "1":
            return f"{self.package} wants another lse with TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1"
        return switched_off(self) or _needs_gpu(self.package, arch)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
        """Output and lse of q over k and v."""
        if 1 in (q.shape[1], k.shape[1]):
            return self._for_one.forward(q, k, v, scale)
        Q, K, V = (x.transpose(1, 2) for x in (q, k, v))
        found = aten._scaled_dot_product_cudnn_attention(Q, K, V, None, True, scale=scale)
        out, lse = found[0], found[1]  # lse: [B, H, rows, 1], in older versions [B, H, rows]
        return out.transpose(1, 2), lse.reshape(Q.shape[:3])

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Triple:
        """dq, dk and dv; their last bits differ from run to run."""
        if 1 in (q.shape[1], k.shape[1]):
            return self._for_one.backward(dout, q, k, v, out, lse, scale)
        # torch finds a plan again by the strides of q, k and v alone (2.11), and the plan has those
        # of the others in it: they have to be the same in every call.
        Q, K, V = (x.transpose(1, 2) for x in (q, k, v))
        O, dO = (x.contiguous().transpose(1, 2) for x in (out, dout))
        unread = torch.zeros((), dtype=torch.int64, device=q.device)  # dropout's random state
        found = aten._scaled_dot_product_cudnn_attention_backward(
            dO, Q, K, V, O, lse.contiguous()[..., None], unread, unread, None, None, None,
            q.shape[1], k.shape[1], 0.0, False, scale=scale,
        )  # fmt: skip
        dq, dk, dv = (x.transpose(1, 2) for x in found[:3])
        return dq, dk, dv


Flash = FlashAttention2 | FlashAttention3 | FlashAttention4 | TorchFlash | TorchCudnn

_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """torch's deterministic algorithms, in the block alone.

    torch's FlashAttention has no other way to be asked. The setting is the process's: another
    thread can meet it while the block runs, which is a launch's time; two blocks at once would
    restore each other's. ``torch.use_deterministic_algorithms`` would set Inductor's, too. Memory
    is not filled with NaN for it, unless the caller wants that himself.
    """
    with _ONE_AT_A_TIME:
        enabled = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        fills = torch._C._get_deterministic_fill_uninitialized_memory()
        torch._C._set_deterministic_fill_uninitialized_memory(fills and enabled)
        torch._C._set_deterministic_algorithms(True, warn_only=False)
        try:
            yield
        finally:
            torch._C._set_deterministic_fill_uninitialized_memory(fills)
            torch._C._set_deterministic_algorithms(enabled, warn_only=warns)


def switched_off(flash: Flash) -> str | None:
    """That it takes no call because of torch's switches for it, or None."""
    switches = torch.backends.cuda
    if isinstance(flash, TorchFlash) and not switches.flash_sdp_enabled():
        return f"{flash.package} is switched off (torch.backends.cuda.enable_flash_sdp)"
    if isinstance(flash, TorchCudnn) and not switches.cudnn_sdp_enabled():
        return f"{flash.package} is switched off (torch.backends.cuda.enable_cudnn_sdp)"
    return None


def _only_deterministic() -> bool:
    """Whether torch is to refuse what is not deterministic."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def _needs_gpu(package: str, arch: str) -> str | None:
    """torch's own don't run on the CPU tensors of Triton's interpreter, stand-ins do."""
    if arch == INTERPRETER and aten is torch.ops.aten:
        return f"{package} needs a GPU"
    return None


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


def torch_has_flash() -> bool:
    """Whether this torch was built for CUDA, with FlashAttention, and has a GPU."""
    built = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.is_available()


def cudnn_version() -> int:
    """Of the cuDNN that torch uses, 91501 for 9.15.1; 0 if there is none."""
    try:
        return torch.backends.cudnn.version() or 0
    except RuntimeError:  # it is not the one that torch was built for
        return 0


def _torch_flash() -> Flash | None:
    return TorchFlash() if torch_has_flash() else None


def _torch_cudnn() -> Flash | None:
    # Older versions are known for illegal accesses and NaN gradients.
    return TorchCudnn() if torch_has_flash() and cudnn_version() >= 91501 else None


_FINDERS: tuple[Callable[[], Flash | None], ...] = (
    lambda: _flash_3("flash_attn_interface", "flash-attn-3", "flash_attn_config"),
    _flash_4,
    lambda: _flash_3("fa3_fwd_interface", "fa3-fwd", "fa3_fwd_config"),
    _torch_cudnn,
    _flash_2,
    _torch_flash,
)
# Where cuDNN is known to be faster than FlashAttention 2. Elsewhere nobody measured it.
_CUDNN_EARLY = ("sm_90", INTERPRETER)


@functools.lru_cache(maxsize=1)
def installed() -> tuple[Flash, ...]:
    """The usable ones, in the order in which sm_90 tries them; imports them, once."""
    return tuple(found for find in _FINDERS if (found := find()) is not None)


def tried(arch: str) -> tuple[Flash, ...]:
    """The usable ones, in the order in which a GPU tries them; only the one that is asked for.

    Raises:
        ValueError: GENHOI_FLASH is the name of none.
    """
    only = asked_for()
    found = installed()
    if arch not in _CUDNN_EARLY:
        found = tuple(sorted(found, key=lambda flash: isinstance(flash, TorchCudnn)))
    return tuple(flash for flash in found if only in (None, flash.generation))


def asked_for() -> Generation | None:
    """The only one that may be taken, if the environment names one.

    Raises:
        ValueError: it is the name of none.
    """
    name = os.environ.get(ONLY)
    if not name:
        return None
    names = {g.name.lower().replace("_", "-"): g for g in Generation}
    if name not in names:
        raise ValueError(f"{ONLY}: got {name!r}, wanted one of {', '.join(names)}")
    return names[name]
