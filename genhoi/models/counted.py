"""Counts what a computation takes: memory, operations and traffic.

It serves on the meta device, where a model of any size runs in a second without weights: its own
forward pass then says what it needs, whatever the family.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from genhoi_kernels.schema import AttentionInputs

__all__ = ["Counter", "counting"]


class Counter(TorchDispatchMode):
    """Counts within its block; use `counting`.

    Attributes:
        live_bytes: of the tensors that were made in the block and are still there.
        peak_bytes: the most that these were at once. Not counted: the scratch memory of a kernel.
        attention_flops: of attention, as if every token saw all references.
        product_flops: of matrix products and convolutions.
        moved_bytes: read and written by everything else, each operation by itself.

    Example:
        >>> with counting() as counter:
        ...     y = torch.ones(2, 8, device="meta") @ torch.ones(8, 4, device="meta")
        >>> counter.product_flops, counter.live_bytes
        (128.0, 32)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self.attention_flops = self.product_flops = self.moved_bytes = 0.0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # On the meta device torch's own would write out the weights of all pairs.
            return self._attention(*args[:3])
        with self:  # a composite operation, such as a linear layer, comes back in its parts
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        for x in _tensors(out):
            if x.untyped_storage()._cdata not in given:
                self._keep(x)
        if func.namespace == "genhoi_kernels" and "reference_attention" in str(func):
            inputs = AttentionInputs(*args)
            self._count_attention(inputs.q, inputs.k, *_tensors(inputs.k_ref))
        elif func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            self.product_flops += float(flops)
        elif not func.is_view and "empty" not in func.overloadpacket.__name__:
            self.moved_bytes += sum(map(_bytes, _tensors((args, kwargs, out))))
        return out

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Count torch's attention over ``[..., N, D]`` as one kernel that keeps no weights."""
        self._count_attention(q.transpose(-2, -3), k.transpose(-2, -3))
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        self._keep(out)
        return out

    def _count_attention(self, q: Tensor, *keys: Tensor) -> None:
        """Count two products of ``[B, N, H, D]`` with every ``[B, M, H, D]``."""
        self.attention_flops += 4.0 * q.numel() * sum(k.shape[-3] for k in keys)

    def _keep(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        self._storages[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live_bytes -= self._storages.pop(key)


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Count what is computed in the block, without gradients, on tensors of the meta device."""
    counter = Counter()
    with torch.inference_mode(), counter:
        yield counter


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _bytes(x: Tensor) -> int:
    """Count what a tensor's values take, each once where it repeats them."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
