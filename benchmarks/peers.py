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
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.context import Context, Pair, autograd_pair
from benchmarks.gathered import CUDNN, Attention, default_attention, gathered_attention
from genhoi_kernels.tune.timing import first_line

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["GATHERED", "GATHERED_CUDNN", "PEERS", "Peer", "block_mask", "strongest"]

GATHERED, GATHERED_CUDNN = "gathered", "gathered-cudnn"

_NO_GPU = "needs a CUDA GPU"
_TILE = 128  # rows and keys of a block of flex_attention's mask
_KERNELS = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.MATH: "math",
}


def strongest(device: torch.device) -> str:
    """Return the key of the fastest peer of the op's function; `GATHERED` where it can't run.

    From sm_90 on cuDNN's attention is the faster one inside the two passes (measured on an H100).
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return GATHERED
    if not torch.backends.cudnn.is_available() or torch.cuda.get_device_capability(device) < (9, 0):
        return GATHERED
    return GATHERED_CUDNN


def setup_sdpa(ctx: Context) -> Pair | None:
    """Set up PyTorch's attention over N + M keys without a mask."""
    return _sdpa(ctx, None)


def _sdpa(ctx: Context, mask: Tensor | None) -> Pair:
    Q, K, V = ctx.joined_heads_first
    with torch.set_grad_enabled(ctx.direction == "backward"):
        # Which kernel it takes depends on sizes, versions and whether gradients are wanted.
        chosen = SDPBackend(torch._fused_sdp_choice(Q, K, V, mask))
    return autograd_pair(
        lambda: F.scaled_dot_product_attention(Q, K, V, attn_mask=mask),
        (Q, K, V),
        beside=(K, V) if mask is None else (K, V, mask),
        kernel=_KERNELS.get(chosen, chosen.name),
    )


def setup_sdpa_additive(ctx: Context) -> Pair | None:
    """Set up PyTorch's attention with a dense additive mask, as the release would gate."""
    if not ctx.has_room(ctx.shape.n * (ctx.shape.n + ctx.shape.m) * ctx.dtype.itemsize):
        return None
    return _sdpa(ctx, ctx.additive_mask)


def setup_sdpa_bool(ctx: Context) -> Pair | None:
    """Set up PyTorch's attention with a dense boolean mask."""
    n, m = ctx.shape.n, ctx.shape.m
    # On a CPU it is turned into an additive one on every call.
    if not ctx.has_room(n * (n + m) * (1 + ctx.dtype.itemsize)):
        return None
    seen = torch.ones(n, n + m, dtype=torch.bool, device=ctx.device)
    seen[:, n:] = ctx.mask[0, :, None]
    return _sdpa(ctx, seen)


def setup_gathered(ctx: Context) -> Pair | None:
    """Set up two calls of PyTorch's attention, merged."""
    return _gathered(ctx, default_attention(ctx.device, ctx.dtype))


def setup_gathered_cudnn(ctx: Context) -> Pair | None:
    """Set up two calls of cuDNN's attention through PyTorch, merged."""
    if ctx.device.type != "cuda":
        return ctx.refuse(_NO_GPU)
    if ctx.dtype == torch.float32:
        return ctx.refuse("cuDNN's attention takes bfloat16 and float16, not float32")
    return _gathered(ctx, CUDNN)


def _gathered(ctx: Context, attention: Attention) -> Pair:
    rows = ctx.mask[0].nonzero()[:, 0]
    Q, K, V, K_ref, V_ref = ctx.heads_first
    return autograd_pair(
        lambda: gathered_attention(Q, K, V, K_ref, V_ref, rows, attention),
        ctx.heads_first,
        kernel=attention.kernel,
    )


def setup_eager(ctx: Context) -> Pair | None:
    """Set up two matrix products and a softmax."""
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
    """Set up flex_attention with a block mask, compiled."""
    from torch import _dynamo
    from torch._functorch import config
    from torch.nn.attention.flex_attention import flex_attention

    if ctx.device.type == "cpu" and ctx.direction == "backward":
        return ctx.refuse("flex_attention has no backward pass on a CPU")
    # A backward pass is repeated on one held forward pass, whose buffers must then stay.
    config.donated_buffer = False
    # After eight shapes torch.compile would give up, and run the rest unfused without a word.
    _dynamo.reset()
    Q, K, V = ctx.joined_heads_first
    blocks = block_mask(ctx.mask[0], ctx.shape.m)
    compiled = torch.compile(flex_attention, dynamic=False)
    return autograd_pair(
        lambda: compiled(Q, K, V, block_mask=blocks, **options),
        (Q, K, V),
        beside=(K, V),
        kernel="FLASH" if options else "Triton" if ctx.device.type == "cuda" else "C++",
    )


def block_mask(mask: Tensor, m: int) -> BlockMask:
    """Make what `create_block_mask` would, without its dense ``[N, N + M]`` intermediate.

    How many pairs of a block are seen is a sum of two products, over video and reference keys.

    Args:
        mask: ``[N]`` bool, which queries see the reference.
        m: reference keys, behind the N video keys.
    """
    from torch.nn.attention.flex_attention import BlockMask

    n = len(mask)
    seen = F.pad(mask, (0, -n % _TILE))  # kernels may look at the rows that fill the last block
    is_video = torch.arange(n + m, device=mask.device) < n
    rows = _per_tile(torch.ones_like(mask))
    pairs = rows[:, None] * _per_tile(is_video) + _per_tile(seen)[:, None] * _per_tile(~is_video)
    full = pairs == _TILE * _TILE

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < n) | seen[query]

    return BlockMask.from_kv_blocks(
        *_block_list((pairs > 0) & ~full),
        *_block_list(full),
        BLOCK_SIZE=_TILE,
        mask_mod=sees,
        seq_lengths=(n, n + m),
    )


def _per_tile(flags: Tensor) -> Tensor:
    """Count how many of each tile are true, ``[tiles]``."""
    return F.pad(flags, (0, -len(flags) % _TILE)).view(-1, _TILE).sum(1)


def _block_list(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return counts ``[1, 1, Q tiles]`` and indices ``[1, 1, Q tiles, K tiles]`` of blocks."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


# -------------------------------------------------------------------------------- peers for a GPU


def _module(ctx: Context, name: str) -> ModuleType | None:
    """Import an optional package for a CUDA device; None, with the reason kept, if it can't run."""
    if ctx.device.type != "cuda":
        ctx.refuse(_NO_GPU)
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package built for another torch raises anything
        ctx.refuse(f"{name} does not import: {first_line(error)}")
        return None


def setup_flex_flash(ctx: Context) -> Pair | None:
    """Set up flex_attention through its FlashAttention backend."""
    if _module(ctx, "flash_attn.cute") is None:
        return None
    return setup_flex(ctx, kernel_options={"BACKEND": "FLASH"})


def setup_cudnn(ctx: Context) -> Pair | None:
    """Set up cuDNN's attention through PyTorch, without a mask."""
    return _sdpa_on(ctx, SDPBackend.CUDNN_ATTENTION)


def setup_sdpa_flash(ctx: Context) -> Pair | None:
    """Set up PyTorch's own flash attention, without a mask."""
    return _sdpa_on(ctx, SDPBackend.FLASH_ATTENTION)


def _sdpa_on(ctx: Context, backend: SDPBackend) -> Pair | None:
    if ctx.device.type != "cuda":
        return ctx.refuse(_NO_GPU)
    Q, K, V = ctx.joined_heads_first

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(Q, K, V)

    return autograd_pair(call, (Q, K, V), beside=(K, V), kernel=_KERNELS[backend])


def setup_flash_attn_2(ctx: Context) -> Pair | None:
    """Set up FlashAttention-2, without a mask."""
    return _flash(ctx, "flash_attn")


def setup_flash_attn_3(ctx: Context) -> Pair | None:
    """Set up FlashAttention-3, without a mask; the forward-only package if it is the only one."""
    pair = _flash(ctx, "flash_attn_interface")
    if pair is not None:
        return pair
    reason, pair = ctx.reason, setup_fa3_fwd(ctx)
    return pair or ctx.refuse(reason)


def setup_fa3_fwd(ctx: Context) -> Pair | None:
    """Set up FlashAttention-3 of the package that has no backward pass, without a mask."""
    pair = _flash(ctx, "fa3_fwd_interface")
    return pair and pair._replace(backward=None)


def setup_flash_attn_4(ctx: Context) -> Pair | None:
    """Set up FlashAttention-4, without a mask."""
    return _flash(ctx, "flash_attn.cute")


def _flash(ctx: Context, name: str) -> Pair | None:
    module = _module(ctx, name)
    if module is None:
        return None
    q, k, v = ctx.joined

    def call() -> Tensor:
        result = module.flash_attn_func(q, k, v)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return autograd_pair(call, (q, k, v), beside=(k, v), heads_first=False, kernel=name)


def setup_xformers(ctx: Context) -> Pair | None:
    """Set up xFormers' memory-efficient attention, without a mask."""
    ops = _module(ctx, "xformers.ops")
    if ops is None:
        return None
    q, k, v = ctx.joined
    return autograd_pair(
        lambda: ops.memory_efficient_attention(q, k, v),
        (q, k, v),
        beside=(k, v),
        heads_first=False,
    )


def setup_sage(ctx: Context) -> Pair | None:
    """Set up SageAttention (8-bit products), without a mask."""
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
    GATHERED: Peer("gathered two-pass + LSE merge", setup_gathered),
    GATHERED_CUDNN: Peer("gathered two-pass + LSE merge, cuDNN", setup_gathered_cudnn),
    "flex": Peer("flex_attention, block mask", setup_flex),
    "eager": Peer("eager", setup_eager),
    "flex-flash": Peer("flex_attention, FLASH backend", setup_flex_flash),
    "cudnn": Peer("cuDNN, no mask", setup_cudnn, masked=False),
    "sdpa-flash": Peer("SDPA flash, no mask", setup_sdpa_flash, masked=False),
    "flash-attn-2": Peer("flash-attn 2, no mask", setup_flash_attn_2, masked=False),
    "flash-attn-3": Peer("flash-attn 3, no mask", setup_flash_attn_3, masked=False),
    "fa3-fwd": Peer("fa3-fwd, no mask", setup_fa3_fwd, masked=False),
    "flash-attn-4": Peer("flash-attn 4, no mask", setup_flash_attn_4, masked=False),
    "xformers": Peer("xFormers, no mask", setup_xformers, masked=False),
    "sage": Peer("SageAttention, no mask", setup_sage, masked=False, lossy=True),
}
