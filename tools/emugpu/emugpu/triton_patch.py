"""Triton on the emulated GPU.

Its own launcher calls cuLaunchKernelEx of the stand-in driver; here only the PTX of each cubin is
made known, and benchmarks run once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from . import images
from .dispatch import bounded, exact

# "all": the autotuner runs every configuration once; "first": it takes the first one.
autotune = "all"
# Arguments of the launcher before those of the kernel.
LAUNCHER_ARGUMENTS = 9


def _do_bench(
    fn: Callable[[], Any],
    warmup: int = 25,
    rep: int = 100,
    grad_to_none: Any = None,
    quantiles: Sequence[float] | None = None,
    return_mode: str = "mean",
    **options: Any,
) -> Any:
    """Run once; a time means nothing here."""
    if autotune == "all":
        fn()
    if quantiles is not None:
        return [1.0] * len(quantiles)
    return [1.0] if return_mode == "all" else 1.0


def _patch() -> None:
    import triton.testing
    from triton.backends.nvidia import driver
    from triton.compiler import compiler

    if getattr(compiler.CompiledKernel, "_emugpu", False):
        return
    compiler.CompiledKernel._emugpu = True
    init_handles = compiler.CompiledKernel._init_handles

    @functools.wraps(init_handles)
    def register_and_init(self: Any) -> Any:
        if self.module is None and "ptx" in self.asm:
            ptx = self.asm["ptx"]
            images.register_cubin(self.kernel, ptx if isinstance(ptx, str) else ptx.decode())
        return init_handles(self)

    compiler.CompiledKernel._init_handles = register_and_init
    call = driver.CudaLauncher.__call__
    exact_call = exact(call)  # Triton raises RuntimeError

    @functools.wraps(call)
    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        with bounded(args[LAUNCHER_ARGUMENTS:]):
            return exact_call(self, *args, **kwargs)

    driver.CudaLauncher.__call__ = launch
    triton.testing.do_bench = _do_bench
    driver.CudaDriver.get_benchmarker = lambda self: _do_bench


def inductor() -> None:
    """torch.compile picks configurations by timing: run each candidate once instead.

    Call it before compiling.
    """
    from torch._inductor.runtime import benchmarking

    def once(self: Any, fn: Any, *args: Any, **kwargs: Any) -> float:
        if callable(fn):
            fn()
        return 1.0

    for value in vars(benchmarking).values():
        if isinstance(value, type) and issubclass(value, benchmarking.Benchmarker):
            for name in ("benchmark_gpu", "benchmark_cpu"):
                if name in vars(value):
                    setattr(value, name, once)


def install() -> None:
    """Patch Triton if there is one."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return
    _patch()
