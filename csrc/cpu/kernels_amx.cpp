// As kernels_avx512.cpp, with AMX for bfloat16 where 32 divides the head dim. Compiled with flags
// of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12
#define GENHOI_BFLOAT16 GENHOI_BFLOAT16_TILES
#define GENHOI_BFLOAT16_UNIT "bfloat16_tiles.h"

#include "attention_backward.h"
#include "attention_forward.h"
#include "norm_rope.h"
#include "peak.h"

namespace genhoi::cpu {

const Kernels kAmxKernels = {
    "amx",
    32 * GENHOI_VECTOR_FLOATS,
    attention_forward,
    attention_backward,
    norm_rope_forward,
    norm_rope_backward,
    repeat_products,
};

}  // namespace genhoi::cpu
#endif
