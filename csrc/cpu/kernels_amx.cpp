// As kernels_avx512.cpp, with AMX for bfloat16 where 32 divides the head dim. Compiled with flags
// of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12
#define GENHOI_BFLOAT16 GENHOI_BFLOAT16_TILES
#define GENHOI_BFLOAT16_UNIT "cpu/gemm/amx.h"

#include "cpu/kernel_table.h"

namespace genhoi::cpu {

constexpr Kernels kAmxKernels = kernel_table("amx");

}  // namespace genhoi::cpu
#endif
