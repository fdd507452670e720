// As kernels_avx512.cpp, with AVX512-BF16 for bfloat16. Compiled with flags of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12
#define GENHOI_BFLOAT16 GENHOI_BFLOAT16_PAIRS
#define GENHOI_BFLOAT16_UNIT "cpu/gemm/avx512bf16.h"

#include "cpu/kernel_table.h"

namespace genhoi::cpu {

constexpr Kernels kAvx512Bf16Kernels = kernel_table("avx512bf16");

}  // namespace genhoi::cpu
#endif
