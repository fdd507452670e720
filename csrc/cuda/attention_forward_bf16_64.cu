#include "attention_forward_launch.cuh"

namespace genhoi::cuda {
template cudaError_t launch_forward<BFloat16, 64>(const GenhoiForward&, const GenhoiPlan&,
                                                  cudaStream_t);
}
