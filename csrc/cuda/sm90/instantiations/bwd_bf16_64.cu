// The backward kernels for bf16, head dim 64.
#include "../launch_bwd.cuh"

GENHOI_INSTANTIATE_BWD(BFloat16, 64);
