// The backward kernels for fp16, head dim 64.
#include "../launch_bwd.cuh"

GENHOI_INSTANTIATE_BWD(Float16, 64);
