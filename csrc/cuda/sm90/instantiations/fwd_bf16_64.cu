// The forward kernel for bf16, head dim 64.
#include "../launch_fwd.cuh"

GENHOI_INSTANTIATE_FWD(BFloat16, 64);
