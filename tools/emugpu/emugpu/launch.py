"""Launches: from the raw call into the stand-in libraries to a run of the PTX emulator."""

import atexit
import ctypes
import threading
import time
from pathlib import Path
from typing import Any

from . import images, libraries
from .device_memory import DeviceMemory
from .errors import LaunchError, NotEmulatedError

# Of csrc/core.h.
OP_LAUNCH, OP_LOAD_DATA, OP_LOAD_FILE, OP_STATIC_SMEM, OP_UNSUPPORTED = 1, 2, 3, 4, 5
ERR_LAUNCH = 719
MODULE_OF_SYMBOL = -1
DEFAULT_SHARED = 49152  # bytes a kernel may use without cudaFuncSetAttribute

memory: DeviceMemory
_pending: list[BaseException] = []
_lock = threading.RLock()


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("image", ctypes.c_void_p),
        ("module", ctypes.c_uint64),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("smem_max", ctypes.c_int),
        ("smem", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.POINTER(ctypes.c_void_p)),
        ("cooperative", ctypes.c_int),
        ("device", ctypes.c_int),
    )


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("host", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("image", ctypes.c_void_p),
        ("module", ctypes.c_uint64),
        ("smem_max", ctypes.c_int),
    )


def _fail(error: BaseException) -> int:
    _pending.append(error)
    message = f"{type(error).__name__}: {error}".encode()[:4000]
    libraries.core.emuSetError(ERR_LAUNCH, message)
    return ERR_LAUNCH


def pending() -> BaseException | None:
    """The exception of a failed launch that nobody has cleared, or None."""
    if _pending:
        return _pending[0]
    if libraries.core.emuError():
        return LaunchError(libraries.core.emuMessage().decode())
    return None


def clear() -> BaseException | None:
    """Forget a failed launch (a real device would stay broken); returns its exception."""
    error = pending()
    _pending.clear()
    libraries.core.emuClearError()
    return error


def check() -> None:
    """Raise the exception of a failed launch, if there is one."""
    error = clear()
    if error is not None:
        raise error


def _static_shared(record: int) -> int:
    kernel = ctypes.cast(record, ctypes.POINTER(_Kernel)).contents
    name = kernel.name.decode()
    try:
        module = images.module_for(kernel.image, kernel.module, name)
    except NotEmulatedError:  # asked about, not launched
        return 0
    return int(module.program(name)[0].shared_static)


@ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_long)
def _callback(op: int, record: int, argument: int) -> int:
    """What the libraries call; an exception must not leave it, as C has called it."""
    try:
        with _lock:
            if op == OP_LAUNCH:
                _launch(ctypes.cast(record, ctypes.POINTER(_Launch)).contents)
            elif op == OP_LOAD_DATA and argument == MODULE_OF_SYMBOL:
                images.load_variables(record)
            elif op == OP_LOAD_DATA:
                images.load_data(argument, record)
            elif op == OP_LOAD_FILE:
                images.load_file(argument, Path(ctypes.string_at(record).decode()))
            elif op == OP_STATIC_SMEM:
                return _static_shared(record)
            elif op == OP_UNSUPPORTED:
                name = ctypes.string_at(record).decode()
                raise NotEmulatedError(f"{name} is not available on the emulated GPU")
        return 0
    except BaseException as error:
        return _fail(error)


def _check_configuration(name: str, launch: _Launch) -> None:
    grid, block, cluster = tuple(launch.grid), tuple(launch.block), tuple(launch.cluster)
    empty = 0 in grid or 0 in block
    threads = block[0] * block[1] * block[2]
    if empty or max(grid[1:]) > 65535 or threads > 1024 or block[2] > 64:
        raise LaunchError(f"{name}: invalid configuration, grid {grid}, block {block}")
    if launch.extra:
        raise LaunchError(f"{name}: launch with CU_LAUNCH_PARAM_BUFFER is not modelled")
    if cluster != (1, 1, 1):
        raise NotEmulatedError(f"{name}: thread-block clusters {cluster} are not modelled")


def _check_shared(name: str, launch: _Launch, static: int) -> None:
    limit = max(launch.smem_max, DEFAULT_SHARED - static)
    if launch.smem > limit:
        raise LaunchError(
            f"{name}: {launch.smem} bytes of dynamic shared memory, but {limit} allowed "
            "(cudaFuncAttributeMaxDynamicSharedMemorySize not raised)"
        )
    most = libraries.core.emu_smem_optin()
    if launch.smem + static > most:
        raise LaunchError(f"{name}: {launch.smem} + {static} bytes of shared memory exceed {most}")


def _launch(launch: _Launch) -> None:
    symbol = launch.name.decode()
    name = images.demangle(symbol) if symbol.startswith("_Z") else symbol
    _check_configuration(name, launch)
    module = images.module_for(launch.image, launch.module, symbol)
    program, _ = module.program(symbol)
    _check_shared(name, launch, program.shared_static)
    sizes = [size for _, _, size, _ in program.params]
    args = [ctypes.string_at(launch.args[i], size) for i, size in enumerate(sizes)]
    memory.refresh(launch.device)
    # Buffers are named by the first parameter that points into them, for messages.
    names: dict[Any, str] = {}
    for i, value in enumerate(args):
        address = int.from_bytes(value, "little")
        buffer = memory.find(address) if len(value) == 8 else None
        if buffer is not None and address < buffer.end:
            names.setdefault(buffer, buffer.name)
            buffer.name += f" (parameter {i})"
    options = dict(libraries.options)
    bounds = options.pop("view_bounds")
    if options["eager_wgmma"] is None:
        options["eager_wgmma"] = not launch.image and images.copies_f16_accumulators(module)
    extents = getattr(libraries.views, "extents", None)
    saved = memory.restrict(extents) if extents and bounds else None
    grid, block = tuple(launch.grid), tuple(launch.block)
    began = time.perf_counter()
    try:
        report = module.launch(symbol, grid, block, args, int(launch.smem), **options)
    finally:
        if saved:
            memory.restore(saved)
        for buffer, plain in names.items():
            buffer.name = plain
    record = {
        **{"kernel": name, "device": launch.device, "grid": grid, "block": block},
        **{"smem": int(launch.smem), "stream": launch.stream or 0, "report": report},
        "seconds": time.perf_counter() - began,
    }
    libraries.launches.append(record)
    for hook in libraries.hooks:
        hook(record)


def start() -> None:
    """Take the launches of the loaded libraries."""
    global memory
    memory = images.memory = DeviceMemory()
    images.register_environment()
    libraries.core.emuSetCallback(_callback)
    atexit.register(lambda: libraries.core.emuSetCallback(None))
