// The C interface of the forward kernel: which instantiation, on which grid.
#include <cuda_runtime.h>

#include "attention_forward.cuh"
#include "launch.h"

namespace genhoi::cuda {

template <class Half, int DIM>
cudaError_t launch_forward(const GenhoiForward& call, const GenhoiPlan& plan, cudaStream_t stream);

namespace {

// Bytes of shared memory for the next head dim that has an instantiation; 0 if there is none.
uint32_t shared_bytes(int head_dim) {
  if (head_dim <= 64) return forward_shared_bytes<64>();
  if (head_dim <= 96) return forward_shared_bytes<96>();
  return head_dim <= 128 ? forward_shared_bytes<128>() : 0;
}

template <class Half>
cudaError_t launch(const GenhoiForward& call, const GenhoiPlan& plan, cudaStream_t stream) {
  if (call.in.head_dim <= 64) return launch_forward<Half, 64>(call, plan, stream);
  if (call.in.head_dim <= 96) return launch_forward<Half, 96>(call, plan, stream);
  return launch_forward<Half, 128>(call, plan, stream);
}

}  // namespace
}  // namespace genhoi::cuda

extern "C" const char* genhoi_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int genhoi_attention_forward_plan(const GenhoiForward* call, GenhoiPlan* plan) {
  using namespace genhoi::cuda;
  const GenhoiAttention& in = call->in;
  plan->shared = shared_bytes(in.head_dim);
  if (plan->shared == 0 || in.head_dim % kChunk != 0) return cudaErrorInvalidValue;
  plan->grid[0] = (in.rows + kQueries - 1) / kQueries;
  plan->grid[1] = in.heads;
  plan->grid[2] = in.batch;
  plan->block = kThreads;
  return cudaSuccess;
}

extern "C" int genhoi_attention_forward(const GenhoiForward* call, void* stream) {
  GenhoiPlan plan;
  const int error = genhoi_attention_forward_plan(call, &plan);
  if (error != cudaSuccess) return error;
  if (plan.grid[0] == 0 || plan.grid[1] == 0 || plan.grid[2] == 0) return cudaSuccess;
  const auto launch = call->in.dtype == GENHOI_BFLOAT16
                          ? genhoi::cuda::launch<genhoi::cuda::BFloat16>
                          : genhoi::cuda::launch<genhoi::cuda::Float16>;
  return launch(*call, plan, static_cast<cudaStream_t>(stream));
}
