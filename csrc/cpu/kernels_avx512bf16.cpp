// As kernels_avx512.cpp, with AVX512-BF16 for bfloat16. Compiled with flags of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12
#define GENHOI_BFLOAT16 GENHOI_BFLOAT16_PAIRS
#define GENHOI_BFLOAT16_UNIT "bfloat16_pairs.h"

#include "attention_backward.h"
#include "attention_forward.h"
#include "norm_rope.h"
#include "peak.h"

namespace genhoi::cpu {

const Kernels kAvx512Bf16Kernels = {
    "avx512bf16",      32 * GENHOI_VECTOR_FLOATS, attention_forward, attention_backward,
    norm_rope_forward, norm_rope_backward,        repeat_products,
};

}  // namespace genhoi::cpu
#endif
