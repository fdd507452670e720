// Launches of the flow gate's backward kernel.

#include "gate_backward.cuh"

namespace genhoi::cuda::backward::gate {
namespace {

bool valid(const GenhoiAttention& in) {
  return (in.dtype == GENHOI_BFLOAT16 || in.dtype == GENHOI_FLOAT16) && in.head_dim > 0 &&
         in.head_dim <= 128 && in.head_dim % kChunk == 0 &&
         (in.gate_mode == GENHOI_GATE_TOKEN || in.gate_mode == GENHOI_GATE_SUM);
}

template <class Half>
cudaError_t launch(const GenhoiGateBackward& call, cudaStream_t stream) {
  if (call.in.head_dim <= 64) return launch_gate_backward<Half, 64>(call, stream);
  if (call.in.head_dim <= 96) return launch_gate_backward<Half, 96>(call, stream);
  return launch_gate_backward<Half, 128>(call, stream);
}

}  // namespace
}  // namespace genhoi::cuda::backward::gate

int genhoi_gate_backward_plan(const GenhoiGateBackward* call, GenhoiPlan* plan) {
  using namespace genhoi::cuda::backward::gate;
  if (!valid(call->in)) return cudaErrorInvalidValue;
  const int dim = call->in.head_dim;
  *plan = dim <= 64   ? plan_gate_backward<64>(*call)
          : dim <= 96 ? plan_gate_backward<96>(*call)
                      : plan_gate_backward<128>(*call);
  return cudaSuccess;
}

int genhoi_gate_backward(const GenhoiGateBackward* call, void* stream) {
  using namespace genhoi::cuda;
  if (!backward::gate::valid(call->in)) return cudaErrorInvalidValue;
  const auto on = static_cast<cudaStream_t>(stream);
  return call->in.dtype == GENHOI_BFLOAT16 ? backward::gate::launch<BFloat16>(*call, on)
                                           : backward::gate::launch<Float16>(*call, on);
}
