"""Which of torch's operators dispatch.py treats in their own way."""

from collections.abc import Callable
from typing import Any

# Work on metadata, memory or autograd only: torch's own CUDA kernels of them need no device code.
KEEP = {
    *("set_", "set", "empty.memory_format", "empty_strided", "empty_like", "new_empty"),
    *("new_empty_strided", "resize_", "resize_as_", "_resize_output_", "record_stream"),
    *("_efficientzerotensor", "is_pinned", "_pin_memory", "is_set_to", "_lazy_clone", "lift"),
    *("lift_fresh", "_has_same_storage_numel", "sym_size", "sym_stride", "sym_numel"),
    *("sym_storage_offset", "_reshape_alias", "_cuda_getCurrentRawStream", "is_same_size"),
    *("_fw_primal", "_make_dual", "data", "rename_", "retain_grad", "_version", "requires_grad_"),
    *("output_nr", "is_leaf", "set_data", "_backward", "size", "stride", "dim", "is_coalesced"),
}
KEEP_PREFIXES = ("_sparse", "_nested", "sparse_", "_cudnn", "cudnn", "miopen")

# Take tensors of several devices.
MIXED = {
    *("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"),
    *("_unsafe_index", "_unsafe_index_put", "_copy_from", "_copy_from_and_resize", "pin_memory"),
    *("_local_scalar_dense", "_pack_padded_sequence", "_ctc_loss", "_unsafe_masked_index"),
    *("_unsafe_masked_index_put_accumulate",),
}


def _mm(a: Any, b: Any, out_dtype: Any) -> Any:
    return a.to(out_dtype) @ b.to(out_dtype)


def _addmm(c: Any, a: Any, b: Any, out_dtype: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return beta * c.to(out_dtype) + alpha * _mm(a, b, out_dtype)


# Have a CUDA kernel only, and no decomposition in torch.
EXTRA: dict[str, Callable[..., Any]] = {
    "mm.dtype": _mm,
    "bmm.dtype": _mm,
    "addmm.dtype": _addmm,
    "baddbmm.dtype": _addmm,
}
