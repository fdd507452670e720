// x86-64 with AVX-512 F, BW, DQ and VL. Compiled with flags of its own (setup.py).
#if defined(__x86_64__)
#define GENHOI_VECTOR_FLOATS 16
#define GENHOI_TILE_ROWS 12

#include "attention_backward.h"
#include "attention_forward.h"
#include "norm_rope.h"
#include "peak.h"

namespace genhoi::cpu {

const Kernels kAvx512Kernels = {
    "avx512",          32 * GENHOI_VECTOR_FLOATS, attention_forward, attention_backward,
    norm_rope_forward, norm_rope_backward,        repeat_products,
};

}  // namespace genhoi::cpu
#endif
