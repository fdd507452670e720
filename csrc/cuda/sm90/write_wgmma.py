"""Writes wgmma.cuh: wgmma names each of its accumulators, so that each width has a text.

python csrc/cuda/sm90/write_wgmma.py, from anywhere; the header is committed, so that a build takes
nvcc alone.
"""

from pathlib import Path

WIDTHS = (32, 48, 64, 80, 96, 112, 128, 176, 192)
ELEMENTS = (("BFloat16", "bf16"), ("Float16", "f16"))

HEAD = """\
// Written by write_wgmma.py. Products of a warpgroup on the tensor cores, 64 x N each.
//
// Warp w of the group has rows 16 w to 16 w + 15 as mma.sync has them: lane l rows l / 4 and
// l / 4 + 8 (r = 0, 1), and of every 8 columns two, from 2 (l % 4) on:
// acc[column / 8 * 4 + 2 r + column % 2].
#pragma once

#include <stdint.h>

#include "../common/element.cuh"

// clang-format off
namespace genhoi::cuda::sm90 {

// wgmma is asynchronous: until wgmma_wait, nothing may touch accumulators or operands. The fence
// hands accumulators over to the tensor cores; nothing that writes them may come later. Both take
// them as operands: `volatile` and a memory clobber alone would not keep the compiler from moving
// what reads or writes them.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\\n" ::: "memory");
}
template <int N> struct Accumulators;
template <int N> __device__ __forceinline__ void wgmma_fence(float (&acc)[N]) {
  Accumulators<2 * N>::fence(acc);
}
// Waits until at most PENDING groups are under way, and acc is there.
template <int PENDING, int N> __device__ __forceinline__ void wgmma_wait(float (&acc)[N]) {
  Accumulators<2 * N>::template wait<PENDING>(acc);
}

// acc += a b, or acc = a b with ZERO: its old values are dead then. ss: both operands in shared
// memory, by their descriptors; rs: a in registers, 64 x 16, as a product's columns are, packed.
// TRANS_A, TRANS_B: an operand's outer dimension is contiguous in memory, not the inner one.
template <class Element, int N> struct Wgmma;
"""

ACCUMULATORS = """
template <> struct Accumulators<{n}> {{
  static __device__ __forceinline__ void fence(float (&acc)[{count}]) {{
    asm volatile("wgmma.fence.sync.aligned;\\n" : {inout} :: "memory");
  }}
  template <int PENDING> static __device__ __forceinline__ void wait(float (&acc)[{count}]) {{
    asm volatile("wgmma.wait_group.sync.aligned %{count};\\n" : {inout} : "n"(PENDING) : "memory");
  }}
}};
"""

# The start of a statement: whether the instruction adds to its accumulators.
PREDICATE = "{{\\n.reg .pred add;\\nsetp.ne.b32 add, {}, 0;\\n"

WGMMA = """
template <> struct Wgmma<{element}, {n}> {{
  template <bool ZERO, bool TRANS_B, bool TRANS_A = false>
  static __device__ __forceinline__ void ss(float (&acc)[{count}], uint64_t a, uint64_t b) {{
    if constexpr (ZERO) {{
      asm volatile("{overwrite}{name} {registers}, {ss}\\n}}\\n"
                   : {out} : "l"(a), "l"(b), "n"(TRANS_A), "n"(TRANS_B));
    }} else {{
      asm volatile("{add}{name} {registers}, {ss}\\n}}\\n"
                   : {inout} : "l"(a), "l"(b), "n"(TRANS_A), "n"(TRANS_B));
    }}
  }}
  template <bool ZERO, bool TRANS_B>
  static __device__ __forceinline__ void rs(float (&acc)[{count}], const uint32_t* a, uint64_t b) {{
    if constexpr (ZERO) {{
      asm volatile("{overwrite}{name} {registers}, {rs}\\n}}\\n"
                   : {out} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS_B));
    }} else {{
      asm volatile("{add}{name} {registers}, {rs}\\n}}\\n"
                   : {inout} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANS_B));
    }}
  }}
}};
"""


def operands(count: int, constraint: str) -> str:
    """List accumulators as operands of an asm statement."""
    return ", ".join(f'"{constraint}"(acc[{i}])' for i in range(count))


def products(element: str, ptx: str, n: int) -> str:
    """Write Wgmma of an element type and a width."""
    count = n // 2
    numbers = [f"%{i}" for i in range(count, count + 6)]
    return WGMMA.format(
        element=element,
        n=n,
        count=count,
        overwrite=PREDICATE.format(0),
        add=PREDICATE.format(1),
        name=f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ptx}.{ptx}",
        registers="{" + ", ".join(f"%{i}" for i in range(count)) + "}",
        ss="{}, {}, add, 1, 1, {}, {};".format(*numbers[:4]),
        rs="{{{}, {}, {}, {}}}, {}, add, 1, 1, {};".format(*numbers),
        out=operands(count, "=f"),
        inout=operands(count, "+f"),
    )


def header() -> str:
    """Write the whole file."""
    parts = [HEAD]
    for n in WIDTHS:
        parts.append(ACCUMULATORS.format(n=n, count=n // 2, inout=operands(n // 2, "+f")))
        parts += [products(element, ptx, n) for element, ptx in ELEMENTS]
    parts.append("\n}  // namespace genhoi::cuda::sm90\n// clang-format on\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("wgmma.cuh").write_text(header(), encoding="utf-8")
