// Launches of the backward kernels, and the sum of the bias's gradient.

#include "attention_backward.cuh"

namespace genhoi::cuda::backward {

// Each is instantiated in a file of its own, attention_backward_*.cu.
extern template GenhoiPlan plan_backward<64>(const GenhoiBackward&, int);
extern template GenhoiPlan plan_backward<96>(const GenhoiBackward&, int);
extern template GenhoiPlan plan_backward<128>(const GenhoiBackward&, int);
#define GENHOI_DECLARE(half, dim) \
  extern template cudaError_t launch_backward<half, dim>(const GenhoiBackward&, int, cudaStream_t)
GENHOI_DECLARE(BFloat16, 64);
GENHOI_DECLARE(BFloat16, 96);
GENHOI_DECLARE(BFloat16, 128);
GENHOI_DECLARE(Float16, 64);
GENHOI_DECLARE(Float16, 96);
GENHOI_DECLARE(Float16, 128);
#undef GENHOI_DECLARE

namespace {

constexpr int kBiasThreads = 128;

// Adds the blocks' shares up, in a fixed order. Grid: references.
__global__ void __launch_bounds__(kBiasThreads)
    gradient_of_bias(const __grid_constant__ GenhoiBackward call) {
  __shared__ float sums[kBiasThreads];
  const GenhoiAttention& in = call.in;
  const int parts = GENHOI_BIAS_PARTS(in.ref_tokens, in.references);
  const int64_t heads = static_cast<int64_t>(call.ref_batch) * in.heads;
  float sum = 0.0f;
  for (int part = 0; part < parts; part++) {
    const KeyBlock block = reference_block(in, part);
    if (block.count == 0 || block.segment != static_cast<int>(blockIdx.x)) continue;
    for (int64_t head = threadIdx.x; head < heads; head += kBiasThreads) {
      sum += call.bias_parts[head * parts + part];
    }
  }
  sums[threadIdx.x] = sum;
  for (int half = kBiasThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) call.dref_bias[blockIdx.x] = sums[0];
}

bool valid(const GenhoiBackward& call) {
  const GenhoiAttention& in = call.in;
  return (in.dtype == GENHOI_BFLOAT16 || in.dtype == GENHOI_FLOAT16) && in.head_dim > 0 &&
         in.head_dim <= 128 && in.head_dim % kChunk == 0;
}

GenhoiPlan plan_of(const GenhoiBackward& call, int kernel) {
  const GenhoiAttention& in = call.in;
  if (kernel == GENHOI_GRADIENT_OF_BIAS) {
    const bool needed = call.dref_bias != nullptr && in.ref_tokens > 0 && in.references > 0;
    return needed ? GenhoiPlan{{static_cast<uint32_t>(in.references), 1, 1}, kBiasThreads, 0}
                  : GenhoiPlan{};
  }
  if (in.head_dim <= 64) return plan_backward<64>(call, kernel);
  return in.head_dim <= 96 ? plan_backward<96>(call, kernel) : plan_backward<128>(call, kernel);
}

template <class Half>
cudaError_t launch_of_type(const GenhoiBackward& call, int kernel, cudaStream_t stream) {
  if (call.in.head_dim <= 64) return launch_backward<Half, 64>(call, kernel, stream);
  if (call.in.head_dim <= 96) return launch_backward<Half, 96>(call, kernel, stream);
  return launch_backward<Half, 128>(call, kernel, stream);
}

cudaError_t launch(const GenhoiBackward& call, int kernel, void* to) {
  const auto stream = static_cast<cudaStream_t>(to);
  if (kernel == GENHOI_GRADIENT_OF_BIAS) {
    const GenhoiPlan plan = plan_of(call, kernel);
    if (plan.block == 0) return cudaSuccess;
    gradient_of_bias<<<plan.grid[0], plan.block, 0, stream>>>(call);
    return cudaGetLastError();
  }
  return call.in.dtype == GENHOI_BFLOAT16 ? launch_of_type<BFloat16>(call, kernel, stream)
                                          : launch_of_type<Float16>(call, kernel, stream);
}

}  // namespace
}  // namespace genhoi::cuda::backward

int genhoi_attention_delta(const GenhoiBackward* call, void* stream) {
  using namespace genhoi::cuda::backward;
  return valid(*call) ? launch(*call, GENHOI_DELTA, stream) : cudaErrorInvalidValue;
}

int genhoi_attention_backward(const GenhoiBackward* call, void* stream) {
  using namespace genhoi::cuda::backward;
  if (!valid(*call)) return cudaErrorInvalidValue;
  for (int kernel = GENHOI_GRADIENT_OF_QUERIES; kernel <= GENHOI_GRADIENT_OF_BIAS; kernel++) {
    if (const cudaError_t error = launch(*call, kernel, stream)) return error;
  }
  return cudaSuccess;
}

int genhoi_attention_backward_plan(const GenhoiBackward* call, int kernel, GenhoiPlan* plan) {
  using namespace genhoi::cuda::backward;
  if (!valid(*call) || kernel < GENHOI_DELTA || kernel > GENHOI_GRADIENT_OF_BIAS) {
    return cudaErrorInvalidValue;
  }
  *plan = plan_of(*call, kernel);
  return cudaSuccess;
}
