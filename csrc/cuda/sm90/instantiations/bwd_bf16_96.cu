// The backward kernels for bf16, head dim 96.
#include "../launch_bwd.cuh"

GENHOI_INSTANTIATE_BWD(BFloat16, 96);
