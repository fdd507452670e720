// The backward kernels for bf16, head dim 128.
#include "../launch_bwd.cuh"

GENHOI_INSTANTIATE_BWD(BFloat16, 128);
