"""torch's own CUDA operators, run by the CPU kernels on the same memory.

Every aten operator with a CUDA (or composite) kernel gets an override on the CUDA dispatch key: tensors are aliased as CPU
tensors of the same storage, the operator is called again, and new results are copied into fresh CUDA tensors. It sits
below autograd, so forward, backward (also on autograd's device thread) and calls from C++ code all pass through it, while
custom operators (any other namespace) and Triton launches take the real CUDA path.
"""

import ctypes
import functools
import warnings

import torch
import torch._decomp

from . import runtime

stats = {}  # operator -> calls
missing = []  # operators with a CUDA kernel only
_lib = None


def exact(f):
    """Raise the emulator's own exception where C++ code turned it into a RuntimeError or did not look at the error."""

    @functools.wraps(f)
    def g(*a, **k):
        try:
            r = f(*a, **k)
        except Exception as e:
            p = runtime.clear()
            if p is not None and p is not e:
                raise p from e
            raise
        if runtime.core.emuError():
            runtime.check()
        return r

    return g


def extents(args):
    """(address, bytes) spanned by each CUDA tensor among (nested) arguments."""
    for x in args:
        if isinstance(x, (tuple, list)):
            yield from extents(x)
        elif isinstance(x, torch.Tensor) or hasattr(x, "base"):
            t = x if isinstance(x, torch.Tensor) else x.base  # TensorDescriptor, TensorWrapper
            if (
                type(t) in (torch.Tensor, torch.nn.Parameter)
                and t.is_cuda
                and t.layout is torch.strided
                and t.numel()
            ):
                hi = sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
                yield t.data_ptr(), (hi + 1) * t.element_size()


class bounded:
    """While a launch is under way, these tensors are all that may be touched of their storages."""

    def __init__(self, args):
        self.args = args

    def __enter__(self):
        self.old = getattr(runtime.views, "extents", None)
        runtime.views.extents = list(extents(self.args))

    def __exit__(self, *e):
        runtime.views.extents = self.old


def _custom(f):
    g = exact(f)

    @functools.wraps(f)
    def call(self, *a, **k):
        n = getattr(self, "_qualified_op_name", None) or getattr(self, "namespace", "") + "::"
        if n.startswith(("aten::", "prims::", "prim::")):
            return f(self, *a, **k)
        with bounded((*a, *k.values())):
            return g(self, *a, **k)

    return call


KEEP = {
    "set_",
    "set",
    "empty.memory_format",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "resize_as_",
    "_resize_output_",
    "record_stream",
    "_efficientzerotensor",
    "is_pinned",
    "_pin_memory",
    "is_set_to",
    "_lazy_clone",
    "lift",
    "lift_fresh",
    "_has_same_storage_numel",
    "sym_size",
    "sym_stride",
    "sym_numel",
    "sym_storage_offset",
    "_reshape_alias",
    "_cuda_getCurrentRawStream",
    "is_same_size",
    "_fw_primal",
    "_make_dual",
    "data",
    "rename_",
    "retain_grad",
    "_version",
    "requires_grad_",
    "output_nr",
    "is_leaf",
    "set_data",
    "_backward",
    "size",
    "stride",
    "dim",
    "is_coalesced",
}
MIXED = {
    "copy_",
    "_to_copy",
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_unsafe_index_put",
    "_copy_from",
    "_copy_from_and_resize",
    "pin_memory",
    "_local_scalar_dense",
    "_pack_padded_sequence",
    "_ctc_loss",
    "_unsafe_masked_index",
    "_unsafe_masked_index_put_accumulate",
}


def cpu_alias(t):
    """A CPU tensor on the memory of a CUDA tensor."""
    if t.layout is not torch.strided:
        raise runtime.NotEmulated(f"{t.layout} CUDA tensors are not supported on the emulated GPU")
    st = t.untyped_storage()
    n = st.nbytes()
    out = torch.empty(0, dtype=t.dtype)
    if n:
        base = torch.frombuffer((ctypes.c_uint8 * n).from_address(st.data_ptr()), dtype=torch.uint8)
        out.set_(base.untyped_storage(), t.storage_offset(), t.size(), t.stride())
    else:
        out = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    if t.is_conj():
        out = torch._conj(out)
    if t.is_neg():
        out = torch._neg_view(out)
    return out


def to_cuda(t, device):
    """A fresh CUDA tensor of the same strides (own allocation) with the values of a CPU tensor."""
    out = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device)
    if t.numel():
        n = out.untyped_storage().nbytes()
        src = (
            t
            if t.storage_offset() == 0 and t.untyped_storage().nbytes() == n
            else torch.empty_strided(t.size(), t.stride(), dtype=t.dtype).copy_(
                t.resolve_conj().resolve_neg()
            )
        )
        if src.is_conj() or src.is_neg():
            src = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype).copy_(
                t.resolve_conj().resolve_neg()
            )
        ctypes.memmove(out.data_ptr(), src.data_ptr(), n)
    return out


_gens = {}


def cpu_generator(g):
    c = _gens.get(id(g))
    if c is None or c[1] != g.initial_seed():
        _gens[id(g)] = c = (
            torch.Generator().manual_seed(g.initial_seed() % (1 << 63)),
            g.initial_seed(),
            g,
        )
    return c[0]


# operators with a CUDA kernel only, written with others (beyond torch's decomposition table)
EXTRA = {
    "mm.dtype": lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype),
    "bmm.dtype": lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype),
    "addmm.dtype": lambda c, a, b, out_dtype, *, beta=1, alpha=1: (
        beta * c.to(out_dtype) + alpha * (a.to(out_dtype) @ b.to(out_dtype))
    ),
    "baddbmm.dtype": lambda c, a, b, out_dtype, *, beta=1, alpha=1: (
        beta * c.to(out_dtype) + alpha * (a.to(out_dtype) @ b.to(out_dtype))
    ),
}


def _override(op, name, run=None):
    run = run or op
    schema = op._schema
    base = name.split(".")[0]
    argpos = {a.name: i for i, a in enumerate(schema.arguments)}
    writes = {}  # alias set -> argument
    for a in schema.arguments:
        if a.alias_info is not None and a.alias_info.is_write:
            for s in a.alias_info.before_set:
                writes[s] = a.name
    rets = []
    for r in schema.returns:
        n = None
        if r.alias_info is not None:
            for s in list(r.alias_info.before_set) + list(r.alias_info.after_set):
                n = writes.get(s, n)
        rets.append(n)
    mixed_ok = base in MIXED
    mutated = [a.name for a in schema.arguments if a.name in writes.values()]

    def impl(*args, **kw):
        stats[name] = stats.get(name, 0) + 1
        aliases, pairs, cpu, others = {}, [], [], []
        cuda = None

        def conv(x):
            nonlocal cuda
            if isinstance(x, torch.Tensor):
                if x.device.type == "cuda":
                    if x.dim() or cuda is None:
                        if cuda is not None and cuda != x.device and others and not mixed_ok:
                            raise RuntimeError(
                                f"Expected all tensors to be on the same device, but {base} got {cuda} and {x.device}"
                            )
                        cuda = x.device
                        others.append(x) if x.dim() else None
                    c = cpu_alias(x)
                    if c.numel():
                        aliases[c.untyped_storage().data_ptr()] = x
                    pairs.append((x, c))
                    return c
                if x.dim():
                    cpu.append(x)
                return x
            if isinstance(x, (list, tuple)):
                return type(x)(conv(y) for y in x)
            if isinstance(x, torch.device) and x.type == "cuda":
                return torch.device("cpu")
            if isinstance(x, torch.Generator) and x.device.type == "cuda":
                return cpu_generator(x)
            return x

        a2 = [conv(x) for x in args]
        k2 = {k: conv(v) for k, v in kw.items()}
        target = kw.get("device")
        to = target if isinstance(target, torch.device) else cuda or torch.device("cuda")
        if to.type == "cuda" and to.index is None:
            to = torch.device("cuda", torch.cuda.current_device())
        if cuda is not None and cpu and not mixed_ok:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {base} got {cuda} and cpu"
            )
        if "pin_memory" in k2:
            k2["pin_memory"] = None
        out = run(*a2, **k2)
        for x, c in pairs if mutated else ():
            if c.shape != x.shape:  # an out= tensor was resized
                x.resize_(c.shape)
                if c.numel():
                    cpu_alias(x).copy_(c)

        def back(o, argname=None):
            if isinstance(o, torch.Tensor):
                if argname is not None:
                    i = argpos[argname]
                    return args[i] if i < len(args) else kw[argname]
                if to.type != "cuda":
                    return o
                if o.numel():
                    src = aliases.get(o.untyped_storage().data_ptr())
                    if src is not None:
                        return (
                            src
                            if o.shape == src.shape
                            and o.stride() == src.stride()
                            and o.dtype == src.dtype
                            and o.storage_offset() == src.storage_offset()
                            else torch.as_strided(src, o.size(), o.stride(), o.storage_offset())
                        )
                return to_cuda(o, to)
            if isinstance(o, (list, tuple)):
                return (
                    type(o)(back(y) for y in o)
                    if type(o) in (list, tuple)
                    else tuple(back(y) for y in o)
                )
            return o

        if len(rets) == 1:
            return back(out, rets[0])
        if isinstance(out, tuple):
            return tuple(back(o, n) for o, n in zip(out, rets))
        return out

    return functools.wraps(impl)(impl)


def _refuse(name):
    def impl(*a, **k):
        raise runtime.NotEmulated(
            f"torch operator aten::{name} has only a CUDA kernel and cannot run on the emulated GPU"
        )

    return impl


def _fused_sdp_choice(*a, **k):
    return 0  # the math backend: the fused ones have no CPU kernel for CUDA tensors


def install():
    global _lib
    if _lib is not None:
        return
    _lib = torch.library.Library("aten", "IMPL")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for full in torch._C._dispatch_get_all_op_names():
            if not full.startswith("aten::"):
                continue
            name = full[6:]
            base, _, over = name.partition(".")
            direct = has(full, "CUDA")
            if (
                base in KEEP
                or name in KEEP
                or base.startswith(("_sparse", "_nested", "sparse_", "_cudnn", "cudnn", "miopen"))
            ):
                continue
            if not direct and (
                has(full, "CompositeImplicitAutograd")
                or not (
                    has(full, "CompositeExplicitAutograd")
                    or has(full, "CompositeExplicitAutogradNonFunctional")
                )
            ):
                continue
            if base == "_fused_sdp_choice":
                _lib.impl(name, _fused_sdp_choice, "CUDA", allow_override=True)
                continue
            if not (
                has(full, "CPU")
                or has(full, "CompositeExplicitAutograd")
                or has(full, "CompositeExplicitAutogradNonFunctional")
                or has(full, "CompositeImplicitAutograd")
            ):
                op = getattr(getattr(torch.ops.aten, base), over or "default")
                run = EXTRA.get(name) or torch._decomp.decomposition_table.get(op)
                if run is not None:
                    _lib.impl(name, _override(op, name, run), "CUDA", allow_override=True)
                    continue
                missing.append(name)
                if base != "_use_cudnn_ctc_loss":
                    _lib.impl(name, _refuse(name), "CUDA", allow_override=True)
                continue
            try:
                op = getattr(getattr(torch.ops.aten, base), over or "default")
            except (AttributeError, RuntimeError):
                continue
            if any(
                r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns
            ):
                continue  # views are metadata only
            _lib.impl(name, _override(op, name), "CUDA", allow_override=True)
    for cls in (torch._ops.OpOverload, torch._ops.OpOverloadPacket):
        cls.__call__ = _custom(cls.__call__)
    for f, g in (
        ("memory_allocated", lambda device=None: runtime.core.emuLiveBytes()),
        ("max_memory_allocated", lambda device=None: runtime.core.emuPeakBytes()),
        ("reset_peak_memory_stats", lambda device=None: runtime.core.emuResetPeak()),
    ):
        setattr(torch.cuda, f, g)  # torch's own statistics belong to the caching allocator
        setattr(torch.cuda.memory, f, g)
    torch.autograd.backward = exact(torch.autograd.backward)
    torch.autograd.grad = exact(torch.autograd.grad)
    torch.cuda.synchronize = exact(torch.cuda.synchronize)
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_flash_sdp(False)  # leaves the math backend: its parts run on the CPU
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
