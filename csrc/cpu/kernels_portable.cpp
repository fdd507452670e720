// Any CPU: 128-bit vectors (SSE2, NEON). Compiled with flags of its own (setup.py).
#define GENHOI_VECTOR_FLOATS 4
#define GENHOI_TILE_ROWS 4

#include "cpu/kernel_table.h"

namespace genhoi::cpu {

constexpr Kernels kPortableKernels = kernel_table("portable");

}  // namespace genhoi::cpu
