// Any CPU: 128-bit vectors (SSE2, NEON). Compiled with flags of its own (setup.py).

#define GENHOI_VECTOR_FLOATS 4
#define GENHOI_TILE_ROWS 4

#include "attention_backward.h"
#include "attention_forward.h"
#include "norm_rope.h"
#include "peak.h"

namespace genhoi::cpu {

const Kernels kPortableKernels = {
    "portable",        32 * GENHOI_VECTOR_FLOATS, attention_forward, attention_backward,
    norm_rope_forward, norm_rope_backward,        repeat_products,
};

}  // namespace genhoi::cpu
