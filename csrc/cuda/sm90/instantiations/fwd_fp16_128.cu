// The forward kernel for fp16, head dim 128.
#include "../launch_fwd.cuh"

GENHOI_INSTANTIATE_FWD(Float16, 128);
