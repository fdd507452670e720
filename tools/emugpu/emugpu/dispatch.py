"""torch's own CUDA operators, run by the CPU kernels on the same memory.

Every aten operator with a CUDA (or composite) kernel gets an override on the CUDA dispatch key:
tensors are aliased as CPU tensors of the same storage, the operator is called again, and new
results are copied into fresh CUDA tensors. It sits below autograd, so forward, backward (also on
autograd's device thread) and calls from C++ code all pass through it, while custom operators (any
other namespace) and Triton launches take the real CUDA path.
"""

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch._decomp
from torch import Tensor

from . import launch, libraries
from .errors import NotEmulatedError
from .operator_lists import EXTRA, KEEP, KEEP_PREFIXES, MIXED

stats: dict[str, int] = {}  # operator -> calls
missing: list[str] = []  # operators with a CUDA kernel only
_library: torch.library.Library | None = None
_generators: dict[int, tuple[torch.Generator, int, torch.Generator]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def exact(function: Function) -> Function:
    """Raise the emulator's own exception.

    Also where C++ turned it into a RuntimeError, or did not look at the error.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            own = launch.clear()
            if own is not None and own is not error:
                raise own from error
            raise
        if libraries.core.emuError():
            launch.check()
        return result

    return call


def extents(args: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """(address, bytes) spanned by each CUDA tensor among (nested) arguments."""
    for arg in args:
        if isinstance(arg, (tuple, list)):
            yield from extents(arg)
        elif isinstance(arg, Tensor) or hasattr(arg, "base"):
            # base: of Triton's TensorDescriptor and TensorWrapper
            tensor = arg if isinstance(arg, Tensor) else arg.base
            if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.is_cuda:
                continue
            if tensor.layout is torch.strided and tensor.numel():
                sizes = zip(tensor.shape, tensor.stride(), strict=True)
                last = sum((size - 1) * stride for size, stride in sizes)
                yield tensor.data_ptr(), (last + 1) * tensor.element_size()


@contextlib.contextmanager
def bounded(args: Iterable[Any]) -> Iterator[None]:
    """While a launch is under way, these tensors are all that may be touched of their storages."""
    old = getattr(libraries.views, "extents", None)
    libraries.views.extents = list(extents(args))
    try:
        yield
    finally:
        libraries.views.extents = old


def _watch_custom(call: Function) -> Function:
    """Calls of custom operators with exact errors, and bounded to their tensors."""
    exact_call = exact(call)

    @functools.wraps(call)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self, "_qualified_op_name", None) or getattr(self, "namespace", "") + "::"
        if name.startswith(("aten::", "prims::", "prim::")):
            return call(self, *args, **kwargs)
        with bounded((*args, *kwargs.values())):
            return exact_call(self, *args, **kwargs)

    return watched


def cpu_alias(tensor: Tensor) -> Tensor:
    """A CPU tensor on the memory of a CUDA tensor. Raises NotEmulatedError for sparse ones."""
    if tensor.layout is not torch.strided:
        raise NotEmulatedError(
            f"{tensor.layout} CUDA tensors are not supported on the emulated GPU"
        )
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size:
        memory = (ctypes.c_uint8 * size).from_address(storage.data_ptr())
        base = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
        alias = torch.empty(0, dtype=tensor.dtype)
        alias.set_(base, tensor.storage_offset(), tensor.size(), tensor.stride())
    else:
        alias = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    if tensor.is_conj():
        alias = torch._conj(alias)
    if tensor.is_neg():
        alias = torch._neg_view(alias)
    return alias


def to_cuda(tensor: Tensor, device: torch.device) -> Tensor:
    """A fresh CUDA tensor of the same strides (own allocation) with the values of a CPU tensor."""
    like = (tensor.size(), tensor.stride())
    result = torch.empty_strided(*like, dtype=tensor.dtype, device=device)
    if not tensor.numel():
        return result
    size = result.untyped_storage().nbytes()
    whole = tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == size
    if not whole or tensor.is_conj() or tensor.is_neg():
        plain = tensor.resolve_conj().resolve_neg()
        tensor = torch.empty_strided(*like, dtype=tensor.dtype).copy_(plain)
    ctypes.memmove(result.data_ptr(), tensor.data_ptr(), size)
    return result


def cpu_generator(generator: torch.Generator) -> torch.Generator:
    """The CPU generator that stands for a CUDA one; seeded anew when that is."""
    seed = generator.initial_seed()
    known = _generators.get(id(generator))
    if known is None or known[1] != seed:
        # The CUDA generator is kept: its id must not be given to another one.
        known = (torch.Generator().manual_seed(seed % (1 << 63)), seed, generator)
        _generators[id(generator)] = known
    return known[0]


def _written_arguments(schema: Any) -> tuple[bool, list[str | None]]:
    """Whether arguments are written, and for each result the argument that it is."""
    writes = {}  # alias set -> argument
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            for alias in argument.alias_info.before_set:
                writes[alias] = argument.name
    results: list[str | None] = []
    for result in schema.returns:
        name = None
        if result.alias_info is not None:
            for alias in [*result.alias_info.before_set, *result.alias_info.after_set]:
                name = writes.get(alias, name)
        results.append(name)
    return bool(writes), results


class _Arguments:
    """One call's arguments on their way to the CPU, and its results on their way back."""

    def __init__(self, name: str, mixed: bool) -> None:
        self.name, self.mixed = name, mixed
        self.device: torch.device | None = None
        self.aliases: dict[int, Tensor] = {}  # address -> CUDA tensor
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.on_cpu = self.on_cuda = False  # tensors with dimensions

    def to_cpu(self, value: Any) -> Any:
        """The value that the CPU operator gets.

        Raises RuntimeError for tensors of two devices, as torch does.
        """
        if isinstance(value, Tensor):
            if value.device.type == "cuda":
                return self._tensor_to_cpu(value)
            self.on_cpu |= value.dim() > 0
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_cpu(item) for item in value)
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if isinstance(value, torch.Generator) and value.device.type == "cuda":
            return cpu_generator(value)
        return value

    def _tensor_to_cpu(self, tensor: Tensor) -> Tensor:
        if tensor.dim() or self.device is None:
            if self.on_cuda and self.device != tensor.device:
                self._check_device(tensor.device)
            self.device = tensor.device
            self.on_cuda |= tensor.dim() > 0
        alias = cpu_alias(tensor)
        if alias.numel():
            self.aliases[alias.untyped_storage().data_ptr()] = tensor
        self.pairs.append((tensor, alias))
        return alias

    def _check_device(self, other: object) -> None:
        if not self.mixed:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but "
                f"{self.name} got {self.device} and {other}"
            )

    def target(self, requested: Any) -> torch.device:
        """The device of the results. Raises RuntimeError as ``to_cpu``."""
        device = requested if isinstance(requested, torch.device) else None
        device = device or self.device or torch.device("cuda")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if self.device is not None and self.on_cpu:
            self._check_device("cpu")
        return device

    def copy_resized(self) -> None:
        """An out= tensor may have been resized, which leaves the memory it had."""
        for tensor, alias in self.pairs:
            if alias.shape != tensor.shape:
                tensor.resize_(alias.shape)
                if alias.numel():
                    cpu_alias(tensor).copy_(alias)

    def to_cuda(self, result: Any, device: torch.device) -> Any:
        """A result, or a list of them, on the device; views of arguments become views again."""
        if isinstance(result, (list, tuple)):
            items = (self.to_cuda(item, device) for item in result)
            return type(result)(items) if type(result) in (list, tuple) else tuple(items)
        if not isinstance(result, Tensor) or device.type != "cuda":
            return result
        if result.numel():
            source = self.aliases.get(result.untyped_storage().data_ptr())
            if source is not None:
                return _view_of(source, result)
        return to_cuda(result, device)


def _view_of(source: Tensor, alias: Tensor) -> Tensor:
    """The CUDA tensor that lies like ``alias`` on the storage of ``source``."""
    if (
        alias.shape == source.shape
        and alias.stride() == source.stride()
        and alias.dtype == source.dtype
        and alias.storage_offset() == source.storage_offset()
    ):
        return source
    return torch.as_strided(source, alias.size(), alias.stride(), alias.storage_offset())


def _override(op: Any, name: str, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    run = run or op
    positions = {argument.name: i for i, argument in enumerate(op._schema.arguments)}
    mutates, results = _written_arguments(op._schema)
    base = name.split(".")[0]
    mixed = base in MIXED

    def call(*args: Any, **kwargs: Any) -> Any:
        stats[name] = stats.get(name, 0) + 1
        arguments = _Arguments(base, mixed)
        cpu_args = [arguments.to_cpu(arg) for arg in args]
        cpu_kwargs = {key: arguments.to_cpu(value) for key, value in kwargs.items()}
        device = arguments.target(kwargs.get("device"))
        if "pin_memory" in cpu_kwargs:
            cpu_kwargs["pin_memory"] = None
        out = run(*cpu_args, **cpu_kwargs)
        if mutates:
            arguments.copy_resized()

        def back(result: Any, argument: str | None) -> Any:
            if argument is None or not isinstance(result, Tensor):
                return arguments.to_cuda(result, device)
            position = positions[argument]
            return args[position] if position < len(args) else kwargs[argument]

        if len(results) == 1:
            return back(out, results[0])
        if isinstance(out, tuple):
            return tuple(back(item, name) for item, name in zip(out, results, strict=True))
        return out

    return call


def _refuse(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotEmulatedError(
            f"torch operator aten::{name} has only a CUDA kernel and cannot run on the emulated GPU"
        )

    return call


def _fused_sdp_choice(*args: Any, **kwargs: Any) -> int:
    """The math backend: the fused ones have no CPU kernel for CUDA tensors."""
    return 0


def _replacement(full_name: str) -> Callable[..., Any] | None:
    """What an operator is to run as; None leaves it alone."""
    name = full_name.removeprefix("aten::")
    base, _, overload = name.partition(".")

    def has(*keys: str) -> bool:
        query = torch._C._dispatch_has_kernel_for_dispatch_key
        return any(query(full_name, key) for key in keys)

    explicit = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    if base in KEEP or name in KEEP or base.startswith(KEEP_PREFIXES):
        return None
    if not has("CUDA") and (has("CompositeImplicitAutograd") or not has(*explicit)):
        return None
    if base == "_fused_sdp_choice":
        return _fused_sdp_choice
    runs_on_cpu = has("CPU", "CompositeImplicitAutograd", *explicit)
    try:
        op = getattr(getattr(torch.ops.aten, base), overload or "default")
    except (AttributeError, RuntimeError):
        if runs_on_cpu:  # known to the dispatcher, not to Python
            return None
        raise
    if not runs_on_cpu:
        run = EXTRA.get(name) or torch._decomp.decomposition_table.get(op)
        if run is not None:
            return _override(op, name, run)
        missing.append(name)
        # Asked whether to use it, which can be answered.
        return None if base == "_use_cudnn_ctc_loss" else _refuse(name)
    aliases = (result.alias_info for result in op._schema.returns)
    if any(alias is not None and not alias.is_write for alias in aliases):
        return None  # views are metadata only
    return _override(op, name)


def install() -> None:
    """Override the operators, and what Python code of torch asks of the device."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for full_name in torch._C._dispatch_get_all_op_names():
            if full_name.startswith("aten::"):
                function = _replacement(full_name)
                if function is not None:
                    name = full_name.removeprefix("aten::")
                    _library.impl(name, function, "CUDA", allow_override=True)
    for cls in (torch._ops.OpOverload, torch._ops.OpOverloadPacket):
        cls.__call__ = _watch_custom(cls.__call__)
    core = libraries.core
    # torch's own statistics belong to the caching allocator.
    for module in (torch.cuda, torch.cuda.memory):
        module.memory_allocated = lambda device=None: core.emuLiveBytes()
        module.max_memory_allocated = lambda device=None: core.emuPeakBytes()
        module.reset_peak_memory_stats = lambda device=None: core.emuResetPeak()
    torch.autograd.backward = exact(torch.autograd.backward)
    torch.autograd.grad = exact(torch.autograd.grad)
    torch.cuda.synchronize = exact(torch.cuda.synchronize)
    torch.backends.cudnn.enabled = False
    # Leaves the math backend: its parts run on the CPU.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
