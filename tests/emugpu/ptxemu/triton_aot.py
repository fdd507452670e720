"""Compile Triton kernels ahead of time (no GPU) and run their PTX in the emulator."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .hopper import TensorMap
from .machine import Module

_TY = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int32": "i32",
    "int64": "i64",
    "int8": "i8",
    "float64": "fp64",
    "uint32": "u32",
    "uint8": "u8",
    "uint16": "bf16",
}


class Desc:
    """A host tensor descriptor argument (signature 'tensordesc<bf16[64, 64]>')."""

    def __init__(self, tensor):
        self.tensor = tensor

    def expand(self, meta):
        t = self.tensor
        if meta is None:
            return [t, *t.shape, *t.stride(), 0, 0, *t.shape, *t.stride()]
        m = TensorMap.of(
            t, meta["block_size"], {0: "none", 1: "32B", 2: "64B", 3: "128B"}[meta["swizzle"]]
        )
        return [m, *t.shape, *t.stride()]


class Kernel:
    def __init__(self, fn, signature, constexprs, arch=80, align16=(), **options):
        """signature: {'x': '*bf16', 'n': 'i32', 'BLOCK': 'constexpr'}; align16: names divisible by 16."""
        names = list(fn.arg_names)
        attrs = {(names.index(a),): [["tt.divisibility", 16]] for a in align16}
        src = ASTSource(
            fn=fn,
            signature={n: signature.get(n, "constexpr") for n in names},
            constexprs={(names.index(k),): v for k, v in constexprs.items()},
            attrs=attrs,
        )
        self.compiled = triton.compile(src, target=GPUTarget("cuda", arch, 32), options=options)
        self.ptx = self.compiled.asm["ptx"]
        self.meta = self.compiled.metadata
        self.module = Module.from_ptx(self.ptx)
        self.name = self.meta.name

    def launch(self, grid, args, **kw):
        prog, _ = self.module.program(self.name)
        metas = list(getattr(self.meta, "tensordesc_meta", None) or [])
        flat = []
        for a in args:
            flat += a.expand(metas.pop(0) if metas else None) if isinstance(a, Desc) else [a]
        args = flat + [None] * (len(prog.params) - len(flat))  # scratch pointers
        return self.module.launch(
            self.name, grid, self.meta.num_warps * 32, args, self.meta.shared, **kw
        )
