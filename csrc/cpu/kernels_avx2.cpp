// x86-64 with AVX2, FMA and F16C. Compiled with flags of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 8
#define GENHOI_TILE_ROWS 6

#include "cpu/kernel_table.h"

namespace genhoi::cpu {

constexpr Kernels kAvx2Kernels = kernel_table("avx2");

}  // namespace genhoi::cpu
#endif
