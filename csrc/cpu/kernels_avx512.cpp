// x86-64 with AVX-512 F, BW, DQ and VL. Compiled with flags of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12

#include "cpu/kernel_table.h"

namespace genhoi::cpu {

constexpr Kernels kAvx512Kernels = kernel_table("avx512");

}  // namespace genhoi::cpu
#endif
