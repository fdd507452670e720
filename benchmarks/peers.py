"""Other ways to compute the bare attention: what a user has today.

A peer is a function `setup_x(ctx) -> Pair | None`; None after `ctx.refuse(reason)`. Everything that
does not depend on the queries' values (layout, joined keys and values, masks) is made here, outside
the clock, so that each peer is timed at its best, though in a model it would be made on every call
or every clip. Peers that know no mask compute another function, in which every row sees the
reference: they are bounds of speed, and are checked against that function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .case import first_line
from .context import Context, Pair, autograd_pair
from .gathered import gathered_attention

__all__ = ["PEERS", "STRONGEST", "Peer"]

STRONGEST = "gathered"


def setup_sdpa(ctx: Context) -> Pair | None:
    """PyTorch's attention over N + M keys without a mask."""
    Q, K, V = ctx.joined_heads_first
    return autograd_pair(lambda: F.scaled_dot_product_attention(Q, K, V), (Q, K, V), beside=(K, V))


def setup_sdpa_additive(ctx: Context) -> Pair | None:
    """The same with a dense additive mask, as the authors' release would apply its gate."""
    if not ctx.has_room(ctx.shape.n * (ctx.shape.n + ctx.shape.m) * ctx.dtype.itemsize):
        return None
    Q, K, V = ctx.joined_heads_first
    bias = ctx.additive_mask
    return autograd_pair(
        lambda: F.scaled_dot_product_attention(Q, K, V, attn_mask=bias),
        (Q, K, V),
        beside=(K, V, bias),
    )


def setup_sdpa_bool(ctx: Context) -> Pair | None:
    """The same with a dense boolean mask."""
    n, m = ctx.shape.n, ctx.shape.m
    # On a CPU it is turned into an additive one on every call.
    if not ctx.has_room(n * (n + m) * (1 + ctx.dtype.itemsize)):
        return None
    Q, K, V = ctx.joined_heads_first
    seen = torch.ones(n, n + m, dtype=torch.bool, device=ctx.device)
    seen[:, n:] = ctx.mask[0, :, None]
    return autograd_pair(
        lambda: F.scaled_dot_product_attention(Q, K, V, attn_mask=seen),
        (Q, K, V),
        beside=(K, V, seen),
    )


def setup_gathered(ctx: Context) -> Pair | None:
    """Two calls of PyTorch's attention, merged: the strongest peer."""
    rows = ctx.mask[0].nonzero()[:, 0]
    Q, K, V, K_ref, V_ref = ctx.heads_first
    return autograd_pair(
        lambda: gathered_attention(Q, K, V, K_ref, V_ref, rows), (Q, K, V, K_ref, V_ref)
    )


def setup_eager(ctx: Context) -> Pair | None:
    """Two matrix products and a softmax."""
    n, m = ctx.shape.n, ctx.shape.m
    # Logits, masked logits, probabilities, and as much again for their gradients.
    copies = 4 if ctx.direction == "forward" else 8
    if not ctx.has_room(copies * ctx.shape.heads * n * (n + m) * ctx.dtype.itemsize):
        return None
    Q, K, V = ctx.joined_heads_first
    bias = ctx.additive_mask
    scale = ctx.shape.head_dim**-0.5
    return autograd_pair(
        lambda: torch.softmax((Q * scale) @ K.mT + bias, -1) @ V, (Q, K, V), beside=(K, V, bias)
    )


def setup_flex(ctx: Context, **options: Any) -> Pair | None:
    """flex_attention with a block mask, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if ctx.device.type == "cpu" and ctx.direction == "backward":
        return ctx.refuse("flex_attention has no backward pass on a CPU")
    # A backward pass is repeated on one kept forward pass, whose buffers must then stay.
    torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]
    Q, K, V = ctx.joined_heads_first
    n, seen = ctx.shape.n, ctx.mask[0]

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < n) | seen[query]

    blocks = create_block_mask(sees, None, None, n, K.shape[2], device=ctx.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return autograd_pair(
        lambda: compiled(Q, K, V, block_mask=blocks, **options), (Q, K, V), beside=(K, V)
    )


# -------------------------------------------------------------------------------- peers for a GPU


def _module(ctx: Context, name: str) -> ModuleType | None:
    """An optional package on a CUDA device, or None with the reason."""
    if ctx.device.type != "cuda":
        ctx.refuse("needs a CUDA GPU")
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package built for another torch raises anything
        ctx.refuse(f"{name} does not import: {first_line(error)}")
        return None


def setup_flex_flash(ctx: Context) -> Pair | None:
    """flex_attention through its FlashAttention backend."""
    if _module(ctx, "flash_attn.cute") is None:
        return None
    return setup_flex(ctx, kernel_options={"BACKEND": "FLASH"})


def setup_cudnn(ctx: Context) -> Pair | None:
    """cuDNN's attention through PyTorch, without a mask."""
    if ctx.device.type != "cuda":
        return ctx.refuse("needs a CUDA GPU")
    Q, K, V = ctx.joined_heads_first

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(Q, K, V)

    return autograd_pair(call, (Q, K, V), beside=(K, V))


def setup_flash_attn_2(ctx: Context) -> Pair | None:
    """FlashAttention-2, without a mask."""
    return _flash(ctx, "flash_attn")


def setup_flash_attn_3(ctx: Context) -> Pair | None:
    """FlashAttention-3, without a mask."""
    return _flash(ctx, "flash_attn_interface")


def setup_flash_attn_4(ctx: Context) -> Pair | None:
    """FlashAttention-4, without a mask."""
    return _flash(ctx, "flash_attn.cute")


def _flash(ctx: Context, name: str) -> Pair | None:
    module = _module(ctx, name)
    if module is None:
        return None
    q, k, v = ctx.joined

    def call() -> Tensor:
        found = module.flash_attn_func(q, k, v)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    return autograd_pair(call, (q, k, v), beside=(k, v), heads_first=False)


def setup_xformers(ctx: Context) -> Pair | None:
    """xFormers' memory-efficient attention, without a mask."""
    ops = _module(ctx, "xformers.ops")
    if ops is None:
        return None
    q, k, v = ctx.joined
    return autograd_pair(
        lambda: ops.memory_efficient_attention(q, k, v),
        (q, k, v), beside=(k, v), heads_first=False,
    )  # fmt: skip


def setup_sage(ctx: Context) -> Pair | None:
    """SageAttention (8-bit products), without a mask."""
    module = _module(ctx, "sageattention")
    if module is None:
        return None
    q, k, v = ctx.joined

    @torch.no_grad()
    def forward() -> Tensor:
        out: Tensor = module.sageattn(q, k, v, tensor_layout="NHD")
        return out

    return Pair(forward, None, beside=(k, v), heads_first=False)


@dataclass(frozen=True)
class Peer:
    """An entry of the registry.

    Attributes:
        label: in tables.
        setup: see the module.
        masked: it computes the op's function; else all rows see the reference.
        lossy: it gives up accuracy by design.
    """

    label: str
    setup: Callable[[Context], Pair | None]
    masked: bool = True
    lossy: bool = False


PEERS = {
    "sdpa": Peer("SDPA, no mask", setup_sdpa, masked=False),
    "sdpa-additive": Peer("SDPA, additive mask", setup_sdpa_additive),
    "sdpa-bool": Peer("SDPA, bool mask", setup_sdpa_bool),
    STRONGEST: Peer("gathered two-pass + LSE merge", setup_gathered),
    "flex": Peer("flex_attention, block mask", setup_flex),
    "eager": Peer("eager", setup_eager),
    "flex-flash": Peer("flex_attention, FLASH backend", setup_flex_flash),
    "cudnn": Peer("cuDNN, no mask", setup_cudnn, masked=False),
    "flash-attn-2": Peer("flash-attn 2, no mask", setup_flash_attn_2, masked=False),
    "flash-attn-3": Peer("flash-attn 3, no mask", setup_flash_attn_3, masked=False),
    "flash-attn-4": Peer("flash-attn 4, no mask", setup_flash_attn_4, masked=False),
    "xformers": Peer("xFormers, no mask", setup_xformers, masked=False),
    "sage": Peer("SageAttention, no mask", setup_sage, masked=False, lossy=True),
}
