"""Triton 3.9.0 fails on a loop that goes on with the sums of a warp-specialised one, for sm_100.

No GPU is needed. `python docs/triton_sm100.py` compiles the kernel below twice: as it is, which
asserts in the pass TritonGPUHoistTMEMAlloc, and with a select on the sums between its two loops,
which compiles. docs/gpu.md has the message.
"""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SIZE = tl.constexpr(128)


@triton.jit
def two_loops(a_desc, b_desc, out, middle, end, SELECT: tl.constexpr):
    """Multiply a ``[128, end]`` with b ``[end, 128]``, in two loops that meet at ``middle``."""
    i = tl.arange(0, SIZE)
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for j in tl.range(0, middle, SIZE, warp_specialize=True):
        acc = tl.dot(a_desc.load([0, j]), b_desc.load([j, 0]), acc)
    if SELECT:
        acc = tl.where(i[:, None] < end, acc, 0.0)
    for j in tl.range(middle, end, SIZE):
        acc = tl.dot(a_desc.load([0, j]), b_desc.load([j, 0]), acc)
    tl.store(out + i[:, None] * SIZE + i[None, :], acc)


def compile_two_loops(*, select: bool) -> None:
    """Compile it for sm_100 and four warps."""
    tiles = "tensordesc<bf16[128, 128]>"
    integers = dict.fromkeys(("middle", "end"), "i32")
    signature = {"a_desc": tiles, "b_desc": tiles, "out": "*fp32", **integers}
    source = ASTSource(two_loops, signature | {"SELECT": "constexpr"}, {"SELECT": select})
    triton.compile(source, target=GPUTarget("cuda", 100, 32), options={"num_warps": 4})


if __name__ == "__main__":
    for select in (True, False):
        try:
            compile_two_loops(select=select)
        except RuntimeError as error:
            print(f"triton {triton.__version__}, select {select}: {error}")
        else:
            print(f"triton {triton.__version__}, select {select}: compiled")
