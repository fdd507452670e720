// The C interface of the attention kernels: a call is checked, and finds the kernels of its GPU,
// element type and head dim.
#include <initializer_list>
#include <type_traits>

#include "common/element.cuh"
#include "common/layout.h"
#include "launch.h"
#include "sm80/launch.cuh"
#include "sm80/plan.cuh"
#ifdef GENHOI_HAS_SM90  // compiled for sm_90a too: build_tools/nvcc.py
#include "sm90/launch.cuh"
#include "sm90/plan.cuh"
#include "sm90/tensor_map.h"
#endif

namespace genhoi::cuda {
namespace {

bool is_supported(const GenhoiAttention& in) {
  return (in.dtype == GENHOI_BFLOAT16 || in.dtype == GENHOI_FLOAT16) && in.head_dim > 0 &&
         in.head_dim <= 128 && in.head_dim % kChunk == 0;
}

bool has_gate(const GenhoiAttention& in) {
  return in.gate_mode == GENHOI_GATE_TOKEN || in.gate_mode == GENHOI_GATE_SUM;
}

// Calls function(dim), where dim() is the next head dim that has an instantiation.
template <class Function>
auto with_head_dim(const GenhoiAttention& in, Function function) {
  if (in.head_dim <= 64) return function(std::integral_constant<int, 64>());
  if (in.head_dim <= 96) return function(std::integral_constant<int, 96>());
  return function(std::integral_constant<int, 128>());
}

// Calls function(element, dim) for the call's element type and head dim.
template <class Function>
int with_instantiation(const GenhoiAttention& in, Function function) {
  return with_head_dim(in, [&](auto dim) -> int {
    return in.dtype == GENHOI_BFLOAT16 ? function(BFloat16(), dim) : function(Float16(), dim);
  });
}

#ifdef GENHOI_HAS_SM90
// An attribute of the current GPU; 0 if there is none.
int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Whether TMA reaches the tokens, if there are any.
bool tma_reaches(const GenhoiTokens& x, int count) {
  return count == 0 || sm90::takes_tensor_map(x);
}
#endif

// Whether the call is for the sm_90a kernels: the current GPU is Hopper's, and TMA reaches all
// tokens. The sm_80 kernels serve every other call.
bool is_for_sm90(const GenhoiAttention& in) {
#ifdef GENHOI_HAS_SM90
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 && tma_reaches(in.q, in.rows) &&
         tma_reaches(in.k, in.keys) && tma_reaches(in.v, in.keys) &&
         tma_reaches(in.k_ref, in.ref_tokens) && tma_reaches(in.v_ref, in.ref_tokens);
#else
  return false;
#endif
}

// Likewise; of the kernels of backward only those of dQ, dK and dV exist for sm_90a.
bool is_for_sm90(const GenhoiBackward& call, GenhoiBackwardKernel kernel) {
#ifdef GENHOI_HAS_SM90
  const bool exists = kernel != GENHOI_BWD_PREPROCESS && kernel != GENHOI_BWD_DBIAS;
  return exists && is_for_sm90(call.in) && tma_reaches(call.dout, call.in.rows);
#else
  return false;
#endif
}

// Whether the caller gave room for what a kernel computes.
bool is_wanted(const GenhoiBackward& call, GenhoiBackwardKernel kernel) {
  if (kernel == GENHOI_BWD_DQ) return call.dq != nullptr;
  if (kernel == GENHOI_BWD_DKDV) return call.dk != nullptr && call.dq_sums == nullptr;
  if (kernel == GENHOI_BWD_SWEEP) return call.dq_sums != nullptr;
  if (kernel == GENHOI_BWD_REF_DKDV) return call.dk_ref != nullptr;
  return true;
}

int launch_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel, void* stream) {
  return with_instantiation(call.in, [&](auto element, auto dim) -> int {
    const auto on = static_cast<cudaStream_t>(stream);
#ifdef GENHOI_HAS_SM90
    if (is_for_sm90(call, kernel)) {
      return sm90::launch_bwd<decltype(element), dim()>(call, kernel, on);
    }
#endif
    return sm80::launch_bwd<decltype(element), dim()>(call, kernel, on);
  });
}

}  // namespace
}  // namespace genhoi::cuda

using namespace genhoi::cuda;

const char* genhoi_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

int genhoi_attention_forward_plan(const GenhoiForward* call, GenhoiPlan* plan) {
  if (!is_supported(call->in)) return cudaErrorInvalidValue;
  *plan = with_head_dim(call->in, [&](auto dim) {
#ifdef GENHOI_HAS_SM90
    if (is_for_sm90(call->in)) return sm90::plan_fwd<dim()>(*call);
#endif
    return sm80::plan_fwd<dim()>(*call);
  });
  return cudaSuccess;
}

int genhoi_attention_forward(const GenhoiForward* call, void* stream) {
  if (!is_supported(call->in)) return cudaErrorInvalidValue;
  return with_instantiation(call->in, [&](auto element, auto dim) -> int {
    const auto on = static_cast<cudaStream_t>(stream);
#ifdef GENHOI_HAS_SM90
    if (is_for_sm90(call->in)) return sm90::launch_fwd<decltype(element), dim()>(*call, on);
#endif
    return sm80::launch_fwd<decltype(element), dim()>(*call, on);
  });
}

int genhoi_attention_backward_plan(const GenhoiBackward* call, int kernel, GenhoiPlan* plan) {
  if (!is_supported(call->in) || kernel < GENHOI_BWD_PREPROCESS || kernel > GENHOI_BWD_SWEEP) {
    return cudaErrorInvalidValue;
  }
  const auto which = static_cast<GenhoiBackwardKernel>(kernel);
  *plan = with_head_dim(call->in, [&](auto dim) {
#ifdef GENHOI_HAS_SM90
    if (is_for_sm90(*call, which)) return sm90::plan_bwd<dim()>(*call, which);
#endif
    return sm80::plan_bwd<dim()>(*call, which);
  });
  return cudaSuccess;
}

int genhoi_attention_backward_scratch(const GenhoiBackward* call, GenhoiScratch* scratch) {
  if (!is_supported(call->in)) return cudaErrorInvalidValue;
  *scratch = {0, 0, 0};
#ifdef GENHOI_HAS_SM90
  const bool has_sweep = is_for_sm90(*call, GENHOI_BWD_SWEEP) && call->dq != nullptr &&
                         call->dk != nullptr && call->in.head_dim > 96;
  if (has_sweep) {
    *scratch = sm90::sweep_scratch(call->in, device_attribute(cudaDevAttrMultiProcessorCount));
  }
#endif
  return cudaSuccess;
}

int genhoi_attention_backward_preprocess(const GenhoiBackward* call, void* stream) {
  if (!is_supported(call->in)) return cudaErrorInvalidValue;
  return launch_bwd(*call, GENHOI_BWD_PREPROCESS, stream);
}

int genhoi_attention_backward(const GenhoiBackward* call, void* stream) {
  if (!is_supported(call->in)) return cudaErrorInvalidValue;
  for (const auto kernel :
       {GENHOI_BWD_SWEEP, GENHOI_BWD_DQ, GENHOI_BWD_DKDV, GENHOI_BWD_REF_DKDV, GENHOI_BWD_DBIAS}) {
    if (!is_wanted(*call, kernel)) continue;
    if (const int error = launch_bwd(*call, kernel, stream)) return error;
  }
  return cudaSuccess;
}

int genhoi_flow_gate_backward_plan(const GenhoiFlowGateBackward* call, GenhoiPlan* plan) {
  if (!is_supported(call->in) || !has_gate(call->in)) return cudaErrorInvalidValue;
  *plan = with_head_dim(call->in, [&](auto dim) { return sm80::plan_flow_gate_bwd<dim()>(*call); });
  return cudaSuccess;
}

int genhoi_flow_gate_backward(const GenhoiFlowGateBackward* call, void* stream) {
  if (!is_supported(call->in) || !has_gate(call->in)) return cudaErrorInvalidValue;
  return with_instantiation(call->in, [&](auto element, auto dim) -> int {
    return sm80::launch_flow_gate_bwd<decltype(element), dim()>(*call,
                                                                static_cast<cudaStream_t>(stream));
  });
}
