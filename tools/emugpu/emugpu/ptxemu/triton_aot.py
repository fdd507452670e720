"""Compile Triton kernels ahead of time (no GPU) and run their PTX in the emulator."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .module import Module, Report
from .tensor_map import TensorMap

SWIZZLES = {0: "none", 1: "32B", 2: "64B", 3: "128B"}


class Desc:
    """A host tensor descriptor argument (signature ``tensordesc<bf16[64, 64]>``)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def expand(self, meta: dict[str, Any] | None) -> list[Any]:
        """The kernel parameters it becomes; ``meta`` is Triton's record of it, None below sm_90."""
        tensor = self.tensor
        if meta is None:
            shape = [*tensor.shape, *tensor.stride()]
            return [tensor, *shape, 0, 0, *shape]
        tensor_map = TensorMap.of(tensor, meta["block_size"], SWIZZLES[meta["swizzle"]])
        return [tensor_map, *tensor.shape, *tensor.stride()]


class Kernel:
    """A compiled kernel, its PTX text and its emulator module.

    signature: {"x": "*bf16", "n": "i32"}; arguments without one are constexprs. align16: names of
    arguments divisible by 16. options: of the compiler (num_warps, num_stages, ...).
    """

    def __init__(
        self,
        fn: triton.runtime.JITFunction,
        signature: dict[str, str],
        constexprs: dict[str, Any],
        arch: int = 80,
        align16: Sequence[str] = (),
        **options: Any,
    ) -> None:
        names = list(fn.arg_names)
        source = ASTSource(
            fn=fn,
            signature={name: signature.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constexprs.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in align16},
        )
        self.compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        self.ptx = self.compiled.asm["ptx"]
        self.meta = self.compiled.metadata
        self.module = Module.from_ptx(self.ptx)
        self.name = self.meta.name

    def launch(self, grid: int | Sequence[int], args: Sequence[Any], **options: Any) -> Report:
        """Module.launch with the block and the shared memory that Triton asks for."""
        program, _ = self.module.program(self.name)
        metas = list(getattr(self.meta, "tensordesc_meta", None) or [])
        flat: list[Any] = []
        for arg in args:
            if isinstance(arg, Desc):
                flat += arg.expand(metas.pop(0) if metas else None)
            else:
                flat.append(arg)
        flat += [None] * (len(program.params) - len(flat))  # scratch pointers
        block, shared = self.meta.num_warps * 32, self.meta.shared
        return self.module.launch(self.name, grid, block, flat, shared, **options)
