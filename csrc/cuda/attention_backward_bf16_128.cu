#include "attention_backward.cuh"

namespace genhoi::cuda::backward {
template GenhoiPlan plan_backward<128>(const GenhoiBackward&, int);
template cudaError_t launch_backward<BFloat16, 128>(const GenhoiBackward&, int, cudaStream_t);
}  // namespace genhoi::cuda::backward
