// The tensor maps of the forward kernel.
#pragma once

#include <cuda.h>

namespace genhoi::cuda::sm90 {

// Boxes: a tile of queries, a tile of keys, W1 as a whole; of out and ungated, a warpgroup's rows.
struct FwdMaps {
  CUtensorMap q, k, v, k_ref, v_ref, fc1_weight, out, ungated;
};

}  // namespace genhoi::cuda::sm90
